"""`cache`: the vectors that were computed before, counted or forgotten."""

from __future__ import annotations

import argparse
from typing import Any

from .. import console
from ..errors import IndexDamaged
from . import options

SUMMARY = "info, clear: the vectors that were computed before"

_EPILOG = """examples:
  jina-local cache info
  jina-local cache clear

The cache gives unchanged text its vector without the model: to a second
worktree, an undone edit, an index that is made again, `embed --cache`. It holds
no texts, and forgets the vectors that were not asked for the longest.
"""


def parser(add: Any) -> options.Parser:
    """The options of `cache`; `add` makes the parser."""
    p: options.Parser = add("cache", SUMMARY, _EPILOG)
    p.add_argument("action", choices=("info", "clear"), help="count the vectors, or forget them")
    return p


def run(args: argparse.Namespace) -> int:
    """Do one action."""
    from ..bulk.cache import VectorCache
    from ..store import local_store
    from ..store.places import size_text

    path = local_store.vector_cache()
    with console.quiet_stdout() as stdout:
        if args.action == "clear":
            try:
                with VectorCache(path) as cache:
                    cache.clear()
            except IndexDamaged:
                path.unlink()
            return console.OK
        with VectorCache(path) as cache:
            info = cache.info()
        text = f"{info.vectors:,} vectors, {size_text(info.bytes)} of {size_text(info.limit)}\n  {info.path}\n"
        stdout.write(text.encode("utf-8", "surrogateescape"))
    return console.OK
