"""Hits as they are shown: with lines of the file around them, within so many tokens, as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .index import Index
    from .query import Answer, Hit


@dataclass(frozen=True)
class Shown:
    """A passage as it is shown: the lines of `text` have the numbers `first` and up, unless `first` is None."""

    path: bytes
    unit: str
    start_line: int  # of the passage itself
    end_line: int
    context: str
    language: str | None
    score: float
    bm25: float | None
    cosine: float | None
    state: str
    text: str
    first: int | None  # None: the document's unit is no line, and one number stands for the whole passage
    last: int

    @property
    def place(self) -> str:
        """What follows the path: `:12-18`, or ` page 3`."""
        before = ":" if self.first is not None else f" {self.unit} "
        return f"{before}{self.start_line}" + (f"-{self.end_line}" if self.end_line > self.start_line else "")


@dataclass(frozen=True)
class Found:
    """An answer as it is shown; `notes` are sentences about all that had no part in it, or was left out."""

    passages: Sequence[Shown]
    mode: str
    notes: Sequence[str]


def found(index: Index, answer: Answer, *, context: int | None = None, max_tokens: int | None = None) -> Found:
    """An answer with `context` lines around each passage, all passages within `max_tokens` of the index's model."""
    notes = list(answer.missing)
    passages = [_shown(index, hit, context) for hit in answer.hits]
    if max_tokens is not None:
        passages = _within(index, passages, max_tokens, notes)
    return Found(passages, answer.mode, notes)


def record(one: Shown) -> dict[str, Any]:
    """A passage as JSON has it."""
    out: dict[str, Any] = {
        "path": one.path.decode("utf-8", "backslashreplace"),
        "start_line": one.first or one.start_line,
        "end_line": one.last,
        "unit": one.unit,
        "context": one.context,
        "language": one.language,
        "score": one.score,
        "bm25": one.bm25,
        "cosine": one.cosine,
        "text": one.text,
    }
    if one.state:
        out["state"] = one.state
    return out


def of_record(given: Mapping[str, Any], path: bytes, start_line: int, end_line: int) -> Shown:
    """The passage of a record; `start_line` and `end_line` are the passage's own. Raises KeyError."""
    return Shown(
        path=path,
        unit=given["unit"],
        start_line=start_line,
        end_line=end_line,
        context=given["context"],
        language=given["language"],
        score=given["score"],
        bm25=given["bm25"],
        cosine=given["cosine"],
        state=given.get("state", ""),
        text=given["text"],
        first=given["start_line"] if given["unit"] == "line" else None,
        last=given["end_line"],
    )


def _shown(index: Index, hit: Hit, context: int | None) -> Shown:
    """The passage as it was indexed, or as many more lines around it as the file has now."""
    document, chunk = hit.document, hit.chunk
    text, last = chunk.text, chunk.end_line
    first = chunk.start_line if document.unit == "line" else None
    if first is not None and context and not hit.state:
        start = max(1, first - context)
        wider = index.get(os.fsdecode(document.path), start, last + context - start + 1)
        text, first, last = wider.text, wider.start_line, wider.end_line
    return Shown(
        path=document.path,
        unit=document.unit,
        start_line=chunk.start_line,
        end_line=chunk.end_line,
        context=chunk.context,
        language=document.language,
        score=hit.score,
        bm25=hit.bm25,
        cosine=hit.cosine,
        state=hit.state,
        text=text,
        first=first,
        last=last,
    )


def _within(index: Index, passages: list[Shown], most: int, notes: list[str]) -> list[Shown]:
    """The first passages that have at most so many tokens together; the last may have lost lines at its end."""
    kept: list[Shown] = []
    for one in passages:
        lines = one.text.split("\n")
        # A passage is cut once at most, so counting line by line costs little.
        while lines and (tokens := index.count_tokens(["\n".join(lines)])[0]) > most:
            lines.pop()
        if not lines:
            break
        text = "\n".join(lines)
        most -= tokens
        cut = len(text) < len(one.text)
        kept.append(replace(one, text=text, last=one.last if one.first is None else one.first + len(lines) - 1))
        if cut:
            notes.append(f"passage {len(kept)} was cut")
            break
    if left := len(passages) - len(kept):
        notes.append(f"{left} of {len(passages)} passages did not fit into max_tokens")
    return kept
