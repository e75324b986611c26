"""tokenizer.json, held against the tokenizers that the models have, before the tokenizer library sees it.

Two forms pass: byte-level BPE behind a split pattern of gguf_vocabulary.PRE_TOKENIZERS, and XLM-R's Unigram. Each
component has to be of a type that these models have, with their parameters: no dropout, no normaliser that multiplies
text, no regex of the file's own. Bounded are the file's length, the number of tokens, their ids and lengths, and the
length that the normaliser gives one character. Whether the tokens are the model's own is seen by fingerprint.py.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from ..errors import ModelDamaged
from ..formats.files import Remembered, parse_json, read_all
from ..formats.schema import (
    Kind,
    Unfit,
    check,
    fields,
    flag,
    list_of,
    number,
    one_of,
    or_null,
    shown,
    tagged,
    text,
    whole,
)
from ..spec import TokenizerSpec
from .gguf_vocabulary import PRE_TOKENIZERS, PreTokenizer

UNIGRAM = "t5"  # as llama.cpp calls XLM-R's

_MAX_FILE = 64 << 20
_MOST_ROWS = 1 << 20  # architecture.py allows no larger token table; an id fits 32 bits by far
_MOST_MERGES, _MOST_ADDED = 1 << 21, 4096
_LONGEST, _LONGEST_PIECE, _LONGEST_ADDED = 512, 64, 256  # characters; the models' longest are 128, 16 and 30
_MOST_CHARSMAP = 4 << 20
_MOST_BYTES = 64  # that the normaliser puts in the place of one character; 33 in the models'
_LOWEST_SCORE = -1e6
_SPACE = "\u2581"

_ID = whole(0, _MOST_ROWS - 1)
_AFFIX = one_of(None, "")  # some files spell it out
_BYTE_LEVEL: dict[str, Kind[object]] = {"add_prefix_space": flag, "trim_offsets": flag, "use_regex?": flag}
_METASPACE: dict[str, Kind[object]] = {
    "replacement": one_of(_SPACE),
    "str_rep?": one_of(_SPACE),
    "add_prefix_space?": one_of(True),
    "prepend_scheme?": one_of("always"),
    "split?": one_of(True),
}
_DECODER = or_null(tagged({"ByteLevel": _BYTE_LEVEL, "Metaspace": _METASPACE}))
_PIECE = fields({}, {name: fields({"id": text, "type_id": whole(0, 255)}) for name in ("Sequence", "SpecialToken")})
_TEMPLATE: dict[str, Kind[object]] = {
    "single": list_of(_PIECE, 16),
    "pair": list_of(_PIECE, 16),
    "special_tokens": lambda value: _special_tokens(value),
}
_MARK = fields({"id": text, "ids": list_of(_ID, 4), "tokens": list_of(text, 4)})
_ROBERTA: dict[str, Kind[object]] = {
    "sep": lambda value: _marked(value),
    "cls": lambda value: _marked(value),
    "trim_offsets": flag,
    "add_prefix_space": flag,
}
_STEP = {"ByteLevel": _BYTE_LEVEL, "TemplateProcessing": _TEMPLATE, "RobertaProcessing": _ROBERTA}
_POST_PROCESSOR = or_null(tagged({**_STEP, "Sequence": {"processors": list_of(tagged(_STEP), 4)}}))
_ADDED = list_of(
    fields(
        {
            "id": _ID,
            "content": lambda value: _content(value),
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), flag),
        }
    ),
    _MOST_ADDED,
)
_TRUNCATION = fields(
    {"max_length": whole(0, 1 << 31), "strategy": text, "stride": whole(0, 1 << 31)}, {"direction": text}
)
_PADDING = fields(
    {
        "strategy": lambda value: _padding(value),
        "direction": text,
        "pad_to_multiple_of": or_null(whole(0, 1 << 31)),
        "pad_id": _ID,
        "pad_type_id": whole(0, 255),
        "pad_token": text,
    }
)
_AROUND: dict[str, Kind[object]] = {
    "version": one_of("1.0"),
    "truncation": or_null(_TRUNCATION),  # dropped, as padding is: lengths are the request's
    "padding": or_null(_PADDING),
    "post_processor": _POST_PROCESSOR,
    "decoder": _DECODER,
}


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
        passed = check_body(parse_json(raw, str(path)), str(path))
        _passed.put(key, passed)
    return raw, passed


def check_body(body: Mapping[str, object], where: str) -> Passed:
    """Check what a tokenizer.json holds. Raises ModelDamaged."""
    model = body.get("model")
    unigram = isinstance(model, dict) and model.get("type") == "Unigram"
    form = UNIGRAM if unigram else _split_of(body, where)
    own = _unigram() if unigram else _byte_level_bpe(PRE_TOKENIZERS[form])
    check(dict(body), fields({**own, "added_tokens": _ADDED}, _AROUND), where)
    return _summary(body, form)


def require(passed: Passed, spec: TokenizerSpec, where: str) -> None:
    """Raise ModelDamaged unless a tokenizer that passed is of the form that a model has."""
    if passed.form != spec.form:
        raise ModelDamaged(
            f"{where}: splits and normalises text as {passed.form!r} does, and this model's tokenizer as "
            f"{spec.form!r}: it is another model's. Put the model's own tokenizer.json there."
        )


def _split_of(body: Mapping[str, object], where: str) -> str:
    """The name of the split pattern of a byte-level BPE."""
    patterns = {name: pre.split for name, pre in PRE_TOKENIZERS.items()}
    pre_tokenizer = body.get("pre_tokenizer")
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    first = steps[0] if isinstance(steps, list) and steps else None
    pattern = first.get("pattern") if isinstance(first, dict) else None
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    for name, known in patterns.items():
        if known == found:
            return name
    raise ModelDamaged(
        f"{where}: is neither a Unigram model nor a byte-level BPE behind the split pattern of "
        f"{', '.join(patterns)}: it has the model {shown(_type_of(body.get('model')))} and the pattern "
        f"{shown(found)}. Put the model's own tokenizer.json there."
    )


def _type_of(model: object) -> object:
    return model.get("type") if isinstance(model, dict) else None


def _byte_level_bpe(pre: PreTokenizer) -> dict[str, Kind[object]]:
    split = fields(
        {
            "type": one_of("Split"),
            "pattern": fields({"Regex": one_of(pre.split)}),
            "behavior": one_of("Isolated"),
            "invert": one_of(False),
        }
    )
    level = fields(
        {
            "type": one_of("ByteLevel"),
            "add_prefix_space": one_of(False),
            "trim_offsets": flag,
            "use_regex": one_of(False),
        }
    )
    merges = one_of(True) if pre.ignore_merges else one_of(False)
    model: dict[str, Kind[object]] = {
        "type": one_of("BPE"),
        "vocab": _vocabulary,
        "merges": _merges,
        **({"ignore_merges": merges} if pre.ignore_merges else {}),
    }
    return {
        "model": fields(
            model,
            {
                "dropout": one_of(None),
                "unk_token": one_of(None),
                "continuing_subword_prefix": _AFFIX,
                "end_of_word_suffix": _AFFIX,
                "fuse_unk": one_of(False),
                "byte_fallback": one_of(False),
                "ignore_merges": merges,
            },
        ),
        "normalizer": fields({"type": one_of("NFC")}) if pre.nfc else one_of(None),
        "pre_tokenizer": fields(
            {"type": one_of("Sequence"), "pretokenizers": partial(_sequence, kinds=(split, level))}
        ),
    }


def _unigram() -> dict[str, Kind[object]]:
    precompiled = fields({"type": one_of("Precompiled"), "precompiled_charsmap": _charsmap})
    # A step of some copies, which the split at white space makes needless.
    spaces = fields(
        {"type": one_of("Replace"), "pattern": fields({"Regex": one_of(" {2,}")}), "content": one_of(" ")}
    )
    steps = fields({"type": one_of("Sequence"), "normalizers": partial(_sequence, kinds=(precompiled, spaces))})
    splits = (fields({"type": one_of("WhitespaceSplit")}), tagged({"Metaspace": _METASPACE}))
    return {
        "model": fields(
            {"type": one_of("Unigram"), "vocab": _pieces, "unk_id": _ID}, {"byte_fallback": one_of(False)}
        ),
        "normalizer": lambda value: _normalizer(value, precompiled, steps),
        "pre_tokenizer": fields({"type": one_of("Sequence"), "pretokenizers": partial(_sequence, kinds=splits)}),
    }


def _normalizer(value: object, precompiled: Kind[object], steps: Kind[object]) -> object:
    if value is None:
        return value
    name = _type_of(value)
    if name not in ("Precompiled", "Sequence"):
        raise Unfit(name if isinstance(value, dict) else value, "Precompiled, alone or before one Replace of spaces")
    return precompiled(value) if name == "Precompiled" else steps(value)


def _sequence(value: object, kinds: tuple[Kind[object], ...]) -> object:
    """A list with one value of each kind, in order."""
    steps = list_of(lambda step: step, len(kinds), least=len(kinds))(value)
    for n, (step, kind) in enumerate(zip(steps, kinds, strict=True)):
        try:
            kind(step)
        except Unfit as fault:
            raise fault.inside(f"[{n}]") from None
    return value


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
    _short(value, _LONGEST)
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
        _short(chain.from_iterable(value), _LONGEST)
    elif kinds - {str}:
        odd = next(n for n, pair in enumerate(value) if not isinstance(pair, str))
        raise Unfit(value[odd], "a merge in the form of the others", f"[{odd}]")
    else:
        _short(value, 2 * _LONGEST + 1)
    return value


def _pieces(value: object) -> object:
    """[text, score] by id."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_ROWS:
        raise Unfit(value, f"a list of 1 to {_MOST_ROWS} pieces")
    if set(map(type, value)) != {list} or set(map(len, value)) != {2}:
        odd = next(n for n, pair in enumerate(value) if type(pair) is not list or len(pair) != 2)
        raise Unfit(value[odd], "a text and its score", f"[{odd}]")
    texts, scores = zip(*value, strict=True)
    if set(map(type, texts)) != {str}:
        odd = next(n for n, one in enumerate(texts) if type(one) is not str)
        raise Unfit(texts[odd], "a text", f"[{odd}][0]")
    if not set(map(type, scores)) <= {float, int} or min(scores) < _LOWEST_SCORE or max(scores) > -_LOWEST_SCORE:
        score = number(_LOWEST_SCORE, -_LOWEST_SCORE)
        list_of(lambda pair: _sequence(pair, (text, score)), _MOST_ROWS)(value)
    if len(set(texts)) < len(texts):
        raise Unfit(value, "a list in which no piece stands twice")
    _short(texts, _LONGEST_PIECE)
    return value


