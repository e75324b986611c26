"""The members of a tokenizer.json, each with the values that the models' files have; anything else is Unfit.

Copies of one tokenizer spell some members in several ways, because they were saved by other versions of the library.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from itertools import chain

from ..formats.schema import (
    Kind,
    Unfit,
    fields,
    flag,
    list_of,
    matching,
    number,
    one_of,
    or_null,
    shown,
    tagged,
    text,
    whole,
)
from .gguf_vocabulary import PreTokenizer

_MOST_ROWS = 1 << 20  # architecture.py allows no larger token table; an id fits 32 bits by far
_MOST_MERGES, _MOST_ADDED, _MOST_MARKS = 1 << 21, 4096, 16
_LONGEST, _LONGEST_PIECE, _LONGEST_ADDED = 512, 64, 256  # characters; the models' longest are 128, 16 and 30
_MOST_CHARSMAP = 4 << 20
_MOST_BYTES = 64  # that the normaliser puts in the place of one character; 33 in the models'
_MOST_SCORE = 1e6
_SPACE = "\u2581"

_ID = whole(0, _MOST_ROWS - 1)
_LENGTH = whole(0, 1 << 31)


def byte_level_bpe(pre: PreTokenizer) -> Mapping[str, Kind[object]]:
    """The members that make the ids of a byte-level BPE behind one split pattern."""
    merges_ignored = {"ignore_merges" if pre.ignore_merges else "ignore_merges?": one_of(pre.ignore_merges)}
    steps = (
        tagged({"Split": {"pattern": fields({"Regex": one_of(pre.split)}), "behavior": one_of("Isolated"),
                          "invert": one_of(False)}}),
        tagged({"ByteLevel": {"add_prefix_space": one_of(False), "trim_offsets": flag, "use_regex": one_of(False)}}),
    )  # fmt: skip
    return {
        "model": tagged({"BPE": {**_BPE, **merges_ignored}}),
        "normalizer": tagged({"NFC": {}}) if pre.nfc else one_of(None),
        "pre_tokenizer": tagged({"Sequence": {"pretokenizers": _sequence(*steps)}}),
    }


def unigram() -> Mapping[str, Kind[object]]:
    """The members that make the ids of XLM-R's Unigram."""
    steps = tagged({"WhitespaceSplit": {}}), tagged({"Metaspace": _METASPACE})
    return {
        "model": tagged({"Unigram": {"vocab": _pieces, "unk_id": _ID, "byte_fallback?": one_of(False)}}),
        "normalizer": or_null(tagged({"Precompiled": _PRECOMPILED, "Sequence": {"normalizers": _NORMALIZERS}})),
        "pre_tokenizer": tagged({"Sequence": {"pretokenizers": _sequence(*steps)}}),
    }


def _sequence(*kinds: Kind[object]) -> Kind[object]:
    """A list with one value of each kind, in order."""

    def each(value: object) -> object:
        steps = list_of(lambda step: step, len(kinds), least=len(kinds))(value)
        for n, (step, kind) in enumerate(zip(steps, kinds, strict=True)):
            try:
                kind(step)
            except Unfit as fault:
                raise fault.inside(f"[{n}]") from None
        return value

    return each


def _vocabulary(value: object) -> object:
    """token -> id. Vocabularies hold 150,000 of these: each test is one pass in C."""
    if not isinstance(value, dict) or not 0 < len(value) <= _MOST_ROWS:
        raise Unfit(value, f"an object of 1 to {_MOST_ROWS} tokens")
    ids = value.values()
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= _MOST_ROWS:
        token = next(token for token, n in value.items() if type(n) is not int or not 0 <= n < _MOST_ROWS)
        raise Unfit(value[token], f"an id from 0 to {_MOST_ROWS - 1}", f"[{shown(token)}]")
    if len(set(ids)) < len(value):
        raise Unfit(value, "an object in which every token has an id of its own")
    _require_short(value, _LONGEST)
    return value


def _merges(value: object) -> object:
    """Pairs of tokens, as lists or as texts with a space between."""
    if not isinstance(value, list) or len(value) > _MOST_MERGES:
        raise Unfit(value, f"a list of at most {_MOST_MERGES} merges")
    kinds = set(map(type, value))
    if kinds == {list}:
        if set(map(len, value)) != {2} or set(map(type, chain.from_iterable(value))) != {str}:
            odd = next(n for n, pair in enumerate(value) if len(pair) != 2 or {type(x) for x in pair} != {str})
            raise Unfit(value[odd], "a pair of tokens", f"[{odd}]")
        _require_short(chain.from_iterable(value), _LONGEST)
    elif kinds - {str}:
        odd = next(n for n, pair in enumerate(value) if not isinstance(pair, str))
        raise Unfit(value[odd], "a merge in the form of the others", f"[{odd}]")
    else:
        _require_short(value, 2 * _LONGEST + 1)
    return value


