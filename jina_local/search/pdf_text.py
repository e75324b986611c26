"""PDF -> the text of its pages, by pypdf in a process of its own: a hostile file costs a limited time and memory.

That process is `python -m jina_local.search.pdf_text`: the file on its standard input, JSON on its standard output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from typing import BinaryIO

from ..children import command, same_modules
from .documents import NotText

SECONDS = 120
_MEMORY = 2 << 30
_MISSING = 3  # exit code


def text_of(data: bytes, most: int) -> tuple[str, list[int]]:
    """The text, at most `most` characters, and for each of its lines the page, from 1. Raises NotText."""
    try:
        done = subprocess.run(
            command(__name__, str(most)),
            input=data,
            capture_output=True,
            cwd="/",
            env={**os.environ, **same_modules()},
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NotText(f"a PDF that took more than {SECONDS} seconds") from None
    if done.returncode == _MISSING:
        raise NotText("PDF files need pypdf: pip install 'jina_local[search]'")
    if done.returncode:
        raise NotText("a PDF that ended its reader")
    answer = json.loads(done.stdout)
    if "reason" in answer:
        raise NotText(answer["reason"])
    lines: list[str] = []
    pages: list[int] = []
    for number, page in enumerate(answer["pages"], 1):
        found = [line.rstrip() for line in page.split("\n")] if page.strip() else []
        if lines and found:
            found.insert(0, "")
        lines += found
        pages += [number] * len(found)
    if not lines:
        raise NotText("a PDF without text: its pages may be pictures")
    return "\n".join(lines), pages


def main(data: BinaryIO, most: int) -> dict[str, object]:
    """The texts of all pages as {"pages": [...]}, or why there are none as {"reason": "..."}."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    pages: list[str] = []
    try:
        reader = PdfReader(data)
        if reader.is_encrypted and not reader.decrypt(""):
            return {"reason": "an encrypted PDF"}
        for page in reader.pages:
            text = page.extract_text()
            most -= len(text)
            if most < 0:
                return {"reason": "a PDF with too much text"}
            pages.append(text.encode(errors="replace").decode())  # it may have halves of characters
    except DependencyError:
        return {"reason": "an encrypted PDF"}
    except Exception as error:  # pypdf raises all kinds on damaged files
        return {"reason": f"a damaged PDF ({type(error).__name__})"}
    return {"pages": pages}


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        answer = main(io.BytesIO(sys.stdin.buffer.read()), int(sys.argv[1]))
    except ImportError:
        sys.exit(_MISSING)
    sys.stdout.write(json.dumps(answer))
