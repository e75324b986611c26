"""safetensors: 8 bytes of header length, a JSON header, then the tensors' bytes, in order and without holes.

Read here: F32, F16, BF16, F64, signed and unsigned integers, BOOL, up to rank 8. Refused before a byte of
data is touched: a header over 16 MiB or longer than the file, duplicate names, members of another type than the
format's, offsets that overlap, leave holes or do not end where the file ends.
Written here: names sorted within falling element size, so that every tensor is aligned, the header padded
to 8 bytes, nothing that depends on time or on the order of a dict: the same tensors give the same bytes.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamaged
from .files import open_regular, parse_json
from .schema import Members, check, dict_of, list_of, one_of, or_null, shown, text, whole

_MAX_HEADER = 16 << 20
_CHUNK = 1 << 22  # elements rounded at a time, which bounds what the rounding itself takes
_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# BF16 has no numpy type: it is carried as its 16 bits.
_NUMPY = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4", "F16": "<f2",
    "BF16": "<u2", "I16": "<i2", "U16": "<u2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_DTYPE = one_of(*_SIZES)
_SHAPE = list_of(whole(0, 1 << 62), 8)
_OFFSETS = list_of(whole(0, 1 << 62), 2, least=2)
_METADATA = or_null(dict_of(text, 10_000))


@dataclass(frozen=True)
class Tensor:
    """One entry of a header. `start` and `end` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One open, checked file; tensors are read one at a time, into memory of their own (never mapped)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            self.tensors, self.metadata = _read_header(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> NDArray[np.generic]:
        """The tensor as stored; BF16 comes as uint16."""
        t = self.tensors[name]
        data = np.empty(math.prod(t.shape), _NUMPY[t.dtype])
        self._file.seek(t.start)
        # Not np.fromfile, out of which a Ctrl-C comes as a TypeError.
        if self._file.readinto(data.view(np.uint8).data) != data.nbytes:
            raise ModelDamaged(f"{self.path}: ends inside tensor {shown(name)}; the file has changed or is cut.")
        return data.reshape(t.shape)

    def read_f32(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32, exact for F32, F16 and BF16. Raises ModelDamaged for any other type."""
        return to_f32(self.read(name), self.tensors[name].dtype, f"{self.path}: {name}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def to_f32(data: NDArray[np.generic], dtype: str, where: str) -> NDArray[np.float32]:
    """Widen F32, F16 or BF16 (as uint16) to float32 without rounding."""
    if dtype == "BF16":
        wide = data.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype not in ("F32", "F16"):
        raise ModelDamaged(f"{where}: stored as {dtype}; expected F32, F16 or BF16.")
    return data.astype(np.float32, copy=False)


def to_bf16(data: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even, as its 16 bits. NaN stays NaN."""
    flat = np.ascontiguousarray(data, dtype=np.float32).reshape(-1)
    out = np.empty(flat.shape, np.uint16)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        bits = part.view(np.uint32)
        rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16  # only NaN can overflow
        out[start : start + _CHUNK] = np.where(np.isnan(part), 0x7FC0, rounded)
    return out.reshape(data.shape)


def to_f16(data: NDArray[np.float32], where: str) -> NDArray[np.float16]:
    """Round float32 to float16. Raises ModelDamaged if a value does not fit its range (65504)."""
    with np.errstate(over="ignore"):
        out = data.astype(np.float16)
    if not np.isfinite(out).all():
        raise ModelDamaged(
            f"{where}: values up to {np.abs(data).max():g} do not fit float16; use a 32-bit form or BF16."
        )
    return out


def write(
    path: Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, NDArray[np.generic]]],
    metadata: Mapping[str, str],
) -> None:
    """Write `layout` (name -> dtype, shape), taking the tensors in any order, one in memory at a time.

    BF16 tensors are given as uint16. Raises ValueError on a tensor that is unknown, misshaped, of another
    type, given twice or missing at the end. The file is complete and on disk on return.
    """
    order = sorted(layout, key=lambda name: (-_SIZES[layout[name][0]], name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    places: dict[str, int] = {}
    for name in order:
        dtype, shape = layout[name]
        size = math.prod(shape) * _SIZES[dtype]
        places[name] = offset
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, data in tensors:
            dtype, shape = layout[name]
            if data.shape != shape or data.dtype != np.dtype(_NUMPY[dtype]):
                raise ValueError(f"{name}: expected {dtype} {shape}, got {data.dtype} {data.shape}")
            file.seek(8 + len(text) + places.pop(name))
            file.write(np.ascontiguousarray(data).data)
        if places:
            raise ValueError(f"never written: {sorted(places)[:10]}")
        file.flush()
        os.fsync(file.fileno())


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise ModelDamaged(
            f"{path}: not a complete safetensors file ({size} bytes, header of {length}). "
            "If it was downloaded, fetch it again."
        )
    raw = file.read(length)
    if raw[:1] != b"{":
        raise ModelDamaged(f"{path}: not a safetensors file (its header does not start with '{{').")
    header = parse_json(raw, f"{path}: the header")
    metadata = check(header.pop("__metadata__", None), _METADATA, str(path), "__metadata__") or {}
    tensors = {name: _tensor(name, entry, 8 + length, path) for name, entry in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != position:
            raise ModelDamaged(f"{path}: tensor {shown(name)} starts at byte {tensor.start}, expected {position}.")
        position = tensor.end
    if position != size:
        raise ModelDamaged(
            f"{path}: the tensors end at byte {position}, the file at {size}: it is truncated or has "
            "something appended. If it was downloaded, fetch it again."
        )
    return tensors, metadata


def _tensor(name: str, entry: object, base: int, path: Path) -> Tensor:
    where = f"{path}: tensor {shown(name)}"
    members = Members(entry, where)
    dtype, shape = members.take("dtype", _DTYPE), members.take("shape", _SHAPE)
    start, end = members.take("data_offsets", _OFFSETS)
    members.done()
    check(name, text, where, "its name")
    if end - start != math.prod(shape) * _SIZES[dtype]:
        raise ModelDamaged(f"{where}: {end - start} bytes do not hold {dtype} {shape}.")
    return Tensor(dtype, tuple(shape), base + start, base + end)
