"""`related`: the passages of an index that are nearest to one of its passages."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from . import options
from .get import place_of
from .search import add_index, add_machine, add_output, found_in, opened, show

SUMMARY = "find the passages that are nearest to a place in a file"

EXAMPLES = """examples:
  jina-local related src/router.py:120
  jina-local related notes/tax.md -k 5 --format paths
"""

_OUTPUT = """As `search` has it. The score is the cosine to the passage at that line."""

_EPILOG = """exit codes:
  As of `search`. A passage without a vector has no neighbours yet, which is 2.
"""


def parser(add: Any) -> options.Parser:
    """The options of `related`; `add` makes the parser."""
    p: options.Parser = add("related", SUMMARY, _EPILOG)
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument("place", metavar="PATH[:LINE]", help="a file of the index, and a line of it (default: 1)")
    g = add_index(p)
    g.add_argument("-k", type=int, default=10, metavar="N", help="passages (default: 10)")
    add_output(p, _OUTPUT)
    add_machine(p)
    return p


def run(args: argparse.Namespace) -> int:
    """Show the neighbours; 1 if there are none."""
    path, line, count = place_of(args.place)
    if count is not None:
        raise UsageError(f"{args.place}: takes a line and no count.")
    with opened(args) as index:
        return show(args, found_in(args, index, index.related(path, line, args.k)), "")
