"""Damage: bytes flipped anywhere, and fields changed inside valid JSON, safetensors headers and GGUF headers.

Every function takes a random generator and bytes, and gives bytes and what was done in a few words.
"""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e308,
    float("nan"), float("inf"), "", " ", "x", "\x00", "../x", "/etc/passwd", "retrieval", "none", "0", "a" * 5000, [],
    {}, [None], ["x"], {"x": 1}, [[]], "\ud800",
)  # fmt: skip


def of_bytes(rng: Random, raw: bytes, start: int, end: int) -> tuple[bytes, str]:
    """Flip, overwrite, cut out, repeat or append a few bytes between `start` and `end`."""
    data, at = bytearray(raw), rng.randrange(start, max(start + 1, end))
    what = rng.choice(("flip", "flip", "flip", "set", "zero", "cut", "repeat", "swap", "truncate", "append"))
    size = rng.choice((1, 1, 2, 4, 8, 16, 64))
    if what == "flip":
        for _ in range(size if size < 8 else 1):
            data[rng.randrange(start, max(start + 1, end))] ^= 1 << rng.randrange(8)
    elif what == "set":
        data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    elif what == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif what == "cut":
        del data[at : at + size]
    elif what == "repeat":
        data[at:at] = data[at : at + size]
    elif what == "swap":
        other = rng.randrange(start, max(start + 1, end))
        a, b = sorted((at, other))
        size = min(size, b - a, len(data) - b)
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    elif what == "truncate":
        del data[at:]
    else:
        data += rng.randbytes(size)
    return bytes(data), f"{what} {size} bytes at {at}"


def of_json(rng: Random, raw: bytes) -> tuple[bytes, str]:
    """Change one to three members of a JSON document, or its text."""
    body = json.loads(raw)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        done.append(_member(rng, body))
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.03:
        text, what = rng.choice(((text[:-1], "cut"), ("[" * 100_000, "deep"), (text + text, "twice"), ("", "empty"),
                                 (text.replace(":", ": NaN,", 1), "NaN"), ("\ufeff" + text, "BOM")))  # fmt: skip
        done.append(what)
    return text.encode("utf-8", "surrogatepass"), "; ".join(done)


def _member(rng: Random, body: Any) -> str:
    path, here = [], body
    while isinstance(here, dict | list) and here:
        # Long tables of alike entries are entered, but not stayed in for good.
        key = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        path.append(key)
        inner = here[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            break
        here = inner
    if not path:
        return "nothing"
    key = path[-1]
    where = "/".join(map(str, path))[:80]
    what = rng.choice(("odd", "odd", "near", "near", "drop", "rename", "sibling", "double"))
    if what == "odd":
        here[key] = copy.deepcopy(rng.choice(ODD))
    elif what == "near":
        here[key] = near(rng, here[key])
    elif what == "drop":
        del here[key]
    elif what == "sibling":
        other = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        here[key], here[other] = here[other], here[key]
        where += f" with {other}"
    elif isinstance(here, dict):
        here[str(near(rng, str(key)))] = copy.deepcopy(here[key])
        if what == "rename":
            here.pop(key)
    else:
        here.insert(key, copy.deepcopy(here[key]))
    return f"{what} {where}"


def near(rng: Random, value: Any) -> Any:
    """A value of the same type, a little beside."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value * 2, value // 2, -value, value + 2**31, value + 2**32, 0))
    if isinstance(value, float):
        return rng.choice((value * 2, value / 2, -value, 0.0, value + 1e-3, value * 1.01, float("inf")))
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return rng.choice((value[:at] + value[at + 1 :], value[:at] + rng.choice("xé0/. \n\0") + value[at:],
                           value.upper(), value.swapcase(), value * 2, value[::-1], value + " "))  # fmt: skip
    if isinstance(value, list):
        return rng.choice((value[::-1], value[1:], value * 2, [*value, None], value[:1]))
    if isinstance(value, dict):
        return rng.choice(({**value, "extra": 1}, dict(list(value.items())[1:]), list(value)))
    return rng.choice(ODD)


def of_safetensors(rng: Random, raw: bytes) -> tuple[bytes, str]:
    """Change the JSON header of a safetensors file; the tensors' bytes stay."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, what = of_json(rng, raw[8 : 8 + length])
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :], what


