"""Which files lie in the folders: links, specials, ignore rules, names as bytes; and a file read in one state."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .ignore import NAMES, Patterns, Rules, Unusable, patterns_in, rules_above

_REPOSITORIES = frozenset({b"CVS", b"_darcs"})  # all others are hidden
_TRIES = 3
_PAUSE = 0.05  # seconds between them


@dataclass(frozen=True)
class FileSeen:
    """A regular file that the rules let in. `root` is the folder of the user that it was found in."""

    path: bytes
    root: bytes
    size: int
    mtime_ns: int
    dev: int
    inode: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, and why. Hidden and ignored ones are not listed."""

    path: bytes
    root: bytes
    reason: str


class Unreadable(Exception):
    """A file that cannot be read; the message is the reason."""


@dataclass(frozen=True)
class _Wanted:
    """The user's own patterns, matched below each root."""

    include: Patterns | None
    exclude: Patterns | None

    def takes(self, path: str, is_folder: bool) -> bool:
        if self.exclude is not None and self.exclude.decide(path, is_folder):
            return False
        return is_folder or self.include is None or bool(self.include.decide(path, False))


def walk(
    folders: Sequence[bytes],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Iterator[FileSeen | Skipped]:
    """Every file of the folders that is neither hidden nor ignored, each once.

    folders: absolute paths. A link is not followed, so that nothing outside of the folders is read.
    include, exclude: patterns as in .gitignore; a file has to match one of `include` if there are any.
    """
    wanted = _Wanted(Patterns(include) if include else None, Patterns(exclude) if exclude else None)
    roots = list(dict.fromkeys(os.path.normpath(folder) for folder in folders))
    seen: set[tuple[int, int]] = set()
    for root in roots:
        yield from _Walk(root, frozenset(roots) - {root}, wanted, seen).files()


class _Walk:
    """One folder of the user, and the folders in it."""

    def __init__(self, root: bytes, others: frozenset[bytes], wanted: _Wanted, seen: set[tuple[int, int]]) -> None:
        self._root, self._others, self._wanted, self._seen = root, others, wanted, seen

    def files(self) -> Iterator[FileSeen | Skipped]:
        try:
            rules = rules_above(self._root)
        except (Unusable, OSError) as error:
            yield self._skipped(self._root, f"the ignore rules above it: {_reason(error)}")
            rules = Rules()
        waiting = [(self._root, "", rules)]  # folders, their paths below the root, the rules that hold there
        while waiting:
            path, below, rules = waiting.pop()
            try:
                at = os.stat(path) if path == self._root else os.lstat(path)
                if (at.st_dev, at.st_ino) in self._seen:
                    continue
                self._seen.add((at.st_dev, at.st_ino))
                with os.scandir(path) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError as error:
                yield self._skipped(path, _reason(error))
                continue
            if any(entry.name in NAMES for entry in entries):
                try:
                    rules = rules.with_own(patterns_in(path))
                except (Unusable, OSError) as error:
                    yield self._skipped(path, f"its ignore files are not used: {_reason(error)}")
            folders: list[tuple[bytes, str, Rules]] = []
            for entry in entries:
                try:
                    found = self._entry(entry, below, rules)
                except FileNotFoundError:
                    continue  # it has just gone
                except OSError as error:
                    found = self._skipped(entry.path, _reason(error))
                if isinstance(found, str):
                    folders.append((entry.path, f"{below}{found}/", rules.inside(found)))
                elif found is not None:
                    yield found
            waiting.extend(reversed(folders))

    def _entry(self, entry: os.DirEntry[bytes], below: str, rules: Rules) -> FileSeen | Skipped | str | None:
        """The file; or the name of a folder; or why it is skipped; or None if it is hidden or ignored."""
        if entry.name.startswith(b"."):
            return None
        name, is_folder = os.fsdecode(entry.name), entry.is_dir(follow_symlinks=False)
        if rules.ignores(name, is_folder) or not self._wanted.takes(below + name, is_folder):
            return None
        if is_folder:
            return None if entry.name in _REPOSITORIES or entry.path in self._others else name
        if entry.is_symlink():
            return self._link(entry.path)
        at = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(at.st_mode):
            return self._skipped(entry.path, "not a regular file")
        return FileSeen(entry.path, self._root, at.st_size, at.st_mtime_ns, at.st_dev, at.st_ino)

    def _link(self, path: bytes) -> Skipped | None:
        """None if the link leads to a place in a root, which is walked anyway."""
        target = os.path.realpath(path)
        if not os.path.lexists(target):
            return self._skipped(path, "a link that leads nowhere")
        for root in (self._root, *self._others):
            if os.path.commonpath([target, os.path.realpath(root)]) == os.path.realpath(root):
                return None
        return self._skipped(path, "a link that leads out of the folder")

    def _skipped(self, path: bytes, reason: str) -> Skipped:
        return Skipped(path, self._root, reason)


def read_stable(path: bytes, most: int) -> tuple[bytes, os.stat_result]:
    """The content of a file in one state, and its stat in that state. Raises Unreadable.

    A file that changes while it is read is read again. Neither a link nor a special file is opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise Unreadable("not a regular file")
            with open(os.open(path, flags), "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise Unreadable("not a regular file")
                if before.st_size > most:
                    raise Unreadable(f"larger than {most >> 20} MiB")
                data = file.read(most + 1)
                after = os.fstat(file.fileno())
        except OSError as error:
            raise Unreadable(_reason(error)) from None
        if _state(before) == _state(after) and len(data) == after.st_size:
            return data, after
    raise Unreadable("unstable: it changed each time that it was read")


def _state(at: os.stat_result) -> tuple[int, int, int]:
    return at.st_size, at.st_mtime_ns, at.st_ctime_ns


def _reason(error: Exception) -> str:
    """Why something failed, without its path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error)


def shown(path: bytes, root: bytes) -> str:
    """A document's path below the folder that was given, for people and for full-text search."""
    return os.path.relpath(path, root).decode("utf-8", "backslashreplace")
