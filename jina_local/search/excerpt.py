"""Lines of a file that is in an index, as the file is now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..errors import UsageError
from .database import DocumentRow
from .documents import NotText
from .extract import extract, most_bytes
from .folder import Unreadable, read_stable, shown


@dataclass(frozen=True)
class Passage:
    """Some lines of a file."""

    path: bytes
    start_line: int
    end_line: int  # the last line, included
    unit: str  # what the numbers count: "line", "page" of a PDF, ...
    text: str
    changed: bool  # the file is not as it was indexed


def passage(document: DocumentRow, line: int, count: int | None) -> Passage:
    """`count` lines from `line` on, fewer at the end. Raises UsageError if there are none."""
    name = shown(document.path, document.root)
    try:
        data, _ = read_stable(document.path, most_bytes(document.path))
        found = extract(document.path, data)
    except (Unreadable, NotText) as error:
        raise UsageError(f"{name}: {error}. It was readable when it was indexed; run `index` again.") from None
    lines = found.text.removesuffix("\n").split("\n")
    numbers = found.lines or range(1, len(lines) + 1)
    last = numbers[len(lines) - 1] if count is None else line + count - 1
    taken = [(number, text) for number, text in zip(numbers, lines, strict=False) if line <= number <= last]
    if not taken:
        raise UsageError(f"{name}: has {max(numbers)} {found.unit}s, and {line} was asked for.")
    changed = hashlib.sha256(data).digest() != document.digest
    text = "\n".join(text for _, text in taken)
    return Passage(document.path, taken[0][0], taken[-1][0], found.unit, text, changed)
