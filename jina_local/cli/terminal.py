"""For people: texts on one line of a terminal, unseen characters written out, the rest cut; vectors as a table."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from typing import BinaryIO

from ..console import say
from ..records.writers import Block, as_cell, width
from ..spec import EmbeddingSpec

_MORE = "…"
_FIRST_NUMBERS = 6  # of each vector
# Unicode's classes of what has no shape of its own and may move the cursor or turn the direction of writing round:
# controls, formats, surrogates, line and paragraph separators. Joiners stay: they make letters and emoji.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"


def columns(file: BinaryIO) -> int | None:
    """How many columns the terminal behind `file` has, or COLUMNS says; None if it is no terminal."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    if not file.isatty():
        return None
    try:
        return os.get_terminal_size(file.fileno()).columns or 80
    except OSError:
        return 80


def one_line(text: str, room: int | None) -> str:
    """The text in at most `room` columns, all of it for None; `…` at the end if it was cut."""
    out: list[str] = []
    used = 0
    fits = 0  # pieces that leave a column for the mark of a cut
    for piece in _pieces(text):
        used += _width(piece)
        if room is not None and used > room:
            return "".join(out[:fits]) + _MORE if room else ""
        out.append(piece)
        if room is None or used < room:
            fits = len(out)
    return "".join(out)


def _pieces(text: str) -> Iterator[str]:
    """The characters, those that cannot be seen as escapes."""
    for char in text:
        seen = char in _JOINERS or unicodedata.category(char) not in _UNSEEN
        yield char if seen else char.encode("unicode_escape").decode()


def width_of(text: str) -> int:
    """Columns of a text that `one_line` gave."""
    return sum(map(_width, text))


def _width(piece: str) -> int:
    """Columns of one character or escape. Of a sequence that is drawn as one emoji this is the most it can take."""
    if len(piece) > 1:
        return len(piece)
    if piece in _JOINERS or unicodedata.category(piece) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(piece) in "WF" else 1


class VectorTable:
    """Vectors as a person reads them: a Writer like those of files, with the first numbers of each only."""

    def __init__(self, file: BinaryIO, spec: EmbeddingSpec, kept: tuple[str, ...], room: int | None) -> None:
        """`room`: columns of the terminal; None does not cut."""
        self._file, self._kept, self._room = file, kept, room
        self._numbers = width(spec)
        self._head = f"{self._numbers} numbers, {spec.precision}"
        if self._numbers != spec.dim:
            self._head = f"{self._numbers} bytes, {spec.precision}, of {spec.dim} dimensions"
        self._begun = False

    def write(self, block: Block) -> None:
        """Write a line for each vector."""
        if not self._begun:
            self._line("index", "tokens", self._head, ", ".join(self._kept))
            self._begun = True
        for i, row in enumerate(block.vectors):
            first = [f"{x:7.4f}" if row.dtype.kind == "f" else f"{x:4}" for x in row[:_FIRST_NUMBERS]]
            numbers = block.failed.get(i) or " ".join(first) + " ..."
            tokens = f"{block.token_counts[i]}{'+' if block.truncated[i] else ''}"
            kept = ", ".join(as_cell(block.kept[name][i]) for name in self._kept)
            self._line(block.indices[i], tokens, numbers, kept)
        self._file.flush()

    def close(self, complete: bool) -> None:
        """Say how all numbers are to be had."""
        if complete and self._begun:
            say("For all numbers: --format jsonl, a pipe, or --output FILE.")

    def _line(self, index: object, tokens: str, numbers: str, kept: str) -> None:
        text = one_line(f"{index:>5}  {tokens:>6}  {numbers}  {kept}".rstrip(), self._room)
        self._file.write(f"{text}\n".encode("utf-8", "backslashreplace"))