def _pieces(value: object) -> object:
    """[text, score] by id."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_ROWS:
        raise Unfit(value, f"a list of 1 to {_MOST_ROWS} pieces")
    if set(map(type, value)) != {list} or set(map(len, value)) != {2}:
        odd = next(n for n, pair in enumerate(value) if type(pair) is not list or len(pair) != 2)
        raise Unfit(value[odd], "a text and its score", f"[{odd}]")
    texts, scores = zip(*value, strict=True)
    numbers = set(map(type, scores)) <= {float, int}
    if set(map(type, texts)) != {str} or not numbers or min(scores) < -_MOST_SCORE or max(scores) > _MOST_SCORE:
        list_of(_sequence(text, number(-_MOST_SCORE, _MOST_SCORE)), _MOST_ROWS)(value)
    if len(set(texts)) < len(texts):
        raise Unfit(value, "a list in which no piece stands twice")
    _require_short(texts, _LONGEST_PIECE)
    return value


def _require_short(tokens: Iterable[str], most: int) -> None:
    longest = max(tokens, key=len, default="")
    if len(longest) > most:
        raise Unfit(longest, f"tokens of at most {most} characters")


def _charsmap(value: object) -> object:
    """The normaliser's table as sentencepiece has it: a trie with its length, then the replacements, ended by NUL."""
    if len(text(value)) > _MOST_CHARSMAP:
        raise Unfit(value, f"at most {_MOST_CHARSMAP} characters of base64")
    try:
        raw = base64.b64decode(text(value), validate=True)
    except (binascii.Error, ValueError):
        raise Unfit(value, "base64") from None
    trie = int.from_bytes(raw[:4], "little")
    replacements = raw[4 + trie :]
    if len(raw) < 8 or not trie or trie % 4 or trie > len(raw) - 4 or replacements[-1:] not in (b"", b"\0"):
        raise Unfit(value, "a trie and what its ends stand for, ended by NUL")
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise Unfit(value, "replacements in UTF-8") from None
    if (longest := max(map(len, replacements.split(b"\0")))) > _MOST_BYTES:
        raise Unfit(value, f"a table that gives one character at most {_MOST_BYTES} bytes, not {longest}")
    return value


def _special_tokens(value: object) -> object:
    if not isinstance(value, dict) or len(value) > _MOST_MARKS:
        raise Unfit(value, f"an object of at most {_MOST_MARKS} tokens")
    _sequence(*[_MARK] * len(value))(list(value.values()))
    return value


def _padding_strategy(value: object) -> object:
    return one_of("BatchLongest")(value) if isinstance(value, str) else fields({"Fixed": _LENGTH})(value)


_AFFIX = one_of(None, "")
_BPE: Mapping[str, Kind[object]] = {
    "vocab": _vocabulary,
    "merges": _merges,
    "dropout?": one_of(None),
    "unk_token?": one_of(None),
    "continuing_subword_prefix?": _AFFIX,
    "end_of_word_suffix?": _AFFIX,
    "fuse_unk?": one_of(False),
    "byte_fallback?": one_of(False),
}
_METASPACE: Mapping[str, Kind[object]] = {
    "replacement": one_of(_SPACE),
    "str_rep?": one_of(_SPACE),
    "add_prefix_space?": one_of(True),
    "prepend_scheme?": one_of("always"),
    "split?": one_of(True),
}
_PRECOMPILED: Mapping[str, Kind[object]] = {"precompiled_charsmap": _charsmap}
# The second step of some copies, which the split at white space makes needless.
_SPACES = tagged({"Replace": {"pattern": fields({"Regex": one_of(" {2,}")}), "content": one_of(" ")}})
_NORMALIZERS = _sequence(tagged({"Precompiled": _PRECOMPILED}), _SPACES)

_BYTE_LEVEL: Mapping[str, Kind[object]] = {"add_prefix_space": flag, "trim_offsets": flag, "use_regex?": flag}
_PLACE = fields({"id": text, "type_id": whole(0, 255)})
_PIECES = list_of(fields({}, {"Sequence": _PLACE, "SpecialToken": _PLACE}), _MOST_MARKS)
_MARK = fields({"id": text, "ids": list_of(_ID, 4), "tokens": list_of(text, 4)})
_MARK_AND_ID = _sequence(text, _ID)
_STEPS: Mapping[str, Mapping[str, Kind[object]]] = {
    "ByteLevel": _BYTE_LEVEL,
    "TemplateProcessing": {"single": _PIECES, "pair": _PIECES, "special_tokens": _special_tokens},
    "RobertaProcessing": {"sep": _MARK_AND_ID, "cls": _MARK_AND_ID, "trim_offsets": flag, "add_prefix_space": flag},
}
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), flag)
_CONTENT = matching(f"(?s:.{{1,{_LONGEST_ADDED}}})", f"a text of 1 to {_LONGEST_ADDED} characters")

ADDED_TOKENS = list_of(fields({"id": _ID, "content": _CONTENT, **_FLAGS}), _MOST_ADDED)
AROUND: Mapping[str, Kind[object]] = {
    "version": one_of("1.0"),
    "post_processor": or_null(tagged({**_STEPS, "Sequence": {"processors": list_of(tagged(_STEPS), 4)}})),
    "decoder": or_null(tagged({"ByteLevel": _BYTE_LEVEL, "Metaspace": _METASPACE})),
    # Both are dropped: lengths are the request's.
    "truncation": or_null(fields({"max_length": _LENGTH, "strategy": text, "stride": _LENGTH}, {"direction": text})),
    "padding": or_null(
        fields({"strategy": _padding_strategy, "direction": text, "pad_to_multiple_of": or_null(_LENGTH),
                "pad_id": _ID, "pad_type_id": whole(0, 255), "pad_token": text})
    ),
}  # fmt: skip