# --- GGUF (format: ggml-org/ggml, docs/gguf.md), read and written here by code of its own

_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Keys of llama.cpp's loader (src/llama-arch.cpp) that none of our files has; {} is the architecture.
_FOREIGN = (
    "{}.rope.scaling.attn_factor", "{}.rope.scale_linear", "{}.rope.scaling.type", "{}.rope.scaling.factor",
    "{}.rope.scaling.original_context_length", "{}.rope.scaling.finetuned", "{}.rope.scaling.yarn_log_multiplier",
    "{}.rope.dimension_count", "{}.rope.dimension_sections", "{}.rope.freq_base_swa", "{}.embedding_length_out",
    "{}.expert_count", "{}.expert_used_count", "{}.expert_group_count", "{}.expert_weights_scale",
    "{}.nextn_predict_layers", "{}.attention.sliding_window", "{}.attention.scale", "{}.attention.max_alibi_bias",
    "{}.attention.clamp_kqv", "{}.attention.causal", "{}.attention.layer_norm_epsilon", "{}.attention.value_length",
    "{}.attention.key_length_mla", "{}.use_parallel_residual", "{}.logit_scale", "{}.final_logit_softcapping",
    "{}.attn_logit_softcapping", "{}.residual_scale", "{}.embedding_scale", "{}.pooling_type", "{}.vocab_size",
    "{}.tensor_data_layout", "{}.leading_dense_block_count", "{}.swin_norm", "{}.classifier.output_labels",
    "general.alignment", "general.quantization_version", "split.count", "split.no", "split.tensors.count",
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap", "tokenizer.chat_template",
    "tokenizer.ggml.token_type_count", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.pre",
)  # fmt: skip


