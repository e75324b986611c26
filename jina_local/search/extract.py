"""The bytes of one file -> its text and its language, or why it has none."""

from __future__ import annotations

import codecs
import json
import os

from . import docx_text, html_text, pdf_text
from .documents import Document, NotText

VERSION = 1  # raised if an equal file may give other text than before
MOST_TEXT = 16 << 20  # bytes of a text file, characters of an extracted text
MOST_DOCUMENT = 128 << 20  # bytes of a PDF or DOCX file, pictures included
_LOOKED_AT = 8192  # bytes in which a NUL makes a file binary
_LEAST_DECODABLE = 0.7

LANGUAGES = {
    language: frozenset(suffixes.split())
    for language, suffixes in {
        "markdown": ".md .markdown .mdown .mkd .mdx .qmd .rmd",
        "text": ".txt .text .rst .adoc .asciidoc .org .tex .log .srt .vtt",
        "html": ".html .htm .xhtml",
        "pdf": ".pdf",
        "docx": ".docx",
        "notebook": ".ipynb",
        "python": ".py .pyi .pyw",
        "javascript": ".js .mjs .cjs .jsx",
        "typescript": ".ts .mts .cts",
        "tsx": ".tsx",
        "go": ".go",
        "rust": ".rs",
        "java": ".java",
        "c": ".c",
        "cpp": ".cc .cpp .cxx .h .hh .hpp .hxx .ipp .cu .cuh .metal",  # C's headers are C++ to its grammar
        "csharp": ".cs",
        "ruby": ".rb .rake .gemspec",
        "php": ".php",
        "swift": ".swift",
        "kotlin": ".kt .kts",
        "shell": ".sh .bash .zsh",
        "sql": ".sql",
        "css": ".css .scss .less",
        "json": ".json .jsonl .ndjson .geojson",
        "yaml": ".yaml .yml",
        "toml": ".toml",
        "xml": ".xml .svg .xsd .xsl",
        "csv": ".csv .tsv",
        "lua": ".lua",
        "perl": ".pl .pm",
        "r": ".r",
        "scala": ".scala .sc",
        "haskell": ".hs",
        "elixir": ".ex .exs",
        "julia": ".jl",
        "dart": ".dart",
        "zig": ".zig",
        "objective-c": ".m .mm",
    }.items()
}
_BY_SUFFIX = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes}
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def language_of(path: bytes) -> str | None:
    """The language of a file by its name; None if the name does not tell."""
    return _BY_SUFFIX.get(os.path.splitext(os.fsdecode(path))[1].lower())


def language_named(name: str) -> str | None:
    """The language that somebody means by "python", "py" or ".py"; None if there is no such language."""
    name = name.lower()
    return name if name in LANGUAGES else _BY_SUFFIX.get("." + name.removeprefix("."))


def most_bytes(path: bytes) -> int:
    """The size from which on a file is not read."""
    return MOST_DOCUMENT if language_of(path) in ("pdf", "docx") else MOST_TEXT


def extract(path: bytes, data: bytes) -> Document:
    """The text of a file. Raises NotText. path: only its name is looked at."""
    language = language_of(path)
    if data.startswith(b"%PDF-"):
        text, pages = pdf_text.text_of(data, MOST_TEXT)
        return Document(text, "pdf", pages, "page")
    if language == "docx":
        text, paragraphs = docx_text.text_of(data)
        return Document(text, "docx", paragraphs, "paragraph")
    document = _decoded(data, language)
    if language == "html":
        text, lines = html_text.text_of(document.text)
        return Document(text, language, lines)
    if language == "notebook":
        text, cells = _notebook(document.text)
        return Document(text, language, cells, "cell")
    return document


def _decoded(data: bytes, language: str | None) -> Document:
    """A text file: UTF-8, or UTF-16 that says so by its byte order mark."""
    if data.startswith(codecs.BOM_UTF32_LE):
        raise NotText("encoded in UTF-32")
    encoding = _UTF16.get(data[:2], "utf-8")
    mark = 2 if encoding != "utf-8" else 3 if data.startswith(codecs.BOM_UTF8) else 0
    if encoding == "utf-8" and b"\0" in data[:_LOOKED_AT]:
        raise NotText("binary")
    try:
        return Document(data[mark:].decode(encoding), language, encoding=encoding, mark=mark)
    except UnicodeDecodeError as error:
        decodable = len(data.decode(encoding, "ignore").encode(encoding))
        if decodable < _LEAST_DECODABLE * len(data):
            raise NotText("binary") from None
        name = encoding.upper().removesuffix("-LE").removesuffix("-BE")
        raise NotText(f"not {name} (at byte {mark + error.start}): save it as UTF-8") from None


def _notebook(source: str) -> tuple[str, list[int]]:
    """The cells of a Jupyter notebook without their outputs, as Markdown, and for each line its cell, from 1."""
    try:
        body = json.loads(source)
        cells = [(cell["cell_type"], cell["source"]) for cell in body["cells"]]
        language = str(body.get("metadata", {}).get("language_info", {}).get("name", ""))
        joined = [(kind, text if isinstance(text, str) else "".join(text)) for kind, text in cells]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise NotText("a notebook that is not of version 4") from None
    lines: list[str] = []
    numbers: list[int] = []
    for number, (kind, text) in enumerate(joined, 1):
        if text.strip():
            fenced = [f"```{language}", *text.split("\n"), "```"] if kind == "code" else text.split("\n")
            found = [*([""] if lines else []), *fenced]
            lines += found
            numbers += [number] * len(found)
    return "\n".join(lines).encode(errors="replace").decode(), numbers  # JSON may hold halves of characters
