"""Which files lie in the folders: ignore rules, links, specials, names as bytes; a file is read in one state."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FileSeen:
    """A regular file that the rules let in. `root` is the folder given by the user that it was found in."""

    path: bytes  # absolute
    root: bytes
    size: int
    mtime_ns: int
    dev: int
    inode: int


@dataclass(frozen=True)
class Skipped:
    """A file or folder that is not read, and why. Ignored and hidden ones are not listed."""

    path: bytes
    root: bytes
    reason: str


class Unreadable(Exception):
    """A file that cannot be read; the message is the reason."""


def walk(
    folders: Sequence[bytes], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Iterator[FileSeen | Skipped]:
    """Every file of the folders that is not ignored."""
    for root in folders:
        yield from _walk(root, root)


def _walk(root: bytes, folder: bytes) -> Iterator[FileSeen | Skipped]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        yield Skipped(folder, root, (error.strerror or "cannot be read").lower())
        return
    for entry in entries:
        if entry.name.startswith(b"."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, entry.path)
        elif entry.is_file(follow_symlinks=False):
            found = entry.stat(follow_symlinks=False)
            yield FileSeen(entry.path, root, found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino)


def read_stable(path: bytes, most: int) -> tuple[bytes, os.stat_result]:
    """The content of a file in one state, and its stat of that time. Raises Unreadable with the reason."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise Unreadable((error.strerror or "cannot be opened").lower()) from None
    with os.fdopen(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise Unreadable("not a regular file")
        return file.read(most), before