class Gguf:
    """A GGUF file taken apart: keys as (name, type, value), tensors as [name, dims, type, offset], and the data."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 8
        tensors, keys = self._take("QQ")
        self.version = struct.unpack("<I", raw[4:8])[0]
        self.keys = [self._key() for _ in range(keys)]
        self.tensors: list[list[Any]] = []
        for _ in range(tensors):
            name, (rank,) = self._text(), self._take("I")
            dims = [self._take("Q")[0] for _ in range(rank)]
            kind, offset = self._take("IQ")
            self.tensors.append([name, dims, kind, offset])
        self.data_at = self._at + -self._at % 32
        self.data = raw[self.data_at :]

    def _take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + form, self._raw, self._at)
        self._at += struct.calcsize("<" + form)
        return found

    def _text(self) -> bytes:
        (length,) = self._take("Q")
        self._at += length
        return self._raw[self._at - length : self._at]

    def _key(self) -> list[Any]:
        name, (kind,) = self._text(), self._take("I")
        return [name, kind, self._value(kind)]

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._text()
        if kind == 9:
            inner, count = self._take("IQ")
            return inner, [self._value(inner) for _ in range(count)]
        return self._take(_SIZES[kind])[0]

    def dump(self) -> bytes:
        """The bytes of the file."""
        out = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        out += b"".join(_packed_text(n) + struct.pack("<I", k) + _packed(k, v) for n, k, v in self.keys)
        for name, dims, kind, offset in self.tensors:
            out += _packed_text(name) + struct.pack("<I", len(dims))
            out += b"".join(struct.pack("<Q", d % 2**64) for d in dims)
            out += struct.pack("<IQ", kind % 2**32, offset % 2**64)
        return out + bytes(-len(out) % 32) + self.data


def _packed_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _packed(kind: int, value: Any) -> bytes:
    if kind == 8:
        return _packed_text(value)
    if kind == 9:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_packed(inner, item) for item in items)
    form = _SIZES[kind]
    if form in "fd":
        return struct.pack("<" + form, value if abs(value) < 3e38 or form == "d" else float("inf"))
    bits = 8 * struct.calcsize("<" + form)
    if form == "?":
        return struct.pack("<?", bool(value))
    return struct.pack("<" + form.upper(), int(value) % 2**bits)


def of_gguf(rng: Random, raw: bytes) -> tuple[bytes, str]:
    """Change keys and tensor entries of a GGUF header, or add a key that llama.cpp knows; the data stays."""
    file = Gguf(raw)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        done.append(rng.choice((_change_key, _change_key, _add_key, _change_tensor, _move_key))(rng, file))
    return file.dump(), "; ".join(done)


def _change_key(rng: Random, file: Gguf) -> str:
    key = rng.choice(file.keys)
    name, kind, value = key
    if kind == 9:
        inner, items = value
        items = list(items)
        at = rng.randrange(len(items)) if items else 0
        what = rng.choice(("item", "item", "swap", "drop", "double", "type"))
        if what == "item" and items:
            items[at] = _near(rng, inner, items[at])
        elif what == "swap" and items:
            other = rng.randrange(len(items))
            items[at], items[other] = items[other], items[at]
        elif what == "drop":
            items = items[:at] + items[at + 1 :]
        elif what == "double" and items:
            items.insert(at, items[at])
        key[2] = (inner, items)
        return f"{what} {at} of {name!r}"
    key[2] = _near(rng, kind, value)
    return f"{name!r} {str(value)[:30]} -> {str(key[2])[:30]}"


def _near(rng: Random, kind: int, value: Any) -> Any:
    if kind == 8:
        return str(near(rng, value.decode("utf-8", "replace"))).encode("utf-8", "replace")
    if rng.random() < 0.4:
        return near(rng, value)
    return rng.choice((0, 1, 2, 3, 4, 8, 2**31 - 1, 2**32 - 1, -1) if kind not in (6, 12) else
                      (0.0, 1.0, -1.0, 0.5, 2.0, 1e9, 1e-9, float("nan"), float("inf")))  # fmt: skip


def _add_key(rng: Random, file: Gguf) -> str:
    arch = next((v.decode() for n, k, v in file.keys if n == b"general.architecture" and k == 8), "qwen3")
    name = rng.choice(_FOREIGN).format(arch)
    kind = rng.choice((4, 4, 4, 5, 6, 6, 7, 8))
    value: Any = {8: b"yarn", 7: True}.get(kind)
    if value is None:
        value = rng.choice((0.0, 0.5, 1.0, 2.0, 32.0) if kind == 6 else (0, 1, 2, 4, 8, 16, 64, 256, 1024))
    file.keys.append([name.encode(), kind, value])
    return f"added {name} = {value!r} as {kind}"


def _move_key(rng: Random, file: Gguf) -> str:
    at = rng.randrange(len(file.keys))
    if rng.random() < 0.5:
        return f"dropped {file.keys.pop(at)[0]!r}"
    name = file.keys[at][0]
    file.keys[at][0] = str(near(rng, name.decode())).encode()
    return f"renamed {name!r} to {file.keys[at][0]!r}"


def _change_tensor(rng: Random, file: Gguf) -> str:
    entry = rng.choice(file.tensors)
    what = rng.choice(("name", "dims", "type", "offset", "swap", "drop"))
    if what == "name":
        entry[0] = str(near(rng, entry[0].decode("utf-8", "replace"))).encode()
    elif what == "dims":
        at = rng.randrange(len(entry[1]))
        entry[1][at] = rng.choice((0, 1, entry[1][at] * 2, entry[1][at] // 2, entry[1][at] + 1, 2**40, 2**63))
        if rng.random() < 0.2:
            entry[1].append(1)
    elif what == "type":
        entry[2] = rng.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 30, 31, 39, 255))
    elif what == "offset":
        entry[3] = rng.choice((0, entry[3] + 32, entry[3] - 32, entry[3] + 1, 2**40, 2**63))
    elif what == "swap":
        other = rng.choice(file.tensors)
        entry[0], other[0] = other[0], entry[0]
    else:
        file.tensors.remove(entry)
    return f"{what} of tensor {entry[0]!r}"
