"""One file -> its texts and their places, in constant memory (a .json file is read whole).

txt       Every line is one text, empty lines too, so that results line up with lines. The line end, LF or CRLF, is
          not part of it. Text after the last line end is a line only if it is not empty.
md        Every paragraph is one text: the lines up to a blank line. A fenced block of code belongs to one paragraph.
jsonl     Every line is a JSON string, or an object whose `field` is one. Blank lines are no records.
json      A list of strings or objects, or one object.
csv, tsv  A header, then records with a column `field`; quoting as spreadsheets do it, line ends in quotes included.
          Blank lines are no records.
parquet   A column `field` of strings.

Text is strict UTF-8; a byte order mark at the start is dropped. Every fault names its place.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import EngineMissing, UsageError

FORMATS = ("txt", "md", "jsonl", "json", "csv", "tsv", "parquet")
PLAIN = ("txt", "md")  # formats whose texts are no fields of a record
MAX_LINE = 64 << 20  # bytes; a file without line ends must not fill the memory
_UNITS = {"parquet": "row", "json": "record"}  # else "line"
_BOM = b"\xef\xbb\xbf"
_FENCES = ("```", "~~~")

_Record = dict[str, Any]
_Parsed = tuple[str, _Record | None]


class Item(NamedTuple):
    """One text and its place."""

    number: int  # from 1 in its input
    text: str
    record: _Record | None = None  # the whole record, the text included; only if `Reading.records`
    fault: str | None = None  # why the row has no text; only if `Reading.skip`
    unit: str = "line"  # of `number`: "line" | "row" | "record" | "text"
    name: str = ""  # of the input

    @property
    def place(self) -> str:
        """Where the text stands, for a message."""
        return f"{self.name} {self.unit} {self.number}"


@dataclass(frozen=True)
class Reading:
    """How inputs are read."""

    input_format: str | None = None  # None: by suffix; standard input is txt, but jsonl if `field` is given
    field: str | None = None  # None is "text" and allows txt and md, whose texts are no fields
    records: bool = False  # each item has its whole record
    skip: bool = False  # a bad row comes as an item with a `fault`; else it is an error

    def bad_row(self, item: Item) -> Item:
        """Return the item, or raise UsageError with its fault if bad rows are errors."""
        if self.skip:
            return item
        raise UsageError(f"{item.place}: {item.fault} (--errors skip passes over bad rows)")


class _BadRow(Exception):
    """A row that has no text; the rows after it can be read."""

    def __init__(self, reason: str, record: _Record | None = None) -> None:
        super().__init__(reason)
        self.record = record


class Reader:
    """The texts of one open file."""

    def __init__(self, file: BinaryIO, name: str, chosen: str, reading: Reading) -> None:
        """Raises UsageError and EngineMissing if a Parquet file cannot be read."""
        self._file, self._name, self._format, self._reading = file, name, chosen, reading
        self._field = reading.field or "text"
        self._unit = _UNITS.get(chosen, "line")
        self._table = self._open_parquet() if chosen == "parquet" else None
        self.share: float | None = None if self._unit == "line" else 0.0  # done, if not read line by line

    def items(self) -> Iterator[Item]:
        """All texts. Raises UsageError at a fault that ends the reading, and at a bad row unless `Reading.skip`."""
        if self._format == "parquet":
            return self._parquet()
        if self._format == "json":
            return self._json()
        lines = _Lines(self._file, self._name)
        if self._format == "txt":
            return self._rows(lines, lines, lambda line: self._line(line, lines.number))
        if self._format == "md":
            return self._rows(_paragraphs(lines), lines, lambda text: (text, None))
        if self._format == "jsonl":
            return self._rows(lines, lines, self._json_line)
        return self._separated(lines)

    def _item(self, number: int, text: str, record: _Record | None) -> Item:
        if not self._reading.records:
            record = None
        elif record is None:
            record = {self._field: text}
        return Item(number, text, record, None, self._unit, self._name)

    def _bad(self, number: int, error: Exception) -> Item:
        record = error.record if isinstance(error, _BadRow) and self._reading.records else None
        reason = str(error) if isinstance(error, _BadRow) else f"{error}."
        return self._reading.bad_row(Item(number, "", record, reason, self._unit, self._name))

    def _rows(self, rows: Iterator[Any], lines: _Lines, parse: Callable[[Any], _Parsed | None]) -> Iterator[Item]:
        """The texts that `parse` finds in rows made of lines; it gives None for a row that is no record."""
        while True:
            lines.first, lines.fault = 0, None
            try:
                row = next(rows, None)
                if row is None:
                    return
                if lines.fault is not None:
                    raise _BadRow(lines.fault)
                parsed = parse(row)
            except (_BadRow, csv.Error) as error:
                yield self._bad(lines.first, error)
            else:
                if parsed is not None:
                    yield self._item(lines.first, *parsed)

    def _line(self, line: str, number: int) -> _Parsed:
        if number == 1 and self._reading.input_format is None and line.lstrip().startswith("{"):
            found = None
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
            if isinstance(found, dict):
                raise UsageError(
                    f"{self._name} line 1 is a JSON object. For records give --input-format jsonl (and --field NAME, "
                    "unless the text is in 'text'); to take every line as it is, --input-format txt."
                )
        if line.endswith("\n"):
            line = line[:-2] if line.endswith("\r\n") else line[:-1]
        return line, None

    def _json_line(self, line: str) -> _Parsed | None:
        if not line.strip():
            return None
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            hint = ""
            if self._reading.input_format is None and Path(self._name).suffix.lower() != ".jsonl":
                hint = " It is read as jsonl because a field was named; a table needs --input-format csv or tsv."
            raise _BadRow(f"not valid JSON: {error.msg} at column {error.colno}.{hint}") from error
        except (ValueError, RecursionError) as error:
            raise _BadRow(f"not usable JSON ({error}).") from error
        return self._json_value(value)

    def _json_value(self, value: Any) -> _Parsed:
        if not isinstance(value, dict):
            return _string(value, "the record", None, " or an object with one"), None
        if self._field not in value:
            raise _BadRow(f"has no {self._field!r}. It has: {listed(value)}. Give --field NAME.", value)
        return _string(value[self._field], repr(self._field), value), value

    def _json(self) -> Iterator[Item]:
        try:
            whole = json.loads(self._file.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._name}: not UTF-8 at byte {error.start} of the input.") from error
        except json.JSONDecodeError as error:
            hint = " For one record a line give --input-format jsonl." if error.msg == "Extra data" else ""
            place = f"{self._name} line {error.lineno}"
            raise UsageError(f"{place}: not valid JSON: {error.msg} at column {error.colno}.{hint}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self._name}: not usable JSON ({error}).") from error
        values = whole if isinstance(whole, list) else [whole]
        for number, value in enumerate(values, 1):
            self.share = number / len(values)
            try:
                yield self._item(number, *self._json_value(value))
            except _BadRow as error:
                yield self._bad(number, error)

    def _separated(self, lines: _Lines) -> Iterator[Item]:
        """Records of a csv or tsv file."""
        csv.field_size_limit(MAX_LINE)
        rows = csv.reader(lines, delimiter="\t" if self._format == "tsv" else ",", strict=True)
        try:
            header = next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{self._name} line 1: {error}.") from error
        if lines.fault is not None:
            raise UsageError(f"{self._name} line 1: {lines.fault}")
        if header is None:
            raise UsageError(f"{self._name}: is empty; expected a header line with a column {self._field!r}.")
        column = _column(header, self._name, self._field)

        def parse(row: list[str]) -> _Parsed | None:
            if not row:
                return None
            record = _named(header, row) if self._reading.records else None
            if len(row) <= column:
                raise _BadRow(f"has {len(row)} fields; {self._field!r} is number {column + 1}.", record)
            return row[column], record

        yield from self._rows(rows, lines, parse)

    def _open_parquet(self) -> Any:
        pa, pq = pyarrow(f"{self._name}: parquet")
        try:
            table = pq.ParquetFile(self._file)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{self._name}: cannot be read as parquet ({error}).") from error
        _column(table.schema_arrow.names, self._name, self._field)
        kind = table.schema_arrow.field(self._field).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
            raise UsageError(f"{self._name}: column {self._field!r} holds {kind}, expected strings.")
        return table

    def _parquet(self) -> Iterator[Item]:
        import pyarrow as pa

        table: Any = self._table
        number, columns = 0, None if self._reading.records else [self._field]
        try:
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                records = batch.to_pylist() if self._reading.records else [None] * len(batch)
                for value, record in zip(batch.column(self._field).to_pylist(), records, strict=True):
                    number += 1
                    self.share = number / table.metadata.num_rows
                    try:
                        yield self._item(number, _string(value, repr(self._field), record), record)
                    except _BadRow as error:
                        yield self._bad(number, error)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self._name}: damaged after row {number} ({error}).") from error


class _Lines:
    """The lines of a file, their ends included. A line that is not UTF-8 is given with its bad bytes replaced."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self.name = file, name
        self._offset = 0
        self.number = 0  # of the line given last
        self.first = 0  # the first line of the present row; its reader sets it back to 0
        self.fault: str | None = None  # why a line of the present row is not UTF-8

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MAX_LINE + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        self.first = self.first or self.number
        if len(raw) > MAX_LINE:
            raise UsageError(f"{self.name} line {self.number}: longer than {MAX_LINE >> 20} MiB. Is it a text file?")
        offset = self._offset
        self._offset += len(raw)
        if self.number == 1 and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
            offset += len(_BOM)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            wide = self.number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff")
            hint = "It looks like UTF-16: c" if wide else "C"
            self.fault = (
                f"not UTF-8 at byte {offset + error.start} of the input (0x{raw[error.start]:02X}). "
                f"{hint}onvert it first, for example with `iconv -f {'UTF-16' if wide else 'LATIN1'} -t UTF-8`."
            )
            return raw.decode("utf-8", "replace")


