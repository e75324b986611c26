"""Vectors -> output files: one small class a format, block by block, in constant memory.

jsonl        {"index": 0, "embedding": [...]} a line, with "truncated": true if the text was cut, and
             {"index": 0, "error": "..."} for a text without a vector. Kept fields stand after the index.
json         One array of arrays; null for a text without a vector.
csv          A header index,d0,d1,..., kept fields after the index; the numbers are empty for a text without a vector.
parquet      Columns index (int64), kept fields, embedding (fixed-size list, or null), truncated (bool); a row group a
             block. The first block decides the types of kept fields.
npy          (n_texts, width); a row of zeros for a text without a vector.
safetensors  The same as tensor "embeddings", with model, weights, task, dim and precision as metadata.

float32 is written in text with the fewest digits that read back as the same float32.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..errors import UsageError
from ..spec import EmbeddingSpec
from .json_text import dumps
from .output import by_suffix, is_file, rewritable
from .readers import pyarrow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("jsonl", "json", "npy", "csv", "safetensors", "parquet")
BINARY = ("npy", "safetensors", "parquet")
_KEEPS = ("jsonl", "csv", "parquet")  # formats with room for fields beside the vectors
_OWN = ("index", "embedding", "truncated", "error")  # names of a row's own fields
UNUSABLE = "the model gave no usable vector (NaN, infinity or zero)"
_NPY_HEADER = 128  # bytes; a multiple of 64, as the format asks, with room for any count
DTYPES = {"float32": "<f4", "int8": "|i1", "uint8": "|u1", "binary": "|i1", "ubinary": "|u1"}
_SAFETENSORS = {"<f4": "F32", "|i1": "I8", "|u1": "U8"}


@dataclass(frozen=True)
class Block:
    """Consecutive results. Rows of `vectors` named in `failed` are zero."""

    indices: range  # of the rows, among all texts of the inputs
    vectors: NDArray[np.generic]  # (n, width) float32, int8 or uint8; finite
    token_counts: NDArray[np.int32]  # (n,): 0 for a bad row
    truncated: NDArray[np.bool_]  # (n,)
    failed: Mapping[int, str]  # place in this block -> why it has no vector
    kept: Mapping[str, list[Any]] = field(default_factory=dict)  # name in the output -> n values of the input


class Writer(Protocol):
    """Takes blocks in order."""

    def write(self, block: Block) -> None:
        """Append the rows of one block."""
        ...

    def close(self, complete: bool) -> None:
        """Write the end that the format has. `complete`: all blocks were written, nothing went wrong."""
        ...


def format_of(path: str | None, asked: str | None) -> str:
    """The format asked for, else that of the suffix; jsonl for standard output. Raises UsageError."""
    if asked is not None:
        return asked
    if not is_file(path):
        return "jsonl"
    return by_suffix("--output", path, {f".{name}": name for name in FORMATS}, "--format")


def check(chosen: str, kept: Collection[str]) -> None:
    """Raise an error early for a format that cannot be written here, or has no place for the kept fields."""
    if chosen == "parquet":
        pyarrow("--format parquet")
    if kept and chosen in FORMATS and chosen not in _KEEPS:
        raise UsageError(f"{chosen} has no place for --id and --keep: give --format {' or '.join(_KEEPS)}.")
    for name in kept:
        if name in _OWN or (chosen == "csv" and name[:1] == "d" and name[1:].isdecimal()):
            raise UsageError(f"--keep {name}: {chosen} has a field of that name. --id {name} keeps it as 'id'.")


def open_writer(
    chosen: str, file: BinaryIO, spec: EmbeddingSpec, kept: Collection[str] = (), *, weights: str
) -> Writer:
    """The writer of one format for vectors of `spec`, with the names of the kept fields.

    weights: the type of the model's weights, such as "Q8_0", for formats with metadata.
    """
    return _WRITERS[chosen](file, spec, tuple(kept), weights)


def width(spec: EmbeddingSpec) -> int:
    """Numbers per vector: eight dimensions share one number if bits are packed."""
    return spec.dim // 8 if spec.precision in ("binary", "ubinary") else spec.dim


class JsonlWriter:
    """One record a line."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], weights: str) -> None:
        self._file = file
        self._keys = {name: json.dumps(name) for name in kept}

    def write(self, block: Block) -> None:
        for i, numbers in enumerate(_numbers(block)):
            kept = "".join(f", {key}: {dumps(block.kept[name][i])}" for name, key in self._keys.items())
            if numbers is None:
                answer = f'"error": {dumps(block.failed[i])}'
            else:
                cut = ', "truncated": true' if block.truncated[i] else ""
                answer = f'"embedding": [{", ".join(numbers)}]{cut}'
            self._file.write(f'{{"index": {block.indices[i]}{kept}, {answer}}}\n'.encode())
        self._file.flush()

    def close(self, complete: bool) -> None:
        pass


