"""tokenizer.json -> the vocabulary of a GGUF, so that llama.cpp's own tokenizer gives the same ids (for NFC text).

What llama.cpp cannot do as the file asks is refused here: another split pattern or normaliser than the name in
tokenizer.ggml.pre stands for, another model than byte-level BPE, a template that adds more than one token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jina_local.architecture import Architecture
from jina_local.errors import ModelDamaged
from jina_local.tokens import Tokenizer
from jina_local.vocabulary import (
    CONTROL,
    FLAGS_KEY,
    NORMAL,
    PLAIN_FLAGS,
    PRE_TOKENIZERS,
    UNUSED,
    USER_DEFINED,
)

_PRE = {"qwen3": "qwen2", "eurobert": "jina-v5-nano"}  # the name that llama.cpp knows each kind's tokenizer by


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer keys of one GGUF. `tokens` and `types` have one entry for each row of the token table."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    add_eos: bool
    add_bos: bool
    ids: Mapping[str, int]  # "bos", "eos", "padding", "mask": those that are known
    flags: Mapping[str, Mapping[str, bool]]  # id -> what an added token has beyond its text
    fingerprint: str

    def write(self, writer: Any) -> None:
        """Add the keys to a gguf.GGUFWriter."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        # Stated even when false: the names of this family switch it on where the key is missing.
        writer.add_add_bos_token(self.add_bos)
        if self.add_eos:
            writer.add_add_eos_token(True)
        writer.add_string("jina_local.tokenizer_fingerprint", self.fingerprint)
        if self.flags:
            writer.add_string(FLAGS_KEY, json.dumps(self.flags, sort_keys=True))


def read(tokenizer: Tokenizer, raw: bytes, arch: Architecture, config: Mapping[str, object]) -> Vocabulary:
    """The vocabulary of `raw`, a tokenizer.json that `tokenizer` was made from.

    `config`: config.json, with the pad_token of tokenizer_config.json where the model's own names no padding.
    Raises ModelDamaged where llama.cpp would not give the ids of this tokenizer.
    """
    where = tokenizer.where
    body = json.loads(raw)
    pre = _PRE[arch.kind]
    _check_pipeline(body, pre, where)
    tokens, types = _rows(body, arch.vocab, where)
    opening, closing = tokenizer.opening, tokenizer.closing
    ids = {
        name: n for name in ("bos", "eos", "padding", "mask") if (n := _id(config, name, tokens, where)) is not None
    }
    if len(opening) > 1 or len(closing) > 1:
        raise ModelDamaged(f"{where}: puts {opening} and {closing} around a text; llama.cpp adds one token a side.")
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
    told = [f"{what} {found!r} instead of {right!r}" for what, (found, right) in faults.items() if found != right]
    if told:
        raise ModelDamaged(
            f"{where}: is not the tokenizer that llama.cpp calls {pre!r}: it has the {'; '.join(told)}."
        )


def _rows(body: Mapping[str, Any], rows: int, where: str) -> tuple[list[str], list[int]]:
    """One token and type for each row of the table; rows without a token are named [PADn] and UNUSED."""
    names: dict[int, str] = {}
    types = [UNUSED] * rows
    for token, number in body["model"]["vocab"].items():
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
    value = config.get({"padding": "pad_token_id"}.get(name, f"{name}_token_id"))
    if name == "padding" and value is None and isinstance(config.get("pad_token"), str):
        value = tokens.index(config["pad_token"]) if config["pad_token"] in tokens else None  # type: ignore[arg-type]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
        raise ModelDamaged(
            f"{where}: the config's id of the {name} token is {value!r}; not a row of the token table."
        )
    return value
