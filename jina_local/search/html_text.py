"""HTML -> its visible text as Markdown, with the source's line of every line. Linear in time, whatever the source."""

from __future__ import annotations

import re
from html import unescape

_MARKUP = re.compile(r"<(?=[a-zA-Z/!?])")
_NAME = re.compile(r"[a-zA-Z][^\s/>]*")
_TAG_PART = re.compile(r"=\s*(?:(\")|('))|>")
_LONG_REFERENCE = re.compile(r"&#(?:\d{8,}|[xX][0-9a-fA-F]{8,});?")  # no character has such a number
_RAW = frozenset({"script", "style", "textarea", "xmp", "iframe", "noembed", "noframes"})
_UNSEEN = frozenset({"svg", "math", "template", "noscript", "object", "select"})
_HEADINGS = {"title": 1, "h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_PARAGRAPHS = frozenset({
    "p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "ul", "ol", "dl", "table",
    "blockquote", "figure", "form", "fieldset", "hr", "body", "details", "address", "pre",
})  # fmt: skip
_LINES = frozenset({"br", "li", "dt", "dd", "tr", "caption", "figcaption", "summary", "legend", "label"})


def text_of(source: str) -> tuple[str, list[int]]:
    """The text, and for each of its lines the line of the source, from 1."""
    page = _Page()
    at, line, counted = 0, 1, 0
    while at < len(source):
        found = _MARKUP.search(source, at)
        start = found.start() if found else len(source)
        line, counted = line + source.count("\n", counted, at), at
        page.text(source[at:start], line)
        line, counted = line + source.count("\n", counted, start), start
        at = _behind(source, start, page, line)
    page.end_line()
    while page.lines and not page.lines[-1]:
        page.lines.pop()
        page.sources.pop()
    return "\n".join(page.lines), page.sources


def _behind(source: str, start: int, page: _Page, line: int) -> int:
    """Take the markup at `start`; returns the place behind it. Markup that is not closed lasts to the end."""
    if source.startswith("<!--", start):
        end = source.find("-->", start + 4)
        return end + 3 if end >= 0 else len(source)
    closing = source.startswith("</", start)
    name = _NAME.match(source, start + 1 + closing)
    if name is None:
        return source.find(">", start) + 1 or len(source)
    tag, end = name[0].lower(), _tag_end(source, name.end())
    page.tag(tag, closing, line)
    if tag in _RAW and not closing:
        return _raw_end(source, tag, end)
    return end


def _tag_end(source: str, at: int) -> int:
    """The place behind the `>` of a tag; one in quotes does not count."""
    while part := _TAG_PART.search(source, at):
        if part[0] == ">":
            return part.end()
        at = source.find(part[1] or part[2], part.end()) + 1
        if not at:
            break
    return len(source)


def _raw_end(source: str, tag: str, at: int) -> int:
    """Where `</tag` begins; in these elements nothing else is markup."""
    closing = re.compile(f"</{tag}(?=[\\s/>])", re.I).search(source, at)
    return closing.start() if closing else len(source)


class _Page:
    """The lines of the text as they come."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.sources: list[int] = []
        self._parts: list[str] = []
        self._line = 1  # of the source, where the current line begins
        self._prefix = ""
        self._code = False
        self._unseen = 0  # how many elements deep
        self._cells = False  # whether the current line has text that a cell has to be parted from

    def text(self, raw: str, line: int) -> None:
        """Text between tags, which may span several lines of the source."""
        if not raw or self._unseen:
            return
        text = unescape(_LONG_REFERENCE.sub("\ufffd", raw))
        for n, part in enumerate([text] if self._prefix.startswith("#") else text.split("\n")):
            if n:
                self.end_line()
            if not self._parts:
                self._line = line + n
            self._parts.append(part)
            self._cells = self._cells or bool(part.strip())

    def tag(self, name: str, closing: bool, line: int) -> None:
        """A start or end tag."""
        if name in _UNSEEN:
            self._unseen = max(0, self._unseen + (-1 if closing else 1))
        elif name in _HEADINGS or name in _PARAGRAPHS or name in _LINES:
            self.end_line()
            if name not in _LINES and self.lines and self.lines[-1]:
                self._add("", line)
            if name == "pre" and closing == self._code:
                self._code = not closing
                self._add("```", line)
            self._prefix = "" if closing else "#" * _HEADINGS[name] + " " if name in _HEADINGS else ""
            if name == "li" and not closing:
                self._prefix = "- "
        elif name in ("td", "th") and not closing and self._cells:
            self._parts.append(" | ")

    def end_line(self) -> None:
        """Close the current line; one without text is left out."""
        joined, self._parts, self._cells = "".join(self._parts), [], False
        words = joined.rstrip() if self._code else " ".join(joined.split())
        if words or (self._code and self.lines and self.lines[-1] != "```"):
            self._add(words if self._code else self._prefix + words, self._line)
            self._prefix = ""

    def _add(self, line: str, source: int) -> None:
        self.lines.append(line)
        self.sources.append(source)
