"""Input files -> texts with the line they stand on: one function a format, in constant memory.

txt       every line is one text, empty lines too, so that results line up with lines. The line end, LF or
          CRLF, is not part of it; what follows the last line end is a line only if it is not empty.
jsonl     every line is a JSON string, or an object whose `field` is one. Blank lines are no records.
csv, tsv  a header, then records with a column `field`; quoting as spreadsheets do it, line ends in quotes
          included. Blank lines are no records.
parquet   a column `field` of strings.

Text is strict UTF-8; a byte order mark at the start is dropped. Every fault names its line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import EngineMissing, UsageError

FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
MAX_LINE = 64 << 20  # bytes; a file without line ends must not fill the memory
_BOM = b"\xef\xbb\xbf"


class Item(NamedTuple):
    """One text and where it stands, counted from 1."""

    number: int
    text: str
    record: dict[str, Any] | None = None  # what else stood with it, the text included; only where it was asked for


@dataclass(frozen=True)
class Source:
    """Where texts come from. `unit` is what `Item.number` counts; `total` is known where it costs nothing."""

    name: str
    unit: str  # "line" | "row" | "text"
    items: Iterator[Item]
    total: int | None = None
    file: BinaryIO | None = None

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self.file is not None:
            self.file.close()


def arguments(texts: list[str]) -> Source:
    """The texts of the command line."""
    return Source("the command line", "text", (Item(i, t) for i, t in enumerate(texts, 1)), len(texts))


def open_source(path: str, *, input_format: str | None, field: str, records: bool = False) -> Source:
    """Open a file, or standard input for `-`, in the format given or, without one, that of its suffix.

    Standard input is txt unless said otherwise. records: each item has the whole object, row or line that its text
    stands in, except where that is a text and no more. Raises UsageError where it cannot be opened or understood;
    faults further down are raised while reading.
    """
    chosen = input_format or ("txt" if path == "-" else _by_suffix(path))
    if path == "-":
        if chosen == "parquet":
            raise UsageError("parquet cannot be read from standard input: give --input FILE.")
        if sys.stdin is None:
            raise UsageError("standard input is closed: give texts, or --input FILE.")
        return Source("standard input", "line", _texts(sys.stdin.buffer, "standard input", chosen, field, records))
    try:
        file = open(path, "rb")  # noqa: SIM115 (the Source closes it)
    except OSError as error:
        raise UsageError(f"--input {path}: cannot be opened ({error.strerror}).") from error
    if chosen == "parquet":
        try:
            rows, items = _parquet(file, path, field, records)
        except BaseException:
            file.close()
            raise
        return Source(path, "row", items, rows, file)
    return Source(path, "line", _texts(file, path, chosen, field, records), None, file)


def blocks(items: Iterable[Item], *, first: int, most: int, chars: int) -> Iterator[list[Item]]:
    """Cut a stream into lists of at most `first` items, then twice as many each time, up to `most`.

    Small at first, so that something is seen early; a list ends sooner once it holds `chars` characters.
    """
    block: list[Item] = []
    held, room = 0, first
    for item in items:
        block.append(item)
        held += len(item.text)
        if len(block) == room or held >= chars:
            yield block
            block, held, room = [], 0, min(2 * room, most)
    if block:
        yield block


def _by_suffix(path: str) -> str:
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix in FORMATS:
        return suffix
    raise UsageError(
        f"--input {path}: the format cannot be told from the name. "
        f"Known suffixes: {', '.join('.' + f for f in FORMATS)}; or give --input-format."
    )


def _texts(file: BinaryIO, name: str, chosen: str, field: str, records: bool) -> Iterator[Item]:
    lines = _lines(file, name)
    if chosen == "txt":
        return (Item(number, _chomp(line)) for number, line in lines)
    if chosen == "jsonl":
        return _jsonl(lines, name, field, records)
    return _table(lines, name, field, "\t" if chosen == "tsv" else ",", records)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Number from 1 and line, its end included."""
    number, offset = 0, 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise UsageError(f"{name} line {number}: longer than {MAX_LINE >> 20} MiB. Is it a text file?")
        skip = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
        try:
            line = raw[skip:].decode("utf-8")
        except UnicodeDecodeError as error:
            at = offset + skip + error.start
            wide = number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
            hint = "It looks like UTF-16: c" if wide else "C"
            raise UsageError(
                f"{name} line {number}: not UTF-8 at byte {at} of the input (0x{raw[skip + error.start]:02X}). "
                f"{hint}onvert it first, for example with `iconv -f {'UTF-16' if wide else 'LATIN1'} -t UTF-8`."
            ) from error
        yield number, line
        offset += len(raw)


