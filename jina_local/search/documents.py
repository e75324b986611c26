"""The text of a file, and where a passage of it lies in that file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class NotText(Exception):
    """A file that gives no text; the message is the reason."""


@dataclass(frozen=True)
class Document:
    """The text of one file.

    lines: for each line of the text its place in the file, from 1; None if the text is the file's own.
    unit: what a place is: "line", or "page" of a PDF, "paragraph" of a DOCX file, "cell" of a notebook.
    encoding: of the file, and `mark` the bytes before its text; of no meaning if `lines` is given.
    """

    text: str
    language: str | None
    lines: Sequence[int] | None = None
    unit: str = "line"
    encoding: str = "utf-8"
    mark: int = 0


@dataclass(frozen=True)
class Place:
    """Where a passage lies in its file. Lines are from 1, the last one included; bytes are None if extracted."""

    start_line: int
    end_line: int
    start_byte: int | None
    end_byte: int | None


def places(document: Document, spans: Sequence[tuple[int, int]]) -> list[Place]:
    """Where spans of characters lie in the file; they follow each other."""
    text, found = document.text, []
    at, line, byte = 0, 1, document.mark
    for start, end in spans:
        line += text.count("\n", at, start)
        first, last = line, line + text.count("\n", start, max(start, end - 1))
        if document.lines is None:
            begin = byte + len(text[at:start].encode(document.encoding))
            byte = begin + len(text[start:end].encode(document.encoding))
            found.append(Place(first, last, begin, byte))
        else:
            covered = document.lines[first - 1 : last]
            found.append(Place(min(covered), max(covered), None, None))
        at, line = end, line + text.count("\n", start, end)
    return found
