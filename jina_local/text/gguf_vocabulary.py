"""A GGUF's own vocabulary -> the tokenizer.json that it was made from, as far as the ids are concerned.

It is used if no tokenizer.json lies beside a .gguf file. Two kinds are read. Byte-level BPE (tokenizer.ggml.model
"gpt2"): its split pattern and normaliser are not in the file and follow from the name in tokenizer.ggml.pre. XLM-R's
Unigram ("t5"): its normaliser is in the file, and it always splits at white space.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ModelDamaged
from ..formats.files import parse_json
from ..formats.gguf import Header
from ..formats.schema import check, dict_of, flag, one_of, shown

# tokenizer.ggml.token_type (llama.h, enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"
# JSON object, id -> the flags of an added token that are not the plain ones; absent if all are plain.
FLAGS_KEY = "jina_local.tokenizer.added_token_flags"
PLAIN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

_FLAGS = dict_of(dict_of(flag, len(PLAIN_FLAGS), one_of(*PLAIN_FLAGS)), 1 << 20)
_BESIDE = "Put the model's tokenizer.json beside the file."
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """The steps that a name in tokenizer.ggml.pre stands for."""

    split: str  # the regex of the words
    nfc: bool  # the tokenizer normalises to NFC first; llama.cpp does not
    ignore_merges: bool  # a whole word that is in the vocabulary is taken as it is
    adds_bos: bool  # llama.cpp's default if the file has no add_bos_token


_LLAMA3 = PreTokenizer(_SPLIT.format("{1,3}"), nfc=False, ignore_merges=True, adds_bos=True)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "qwen2": PreTokenizer(_SPLIT.format(""), nfc=True, ignore_merges=False, adds_bos=False),
    "jina-v5-nano": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


def tokenizer_json(header: Header) -> str:
    """Rebuild a tokenizer.json whose ids are those of the original. Raises ModelDamaged, naming the file."""
    return json.dumps(rebuild(header), ensure_ascii=False, separators=(",", ":"))


def rebuild(header: Header) -> dict[str, object]:
    """The same, as the object that the file would hold. Raises ModelDamaged."""
    model, name = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    pre = PRE_TOKENIZERS.get(name or "")
    if model == "t5":
        body = _unigram(header)
    elif model == "gpt2" and pre is not None:
        body = _byte_level_bpe(header, pre)
    else:
        raise ModelDamaged(
            f"{header.path}: has the tokenizer {shown(model)} with the pre-tokenizer {shown(name)}; read here is "
            f"'gpt2' with {', '.join(PRE_TOKENIZERS)}, and 't5'. {_BESIDE}"
        )
    return {"version": "1.0", "truncation": None, "padding": None, **body}


def _byte_level_bpe(header: Header, pre: PreTokenizer) -> dict[str, object]:
    vocab, added = _vocabulary(header)
    return {
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pre.split}, "behavior": "Isolated", "invert": False},
                _byte_level(),
            ],
        },
        "post_processor": _template(header, pre),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab,
            "merges": _texts(header, "tokenizer.ggml.merges"),
        },
    }


def _unigram(header: Header) -> dict[str, object]:
    """XLM-R's: pieces with scores, after the normaliser's table and a split at white space.

    Special tokens stand around every text. A file that does not say so was made without a tokenizer.json, and its
    own vocabulary gives other ids than the model was trained with.
    """
    tokens, types = _tokens(header)
    scores = header.keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.scores does not have one score for each token.")
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if not _switch(header, key, False):
            raise ModelDamaged(
                f"{header.path}: tokenizer.ggml.{key} is missing or false, without which XLM-R's tokenizer gives "
                f"other ids. {_BESIDE}"
            )
    used = 1 + max((number for number, kind in enumerate(types) if kind != UNUSED), default=-1)
    if odd := [n for n in range(used) if types[n] not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED)]:
        raise ModelDamaged(
            f"{header.path}: token {odd[0]} has the type {shown(types[odd[0]])}; not one of this tokenizer's."
        )
    marks = [n for n in range(used) if types[n] != NORMAL]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return {
        "added_tokens": _added(header, tokens, types, marks),
        "normalizer": _charsmap(header),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
        "post_processor": _around_pairs(header),
        "decoder": space,
        "model": {
            "type": "Unigram",
            "unk_id": _special(header, "unknown")[0],
            "vocab": [[tokens[n], scores[n]] for n in range(used)],
            "byte_fallback": False,
        },
    }


def _charsmap(header: Header) -> dict[str, object] | None:
    """The normaliser; its table is an array of bytes in the file."""
    values = header.keys.get(CHARSMAP_KEY)
    if values is None:
        return None
    try:
        raw = bytes(value & 255 for value in values)  # type: ignore[attr-defined]
    except TypeError as error:
        raise ModelDamaged(f"{header.path}: {CHARSMAP_KEY} is not an array of bytes.") from error
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


def _around_pairs(header: Header) -> dict[str, object]:
    """<s> A </s>, and <s> A </s></s> B </s>, or with one mark between if the file says no add_sep_token."""
    marks = _special(header, "bos"), _special(header, "eos")
    (_, opening), (_, closing) = marks
    between = 2 if _switch(header, "add_sep_token", False) else 1

    def template(*names: str) -> list[dict[str, object]]:
        kind = {"A": "Sequence", "B": "Sequence"}
        return [{kind.get(name, "SpecialToken"): {"id": name, "type_id": 0}} for name in names]

    return {
        "type": "TemplateProcessing",
        "single": template(opening, "A", closing),
        "pair": template(opening, "A", *[closing] * between, "B", closing),
        "special_tokens": {text: {"id": text, "ids": [n], "tokens": [text]} for n, text in marks},
    }


def _vocabulary(header: Header) -> tuple[dict[str, int], list[dict[str, object]]]:
    """(token -> id of the model, added tokens): rows of the type UNUSED are in neither."""
    tokens, types = _tokens(header)
    _only(header, types, (NORMAL, CONTROL, USER_DEFINED, UNUSED))
    vocab = {token: number for number, token in enumerate(tokens) if types[number] == NORMAL}
    marks = [number for number, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    return vocab, _added(header, tokens, types, marks)


def _tokens(header: Header) -> tuple[list[str], list[int]]:
    """The text and the type of each row."""
    tokens = _texts(header, "tokenizer.ggml.tokens")
    types = header.keys.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.token_type does not have one type for each token.")
    if len(set(tokens)) != len(tokens):
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.tokens has the same text twice.")
    return tokens, types


def _only(header: Header, types: list[int], known: tuple[int, ...]) -> None:
    for number, kind in enumerate(types):
        if kind not in known:
            raise ModelDamaged(
                f"{header.path}: token {number} has the type {shown(kind)}; not one of this tokenizer's."
            )


def _added(header: Header, tokens: list[str], types: list[int], marks: list[int]) -> list[dict[str, object]]:
    """The entries of added_tokens for the rows `marks`."""
    flags = _flags(header)
    return [
        {"id": n, "content": tokens[n], **PLAIN_FLAGS, "special": types[n] != USER_DEFINED, **flags.get(str(n), {})}
        for n in marks
    ]


def _flags(header: Header) -> dict[str, dict[str, bool]]:
    if header.text(FLAGS_KEY) is None and header.text("tokenizer.ggml.model") == "t5":
        # Files of llama.cpp's own converter: XLM-R's mask takes the white space before it, and llama.cpp knows that.
        mask = header.keys.get("tokenizer.ggml.mask_token_id")
        return {str(mask): {"lstrip": True}}
    where = f"{header.path}: {FLAGS_KEY}"
    return check(parse_json((header.text(FLAGS_KEY) or "{}").encode(), where), _FLAGS, where)


def _template(header: Header, pre: PreTokenizer) -> dict[str, object]:
    """The post-processor: the tokens around every text."""
    opening = _special(header, "bos") if _switch(header, "add_bos_token", pre.adds_bos) else None
    closing = _special(header, "eos") if _switch(header, "add_eos_token", False) else None
    if opening is None and closing is None:
        return _byte_level()

    def around(name: str, kind: int) -> list[dict[str, object]]:
        text: dict[str, object] = {"Sequence": {"id": name, "type_id": kind}}
        marks: list[list[dict[str, object]]]
        marks = [[{"SpecialToken": {"id": s[1], "type_id": kind}}] if s else [] for s in (opening, closing)]
        return [*marks[0], text, *marks[1]]

    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {s[1]: {"id": s[1], "ids": [s[0]], "tokens": [s[1]]} for s in (opening, closing) if s},
    }
    return {"type": "Sequence", "processors": [_byte_level(), template]}


def _switch(header: Header, key: str, default: bool) -> bool:
    value = header.keys.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.{key} is {shown(value)}; expected true or false.")
    return value


def _special(header: Header, which: str) -> tuple[int, str]:
    """(id, text) of the token that tokenizer.ggml.<which>_token_id names."""
    number = header.keys.get(f"tokenizer.ggml.{which}_token_id")
    tokens = header.keys["tokenizer.ggml.tokens"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(tokens):  # type: ignore[arg-type]
        raise ModelDamaged(
            f"{header.path}: needs a token {which!r}, and tokenizer.ggml.{which}_token_id is {shown(number)}."
        )
    return number, tokens[number].decode()  # type: ignore[index]


def _texts(header: Header, key: str) -> list[str]:
    values = header.keys.get(key)
    try:
        return [value.decode() for value in values]  # type: ignore[attr-defined]
    except (TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ModelDamaged(f"{header.path}: {key} is missing or is not a list of texts in UTF-8.") from error


def _byte_level() -> dict[str, object]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
