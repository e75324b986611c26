"""Hits and lines as text for an agent, within as many tokens as it asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

HITS = 30  # of an answer: the best with their passages, the others by name
_BYTES = 4  # a token of an agent, whose tokenizer is not known: of code, English, German and Chinese it is about that


@dataclass(frozen=True)
class Found:
    """A hit as the agent sees it."""

    place: str
    context: str
    text: str
    state: str

    @classmethod
    def of(cls, hit: Any, name: Callable[[bytes], str]) -> Found:
        """From a hit of `Index.search`, whose type has no public name."""
        chunk = hit.chunk
        where = place(name(hit.document.path), hit.document.unit, chunk.start_line, chunk.end_line)
        return cls(where, chunk.context, chunk.text, hit.state)

    @property
    def head(self) -> str:
        """Its first line: where it is."""
        state = f"({self.state} since it was indexed)" if self.state else ""
        return "  ".join(filter(None, (self.place, self.context, state)))


def listed(found: Sequence[Found], most: int, notes: Sequence[str], offset: int | None = None) -> str:
    """Hits, the best with their passages in half of the room, the others by their places alone; then the notes.

    offset: of the first hit, if the next ones can be asked for.
    """
    at_least(1, max_tokens=most)
    sizes = [(len(one.head.encode()) + 1, len(one.text.encode()) + 2) for one in found[:HITS]]
    room = most * _BYTES
    for_texts = room if sum(map(sum, sizes)) <= room else room // 2
    out, texts = list[str](), True
    for one, (head, text) in zip(found, sizes, strict=False):
        texts = texts and (not out or head + text <= for_texts)  # a worse hit does not take the place of a better one
        size = head + text if texts else head
        if out and size > room:
            break
        out.append(f"{one.head}\n{cut(one.text, most)}\n" if texts else one.head)
        room, for_texts = room - size, for_texts - size
    shown = len(out)
    if not found:
        out.append(f"There are no hits after the first {offset}." if offset else "Nothing was found.")
    elif len(found) > shown:
        out.append(f"(More hits: {'raise max_tokens' if offset is None else f'offset={offset + shown}'}.)")
    return "\n".join([*out, *notes])


def cut(text: str, tokens: int) -> str:
    """The lines of a text that are within so many tokens; if not even the first one is, its beginning."""
    at_least(1, max_tokens=tokens)
    data = text.encode()
    if len(data) <= tokens * _BYTES:
        return text
    kept = data[: tokens * _BYTES].decode("utf-8", "ignore")
    return kept[: kept.rindex("\n")] if "\n" in kept else kept


def at_least(least: int, **given: int) -> None:
    """Raise UsageError for an argument below its least value."""
    for name, value in given.items():
        if value < least:
            raise UsageError(f"{name} {value} is out of range; expected a whole number from {least}.")


def place(name: str, unit: str, first: int, last: int) -> str:
    """PATH:FIRST-LAST, or PATH page 3."""
    lines = f"{first}-{last}" if last > first else f"{first}"
    return f"{name}:{lines}" if unit == "line" else f"{name} {unit} {lines}"


def short_name(path: bytes) -> str:
    """The path below the working directory if it is there, as an agent's other tools take it; else the whole."""
    inside = os.path.relpath(path)
    return (path if inside.startswith(b"..") else inside).decode("utf-8", "backslashreplace")


def whole_name(path: bytes) -> str:
    """The whole path."""
    return path.decode("utf-8", "backslashreplace")
