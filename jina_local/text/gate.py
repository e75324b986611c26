"""tokenizer.json, held against the tokenizers that the models have, before the tokenizer library sees it.

Two forms pass: byte-level BPE behind a split pattern of gguf_vocabulary.PRE_TOKENIZERS, and XLM-R's Unigram. Each
component has to be of a type that these models have, with their parameters: no dropout, no normaliser that multiplies
text, no regex of the file's own. Bounded are the file's length, the number of tokens, their ids and lengths, and the
length that the normaliser gives one character. Whether the tokens are the model's own is seen by fingerprint.py.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelDamaged
from ..formats.files import Remembered, parse_json, read_all
from ..formats.schema import check, fields, shown
from ..spec import TokenizerSpec
from . import components
from .gguf_vocabulary import PRE_TOKENIZERS

UNIGRAM = "t5"  # as llama.cpp calls XLM-R's

_MAX_FILE = 64 << 20


@dataclass(frozen=True)
class Passed:
    """What is known of a tokenizer.json that passed."""

    form: str  # UNIGRAM, or the first name in PRE_TOKENIZERS that stands for its split; see TokenizerSpec.form
    rows: int  # of the smallest token table that has a row for every id
    added: tuple[tuple[str, int], ...]  # the added tokens and the ids that the file gives them


_passed = Remembered[Passed](32)


def read(path: Path) -> tuple[bytes, Passed]:
    """Read a tokenizer.json and check it. A file that has not changed is checked once in a process.

    Raises ModelDamaged, naming the file, the member and the values that can be.
    """
    raw, key = read_all(path, _MAX_FILE)
    passed = _passed.get(key)
    if passed is None:
        with _collector_off():
            passed = check_body(parse_json(raw, str(path)), str(path))
        _passed.put(key, passed)
    return raw, passed


@contextmanager
def _collector_off() -> Iterator[None]:
    """A vocabulary is half a million objects without a circle; the collector would visit them again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def check_body(body: Mapping[str, object], where: str) -> Passed:
    """Check what a tokenizer.json holds. Raises ModelDamaged."""
    model = body.get("model")
    unigram = isinstance(model, dict) and model.get("type") == "Unigram"
    form = UNIGRAM if unigram else _split_of(body, where)
    own = components.unigram() if unigram else components.byte_level_bpe(PRE_TOKENIZERS[form])
    check(dict(body), fields({**own, "added_tokens": components.ADDED_TOKENS}, components.AROUND), where)
    return _summary(body, form)


def require(passed: Passed, spec: TokenizerSpec, where: str) -> None:
    """Raise ModelDamaged unless a tokenizer that passed is of the form that a model has."""
    if passed.form != spec.form:
        raise ModelDamaged(
            f"{where}: splits and normalises text as {passed.form!r} does, and this model's tokenizer as "
            f"{spec.form!r}: it is another model's. Put the model's own tokenizer.json beside the weights."
        )


def _split_of(body: Mapping[str, object], where: str) -> str:
    """The name of the split pattern of a byte-level BPE."""
    found = _inside(body, "pre_tokenizer", "pretokenizers", 0, "pattern", "Regex")
    for name, pre in PRE_TOKENIZERS.items():
        if pre.split == found:
            return name
    raise ModelDamaged(
        f"{where}: is neither a Unigram model nor a byte-level BPE behind the split pattern of "
        f"{', '.join(PRE_TOKENIZERS)}: it has the model {shown(_inside(body, 'model', 'type'))} and the pattern "
        f"{shown(found)}. Put the model's own tokenizer.json beside the weights."
    )


def _inside(value: object, *way: str | int) -> object:
    """The value at the end of the way; None if the way ends before."""
    for step in way:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, Mapping) else None
        else:
            value = value[step] if isinstance(value, list) and len(value) > step else None
    return value


def _summary(body: Mapping[str, object], form: str) -> Passed:
    vocab = body["model"]["vocab"]  # type: ignore[index]
    added = tuple((entry["content"], entry["id"]) for entry in body["added_tokens"])  # type: ignore[attr-defined]
    largest = max(len(vocab) - 1 if form == UNIGRAM else max(vocab.values()), *(n for _, n in added), 0)
    return Passed(form, largest + 1, added)
