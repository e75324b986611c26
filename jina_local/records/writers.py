"""Vectors -> output files: one small class a format, block by block, in constant memory.

jsonl        {"index": 0, "embedding": [...]} a line, with "truncated": true where the text was cut, and
             {"index": 0, "error": "..."} for a text without a vector.
json         one array of arrays; null for a text without a vector.
csv          header index,d0,d1,...; the cells stay empty for a text without a vector.
parquet      columns index (int64), embedding (fixed-size list, or null), truncated (bool); a row group a block.
npy          (n_texts, width); a row of zeros for a text without a vector.
safetensors  the same as tensor "embeddings", with model, task, dim and precision as metadata.

float32 is written in text with the fewest digits that read back as the same float32.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..errors import EngineMissing, OutputError
from ..spec import EmbeddingSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("jsonl", "json", "npy", "csv", "safetensors", "parquet")
BINARY = ("npy", "safetensors", "parquet")
UNUSABLE = "the model gave no usable vector (NaN, infinity or zero)"
_NPY_HEADER = 128  # bytes; a multiple of 64, as the format asks, with room for any count
_DTYPES = {"float32": "<f4", "int8": "|i1", "uint8": "|u1", "binary": "|i1", "ubinary": "|u1"}
_SAFETENSORS = {"<f4": "F32", "|i1": "I8", "|u1": "U8"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Block:
    """Consecutive results. Rows of `vectors` named in `failed` are zero."""

    start: int  # the index of the first row in the whole run
    vectors: NDArray[np.generic]  # (n, width) float32, int8 or uint8; finite
    truncated: NDArray[np.bool_]  # (n,)
    failed: frozenset[int]  # places in this block


class Writer(Protocol):
    """Takes blocks in order."""

    def write(self, block: Block) -> None:
        """Append the rows of one block."""
        ...

    def close(self, complete: bool) -> None:
        """Write what the format has at its end. `complete`: all blocks were written, nothing went wrong."""
        ...


def format_of(path: str | None, asked: str | None) -> str:
    """The format asked for, else that of the suffix; jsonl for standard output. Raises OutputError."""
    if asked is not None:
        return asked
    if path is None or path == "-":
        return "jsonl"
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix in FORMATS:
        return suffix
    raise OutputError(
        f"--output {path}: the format cannot be told from the name. "
        f"Known suffixes: {', '.join('.' + f for f in FORMATS)}; or give --format."
    )


def open_writer(chosen: str, file: BinaryIO, spec: EmbeddingSpec) -> Writer:
    """The writer of one format for vectors of `spec`. Nothing reaches `file` but through it."""
    return _WRITERS[chosen](file, spec)


def width(spec: EmbeddingSpec) -> int:
    """Numbers per vector: eight dimensions share one where bits are packed."""
    return spec.dim // 8 if spec.precision in ("binary", "ubinary") else spec.dim


class JsonlWriter:
    """One record a line."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec) -> None:
        self._file = file

    def write(self, block: Block) -> None:
        for i, numbers in enumerate(_numbers(block)):
            if numbers is None:
                record = f'{{"index": {block.start + i}, "error": {json.dumps(UNUSABLE)}}}\n'
            else:
                cut = ', "truncated": true' if block.truncated[i] else ""
                record = f'{{"index": {block.start + i}, "embedding": [{", ".join(numbers)}]{cut}}}\n'
            self._file.write(record.encode())
        self._file.flush()

    def close(self, complete: bool) -> None:
        pass


class JsonWriter:
    """One array; without its end where the run broke off, so that no reader takes a part for the whole."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec) -> None:
        self._file = file
        self._before = "[\n"

    def write(self, block: Block) -> None:
        for numbers in _numbers(block):
            row = "null" if numbers is None else f"[{', '.join(numbers)}]"
            self._file.write((self._before + row).encode())
            self._before = ",\n"

    def close(self, complete: bool) -> None:
        if complete:
            self._file.write(b"[]\n" if self._before == "[\n" else b"\n]\n")


class CsvWriter:
    """A header and one line a vector."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec) -> None:
        self._file = file
        self._width = width(spec)
        file.write(("index," + ",".join(f"d{i}" for i in range(self._width)) + "\n").encode())

    def write(self, block: Block) -> None:
        for i, numbers in enumerate(_numbers(block)):
            cells = [""] * self._width if numbers is None else numbers
            self._file.write(f"{block.start + i},{','.join(cells)}\n".encode())

    def close(self, complete: bool) -> None:
        pass


class _Counted:
    """Raw rows behind a header of fixed size that holds their number and is written again at the end.

    Where the file cannot be rewritten (a pipe, a file opened to append), the rows wait in a temp file.
    """

    def __init__(self, file: BinaryIO, header: Callable[[int], bytes]) -> None:
        self._target, self._header = file, header
        self._spool = None if _rewritable(file) else tempfile.TemporaryFile()  # noqa: SIM115
        self._file: BinaryIO = file if self._spool is None else self._spool  # type: ignore[assignment]
        self._origin = self._file.tell()
        self._rows = 0
        self._file.write(header(0))

    def write(self, block: Block) -> None:
        import numpy as np

        self._file.write(np.ascontiguousarray(block.vectors).data)
        self._rows += len(block.vectors)

    def close(self, complete: bool) -> None:
        try:
            if complete:
                end = self._file.tell()
                self._file.seek(self._origin)
                self._file.write(self._header(self._rows))
                self._file.seek(end)
            if complete and self._spool is not None:
                self._spool.seek(0)
                shutil.copyfileobj(self._spool, self._target)
        finally:
            if self._spool is not None:
                self._spool.close()


