"""A GGUF's own vocabulary -> the tokenizer.json that it was made from, as far as the ids are concerned.

Used where a .gguf file has no tokenizer.json beside it. Byte-level BPE only (tokenizer.ggml.model "gpt2"); the
split pattern and the normaliser are not in the file and follow from the name in tokenizer.ggml.pre.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ModelDamaged
from .formats.gguf import Header

# tokenizer.ggml.token_type (llama.h, enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# JSON object, id -> what an added token has beyond its text; absent where no token has anything.
FLAGS_KEY = "jina_local.tokenizer.added_token_flags"
PLAIN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """What a name in tokenizer.ggml.pre stands for."""

    split: str  # the regex of the words
    nfc: bool  # the tokenizer normalises to NFC first; llama.cpp does not
    ignore_merges: bool  # a whole word that is in the vocabulary is taken as it is
    adds_bos: bool  # llama.cpp's default where the file has no add_bos_token


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
    model, name = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    pre = PRE_TOKENIZERS.get(name or "")
    if model != "gpt2" or pre is None:
        raise ModelDamaged(
            f"{header.path}: has the tokenizer {model!r} with the pre-tokenizer {name!r}; read here is 'gpt2' with "
            f"{', '.join(PRE_TOKENIZERS)}. Put the model's tokenizer.json beside the file."
        )
    vocab, added = _vocabulary(header)
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
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
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _vocabulary(header: Header) -> tuple[dict[str, int], list[dict[str, object]]]:
    """(token -> id of the model, added tokens): rows of the type UNUSED are in neither."""
    tokens = _texts(header, "tokenizer.ggml.tokens")
    types = header.keys.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.token_type does not have one type for each token.")
    if len(set(tokens)) != len(tokens):
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.tokens has the same text twice.")
    flags = _flags(header)
    vocab: dict[str, int] = {}
    added: list[dict[str, object]] = []
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == NORMAL:
            vocab[token] = number
        elif kind in (CONTROL, USER_DEFINED):
            plain = {"id": number, "content": token, **PLAIN_FLAGS, "special": kind == CONTROL}
            added.append({**plain, **flags.get(str(number), {})})
        elif kind != UNUSED:
            raise ModelDamaged(f"{header.path}: token {number} has the type {kind!r}; not one of this tokenizer's.")
    return vocab, added


def _flags(header: Header) -> dict[str, dict[str, bool]]:
    try:
        flags = json.loads(header.text(FLAGS_KEY) or "{}")
        if all(PLAIN_FLAGS.keys() >= set(entry) for entry in flags.values()):
            return flags  # type: ignore[no-any-return]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ModelDamaged(f"{header.path}: {FLAGS_KEY} cannot be read ({error}).") from error
    raise ModelDamaged(f"{header.path}: {FLAGS_KEY} has flags other than {', '.join(PLAIN_FLAGS)}.")


def _template(header: Header, pre: PreTokenizer) -> dict[str, object]:
    """The post-processor: what stands around every text."""
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
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.{key} is {value!r}; expected true or false.")
    return value


def _special(header: Header, which: str) -> tuple[int, str]:
    """(id, text) of the token that tokenizer.ggml.<which>_token_id names."""
    number = header.keys.get(f"tokenizer.ggml.{which}_token_id")
    tokens = header.keys["tokenizer.ggml.tokens"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(tokens):  # type: ignore[arg-type]
        raise ModelDamaged(
            f"{header.path}: adds a token {which!r} around texts, and tokenizer.ggml.{which}_token_id is {number!r}."
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
