"""`get`: lines of a file that is in an index."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

from .. import console
from ..records import json_text
from . import options
from .search import add_index, opened

SUMMARY = "print lines of a file that an index has"

EXAMPLES = """examples:
  jina-local get src/router.py:120:40
  jina-local get notes/tax.md
  jina-local get manual.pdf:12:1 --json
"""

_EPILOG = """PATH is the file's path, or its path below an indexed folder. LINE counts from 1,
and COUNT is the number of lines; of a PDF both count pages. The file is read as
it is now; other files than those of the index are refused.
exit codes:
  0 done, 2 bad options or no such file or line, 3 the index, 130 interrupted.
"""

_PLACE = re.compile(r"(.+?)(?::(\d+))?(?::(\d+))?", re.DOTALL)


def parser(add: Any) -> options.Parser:
    """The options of `get`; `add` makes the parser."""
    p: options.Parser = add("get", SUMMARY, _EPILOG)
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument("place", metavar="PATH[:LINE[:COUNT]]", help="a file of the index, and the lines wanted")
    add_index(p)
    p.add_argument("--json", action="store_true", help="one object: path, start_line, end_line, unit, text, changed")
    p.set_defaults(device=None, threads=None, progress=None)
    return p


def place_of(given: str) -> tuple[str, int, int | None]:
    """(path, line, count) of PATH[:LINE[:COUNT]]. A file whose name ends so is meant as it is."""
    match = _PLACE.fullmatch(given)
    if match is None or os.path.lexists(given):
        return given, 1, None
    path, line, count = match.groups()
    return path, int(line or 1), None if count is None else int(count)


def run(args: argparse.Namespace) -> int:
    """Print the lines."""
    path, line, count = place_of(args.place)
    with opened(args) as index:
        found = index.get(path, line, count)
    with console.quiet_stdout() as stdout:
        if args.json:
            body = {
                "path": found.path.decode("utf-8", "backslashreplace"), "start_line": found.start_line,
                "end_line": found.end_line, "unit": found.unit, "text": found.text, "changed": found.changed,
            }  # fmt: skip
            stdout.write(json_text.dumps(body).encode() + b"\n")
        else:
            stdout.write(found.text.encode() + (b"" if found.text.endswith("\n") else b"\n"))
    if found.changed:
        console.say("the file has changed since it was indexed")
    return console.OK
