"""tokenizer.json -> the vocabulary of a GGUF, so that llama.cpp's own tokenizer gives the same ids (for NFC text).

What llama.cpp cannot do as the file asks is refused here: another split pattern or normaliser than the name in
tokenizer.ggml.pre stands for, another model than byte-level BPE, or Unigram for XLM-R, a template that adds more than
one token a side.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jina_local.errors import ModelDamaged
from jina_local.text.gguf_vocabulary import (
    CONTROL,
    FLAGS_KEY,
    NORMAL,
    PLAIN_FLAGS,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.architecture import Architecture
from jina_local.weights.gguf_keys import TOKENIZERS

_NO_SCORE = -10000.0  # of rows without a token, as llama.cpp's own converter has it
_SPACE = "\u2581"
# A step of some copies, which the split at white space makes needless.
_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}


@dataclass(frozen=True)
class Pieces:
    """What a Unigram vocabulary has in the place of merges."""

    scores: list[float]  # one for each row of the token table
    charsmap: bytes  # the table of the normaliser; empty: there is none
    between: bool  # whether a pair has two closing tokens between its texts


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer keys of one GGUF. `tokens` and `types` have one entry for each row of the token table."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    add_eos: bool
    add_bos: bool
    ids: Mapping[str, int]  # "bos", "eos", "padding", "mask", ...: those that are known
    flags: Mapping[str, Mapping[str, bool]]  # id -> what an added token has beyond its text
    fingerprint: str
    pieces: Pieces | None = None  # of a Unigram model

    def write(self, writer: Any) -> None:
        """Add the keys to a gguf.GGUFWriter."""
        writer.add_tokenizer_model("t5" if self.pieces else "gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.pieces:
            self._write_pieces(writer, self.pieces)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        # Stated even when false: the names of this family switch it on where the key is missing.
        writer.add_add_bos_token(self.add_bos)
        if self.add_eos:
            writer.add_add_eos_token(True)
        writer.add_string("jina_local.tokenizer_fingerprint", self.fingerprint)
        if self.flags or self.pieces:
            writer.add_string(FLAGS_KEY, json.dumps(self.flags, sort_keys=True))

    def _write_pieces(self, writer: Any, pieces: Pieces) -> None:
        writer.add_token_scores(pieces.scores)
        if pieces.charsmap:
            writer.add_precompiled_charsmap(pieces.charsmap)
        # The split at white space: every word has one space before it, and none is left over.
        writer.add_add_space_prefix(True)
        writer.add_remove_extra_whitespaces(True)
        writer.add_add_sep_token(pieces.between)
        writer.add_token_type_count(1)


def read(tokenizer: Tokenizer, raw: bytes, arch: Architecture, config: Mapping[str, object]) -> Vocabulary:
    """The vocabulary of `raw`, a tokenizer.json that `tokenizer` was made from.

    `config`: config.json, with the pad_token of tokenizer_config.json where the model's own names no padding.
    Raises ModelDamaged where llama.cpp would not give the ids of this tokenizer.
    """
    where = tokenizer.where
    body = json.loads(raw)
    opening, closing = tokenizer.opening, tokenizer.closing
    if len(opening) > 1 or len(closing) > 1:
        raise ModelDamaged(f"{where}: puts {opening} and {closing} around a text; llama.cpp adds one token a side.")
    if arch.xlm_roberta:
        return _read_unigram(tokenizer, body, arch, config)
    _, (pre, *_) = TOKENIZERS[arch.kind]
    _check_pipeline(body, pre, where)
    tokens, types = _rows(body, body["model"]["vocab"], arch.vocab, where)
    ids = {
        name: n for name in ("bos", "eos", "padding", "mask") if (n := _id(config, name, tokens, where)) is not None
    }
    ids |= {"bos": opening[0]} if opening else {}
    ids |= {"eos": closing[0]} if closing else {}
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=_merges(body["model"]["merges"], where),
        add_eos=bool(closing),
        add_bos=bool(opening),
        ids=ids,
        flags=_flags(body["added_tokens"]),
        fingerprint=tokenizer.fingerprint(),
    )


def _read_unigram(
    tokenizer: Tokenizer, body: Mapping[str, Any], arch: Architecture, config: Mapping[str, object]
) -> Vocabulary:
    """XLM-R's: <s> and </s> around every text, which are the classifier's and the separating token too."""
    where = tokenizer.where
    charsmap = _check_unigram(body, where)
    _, (pre, *_) = TOKENIZERS[arch.kind]
    vocab: list[tuple[str, float]] = body["model"]["vocab"]
    tokens, types = _rows(body, {token: n for n, (token, _) in enumerate(vocab)}, arch.vocab, where)
    if not tokenizer.opening or not tokenizer.closing:
        raise ModelDamaged(
            f"{where}: puts no token before a text, or none after it; XLM-R's tokenizer has <s> and </s>."
        )
    bos, eos, unknown = tokenizer.opening[0], tokenizer.closing[0], body["model"]["unk_id"]
    if types[unknown] != CONTROL:
        raise ModelDamaged(f"{where}: {tokens[unknown]!r}, which stands for unknown text, is not a special token.")
    types[unknown] = UNKNOWN
    used = sum(kind != UNUSED for kind in types)
    if UNUSED in types[:used]:
        raise ModelDamaged(f"{where}: has no token with the id {types.index(UNUSED)}, and some after it.")
    named = {"pad_token": "<pad>", "mask_token": "<mask>", **{k: v for k, v in config.items() if v is not None}}
    ids = {name: n for name in ("padding", "mask") if (n := _id(named, name, tokens, where)) is not None}
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[],
        add_eos=True,
        add_bos=True,
        # "seperator" is how the key is spelt.
        ids={"bos": bos, "eos": eos, "unknown": unknown, "seperator": eos, "cls": bos, **ids},
        flags=_flags(body["added_tokens"]),
        fingerprint=tokenizer.fingerprint(),
        pieces=Pieces(_scores(vocab, types), charsmap, _between(body, tokens[bos], tokens[eos], where)),
    )


def _check_unigram(body: Mapping[str, Any], where: str) -> bytes:
    """Raise unless the steps are those of XLM-R, which llama.cpp calls "t5"; the table of the normaliser."""
    model = body.get("model") or {}
    steps: list[dict[str, Any]] = (body.get("pre_tokenizer") or {}).get("pretokenizers") or []
    space = steps[-1] if steps else {}
    prefix = space.get("prepend_scheme", "always" if space.get("add_prefix_space") else None)
    normalizer = body.get("normalizer") or {}
    normalizers = [n for n in normalizer.get("normalizers", [normalizer]) if n and n != _SPACES]
    table = normalizers[0].get("precompiled_charsmap") if normalizers else None
    faults = {
        "model": (model.get("type"), "Unigram"),
        "byte_fallback": (bool(model.get("byte_fallback")), False),
        "normaliser": ([n.get("type") for n in normalizers], ["Precompiled"] if normalizers else []),
        "steps": ([step.get("type") for step in steps], ["WhitespaceSplit", "Metaspace"]),
        "mark of a space": ((space.get("replacement"), prefix, space.get("split", True)), (_SPACE, "always", True)),
    }
    _raise_faults(faults, "t5", where)
    unknown = model.get("unk_id")
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < len(model["vocab"]):
        raise ModelDamaged(f"{where}: names no token for unknown text (unk_id is {unknown!r}).")
    return b"" if table is None else base64.b64decode(table)


def _scores(vocab: list[tuple[str, float]], types: list[int]) -> list[float]:
    """One for each row; an added token that the model does not have gets 0, as those that it has."""
    own = [score for _, score in vocab]
    return own + [_NO_SCORE if kind == UNUSED else 0.0 for kind in types[len(own) :]]


def _between(body: Mapping[str, Any], opening: str, closing: str, where: str) -> bool:
    """Whether a pair is <s> A </s></s> B </s>; False where one token stands between."""
    post = body.get("post_processor") or {}
    if post.get("type") == "RobertaProcessing":
        return True
    pair = [str(next(iter(item.values()))["id"]) for item in post.get("pair") or []]
    for between in (2, 1):
        if pair == [opening, "A", *[closing] * between, "B", closing]:
            return between == 2
    raise ModelDamaged(f"{where}: puts two texts together as {' '.join(pair)}, which llama.cpp cannot.")


def _check_pipeline(body: Mapping[str, Any], pre: str, where: str) -> None:
    """Raise unless normaliser, splitter and model are what llama.cpp computes under the name `pre`."""
    expected = PRE_TOKENIZERS[pre]
    model = body.get("model") or {}
    steps: list[dict[str, Any]] = (body.get("pre_tokenizer") or {}).get("pretokenizers") or []
    split, level = steps if len(steps) == 2 else [{}, {}]
    normalizer = (body.get("normalizer") or {}).get("type")
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    faults = {
        "model": (model.get("type"), "BPE"),
        "ignore_merges": (bool(model.get("ignore_merges")), expected.ignore_merges),
        "byte_fallback": (bool(model.get("byte_fallback")), False),
        "dropout": (model.get("dropout"), None),
        "unk_token": (model.get("unk_token"), None),
        "subword affixes": (
            (model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""),
            ("", ""),
        ),
        "normaliser": (normalizer, "NFC" if expected.nfc else None),
        "split pattern": ((split.get("pattern") or {}).get("Regex"), expected.split),
        "split behaviour": ((split.get("behavior"), split.get("invert")), ("Isolated", False)),
        "byte level": ({key: level.get(key) for key in plain}, plain),
    }
    _raise_faults(faults, pre, where)


def _raise_faults(faults: Mapping[str, tuple[object, object]], pre: str, where: str) -> None:
    told = [f"{what} {found!r} instead of {right!r}" for what, (found, right) in faults.items() if found != right]
    if told:
        raise ModelDamaged(
            f"{where}: is not the tokenizer that llama.cpp calls {pre!r}: it has the {'; '.join(told)}."
        )


def _rows(body: Mapping[str, Any], vocab: Mapping[str, int], rows: int, where: str) -> tuple[list[str], list[int]]:
    """One token and type for each row of the table; rows without a token are named [PADn] and UNUSED."""
    names: dict[int, str] = {}
    types = [UNUSED] * rows
    for token, number in vocab.items():
        _place(names, number, token, rows, where)
        types[number] = NORMAL
    for entry in body["added_tokens"]:
        _place(names, entry["id"], entry["content"], rows, where)
        types[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    tokens = [names.get(n, f"[PAD{n}]") for n in range(rows)]
    if len(set(tokens)) != rows:
        # llama.cpp ends the process on such a vocabulary.
        raise ModelDamaged(f"{where}: has the same token under two ids.")
    return tokens, types


def _place(names: dict[int, str], number: int, token: str, rows: int, where: str) -> None:
    if not 0 <= number < rows:
        raise ModelDamaged(f"{where}: token {token!r} has the id {number}, and the token table has {rows} rows.")
    if names.setdefault(number, token) != token:
        raise ModelDamaged(f"{where}: id {number} is both {names[number]!r} and {token!r}.")


def _merges(merges: list[str] | list[list[str]], where: str) -> list[str]:
    """Pairs as one text with a space between; older files have them so already."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if any(len(pair) != 2 or " " in pair[0] or " " in pair[1] for pair in pairs):
        raise ModelDamaged(f"{where}: has a merge that is not two tokens without spaces.")
    return [" ".join(pair) for pair in pairs]


def _flags(added: list[dict[str, Any]]) -> dict[str, dict[str, bool]]:
    """What GGUF has no place for: id -> the flags of an added token that are not the plain ones."""
    out = {}
    for entry in added:
        odd = {key: entry[key] for key, plain in PLAIN_FLAGS.items() if entry.get(key, plain) != plain}
        if odd:
            out[str(entry["id"])] = odd
    return out


def _id(config: Mapping[str, object], name: str, tokens: list[str], where: str) -> int | None:
    stem = {"padding": "pad"}.get(name, name)
    value, text = config.get(f"{stem}_token_id"), config.get(f"{stem}_token")
    if value is None and isinstance(text, str):
        value = tokens.index(text) if text in tokens else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
        raise ModelDamaged(
            f"{where}: the config's id of the {name} token is {value!r}; not a row of the token table."
        )
    return value
