"""A document -> spans of a number of words, as Elastic's chunking_settings ask for them.

The spans cover the document but for the white space around them. A word is a run of letters and digits, or one
character of Chinese or Japanese; Elastic counts the latter by dictionary, so its chunks of them are longer.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from . import chunks
from .chunks import Span

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+(?:['’.][^\W_{_IDEOGRAPHS}]+)*")
_MOST_REPEATED = 20  # words of a sentence that is repeated in part


def of_words(document: str, size: int, overlap: int) -> list[Span]:
    """Spans of `size` words, each beginning with the last `overlap` words of the one before it."""
    ends = [match.end() for match in _WORD.finditer(document)]
    return _spans(_ranges(0, len(ends), size, overlap), [0, *ends[:-1]], document)


def of_sentences(document: str, size: int, overlap: int) -> list[Span]:
    """Spans of whole sentences, as many as have `size` words together; a longer sentence is cut between words.

    overlap: 1 repeats the sentence before a span's first, or its last words if there is no room for all; 0 does not.
    """
    words = [match.span() for match in _WORD.finditer(document)]
    starts = [start for start, _ in words]
    cuts = [0, *(end for _, end in words[:-1])]  # where the text before a word ends
    bounds = [0]  # the first word of each sentence
    for _, end in chunks.sentences(document):
        at = bisect_left(starts, end)
        if bounds[-1] < at < len(words):
            bounds.append(at)
            cuts[at] = end
    found: list[Span] = []
    begin = before = 0
    for at, end in zip(bounds, [*bounds[1:], len(words)], strict=True):
        if end - begin > size:
            if at > begin:
                next_begin = at if not overlap else before if end - before <= size else _repeated(at, before, size)
                if next_begin > begin:  # else the next span has all of this one
                    found.append((begin, at))
                begin = next_begin
            *full, (begin, _) = _ranges(begin, end, size, min(_MOST_REPEATED, (size - 1) // 2))
            found += full
        before = at
    return _spans([*found, (begin, len(words))], cuts, document)


def _repeated(at: int, before: int, size: int) -> int:
    """The first of the words before the word `at` that are repeated; `before` is where their sentence begins."""
    return max(before, at - min(_MOST_REPEATED, size // 2))


def _ranges(first: int, last: int, size: int, overlap: int) -> list[Span]:
    """Ranges of `size` words; the last one may be shorter."""
    starts = [first, *range(first + size - overlap, last - overlap, size - overlap)]
    return [(start, min(start + size, last)) for start in starts]


def _spans(ranges: list[Span], cuts: list[int], document: str) -> list[Span]:
    """Ranges of words -> spans of characters."""
    if len(ranges) == 1:
        return [(0, len(document))]
    found: list[Span] = []
    for first, last in ranges:
        start, end = cuts[first], cuts[last] if last < len(cuts) else len(document)
        part = document[start:end]
        found.append((end - len(part.lstrip()), start + len(part.rstrip())))
    return found
