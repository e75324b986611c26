"""A document -> pieces of a token budget: at headings, definitions, paragraphs, lines and sentences.

A piece is about three characters for each token of its budget long; code about 750. Pieces are counted by the model's
own tokenizer afterwards, and those that are too long are cut again. So equal text is cut alike for every model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ..errors import EngineMissing, UsageError
from . import definitions
from .tokenizer import Tokenizer

CODE_SIZE = 750  # characters
LEAST_TOKENS = 32
_CHARS_PER_TOKEN = 3
_WINDOW = 4  # pieces handed to the library at once: its time grows with the square of a text without line ends
_MOST_CONTEXT = 200  # characters
_MOST_HEADING = 80
_MARKDOWN = frozenset({"markdown", "html", "docx", "notebook"})  # extracted text of the last three is Markdown

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")


@dataclass(frozen=True)
class Piece:
    """A passage of a document. `start` and `end` are characters of its text, the end not included."""

    start: int
    end: int
    context: str = ""  # "Guide > Install", or the qualified name "Router.reset"
    defines: tuple[str, ...] = ()  # the qualified names of the functions and classes that begin here


def split(text: str, language: str | None, tokenizer: Tokenizer, max_tokens: int) -> list[Piece]:
    """The pieces of a document in order. Every character that is not white space lies in exactly one.

    language: "markdown", a programming language such as "python", or anything else for plain text.
    max_tokens: the most tokens of `fed(text, piece)`; prompt and special tokens come on top. A single character is
        never cut, nor is a grapheme, unless it alone has more tokens.
    """
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < LEAST_TOKENS:
        raise UsageError(f"pieces of {max_tokens!r} tokens: expected a whole number from {LEAST_TOKENS}.")
    size = max_tokens * _CHARS_PER_TOKEN
    if language in _MARKDOWN:
        pieces = list(_of_markdown(text, size))
    elif (grammar := definitions.grammar(language)) is not None:
        pieces = list(_of_code(text, grammar, min(size, CODE_SIZE)))
    else:
        pieces = _cut(text, Piece(0, len(text)), min(size, CODE_SIZE) if language in definitions.CODE else size)
    return _within_budget(text, pieces, tokenizer, max_tokens)


def fed(text: str, piece: Piece) -> str:
    """What the model reads of a piece: its context, then its text."""
    passage = text[piece.start : piece.end]
    return f"{piece.context}\n{passage}" if piece.context else passage


def _within_budget(text: str, pieces: list[Piece], tokenizer: Tokenizer, most: int) -> list[Piece]:
    """The pieces, those cut again into about equal parts that have more than `most` tokens."""
    while True:
        counts = [len(ids) for ids in tokenizer.plain([fed(text, piece) for piece in pieces])]
        if max(counts, default=0) <= most:
            return pieces
        smaller: list[Piece] = []
        for piece, count in zip(pieces, counts, strict=True):
            smaller.extend([piece] if count <= most else _smaller(text, piece, count, most, tokenizer))
        if smaller == pieces:
            return pieces
        pieces = smaller


def _smaller(text: str, piece: Piece, count: int, most: int, tokenizer: Tokenizer) -> list[Piece]:
    if piece.context and len(tokenizer.plain([piece.context + "\n"])[0]) > most // 4:
        return [Piece(piece.start, piece.end, "", piece.defines)]
    length = piece.end - piece.start
    parts = -(-count // most)
    return _cut(text, piece, max(1, min(length - 1, -(-length // parts) + length // (8 * parts))))


def _of_markdown(text: str, size: int) -> Iterator[Piece]:
    for start, end, path in _sections(text):
        yield from _cut(text, Piece(start, end, _context(path)), size, markdown=True)


def _context(path: tuple[str, ...]) -> str:
    """A heading path of bounded length; the outer headings are left out first."""
    while len(path) > 1 and sum(map(len, path)) + 3 * len(path) > _MOST_CONTEXT:
        path = path[1:]
    return " > ".join(path)


def _sections(text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """(start, end, headings from the outermost) of each section; headings without text join the next one."""
    found = list(_headings(text))
    starts = [0, *(at for at, _, _, _ in found), len(text)]
    path: list[tuple[int, str]] = []
    begin = 0
    for n, (start, end) in enumerate(pairwise(starts)):
        if n:
            _, body, level, title = found[n - 1]
            while path and path[-1][0] >= level:
                path.pop()
            if title:
                path.append((level, title))
        else:
            body = 0
        if text[body:end].strip() or n == len(found):
            yield begin, end, tuple(title for _, title in path)
            begin = end


def _headings(text: str) -> Iterator[tuple[int, int, int, str]]:
    """(start, end, level, title) of each heading, outside of fenced code and front matter."""
    fence, at, before, line = "", 0, 0, ""
    front = text.startswith(("---\n", "---\r\n"))
    for n, raw in enumerate(text.splitlines(keepends=True)):
        previous, line, start = line, raw.rstrip(), at
        at += len(raw)
        if front:
            front = n == 0 or line not in ("---", "...")
            line = ""
        elif fence:
            if line.strip() == fence[0] * len(line.strip()) and len(line.strip()) >= len(fence):
                fence = ""
            line = ""
        elif match := _FENCE.match(line):
            fence, line = match[1], ""
        elif match := _ATX.match(line):
            yield start, at, len(match[1]), _title(match[2] or "")
            line = ""
        elif previous and (match := _SETEXT.match(line)):
            yield before, at, 1 if match[1][0] == "=" else 2, _title(previous)
            line = ""
        before = start


def _title(heading: str) -> str:
    return heading.strip()[:_MOST_HEADING]


def _of_code(text: str, grammar: Any, size: int) -> Iterator[Piece]:
    for piece in definitions.pieces(text, grammar, size):
        yield from _cut(text, Piece(*piece), size)


def _cut(text: str, piece: Piece, size: int, markdown: bool = False) -> list[Piece]:
    """A piece in parts of at most `size` characters; only the first one defines."""
    spans: list[tuple[int, int]] = []
    at = piece.start
    while at < piece.end:
        window = text[at : min(at + _WINDOW * size, piece.end)]
        if len(window) <= size:
            found = [(0, window)]
        else:
            found = _library(size, markdown).chunk_indices(window)
        if at + len(window) < piece.end and len(found) > 1:
            following = found.pop()[0]  # where it ends is the window's doing
        else:
            following = len(window)
        spans.extend(_visible(text, at + start, at + start + len(part)) for start, part in found)
        at += following
    whole = [(start, end) for start, end in spans if start < end]
    return [Piece(a, b, piece.context, () if n else piece.defines) for n, (a, b) in enumerate(whole)]


def _visible(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the blank lines before it and the white space after it."""
    part = text[start:end]
    indent = len(part) - len(part.lstrip())
    first = part.rfind("\n", 0, indent) + 1  # the indentation of the first line stays
    return start + first, end - (len(part) - len(part.rstrip())) if part.strip() else start + first


@lru_cache(maxsize=32)
def _library(size: int, markdown: bool) -> Any:
    """The splitter of semantic-text-splitter; it measures in characters. Safe to share between threads."""
    try:
        import semantic_text_splitter as library
    except ImportError as error:
        raise EngineMissing(
            "splitting documents needs semantic-text-splitter: pip install 'jina_local[search]'."
        ) from error
    return (library.MarkdownSplitter if markdown else library.TextSplitter)(size)