class NpyWriter(_Counted):
    """numpy's format 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec) -> None:
        def header(rows: int) -> bytes:
            fields = {"descr": _DTYPES[spec.precision], "fortran_order": False, "shape": (rows, width(spec))}
            start = b"\x93NUMPY\x01\x00" + (_NPY_HEADER - 10).to_bytes(2, "little")
            return (start + repr(fields).encode()).ljust(_NPY_HEADER - 1) + b"\n"

        super().__init__(file, header)


class SafetensorsWriter(_Counted):
    """One tensor; see formats/safetensors.py. The header is padded with spaces, as the format allows."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec) -> None:
        dtype = _DTYPES[spec.precision]
        metadata = {
            "dim": str(spec.dim),
            "model": spec.model,
            "precision": spec.precision,
            "prompt": spec.prefix,
            "task": spec.task,
        }

        def text(rows: int) -> bytes:
            end = rows * width(spec) * int(dtype[-1])
            tensor = {"dtype": _SAFETENSORS[dtype], "shape": [rows, width(spec)], "data_offsets": [0, end]}
            body = {"__metadata__": metadata, "embeddings": tensor}
            return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

        size = -(-len(text(1 << 48)) // 8) * 8
        super().__init__(file, lambda rows: size.to_bytes(8, "little") + text(rows).ljust(size))


class _Gate:
    """Lets bytes through while it is open; pyarrow cannot be told to leave a file without its end."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.open = True

    def write(self, data: bytes) -> int:
        return self._file.write(data) if self.open else len(data)

    def flush(self) -> None:
        pass


class ParquetWriter:
    """A row group a block."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec) -> None:
        pa, pq = _pyarrow()
        kind = {"<f4": pa.float32(), "|i1": pa.int8(), "|u1": pa.uint8()}[_DTYPES[spec.precision]]
        self._pa, self._kind = pa, pa.list_(kind, width(spec))
        fields = [("index", pa.int64()), ("embedding", self._kind), ("truncated", pa.bool_())]
        self._schema = pa.schema(
            fields, metadata={"model": spec.model, "task": spec.task, "precision": spec.precision}
        )
        self._gate = _Gate(file)
        self._writer = pq.ParquetWriter(self._gate, self._schema)

    def write(self, block: Block) -> None:
        pa = self._pa
        n = len(block.vectors)
        gone = pa.array([i in block.failed for i in range(n)])
        flat = pa.array(block.vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, type=self._kind, mask=gone)
        index = pa.array(range(block.start, block.start + n), pa.int64())
        self._writer.write_table(
            pa.Table.from_arrays([index, column, pa.array(block.truncated)], schema=self._schema), row_group_size=n
        )

    def close(self, complete: bool) -> None:
        self._gate.open = complete
        self._writer.close()


_WRITERS: dict[str, Callable[[BinaryIO, EmbeddingSpec], Writer]] = {
    "jsonl": JsonlWriter,
    "json": JsonWriter,
    "npy": NpyWriter,
    "csv": CsvWriter,
    "safetensors": SafetensorsWriter,
    "parquet": ParquetWriter,
}


@contextmanager
def destination(path: str | None, stdout: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the file to write to: a temp file that takes the name `path` when the block ends well.

    None or `-` is `stdout`; a device or FIFO is written to directly. Raises OutputError where it cannot be
    written or the disk is full; then, and when interrupted, what stood at `path` is untouched.
    """
    if path is None or path == "-":
        with _full_disk("standard output"):
            yield stdout
            stdout.flush()
        return
    target = Path(os.path.realpath(path))  # a link is followed: its target is what gets replaced
    with _full_disk(path):
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            with _opened(target, os.O_WRONLY) as file:
                yield file
            return
        temp = target.with_name(f".jina-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with _opened(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, target)
        finally:
            temp.unlink(missing_ok=True)


def check_target(path: str | None, chosen: str) -> None:
    """Refuse early what would be refused after the model was loaded: a place or a format that cannot be had."""
    if chosen == "parquet":
        _pyarrow()
    if path is None or path == "-":
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"--output {path}: is a folder; give a file name.")
    if not target.parent.is_dir():
        raise OutputError(f"--output {path}: there is no folder {target.parent}; create it first.")
    if not os.access(target.parent if not target.exists() else target, os.W_OK):
        raise OutputError(f"--output {path}: cannot be written (permission denied).")


def _opened(path: Path, flags: int) -> BinaryIO:
    try:
        return os.fdopen(
            os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666), "r+b" if flags & os.O_RDWR else "wb"
        )
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


@contextmanager
def _full_disk(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise OutputError(f"{name}: the disk is full ({error.strerror}); the output is not complete.") from error
        raise


def _rewritable(file: BinaryIO) -> bool:
    """Whether bytes already written can be written again: not in pipes, nor where every write is appended."""
    if not file.seekable():
        return False
    with suppress(ImportError, OSError):
        import fcntl

        return not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND
    return True


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EngineMissing("--format parquet needs pyarrow: pip install 'jina_local[parquet]'.") from error
    return pa, pq


def _numbers(block: Block) -> Iterator[list[str] | None]:
    """Each row as JSON numbers; None for a failed one. str of a numpy float32 is the shortest that reads back."""
    for i, row in enumerate(block.vectors):
        yield None if i in block.failed else list(map(str, row))