class JsonWriter:
    """One array; without its end if the run broke off, so that no reader takes a part for the whole."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], weights: str) -> None:
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

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], weights: str) -> None:
        self._rows = csv.writer(_Encoded(file), lineterminator="\n")
        self._width, self._kept = width(spec), kept
        self._rows.writerow(["index", *kept, *(f"d{i}" for i in range(self._width))])

    def write(self, block: Block) -> None:
        for i, numbers in enumerate(_numbers(block)):
            kept = [as_cell(block.kept[name][i]) for name in self._kept]
            self._rows.writerow([block.indices[i], *kept, *(numbers or [""] * self._width)])

    def close(self, complete: bool) -> None:
        pass


class _Encoded:
    """A file that takes text, as `csv` writes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode("utf-8", "backslashreplace"))


class _Counted:
    """Raw rows behind a header of fixed size that holds their number and is written again at the end.

    The rows wait in a temp file if the file cannot be rewritten: a pipe, a file opened to append.
    """

    def __init__(self, file: BinaryIO, header: Callable[[int], bytes]) -> None:
        self._target, self._header = file, header
        self._spool = None if rewritable(file) else tempfile.TemporaryFile()  # noqa: SIM115
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

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], weights: str) -> None:
        def header(rows: int) -> bytes:
            fields = {"descr": DTYPES[spec.precision], "fortran_order": False, "shape": (rows, width(spec))}
            start = b"\x93NUMPY\x01\x00" + (_NPY_HEADER - 10).to_bytes(2, "little")
            return (start + repr(fields).encode()).ljust(_NPY_HEADER - 1) + b"\n"

        super().__init__(file, header)


class SafetensorsWriter(_Counted):
    """One tensor; see formats/safetensors.py. The header is padded with spaces, as the format allows."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], weights: str) -> None:
        dtype = DTYPES[spec.precision]
        metadata = {
            "dim": str(spec.dim),
            "model": spec.model,
            "precision": spec.precision,
            "prompt": spec.prefix,
            "task": spec.task,
            "weights": weights,
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

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], weights: str) -> None:
        self._pa, self._pq = pyarrow("--format parquet")
        kind = {"<f4": self._pa.float32(), "|i1": self._pa.int8(), "|u1": self._pa.uint8()}
        self._kind = self._pa.list_(kind[DTYPES[spec.precision]], width(spec))
        self._metadata = {
            "model": spec.model,
            "weights": weights,
            "task": spec.task,
            "precision": spec.precision,
        }
        self._kept: dict[str, Any] = dict.fromkeys(kept)  # name -> type, once a block has shown it
        self._gate = _Gate(file)
        self._writer: Any = None

    def write(self, block: Block) -> None:
        pa, n = self._pa, len(block.vectors)
        kept = [self._column(name, block) for name in self._kept]
        self._open()
        gone = pa.array([i in block.failed for i in range(n)])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.vectors.reshape(-1)), type=self._kind, mask=gone)
        columns = [pa.array(block.indices, pa.int64()), *kept, vectors, pa.array(block.truncated)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=n)

    def close(self, complete: bool) -> None:
        self._gate.open = complete
        self._open()
        self._writer.close()

    def _open(self) -> None:
        """Write the head, once the types of the kept fields are known."""
        if self._writer is None:
            pa = self._pa
            kept = [(name, kind or pa.string()) for name, kind in self._kept.items()]
            fields = [("index", pa.int64()), *kept, ("embedding", self._kind), ("truncated", pa.bool_())]
            self._schema = pa.schema(fields, metadata=self._metadata)
            self._writer = self._pq.ParquetWriter(self._gate, self._schema)

    def _column(self, name: str, block: Block) -> Any:
        kind = self._kept[name]
        try:
            found = self._pa.array(block.kept[name], kind)
        except (self._pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            before = f", and the values before are {kind}" if kind else ""
            raise UsageError(
                f"--keep {name}: a Parquet column has one type{before} ({error}; after row {block.indices[0]}). "
                "Give --format jsonl, or make the field alike in all records."
            ) from error
        if kind is None:
            self._kept[name] = self._pa.string() if self._pa.types.is_null(found.type) else found.type
            return found.cast(self._kept[name])
        return found


_WRITERS: dict[str, Callable[[BinaryIO, EmbeddingSpec, tuple[str, ...], str], Writer]] = {
    "jsonl": JsonlWriter,
    "json": JsonWriter,
    "npy": NpyWriter,
    "csv": CsvWriter,
    "safetensors": SafetensorsWriter,
    "parquet": ParquetWriter,
}


def _numbers(block: Block) -> Iterator[list[str] | None]:
    """Each row as JSON numbers; None for a row that failed. str of a numpy float32 has the fewest digits."""
    for i, row in enumerate(block.vectors):
        yield None if i in block.failed else list(map(str, row))


def as_cell(value: Any) -> str:
    """A kept value as a cell of csv: strings as they are, null empty, lists and objects as JSON."""
    return value if isinstance(value, str) else "" if value is None else dumps(value)
