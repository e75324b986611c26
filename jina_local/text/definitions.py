"""Source code -> spans of its functions and classes with their qualified names, through tree-sitter's grammars."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

CODE = frozenset({"python"})


def grammar(language: str | None) -> Any:
    """The grammar of a language; None if there is none."""
    return None


def pieces(text: str, grammar: Any, size: int) -> Iterator[tuple[int, int, str, tuple[str, ...]]]:
    """(start, end, qualified name, names defined) that together are the whole text."""
    yield 0, len(text), "", ()