def _short(tokens: object, most: int) -> None:
    longest = max(tokens, key=len, default="")  # type: ignore[call-overload]
    if len(longest) > most:
        raise Unfit(longest, f"tokens of at most {most} characters")


def _content(value: object) -> str:
    if not 0 < len(text(value)) <= _LONGEST_ADDED:
        raise Unfit(value, f"a text of 1 to {_LONGEST_ADDED} characters")
    return text(value)


def _charsmap(value: object) -> object:
    """The normaliser's table as sentencepiece has it: a trie with its length, then the replacements, ended by NUL."""
    if len(text(value)) > _MOST_CHARSMAP:
        raise Unfit(value, f"at most {_MOST_CHARSMAP} characters of base64")
    try:
        raw = base64.b64decode(text(value), validate=True)
    except binascii.Error:
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
    if not isinstance(value, dict) or len(value) > 16:
        raise Unfit(value, "an object of at most 16 tokens")
    for name, mark in value.items():
        try:
            _MARK(mark)
        except Unfit as fault:
            raise fault.inside(f"[{shown(name)}]") from None
    return value


def _marked(value: object) -> object:
    """A token and its id, as RobertaProcessing has them."""
    return _sequence(value, (text, _ID))


def _padding(value: object) -> object:
    return one_of("BatchLongest")(value) if isinstance(value, str) else fields({"Fixed": whole(0, 1 << 31)})(value)


def _summary(body: Mapping[str, object], form: str) -> Passed:
    vocab = body["model"]["vocab"]  # type: ignore[index]
    added = tuple((entry["content"], entry["id"]) for entry in body["added_tokens"])  # type: ignore[attr-defined]
    largest = max(len(vocab) - 1 if form == UNIGRAM else max(vocab.values()), *(n for _, n in added), 0)
    return Passed(form, largest + 1, added)
