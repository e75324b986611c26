"""The converter with an I/O layer that fails: `python -m tests.injected_io FAULT N ARGUMENT ...`.

FAULT is "kill", "disk full" or "I/O error". This is for machines where no process may trace its child. Python's own
writes, syncs, renames and folders are counted; the writes of native code are not. N = 0 fails nothing and prints the
count as the last line of stderr.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

NUMBERS = {"disk full": errno.ENOSPC, "I/O error": errno.EIO}


class Injector:
    """Counts calls, and fails the n-th."""

    def __init__(self, fault: str, place: int) -> None:
        self.fault, self.place, self.calls = fault, place, 0

    def step(self) -> None:
        self.calls += 1
        if self.calls == self.place:
            if self.fault == "kill":
                os._exit(137)
            raise OSError(NUMBERS[self.fault], os.strerror(NUMBERS[self.fault]))

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **words: Any) -> Any:
            self.step()
            return call(*args, **words)

        return counted


def install(injector: Injector) -> None:
    """Put the injector between Python code and its files."""
    for name in ("write", "fsync", "rename", "replace", "mkdir", "ftruncate", "sendfile"):
        setattr(os, name, injector.before(getattr(os, name)))
    plain = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **words: Any) -> Any:
        found = plain(file, mode, *args, **words)
        if set(mode) & set("wax+") and not isinstance(file, int):
            found.write = injector.before(found.write) if hasattr(found, "__dict__") else found.write
        return found

    io.open = builtins.open = opened  # type: ignore[assignment]


def main() -> int:
    fault, place, *arguments = sys.argv[1:]
    injector = Injector(fault, int(place))
    from convert.__main__ import main as convert
    from jina_local import console

    install(injector)
    code = console.guarded(lambda: convert(arguments))
    print(injector.calls, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
