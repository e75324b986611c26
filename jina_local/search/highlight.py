"""Where the words of a question stand in lines of text, by the same word rules as the index."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing

from .words import TOKENIZER, terms_of

_OPEN, _CLOSE = "\ue000", "\ue001"  # of the private use area; a line that has them is left unmarked
_UNSPACED = re.compile(r'^"([^\x00-\u0dff]+)"\*?$')

_SHORT = 3  # letters: "the" and "how" are marked only if the question has nothing longer

Span = tuple[int, int]  # characters of a line, the end not included


def spans(lines: Sequence[str], question: str) -> list[list[Span]]:
    """For each line the places of the question's words, ascending."""
    terms = terms_of(question)
    terms = [term for term in terms if len(term) - 2 > _SHORT or not term.isascii()] or terms
    found: list[list[Span]] = [[] for _ in lines]
    if not terms:
        return found
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f'CREATE VIRTUAL TABLE lines USING fts5(text, tokenize="{TOKENIZER}")')
        rows = [(n + 1, line) for n, line in enumerate(lines) if _OPEN not in line and _CLOSE not in line]
        connection.executemany("INSERT INTO lines(rowid, text) VALUES (?, ?)", rows)
        marked = connection.execute(
            "SELECT rowid, highlight(lines, 0, ?, ?) FROM lines WHERE lines MATCH ?",
            (_OPEN, _CLOSE, " OR ".join(terms)),
        )
        for number, text in marked:
            found[number - 1] = _places(text)
    # A run of an unspaced script is one word to FTS5.
    for run in (match[1] for term in terms if (match := _UNSPACED.match(term))):
        for line, places in zip(lines, found, strict=True):
            places += [match.span() for match in re.finditer(re.escape(run), line)]
    return [_joined(places) for places in found]


def _places(marked: str) -> list[Span]:
    out, start = [], 0
    for removed, match in enumerate(re.finditer(f"[{_OPEN}{_CLOSE}]", marked)):
        at = match.start() - removed
        if match[0] == _OPEN:
            start = at
        else:
            out.append((start, at))
    return out


def _joined(places: list[Span]) -> list[Span]:
    """Ascending, with those that touch made one."""
    out: list[Span] = []
    for start, end in sorted(places):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out
