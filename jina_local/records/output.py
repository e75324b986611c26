"""Where results go: standard output, a descriptor or device, or a file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeGuard

from ..errors import OutputError, UsageError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def descriptor(path: str) -> int | None:
    """The descriptor of this process that a path such as /dev/stdout or /proc/self/fd/1 names; None for other paths.

    Links are followed by name only: what the system says of such a path changes with each redirection.
    """
    table = os.path.realpath("/dev/fd")
    for _ in range(40):
        path = os.path.abspath(path)
        if path in _STREAMS:
            return _STREAMS[path]
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) == table:
            return int(name)
        try:
            path = os.path.join(folder, os.readlink(path))
        except (OSError, ValueError):
            return None
    return None


def is_stdout(path: str | None) -> bool:
    """Whether an --output, None if it was not given, means standard output."""
    return path is None or path == "-" or descriptor(path) == 1


def is_file(path: str | None) -> TypeGuard[str]:
    """Whether an --output is a path of its own and no descriptor of this process."""
    return path is not None and path != "-" and descriptor(path) is None


def by_suffix(option: str, path: str, known: Mapping[str, str], otherwise: str) -> str:
    """What the suffix of the file in an option stands for. Raises UsageError, which names the option `otherwise`."""
    suffix = Path(path).suffix.lower()
    if suffix in known:
        return known[suffix]
    raise UsageError(
        f"{option} {path}: the format cannot be told from the name. "
        f"Known suffixes: {', '.join(known)}; or give {otherwise}."
    )


@contextmanager
def destination(path: str | None, stdout: BinaryIO, *, alone: bool = False) -> Iterator[BinaryIO]:
    """Yield the file to write to: a temp file that takes the name `path` if the block ends well.

    alone: no other process writes this output, so a temp file that is there is of a killed run and is written over.
    Standard output is `stdout`; a descriptor, device or FIFO is written to directly. Raises OutputError if it cannot
    be written or the disk is full. Then, and if interrupted, the file at `path` is untouched.
    """
    if is_stdout(path):
        with _full_disk("standard output"):
            yield stdout
            stdout.flush()
        return
    assert path is not None
    target = Path(os.path.realpath(path))  # a link is followed: its target is what gets replaced
    with _full_disk(path):
        if written_directly(path):
            with _opened(target, os.O_WRONLY, descriptor(path)) as file:
                yield file
            return
        mark = target.name if alone else f"{os.getpid()}-{os.urandom(4).hex()}"
        temp = target.with_name(f".jina-{mark}.tmp")
        try:
            with _opened(temp, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if alone else os.O_EXCL)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, target)
        finally:
            temp.unlink(missing_ok=True)


def check_target(path: str | None) -> None:
    """Raise OutputError early for a place that could not be written after the model was loaded."""
    if not is_file(path):
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"--output {path}: is a folder; give a file name.")
    if not target.parent.is_dir():
        raise OutputError(f"--output {path}: there is no folder {target.parent}; create it first.")
    if not os.access(target.parent if not target.exists() else target, os.W_OK):
        raise OutputError(f"--output {path}: cannot be written (permission denied).")


def left_by_a_stop(path: str | None) -> str | None:
    """What a run that was stopped has left at its --output, in a sentence; None for standard output."""
    if is_stdout(path):
        return None
    assert path is not None
    if written_directly(path):
        return f"{path} has what was written so far"
    return f"{path} is as it was before" if os.path.lexists(path) else f"{path} was not written"


def rewritable(file: BinaryIO) -> bool:
    """Whether bytes already written can be written again: not in pipes, nor if every write is appended."""
    if not file.seekable():
        return False
    with suppress(ImportError, OSError):
        import fcntl

        return not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND
    return True


def written_directly(path: str) -> bool:
    """Whether an --output is a descriptor, device or FIFO, and not a file that is replaced."""
    target = Path(os.path.realpath(path))
    return not is_file(path) or (target.exists() and not stat.S_ISREG(target.stat().st_mode))


def _opened(path: Path, flags: int, copied: int | None = None) -> BinaryIO:
    try:
        opened = os.dup(copied) if copied is not None else os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        return os.fdopen(opened, "r+b" if flags & os.O_RDWR else "wb")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


@contextmanager
def _full_disk(name: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise OutputError(f"{name}: the disk is full ({error.strerror}); the output is not complete.") from error
        raise
