"""Ignore rules as git has them: .gitignore and .jinaignore of a folder, and those of the folders around it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EngineMissing

NAMES = (b".gitignore", b".jinaignore")  # the later one decides
MOST_BYTES = 1 << 17
# A pattern is matched by backtracking, whose time is the length of a name to the power of its stars.
_MOST_STARS = 3
_STARS = re.compile(rf"[^/]*(?:\*[^/]*){{{_MOST_STARS + 1}}}")


class Unusable(ValueError):
    """An ignore file that is not used; the message is the reason."""


class Patterns:
    """The patterns of one folder's ignore files, or of a user's --include or --exclude."""

    def __init__(self, lines: Sequence[str]) -> None:
        """Raises Unusable if a pattern could take too long to match."""
        try:
            from pathspec import GitIgnoreSpec
        except ImportError as error:
            raise EngineMissing("reading folders needs pathspec: pip install 'jina_local[search]'.") from error
        for line in lines:
            if _STARS.search(line.replace("**", "")):
                raise Unusable(f"the pattern {line[:80]!r} has more than {_MOST_STARS} stars between slashes")
        try:
            self._spec: Any = GitIgnoreSpec.from_lines(lines)
        except (ValueError, re.error) as error:
            raise Unusable(f"a pattern that is not valid ({error})") from None
        found = [one.regex.pattern for one in self._spec.patterns if one.include is not None]
        # Most names match nothing, and one expression says so quicker than many do.
        self._any = re.compile("|".join(re.sub(r"\(\?P<\w+>", "(?:", pattern) for pattern in found) or "(?!)")

    def decide(self, path: str) -> bool | None:
        """Whether the last pattern that matches ignores the path; None if no pattern matches. Folders end in `/`."""
        if self._any.match(path) is None:
            return None
        decision: bool | None = self._spec.check_file(path).include
        return decision


@dataclass(frozen=True)
class Rules:
    """All ignore rules that hold in one folder, and the folder's path below the folder of each."""

    levels: tuple[tuple[Patterns, str], ...] = ()  # the innermost first

    def ignores(self, name: str, is_folder: bool) -> bool:
        """Whether an entry of the folder is ignored."""
        ending = "/" if is_folder else ""
        for patterns, below in self.levels:
            if (decision := patterns.decide(f"{below}{name}{ending}")) is not None:
                return decision
        return False

    def inside(self, name: str) -> Rules:
        """These rules in a folder of this folder."""
        return Rules(tuple((patterns, f"{below}{name}/") for patterns, below in self.levels))

    def with_own(self, patterns: Patterns | None) -> Rules:
        """These rules after those of the folder itself."""
        return self if patterns is None else Rules(((patterns, ""), *self.levels))


def patterns_in(folder: bytes) -> Patterns | None:
    """The patterns that a folder's own ignore files hold; None if it has none. Raises Unusable or OSError."""
    lines: list[str] = []
    for name in NAMES:
        lines += _lines(os.path.join(folder, name))
    return Patterns(lines) if lines else None


def rules_above(folder: bytes) -> Rules:
    """The rules of the folders around this one, up to the top of its repository. Raises Unusable or OSError."""
    above: list[bytes] = []
    here = os.path.realpath(folder)
    while not os.path.lexists(os.path.join(here, b".git")):
        here, last = os.path.dirname(here), here
        if here == last:
            return Rules()
        above.append(here)
    names = os.path.relpath(os.path.realpath(folder), here).split(b"/") if above else []
    rules = Rules()
    for at, name in zip(reversed(above), names, strict=True):
        rules = rules.with_own(patterns_in(at)).inside(os.fsdecode(name))
    return rules


def _lines(path: bytes) -> list[str]:
    """The lines of an ignore file; none if it is not a regular file. Git follows no link here either."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return []
    except OSError:
        if os.path.islink(path):
            return []
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise Unusable(f"larger than {MOST_BYTES >> 10} KiB")
    return raw.decode("utf-8", "surrogateescape").splitlines()
