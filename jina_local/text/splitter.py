"""A document -> pieces of bounded length: at headings, definitions, paragraphs, lines and sentences.

Pieces are measured in characters, so that equal text is cut alike for every model. Those that have too many tokens by
the model's own tokenizer are cut again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ..errors import EngineMissing, UsageError
from . import definitions
from .chunks import Span
from .tokenizer import Tokenizer

VERSION = 1  # raised if equal text may be cut otherwise than before
TEXT_SIZE = 1000  # characters
CODE_SIZE = 750
LEAST_TOKENS = 32
_CHARS_PER_TOKEN = 3
_MOST_CONTEXT = 200  # characters
_MOST_HEADING = 80
_LONGEST_HEADING_LINE = 1000
# The library's time grows with the square of a text without line ends, so it sees this many pieces at a time.
_WINDOW = 4
_MARKDOWN = frozenset({"markdown", "html", "docx", "notebook"})  # the last three are extracted as Markdown

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_PARAGRAPH = re.compile(r" {0,3}(?![-*+][ \t]|\d+[.)][ \t]|[>|#\s])")

Cutter = Callable[[str, int, int, int], list[Span]]  # text, start, end, most characters -> spans


@dataclass(frozen=True)
class Piece:
    """A passage of a document. `start` and `end` are characters of its text, the end not included."""

    start: int
    end: int
    context: str = ""  # "Guide > Install", or the qualified name "Router.reset"
    defines: tuple[str, ...] = ()  # the qualified names of the definitions that begin here


def split(text: str, language: str | None, tokenizer: Tokenizer, max_tokens: int) -> list[Piece]:
    """The pieces of a document in order. Every character that is not white space lies in exactly one.

    language: "markdown", a programming language such as "python", or anything else for plain text.
    max_tokens: the most tokens of `fed(text, piece)`; prompt and special tokens come on top. A grapheme is cut only
        if it alone has more, a single character never.
    """
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < LEAST_TOKENS:
        raise UsageError(f"pieces of {max_tokens!r} tokens: expected a whole number from {LEAST_TOKENS}.")
    most = max_tokens * _CHARS_PER_TOKEN
    if language in definitions.PARSED:
        pieces, cutter = _of_code(text, language, min(most, CODE_SIZE)), _at_lines
    elif language in _MARKDOWN:
        pieces, cutter = _of_markdown(text, min(most, TEXT_SIZE)), _at_blocks
    else:
        pieces, cutter = _cut(text, Piece(0, len(text)), min(most, TEXT_SIZE), _at_sentences), _at_sentences
    return _within_budget(text, pieces, cutter, tokenizer, max_tokens)


def fed(text: str, piece: Piece) -> str:
    """What the model reads of a piece: its context, then its text."""
    passage = text[piece.start : piece.end]
    return f"{piece.context}\n{passage}" if piece.context else passage


def _within_budget(text: str, pieces: list[Piece], cutter: Cutter, tokenizer: Tokenizer, most: int) -> list[Piece]:
    """The pieces; if one has more than `most` tokens, it is cut into about equal parts until none has."""
    done: list[Piece] = []
    while pieces:
        counts = _counts([fed(text, piece) for piece in pieces], tokenizer, most)
        smaller: list[Piece] = []
        for piece, count in zip(pieces, counts, strict=True):
            if count <= most or (piece.end - piece.start == 1 and not piece.context):
                done.append(piece)
            elif piece.context and _counts([piece.context], tokenizer, most // 4)[0] > most // 4:
                smaller.append(replace(piece, context=""))
            else:
                length = piece.end - piece.start
                parts = -(-count // most)
                smaller += _cut(text, piece, max(1, min(length - 1, -(-length // parts) + length // 16)), cutter)
        pieces = smaller
    return sorted(done, key=lambda piece: piece.start)


def _counts(texts: list[str], tokenizer: Tokenizer, most: int) -> list[int]:
    """The tokens of each text; 0 for one that surely has no more than `most`."""
    # A token is at least one character of ASCII; some tokenizers put one more before a text.
    unsure = [text for text in texts if len(text) >= most or not text.isascii()]
    counted = iter(tokenizer.plain(unsure))
    return [len(next(counted)) if len(text) >= most or not text.isascii() else 0 for text in texts]


def _cut(text: str, piece: Piece, size: int, cutter: Cutter) -> list[Piece]:
    """A piece in parts of at most `size` characters without the white space between them; the first one defines."""
    parts: list[Piece] = []
    least = piece.start
    for start, end in cutter(text, piece.start, piece.end, size):
        start, end = _visible(text, start, end, least, size)
        if start < end:
            parts.append(Piece(start, end, piece.context, () if parts else piece.defines))
            least = end
    return parts


def _visible(text: str, start: int, end: int, least: int, size: int) -> Span:
    """A span without white space around it, but with the indentation of its first line if it has room for that."""
    part = text[start:end]
    if not part.strip():
        return start, start
    start, end = start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
    line = text.rfind("\n", least, start) + 1 or least
    if end - line <= size and text[line:start].isspace():
        return line, end
    while start > least and _joins(text[start]):  # a mark on a space
        start -= 1
    return start, end


def _joins(char: str) -> bool:
    return char == "\u200d" or unicodedata.category(char).startswith("M")


def _at_sentences(text: str, start: int, end: int, size: int, markdown: bool = False) -> list[Span]:
    """Spans that end at blank lines, lines, sentences, words or graphemes, the first of these that fits."""
    spans: list[Span] = []
    while end - start > size:
        window = text[start : min(start + _WINDOW * size, end)]
        found = [(start + at, start + at + len(part)) for at, part in _library(size, markdown).chunk_indices(window)]
        start += len(window)
        if start < end and len(found) > 1:
            start = found.pop()[0]  # its end is the window's
        spans += found
    return [*spans, (start, end)]


def _at_blocks(text: str, start: int, end: int, size: int) -> list[Span]:
    """The same in Markdown, where lists, tables and fenced code are kept together if they fit."""
    return _at_sentences(text, start, end, size, markdown=True)


def _at_lines(text: str, start: int, end: int, size: int) -> list[Span]:
    """Spans of about equal length that end where lines of code are least indented; a long line is cut as text is."""
    spans: list[Span] = []
    while end - start > size:
        even = -(-(end - start) // -(-(end - start) // size))
        cut = _outermost_line(text, start, min(start + even + size // 8, start + size))
        if cut == start:
            cut = text.find("\n", start, end) + 1 or end
            spans += _at_sentences(text, start, cut, size)
        else:
            spans.append((start, cut))
        start = cut
    return [*spans, (start, end)]


def _outermost_line(text: str, start: int, end: int) -> int:
    """The last start of a line in the second half of a span that is indented least; `start` if there is none."""
    best, least, at = start, 0, end + 1
    while (at := text.rfind("\n", start, at - 1) + 1) > start:
        if best > start and at < (start + end) // 2:
            break
        line = text[at : at + 200]
        indent = len(line) - len(line.lstrip(" \t"))
        if text.endswith(("\n\n", "\n\r\n"), start, at):
            indent -= 4
        if best == start or indent < least:
            best, least = at, indent
    return best


@lru_cache(maxsize=64)
def _library(size: int, markdown: bool) -> Any:
    """A splitter of semantic-text-splitter that measures in characters. Safe to share between threads."""
    try:
        import semantic_text_splitter as library
    except ImportError as error:
        raise EngineMissing("splitting needs semantic-text-splitter: pip install 'jina_local[search]'.") from error
    return (library.MarkdownSplitter if markdown else library.TextSplitter)(size)


def _of_code(text: str, language: str, size: int) -> list[Piece]:
    pieces: list[Piece] = []
    for one in definitions.passages(text, language, size):
        piece = Piece(one.start, one.end, one.context, one.defines)
        pieces += _cut(text, piece, max(size, min(one.end - one.start, size + size // 8)), _at_lines)
    return pieces


def _of_markdown(text: str, size: int) -> list[Piece]:
    pieces: list[Piece] = []
    for start, end, path in _sections(text):
        pieces += _cut(text, Piece(start, end, _shortened(path)), size, _at_blocks)
    return pieces


def _shortened(path: tuple[str, ...]) -> str:
    """A heading path of bounded length; the outer headings are left out first."""
    while len(path) > 1 and len(" > ".join(path)) > _MOST_CONTEXT:
        path = path[1:]
    return " > ".join(path)


def _sections(text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """(start, end, headings from the outermost) of each section. Headings without text join the next section."""
    headings = list(_headings(text))
    ends = [start for start, _, _, _ in headings] + [len(text)]
    if text[: ends[0]].strip():
        yield 0, ends[0], ()
    path: list[tuple[int, str]] = []
    begin = ends[0]
    for (_, body, level, title), end in zip(headings, ends[1:], strict=True):
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, title))
        if text[body:end].strip() or end == len(text):
            yield begin, end, tuple(title for _, title in path if title)
            begin = end


def _headings(text: str) -> Iterator[tuple[int, int, int, str]]:
    """(start, end, level, title) of each heading outside of fenced code and front matter."""
    starts = [0, *(match.end() for match in re.finditer("\n", text)), len(text)]
    fence, previous, before = "", "", 0
    front = text.startswith(("---\n", "---\r\n"))
    for n, (start, end) in enumerate(pairwise(starts)):
        line = text[start : min(end, start + _LONGEST_HEADING_LINE)].rstrip()
        paragraph = ""
        if front:
            front = n == 0 or line not in ("---", "...")
        elif fence:
            if len(line.strip()) >= len(fence) and not line.strip(fence[0] + " \t"):
                fence = ""
        elif match := _FENCE.match(line):
            fence = match[1]
        elif match := _ATX.match(line):
            yield start, end, len(match[1]), _title(match[2] or "")
        elif previous and (match := _SETEXT.match(line)):
            yield before, end, 1 if match[1][0] == "=" else 2, _title(previous)
        elif _PARAGRAPH.match(line):
            paragraph = line
        previous, before = paragraph, start


def _title(heading: str) -> str:
    return heading.strip()[:_MOST_HEADING]
