"""Texts as one line of a terminal: what cannot be seen is written out, what does not fit is cut."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from typing import BinaryIO

_MORE = "…"
# Unicode's classes of what has no shape of its own and may move the cursor or turn the direction of writing round:
# controls, formats, surrogates, line and paragraph separators. Joiners stay: they make letters and emoji.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"


def columns(file: BinaryIO) -> int | None:
    """How many columns the terminal behind `file` has, or COLUMNS says; None where it is no terminal."""
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
    """The text in at most `room` columns, all of it for None; `…` at the end where it was cut."""
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


def _width(piece: str) -> int:
    """Columns of one character or escape. Of a sequence that is drawn as one emoji this is the most it can take."""
    if len(piece) > 1:
        return len(piece)
    if piece in _JOINERS or unicodedata.category(piece) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(piece) in "WF" else 1
