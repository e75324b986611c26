"""The lock of an index: `flock` on a file beside it, which says who holds it. A process that dies lets it go."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Locked


@contextmanager
def held(index: Path, command: str, wait: float = 0) -> Iterator[None]:
    """Hold the lock of an index. Raises Locked if another process still holds it after `wait` seconds."""
    path = index.with_name(index.name + ".lock")
    until = time.monotonic() + wait
    while (descriptor := _take(path)) is None:
        if time.monotonic() >= until:
            raise Locked(f"{index}: is being written by {_holder(path)}. Wait until it is done, or end it.")
        time.sleep(0.05)
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(path: Path) -> int | None:
    """The descriptor of a lock file that is ours from here on; None if it is another's."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file was deleted before it was locked


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_bytes())
        return f"process {about['pid']} on {about['host']} ({about['command']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"  # which has not written its name yet
