"""A copy of an encoder's weights without their token table, for passes whose unread logits would fill the memory.

llama.cpp keeps and clears room for tokens x vocabulary logits that an encoder never makes, whatever its pooling:
1 MB a token with 250,002 rows, 8 GB for the longest text. The room depends on the rows of the table. The copy has
one row, which nobody reads. A pass brings the embeddings of its tokens instead, which are taken from the file and
unpacked by the engine's own functions, so the result has the same bits. The copy takes the memory of the other
weights.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...formats import gguf
from ...formats.gguf import Header, Tensor
from ..machine import available_memory
from .library import Library

_TABLE = "token_embd.weight"
_ALIGNMENT = 32  # GGUF's default
_IDS = {name: number for number, (name, _, _) in gguf.TYPES.items()}


class Table:
    """A table of a file, that of its tokens if none is named, unpacked row by row."""

    def __init__(self, lib: Library, header: Header, name: str = _TABLE) -> None:
        self._lib, self._tensor = lib, header.tensors[name]
        rows = self._tensor.shape[0]
        shape = (rows, self._tensor.nbytes // rows)
        self._packed: NDArray[np.uint8] = np.memmap(header.path, np.uint8, "r", self._tensor.start, shape)

    def rows(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """(n,) ids -> (n, hidden) float32, as llama.cpp unpacks them."""
        raw = np.ascontiguousarray(self._packed[ids])
        out = np.empty((len(ids), self._tensor.shape[1]), np.float32)
        plain = {"F32": "<f4", "F16": "<f2"}.get(self._tensor.type)
        if plain:
            out[:] = raw.view(plain)
        elif self._tensor.type == "BF16":
            out.view(np.uint32)[:] = raw.view("<u2").astype(np.uint32) << 16
        else:
            self._lib.unpack(self._tensor.type, raw.ctypes.data, out.ctypes.data, out.size)
        return out


@contextlib.contextmanager
def copied(header: Header) -> Iterator[Path]:
    """A temporary copy of an encoder's file, with one row of its table and no vocabulary."""
    needed, free = header.size - header.tensors[_TABLE].nbytes, available_memory()
    if free is not None and needed > free:
        raise EngineError(
            f"{header.path}: so long a text runs on a copy of the weights without their token table, which takes "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Lower max_length, or use smaller weights."
        )
    with tempfile.TemporaryDirectory(prefix="jina_local-") as folder:
        copy = Path(folder) / "tableless.gguf"
        try:
            with copy.open("wb") as out:
                _write(header, out)
        except OSError as error:
            raise EngineError(
                f"{copy}: so long a text needs {needed / 1e9:.1f} GB there for a moment, and they cannot be written "
                f"({error.strerror}). Make room, set TMPDIR to another folder, or lower max_length."
            ) from error
        yield copy


def _write(header: Header, out: BinaryIO) -> None:
    """Write the same file with one row of the table and no vocabulary."""
    kind = header.text("general.architecture")
    kept = ("general.architecture", "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.token_type_count")
    keys = {
        name: value
        for name, value in header.keys.items()
        if (name in kept or name.startswith(f"{kind}.")) and not isinstance(value, list)
    }
    infos, offset = b"", 0
    tensors = {name: _cut(tensor) if name == _TABLE else tensor for name, tensor in header.tensors.items()}
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        place = (len(dims), *dims, _IDS[tensor.type], offset)
        infos += _text(name) + struct.pack(f"<I{len(dims)}QIQ", *place)
        offset += _padded(tensor.nbytes)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    start += b"".join(_text(name) + _value(value) for name, value in keys.items()) + infos
    out.write(start.ljust(_padded(len(start)), b"\0"))
    source = np.memmap(header.path, np.uint8, "r")
    for tensor in tensors.values():
        out.write(source[tensor.start : tensor.start + tensor.nbytes].data)
        out.write(bytes(_padded(tensor.nbytes) - tensor.nbytes))


def _cut(table: Tensor) -> Tensor:
    return Tensor(table.type, (1, *table.shape[1:]), table.start, table.nbytes // table.shape[0])


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: object) -> bytes:
    """A value after its type, one of the four that llama.cpp's own keys of these models have."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _text(str(value))
