"""Spans of one document: checked, moved from characters to tokens, cut into windows. Integers only, no model.

A span is (start, end), the end not included, as a slice has it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import UsageError

Span = tuple[int, int]

# A sentence ends after its marks and closing quotes and brackets, if white space follows; ideographic marks need no
# white space; a line end always ends a sentence. Abbreviations are taken for ends.
_END = re.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n)")


@dataclass(frozen=True)
class Window:
    """A part of a document's tokens that is run as one pass, and the tokens whose rows are taken from that pass."""

    start: int
    end: int
    first: int
    last: int


def sentences(document: str) -> list[Span]:
    """The sentences and lines of a document, without the white space around them.

    By marks alone: "e.g. this" are two. A part without visible characters is no sentence.
    """
    ends = [match.end() for match in _END.finditer(document)]
    found = [_without_spaces(document, a, b) for a, b in zip([0, *ends], [*ends, len(document)], strict=True)]
    return [(a, b) for a, b in found if any(c.isprintable() and not c.isspace() for c in document[a:b])]


def of_size(starts: Sequence[int], length: int, size: int) -> list[Span]:
    """Spans of `size` tokens, the last one shorter, that together are the whole text of `length` characters.

    `starts`: the character that each token begins at, ascending; none: no spans. Tokens that begin at one character
    stay together.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UsageError(f"chunks of {size!r} tokens: expected a whole number from 1.")
    if not starts:
        return []
    cuts = [0, *sorted({cut for cut in starts[size::size] if cut > starts[0]})]
    return list(zip(cuts, [*cuts[1:], length], strict=True))


def checked(spans: object, length: int) -> list[Span]:
    """The spans of a text of `length` characters, ascending by their starts; they may overlap and leave gaps.

    Raises UsageError if `spans` is no list of spans or empty, or if a span lies outside the text or out of order.
    """
    if not isinstance(spans, Iterable):
        raise UsageError(f"chunks are {type(spans).__name__}; expected (start, end) in characters for each.")
    found: list[Span] = []
    for n, span in enumerate(spans):
        try:
            start, end = (_integer(x) for x in span)
        except (TypeError, ValueError):
            raise UsageError(f"chunk {n} is {span!r}; expected (start, end), two numbers of characters.") from None
        if not 0 <= start < end <= length:
            why = "is empty" if start >= end else f"is not within the {length} characters of the document"
            raise UsageError(f"chunk {n}, ({start}, {end}), {why}; expected 0 <= start < end <= {length}.")
        if found and start < found[-1][0]:
            raise UsageError(
                f"chunk {n}, ({start}, {end}), begins before chunk {n - 1}, {found[-1]}. Sort the chunks by their "
                "starts; they may overlap."
            )
        found.append((start, end))
    if not found:
        raise UsageError("no chunks were given; expected at least one (start, end) in characters.")
    return found


def of_tokens(spans: Sequence[Span], starts: Sequence[int]) -> list[Span]:
    """Spans of characters -> spans of tokens: a token belongs where it begins. A span may come out empty.

    `starts`: the character that each token begins at, ascending.
    """
    return [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in spans]


def windows(tokens: int, room: int, overlap: int) -> list[Window]:
    """Cut `tokens` into passes of at most `room` that share `overlap` with the next, or more at the end.

    One pass if all fit. The last pass ends with the text and is as long as the others. If two passes overlap, each
    token's row is taken from the pass in which it lies farther from the edge. `overlap` is cut to half of `room`.
    """
    if tokens <= room:
        return [Window(0, tokens, 0, tokens)]
    step = room - min(overlap, room // 2)
    starts = [*range(0, tokens - room, step), tokens - room]
    # The middle of the tokens that two neighbours share.
    cuts = [0, *((start + room + after) // 2 for start, after in pairwise(starts)), tokens]
    return [Window(start, start + room, cuts[n], cuts[n + 1]) for n, start in enumerate(starts)]


def _without_spaces(document: str, start: int, end: int) -> Span:
    piece = document[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))


def _integer(number: object) -> int:
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError
    return int(number.__index__())