def _chomp(line: str) -> str:
    if line.endswith("\n"):
        return line[:-2] if line.endswith("\r\n") else line[:-1]
    return line


def _jsonl(lines: Iterable[tuple[int, str]], name: str, field: str, records: bool) -> Iterator[Item]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: not valid JSON: {error.msg} at column {error.colno}.") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not usable JSON ({error}).") from error
        if isinstance(value, dict):
            if field not in value:
                raise UsageError(f"{where}: has no {field!r}. It has: {_listed(value)}. Give --field NAME.")
            yield Item(number, _string(value[field], f"{where}: {field!r}"), value if records else None)
        else:
            yield Item(number, _string(value, f"{where}: the record", " or an object with one"))


def _table(lines: Iterable[tuple[int, str]], name: str, field: str, delimiter: str, records: bool) -> Iterator[Item]:
    csv.field_size_limit(MAX_LINE)
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    column = None
    header: list[str] = []
    first = 1  # csv counts the lines it has taken; a record may span several
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{name} line {first}: {error}.") from error
        if row is None:
            break
        if column is None:
            column, header = _column(row, name, field), row
        elif row:
            if len(row) <= column:
                raise UsageError(f"{name} line {first}: has {len(row)} fields; {field!r} is number {column + 1}.")
            yield Item(first, row[column], _record(header, row) if records else None)
        first = rows.line_num + 1
    if column is None:
        raise UsageError(f"{name}: is empty; expected a header line with a column {field!r}.")


def _record(header: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    """The cells of a row by their columns' names; a column without a name of its own goes by its number."""
    named: dict[str, Any] = {}
    for n, cell in enumerate(row):
        key = header[n] if n < len(header) else ""
        if not key or key in named:
            if n >= len(header) and not cell:
                continue  # a delimiter at the end of the line
            key = f"column {n + 1}"
        named[key] = cell
    return named


def _column(header: list[str], name: str, field: str) -> int:
    if header.count(field) != 1:
        fault = "has no column" if field not in header else "has more than one column"
        raise UsageError(f"{name}: {fault} {field!r}. It has: {_listed(header)}. Give --field NAME.")
    return header.index(field)


def _parquet(file: BinaryIO, name: str, field: str, records: bool) -> tuple[int, Iterator[Item]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EngineMissing(f"{name}: parquet needs pyarrow: pip install 'jina_local[parquet]'.") from error
    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{name}: cannot be read as parquet ({error}).") from error
    _column(table.schema_arrow.names, name, field)
    kind = table.schema_arrow.field(field).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise UsageError(f"{name}: column {field!r} holds {kind}, expected strings.")

    def items() -> Iterator[Item]:
        number = 0
        try:
            for batch in table.iter_batches(batch_size=1024, columns=None if records else [field]):
                whole = batch.to_pylist() if records else [None] * len(batch)
                for value, record in zip(batch.column(field).to_pylist(), whole, strict=True):
                    number += 1
                    yield Item(number, _string(value, f"{name} row {number}: {field!r}"), record)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{name}: damaged after row {number} ({error}).") from error

    return table.metadata.num_rows, items()


def _string(value: Any, where: str, more: str = "") -> str:
    if isinstance(value, str):
        return value
    shown = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}.get(
        type(value), "a number"
    )
    raise UsageError(f"{where} is {shown}, expected a string{more}.")


def _listed(names: Iterable[str]) -> str:
    shown = [repr(n) for n in names]
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "") if shown else "nothing"
