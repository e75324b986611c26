"""Where a command's texts come from: its arguments, a file, or standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from ..records import readers
from ..records.readers import Source


def add_options(group: Any) -> None:
    """The options that say what is read and how."""
    group.add_argument("--input", metavar="FILE", help="read texts from a file, or from stdin for -")
    group.add_argument("--input-format", choices=readers.FORMATS, help="default: by suffix")
    group.add_argument("--field", metavar="NAME", default="text", help="key or column that holds the text")


def source(
    args: argparse.Namespace, texts: Sequence[str], examples: str, *, what: str = "texts", records: bool = False
) -> Source:
    """The texts given, else those of --input, else those of standard input. Raises UsageError where there are none.

    what: how the command calls them. records: with each text the whole record that it stood in.
    """
    if texts:
        if args.input is not None:
            raise UsageError(f"{what} were given, and --input too: give one of them.")
        if args.input_format is not None:
            raise UsageError(f"--input-format says how to read --input or stdin, and {what} were given instead.")
        return readers.arguments(list(texts))
    if args.input is None and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(f"no {what}: give some, or --input FILE, or pipe them in.\n\n{examples.rstrip()}")
    return readers.open_source(args.input or "-", input_format=args.input_format, field=args.field, records=records)
