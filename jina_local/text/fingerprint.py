"""Whether a tokenizer is the one that weights were made with: by its fingerprint, and by a GGUF's own vocabulary.

A vocabulary of the right form and size may still be another model's, and every id would then mean another token.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import ModelDamaged
from ..formats.files import Identity, Remembered, identity, open_regular, parse_json
from ..formats.gguf import Header
from ..formats.schema import shown
from . import gate
from .gguf_vocabulary import NORMAL
from .tokenizer import PROBES, Tokenizer

KEY = "jina_local.tokenizer_fingerprint"  # in GGUF files of our converter

_agreed = Remembered[bool](32)


def check_fingerprint(tokenizer: Tokenizer, expected: str, where: str) -> None:
    """Raise ModelDamaged unless a tokenizer has the fingerprint that `where` holds: a manifest, or a GGUF file."""
    found = tokenizer.fingerprint()
    if found != expected:
        raise ModelDamaged(
            f"{tokenizer.where}: gives other ids than the tokenizer that these weights were converted with: its "
            f"fingerprint is {found[:12]}, and {where} has {shown(expected[:12])}. Put the model's own "
            "tokenizer.json beside the weights, or convert again. If it is the model's own, the installed tokenizers "
            f"{tokenizers.__version__} reads it in another way than the version that converted it."
        )


def check_own_vocabulary(tokenizer: Tokenizer, header: Header) -> None:
    """Raise ModelDamaged unless the vocabulary that a GGUF file holds gives the ids of a tokenizer.json.

    A file of our converter has the fingerprint of the tokenizer it was made with. In any other file the tokens are
    compared one by one; if they differ in any way, the ids of fixed texts decide.
    """
    if KEY in header.keys:
        check_fingerprint(tokenizer, str(header.keys[KEY]), f"the header of {header.path}")
        return
    key = _identities(tokenizer, header)
    if _agreed.get(key):
        return
    difference = _difference(tokenizer, header)
    if difference:
        _probe(tokenizer, header, difference)
    _agreed.put(key, True)


def _probe(tokenizer: Tokenizer, header: Header, difference: str) -> None:
    try:
        own = Tokenizer.from_gguf(header)
    except ModelDamaged as error:
        raise ModelDamaged(
            f"{tokenizer.where}: is not the tokenizer in {header.path} ({difference}), whose own cannot be tried "
            f"({error})."
        ) from error
    for text in PROBES:
        if own.ids(text) != tokenizer.ids(text):
            raise ModelDamaged(
                f"{tokenizer.where}: is not the tokenizer in {header.path} ({difference}): it reads {shown(text)} as "
                f"{tokenizer.ids(text)[:8]}, and the file's own vocabulary gives {own.ids(text)[:8]}. Put the "
                "model's own tokenizer.json beside the weights, or remove this one to use the file's vocabulary."
            )


def _difference(tokenizer: Tokenizer, header: Header) -> str:
    """The first difference between the tokens, and the merges or scores; "" if there is none."""
    if isinstance(tokenizer.source, Header):
        return _header_difference(tokenizer.source, header)
    tokens, types = header.keys.get("tokenizer.ggml.tokens"), header.keys.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(types) != len(tokens):
        return "its header has no list of tokens and their types"
    ids = {number: token.encode() for token, number in tokenizer.vocabulary().items()}
    own = {n: token for n, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    odd = [n for n, token in own.items() if ids.get(n) != token] or [n for n in ids if n >= len(tokens)]
    if odd:
        one, other = (shown(where[min(odd)]) if min(odd) in where else "no token" for where in (ids, own))
        return f"the id {min(odd)} is {one} and {other}"
    return _model_difference(tokenizer.source, header)


def _header_difference(one: Header, other: Header) -> str:
    keys = sorted(key for key in {*one.keys, *other.keys} if key.startswith("tokenizer."))
    return next((f"{key} differs" for key in keys if one.keys.get(key) != other.keys.get(key)), "")


def _model_difference(path: Path | None, header: Header) -> str:
    """The same for the merges or scores, which decide how a text is cut into tokens."""
    if path is None:
        return "it was not read from a file"
    raw, _ = gate.read(path)
    model: Any = parse_json(raw, str(path))["model"]
    if model["type"] == "Unigram":
        scores, own = [score for _, score in model["vocab"]], header.keys.get("tokenizer.ggml.scores")
        rounded = list(struct.unpack(f"<{len(scores)}f", struct.pack(f"<{len(scores)}f", *scores)))
        return "" if isinstance(own, list) and own[: len(rounded)] == rounded else "the scores of the pieces differ"
    merges = [(one if isinstance(one, str) else " ".join(one)).encode() for one in model["merges"]]
    return "" if merges == header.keys.get("tokenizer.ggml.merges") else "the merges differ"


def _identities(tokenizer: Tokenizer, header: Header) -> Identity | None:
    """Of both files together; None if one has just changed, or is not known."""
    source = tokenizer.source.path if isinstance(tokenizer.source, Header) else tokenizer.source
    if source is None:
        return None
    found: list[int] = []
    for path in (source, header.path):
        with open_regular(path) as file:
            found.extend(identity(file) or ())
    return tuple(found) if len(found) == 10 else None
