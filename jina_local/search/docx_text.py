"""DOCX -> its paragraphs as Markdown, with headings, lists and tables. Reads a hostile file in bounded memory."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from xml.parsers import expat

from .documents import NotText

MOST_XML = 64 << 20  # bytes of one part of the file, unpacked
_PIECE = 1 << 16
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
_STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main "
_HEADING = re.compile(r"heading ([1-6])", re.I)


def text_of(data: bytes) -> tuple[str, list[int]]:
    """The text, and for each of its lines the number of its paragraph, from 1. Raises NotText."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            styles = _Styles()
            if "word/styles.xml" in archive.namelist():
                _parse(_unpacked(archive, "word/styles.xml"), styles.start, lambda name: None, lambda text: None)
            body = _Body(styles.levels)
            _parse(_unpacked(archive, "word/document.xml"), body.start, body.end, body.characters)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise NotText(f"damaged DOCX ({error})") from None  # RuntimeError: encrypted
    except KeyError:
        raise NotText("a zip file that is no DOCX") from None
    except expat.ExpatError as error:
        raise NotText(f"damaged DOCX ({error})") from None
    return "\n".join(body.lines), body.paragraphs


def _unpacked(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """One part of the file in pieces; its stated size is not believed."""
    left = MOST_XML
    with archive.open(name) as part:
        while piece := part.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise NotText(f"{name} is larger than {MOST_XML >> 20} MiB unpacked")
            yield piece


def _parse(
    pieces: Iterator[bytes],
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    characters: Callable[[str], None],
) -> None:
    """XML without a document type, so without entities of its own."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        raise NotText("a DOCX whose XML declares a document type")

    def local(name: str) -> str:
        return name.removeprefix(_WORD).removeprefix(_STRICT)

    def start_element(name: str, attributes: dict[str, str]) -> None:
        start(local(name), {local(key): value for key, value in attributes.items()})

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start_element
    parser.EndElementHandler = lambda name: end(local(name))
    parser.CharacterDataHandler = characters
    for piece in pieces:
        parser.Parse(piece, False)
    parser.Parse(b"", True)


class _Styles:
    """Which styles are headings: their names are English in every language, their ids are not."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self._style = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "style":
            self._style = attributes.get("styleId", "")
        elif name == "name" and (match := _HEADING.fullmatch(attributes.get("val", ""))):
            self.levels[self._style] = int(match[1])
        elif name == "name" and attributes.get("val", "").lower() == "title":
            self.levels[self._style] = 1


class _Body:
    """The lines of the document as its paragraphs end."""

    def __init__(self, levels: dict[str, int]) -> None:
        self.lines: list[str] = []
        self.paragraphs: list[int] = []
        self._levels = levels
        self._count = 0
        self._prefix = ""
        self._parts: list[str] = []
        self._text = False  # inside w:t
        self._inside_row = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "p":
            self._count += 1
            self._prefix = ""
        elif name == "pStyle" and attributes.get("val", "") in self._levels:
            self._prefix = "#" * self._levels[attributes["val"]] + " "
        elif name == "numPr" and not self._prefix:
            self._prefix = "- "
        elif name == "t":
            self._text = True
        elif name in ("tab", "br", "cr"):
            self._parts.append(" ")
        elif name == "tr":
            self._inside_row += 1
        elif name == "tc" and self._parts:
            self._parts.append(" | ")

    def end(self, name: str) -> None:
        if name == "t":
            self._text = False
        elif name == "p" and self._inside_row:
            self._parts.append(" ")
        elif name == "tr":
            self._inside_row -= 1
        if name in ("p", "tr") and not self._inside_row:
            line = " ".join("".join(self._parts).split())
            self._parts = []
            if line:
                after_row = name == "tr" and bool(self.lines) and " | " in self.lines[-1]
                if self.lines and not after_row:
                    self._add("")
                self._add(line if name == "tr" else self._prefix + line)

    def characters(self, text: str) -> None:
        if self._text:
            self._parts.append(text)

    def _add(self, line: str) -> None:
        self.lines.append(line)
        self.paragraphs.append(self._count)
