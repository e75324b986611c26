"""GGUF, version 3, little-endian: the header alone, read and checked without an engine.

Order in the file: magic, version, tensor count, key count, key-values, tensor infos, padding, data.
Refused: another version; counts, strings or arrays that do not fit the file; nested arrays; duplicate keys or
tensor names; unknown tensor types; offsets that are unaligned, overlap, leave holes or pass the end.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelDamaged
from .files import open_regular

_MAX_KEYS, _MAX_TENSORS, _MAX_ARRAY, _MAX_STRING = 256, 4096, 1 << 21, 1 << 24
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_FRESH = 2.0  # seconds: a file that changed this recently may change again within one tick of its clock

# ggml tensor type -> name, elements a block, bytes a block (ggml-common.h).
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
}  # fmt: skip

# general.file_type -> the name people use (llama_ftype in llama.h).
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor's place. `shape` is rows first, as numpy has it (the file stores the reverse)."""

    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without ones in front: ggml drops them from a file that it writes, and counts them as there."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


@dataclass(frozen=True)
class Header:
    """The checked header of one file. Arrays of strings are lists of bytes, undecoded."""

    path: Path
    keys: dict[str, object]
    tensors: dict[str, Tensor]
    size: int

    def text(self, key: str) -> str | None:
        """A string value; None if the key is absent."""
        value = self.keys.get(key)
        return value if isinstance(value, str) else None

    @property
    def weights(self) -> str:
        """The name of the quantisation, as in `Q4_K_M`."""
        kind = self.keys.get("general.file_type")
        return FILE_TYPES.get(kind, f"type {kind}") if isinstance(kind, int) else "unknown"


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    A file that has not changed is parsed once, so callers share a Header and must not change it. Raises ModelDamaged
    with the file and the fault.
    """
    with open_regular(path) as file:
        stat = os.fstat(file.fileno())
    parse = _parsed if time.time() - stat.st_mtime > _FRESH else _parsed.__wrapped__
    return parse(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, identity: tuple[int, ...]) -> Header:
    """The header of a file; `identity` tells its content from earlier and later content."""
    with open_regular(path) as file:
        if file.read(4) != b"GGUF":
            raise ModelDamaged(f"{path}: not a GGUF file.")
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:  # no memory, or a file system that maps nothing
            raise ModelDamaged(f"{path}: cannot be read ({error.strerror}).") from error
        with mapped as data:
            try:
                return _Parser(path, data).header()
            except (struct.error, IndexError) as error:
                raise ModelDamaged(f"{path}: ends inside its header; it is truncated.") from error


class _Parser:
    """A cursor over the bytes; every read is bounded by what is left of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 4, len(data)

    def fail(self, why: str) -> ModelDamaged:
        return ModelDamaged(f"{self.path}: {why}. If it was downloaded, fetch it again.")

    def scalar(self, code: str) -> int | float | bool:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value  # type: ignore[no-any-return]

    def count(self, limit: int, what: str, code: str = "Q") -> int:
        value = int(self.scalar(code))
        if value > limit:
            raise self.fail(f"{what} is {value}, more than the {limit} that can be")
        return value

    def bytes_(self) -> bytes:
        length = self.count(min(_MAX_STRING, self.size - self.at), "the length of a string")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw

    def name(self) -> str:
        try:
            return self.bytes_().decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name or text in the header is not UTF-8") from error

    def value(self, kind: int) -> object:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.name()
        if kind != _ARRAY:
            raise self.fail(f"unknown value type {kind}")
        inner = int(self.scalar("I"))
        n = self.count(min(_MAX_ARRAY, self.size - self.at), "the length of an array")
        if inner == _STRING:
            return self.strings(n)
        if inner not in _SCALARS:
            raise self.fail(f"an array of type {inner} is not allowed")
        values = list(struct.unpack_from(f"<{n}{_SCALARS[inner]}", self.data, self.at))
        self.at += struct.calcsize(f"<{n}{_SCALARS[inner]}")
        return values

    def strings(self, n: int) -> list[bytes]:
        # Vocabularies hold 150,000 of these: the loop is kept bare.
        data, at, size, unpack = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        out: list[bytes] = []
        for _ in range(n):
            (length,) = unpack(data, at)
            at += 8
            if length > size - at:
                raise self.fail("a string is longer than the rest of the file")
            out.append(data[at : at + length])
            at += length
        self.at = at
        return out

    def unique(self, n: int, read: Callable[[], object], what: str) -> dict[str, object]:
        out: dict[str, object] = {}
        for _ in range(n):
            key = self.name()
            if key in out:
                raise self.fail(f"{what} {key!r} stands there twice")
            out[key] = read()
        return out

    def header(self) -> Header:
        version = int(self.scalar("I"))
        if version != 3:
            raise self.fail(f"GGUF version {version}; this runtime reads version 3")
        n_tensors = self.count(_MAX_TENSORS, "the number of tensors")
        n_keys = self.count(_MAX_KEYS, "the number of keys")
        keys = self.unique(n_keys, lambda: self.value(int(self.scalar("I"))), "key")
        infos = self.unique(n_tensors, self.info, "tensor")
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 4096:
            raise self.fail(f"general.alignment is {alignment!r}, not a power of two up to 4096")
        base = -(-self.at // alignment) * alignment
        return Header(self.path, keys, self.place(infos, base, alignment), self.size)

    def info(self) -> tuple[int, tuple[int, ...], int]:
        rank = self.count(4, "the rank of a tensor", "I")
        dims = tuple(self.count(1 << 32, "a dimension") for _ in range(rank))
        kind, offset = int(self.scalar("I")), int(self.scalar("Q"))
        if kind not in TYPES:
            raise self.fail(f"unknown tensor type {kind}")
        if not dims or dims[0] % TYPES[kind][1]:
            raise self.fail(f"a row of {dims[:1]} elements cannot be stored as {TYPES[kind][0]}")
        return kind, dims, offset

    def place(self, infos: dict[str, object], base: int, alignment: int) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        expected = 0
        for name, info in infos.items():
            kind, dims, offset = info  # type: ignore[misc]
            label, block, width = TYPES[kind]  # type: ignore[has-type]
            nbytes = math.prod(dims) // block * width  # type: ignore[has-type]
            if offset != expected or base + offset + nbytes > self.size:  # type: ignore[has-type]
                raise self.fail(
                    f"tensor {name!r} lies at {offset} with {nbytes} bytes; expected at {expected}, "  # type: ignore[has-type]
                    f"within {self.size - base} bytes of data: the file is truncated or damaged"
                )
            out[name] = Tensor(label, tuple(reversed(dims)), base + offset, nbytes)  # type: ignore[has-type]
            expected += -(-nbytes // alignment) * alignment
        return out
