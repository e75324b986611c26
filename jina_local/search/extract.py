"""The bytes of one file -> its text, its language, and the lines of the file that the text's lines come from."""

from __future__ import annotations

import os
from dataclasses import dataclass

MOST_TEXT = 16 << 20  # bytes of a text file
MOST_DOCUMENT = 128 << 20  # bytes of a PDF or DOCX file, pictures included


class NotText(Exception):
    """A file that gives no text; the message is the reason."""


@dataclass(frozen=True)
class Document:
    """The text of one file.

    lines: for each line of the text the line of the file, from 1; None if they are the same.
    unit: what `lines` counts: "line", or "page" of a PDF, "cell" of a notebook, "paragraph" of a DOCX file.
    encoding: of the file, if its text is the file's; None if the text was extracted.
    """

    text: str
    language: str | None
    lines: tuple[int, ...] | None = None
    unit: str = "line"
    encoding: str | None = "utf-8"


LANGUAGES = {
    ".md": "markdown", ".markdown": "markdown", ".py": "python", ".txt": "text",
}  # fmt: skip


def language_of(path: bytes) -> str | None:
    """The language of a file by its name; None if the name does not tell."""
    return LANGUAGES.get(os.path.splitext(os.fsdecode(path))[1].lower())


def extract(path: bytes, data: bytes) -> Document:
    """The text of a file. Raises NotText. path: only its name is looked at."""
    if b"\0" in data[:8192]:
        raise NotText("binary")
    try:
        return Document(data.decode("utf-8"), language_of(path))
    except UnicodeDecodeError as error:
        raise NotText(f"not UTF-8 (byte {error.start})") from None
