"""A line of an ignore file -> a regular expression for the paths that git matches with it, quick on every path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count

_CLASSES = {
    "alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z", "xdigit": "0-9A-Fa-f",
    "space": r"\s", "blank": r" \t", "cntrl": r"\x00-\x1f\x7f", "graph": "!-~", "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
}  # fmt: skip
_NUMBERS = count()  # of groups, so that expressions can be joined


@dataclass(frozen=True)
class Pattern:
    """One line. `expression` is matched against a whole path below the folder of the ignore file, or a name alone."""

    expression: str
    name_alone: bool
    ignores: bool  # False for a line that begins with `!`
    folders_alone: bool


class _Never(Exception):
    """A pattern that git lets match nothing."""


def pattern_of(line: str) -> Pattern | None:
    """The pattern of a line; None if it is blank, a comment, or matches nothing."""
    if line.startswith("#"):
        return None
    line = re.sub(r"(?<!\\) +\Z", "", line.removesuffix("\r"))
    ignores, line = not line.startswith("!"), line.removeprefix("!")
    folders_alone, line = line.endswith("/"), line.removesuffix("/")
    if not line:
        return None
    try:
        expression = _anchored(line.removeprefix("/")) if "/" in line else _segment(line)
    except _Never:
        return None
    return Pattern(rf"(?:{expression})\Z", "/" not in line, ignores, folders_alone)


def _anchored(glob: str) -> str:
    """A glob with slashes: between two `**` lie segments whose first place is as good as any later one."""
    chunks: list[list[str]] = [[]]
    for segment in glob.split("/"):
        if segment == "**":
            chunks.append([])
        else:
            chunks[-1].append(_segment(segment))
    first, *rest = ["/".join(chunk) for chunk in chunks]
    if not rest:
        return first
    *middle, last = rest
    inner = "".join(_earliest(f"(?:[^/]+/)*?{chunk}/") for chunk in middle if chunk)
    return (first + "/" if first else "") + inner + (f"(?:[^/]+/)*{last}" if last else r"[\s\S]+")


def _segment(glob: str) -> str:
    """A glob without slashes: after a star, the first place of the next part is as good as any later one."""
    parts, at = [""], 0
    while at < len(glob):
        char = glob[at]
        at += 1
        if char == "*":
            if parts[-1] or len(parts) == 1:
                parts.append("")
        elif char == "?":
            parts[-1] += "[^/]"
        elif char == "[":
            members, at = _bracket(glob, at)
            parts[-1] += members
        else:
            if char == "\\":
                char, at = _at(glob, at), at + 1
            parts[-1] += re.escape(char)
    first, *rest = parts
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(_earliest(f"[^/]*?{part}") for part in middle) + f"[^/]*{last}"


def _earliest(expression: str) -> str:
    """The expression at its first match, never tried at a later one."""
    group = f"g{next(_NUMBERS)}"
    return f"(?=(?P<{group}>{expression}))(?P={group})"


def _bracket(glob: str, at: int) -> tuple[str, int]:
    """The characters in brackets that open before `at`, and the place behind the closing one."""
    negated = _at(glob, at) in "!^"
    at += negated
    start, members = at, ""
    while (char := _at(glob, at)) != "]" or at == start:
        if char == "[" and _at(glob, at + 1) == ":":
            end = glob.find(":]", at + 2)
            if glob[at + 2 : max(end, 0)] not in _CLASSES:
                raise _Never
            members += _CLASSES[glob[at + 2 : end]]
            at = end + 2
            continue
        low, at = _member(glob, at)
        members += re.escape(low)
        if _at(glob, at) == "-" and _at(glob, at + 1) != "]":
            high, at = _member(glob, at + 1)
            members += f"{re.escape(low)}-{re.escape(high)}" if low <= high else ""
    if negated:
        return f"[^/{members}]", at + 1
    return f"(?!/)[{members}]", at + 1


def _member(glob: str, at: int) -> tuple[str, int]:
    if glob[at] == "\\":
        at += 1
    return _at(glob, at), at + 1


def _at(glob: str, at: int) -> str:
    if at >= len(glob):
        raise _Never  # an open bracket, or a backslash at the end
    return glob[at]