def _paragraphs(lines: _Lines) -> Iterator[str]:
    """Lines between blank ones, joined; a blank line in a fenced block of code divides nothing."""
    paragraph: list[str] = []
    size, fence = 0, ""
    for line in lines:
        bare = line.strip()
        if not bare and not fence:
            if paragraph:
                yield "".join(paragraph).rstrip("\r\n")
                paragraph, size = [], 0
            lines.first = 0
            continue
        if bare[:3] in _FENCES and fence in ("", bare[:3]):
            fence = "" if fence else bare[:3]
        paragraph.append(line)
        size += len(line)
        if size > MAX_LINE:
            raise UsageError(f"{lines.name} line {lines.number}: its paragraph is longer than {MAX_LINE >> 20} MiB.")
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n")


def _named(header: Sequence[str], row: Sequence[str]) -> _Record:
    """The cells of a row by their columns' names; a column without a name of its own goes by its number."""
    named: _Record = {}
    for n, cell in enumerate(row):
        key = header[n] if n < len(header) else ""
        if not key or key in named:
            if n >= len(header) and not cell:
                continue  # a delimiter at the end of the line
            key = f"column {n + 1}"
        named[key] = cell
    return named


def _column(header: Sequence[str], name: str, field: str) -> int:
    if header.count(field) != 1:
        fault = "has no column" if field not in header else "has more than one column"
        raise UsageError(f"{name}: {fault} {field!r}. It has: {listed(header)}. Give --field NAME.")
    return header.index(field)


def _string(value: Any, what: str, record: _Record | None, more: str = "") -> str:
    if isinstance(value, str):
        return value
    kinds = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}
    raise _BadRow(f"{what} is {kinds.get(type(value), 'a number')}, expected a string{more}.", record)


def pyarrow(who: str) -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises EngineMissing for `who` needs them."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EngineMissing(f"{who} needs pyarrow: pip install 'jina_local[parquet]'.") from error
    return pa, pq


def listed(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    shown = [repr(n) for n in names]
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "") if shown else "nothing"
