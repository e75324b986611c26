"""Where texts come from: the command line, standard input, or files in their order; and how far the reading is."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from ..errors import UsageError
from .output import by_suffix, descriptor
from .readers import FORMATS, PLAIN, Item, Reader, Reading


class Source:
    """Texts in their order. `size`: the bytes of all inputs; None if it is not known."""

    def __init__(self, name: str, items: Iterator[Item], inputs: Sequence[_Input] = ()) -> None:
        self.name, self.items, self._inputs = name, items, inputs
        sizes = [one.size for one in inputs if one.size is not None]
        self.size = sum(sizes) if 0 < len(sizes) == len(inputs) else None
        self.several = len(inputs) > 1

    @property
    def position(self) -> int:
        """How many bytes of all inputs have been read."""
        return sum(one.position() for one in self._inputs)

    def where(self, item: Item) -> str:
        """The item's place, for a report; the input is named if there are several."""
        return item.place if self.several else f"{item.unit} {item.number}"

    def close(self) -> None:
        """Close the files that are open."""
        for one in self._inputs:
            one.close()


def arguments(texts: Sequence[str], *, records: bool = False) -> Source:
    """The texts of the command line."""
    name = "the command line"
    items = (
        Item(n, text, {"text": text} if records else None, None, "text", name) for n, text in enumerate(texts, 1)
    )
    return Source(name, items)


def open_inputs(paths: Sequence[str], reading: Reading) -> Source:
    """Read files in their order; `-` is standard input. Each may have another format.

    Raises UsageError if an input is not there or its format cannot be told, and if the first cannot be understood.
    """
    inputs = [_Input(path, reading) for path in paths]
    if sum(one.descriptor == 0 for one in inputs) > 1:
        raise UsageError("standard input was named twice as --input, and can be read once.")
    inputs[0].open()

    def items() -> Iterator[Item]:
        for one in inputs:
            yield from one.open().items()
            one.close()

    name = inputs[0].name if len(inputs) == 1 else f"{len(inputs)} inputs"
    return Source(name, items(), inputs)


def blocks(items: Iterable[Item], *, first: int, most: int, chars: int) -> Iterator[list[Item]]:
    """Cut a stream into lists of at most `first` items, then twice as many each time, up to `most`.

    The first lists are small, so that something is seen early. A list ends sooner once it holds `chars` characters.
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


class _Input:
    """A file or standard input, opened when it is its turn."""

    def __init__(self, path: str, reading: Reading) -> None:
        self.descriptor = 0 if path == "-" else descriptor(path)
        self.name = "standard input" if self.descriptor == 0 else path
        self._path, self._reading = path, reading
        self._format = self._choose()
        self._start = 0
        self.size = self._measure()
        self._file: BinaryIO | None = None
        self._reader: Reader | None = None
        self._read = 0  # bytes, once the file is closed

    def open(self) -> Reader:
        """Open the file, if it is not open yet."""
        if self._reader is None:
            try:
                self._file = sys.stdin.buffer if self.descriptor == 0 else open(self._path, "rb")  # noqa: SIM115
            except OSError as error:
                raise self._not_opened(error) from error
            try:
                self._reader = Reader(self._file, self.name, self._format, self._reading)
            except BaseException:
                self.close()
                raise
        return self._reader

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._file is not None:
            self._read = self.position()
            if self.descriptor != 0:
                self._file.close()
            self._file = None

    def position(self) -> int:
        """How many bytes have been read."""
        if self._file is None or self._reader is None or self.size is None:
            return self._read
        share = self._reader.share
        return self._file.tell() - self._start if share is None else int(self.size * share)

    def _choose(self) -> str:
        """The format: as given, else by suffix, else that of a pipe. Raises UsageError."""
        field = self._reading.field
        if self.descriptor == 0 and sys.stdin is None:
            raise UsageError("standard input is closed: give texts, or --input FILE.")
        if os.path.isdir(self._path):
            raise UsageError(f"--input {self._path}: is a folder. Give its files, each with --input.")
        if self._reading.input_format is not None:
            chosen = self._reading.input_format
        elif self.descriptor is not None:
            chosen = "jsonl" if field else "txt"
        else:
            chosen = by_suffix("--input", self._path, {f".{name}": name for name in FORMATS}, "--input-format")
        if field and chosen in PLAIN:
            raise UsageError(
                f"{self.name} is read as {chosen}, whose texts have no fields. For records give --input-format "
                "jsonl, json, csv or tsv; for plain texts leave out --field and --id (--keep text is possible)."
            )
        if chosen == "parquet" and self.descriptor is not None:
            raise UsageError("parquet cannot be read from standard input: give --input FILE.")
        return chosen

    def _measure(self) -> int | None:
        """Bytes from here to the end; None for a pipe."""
        try:
            if self.descriptor != 0:
                found = os.stat(self._path)
            else:
                found = os.fstat(sys.stdin.buffer.fileno())
                self._start = sys.stdin.buffer.tell() if stat.S_ISREG(found.st_mode) else 0
        except io.UnsupportedOperation:
            return None
        except OSError as error:
            raise self._not_opened(error) from error
        return found.st_size - self._start if stat.S_ISREG(found.st_mode) else None

    def _not_opened(self, error: OSError) -> UsageError:
        return UsageError(f"--input {self.name}: cannot be opened ({error.strerror}).")
