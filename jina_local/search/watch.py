"""Which paths of the folders change, as they change: debounced sets, until the caller stops."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

from ..errors import EngineMissing
from .ignore import NAMES

_DEBOUNCE = 1_600  # milliseconds: the longest that a set waits for more changes
_STEP = 200  # milliseconds without a change that end a set
_LOOK = 1.0  # seconds between looks whether the folders are still there


def watch(folders: Sequence[bytes], stop: threading.Event) -> Iterator[set[bytes]]:
    """Sets of changed paths until `stop` is set. A path may also be a folder in which something changed.

    Hidden files are left out, so that an index in its own folder does not wake itself; ignored ones are not. A folder
    that goes away is a change, and so is its return, after which it is watched again. Raises OSError if the system
    cannot watch so many folders.
    """
    try:
        import watchfiles
    except ImportError as error:
        raise EngineMissing("--watch needs watchfiles: pip install 'jina_local[search]'.") from error
    last: dict[bytes, tuple[int, int]] | None = None
    while not stop.is_set():
        present = _present(folders)
        if last is not None and (changed := {path for path in folders if present.get(path) != last.get(path)}):
            yield changed
        last = present
        if not present:
            stop.wait(_LOOK)
            continue
        try:
            for changes in watchfiles.watch(
                *map(os.fsdecode, present),
                watch_filter=_seen(list(present)),
                debounce=_DEBOUNCE,
                step=_STEP,
                stop_event=stop,
                rust_timeout=int(_LOOK * 1000),
                yield_on_timeout=True,
            ):
                if changes:
                    yield {os.fsencode(path) for _, path in changes}
                if _present(folders) != present:
                    break
        except FileNotFoundError:
            continue  # a folder has just gone
        except RuntimeError as error:
            if type(error).__name__ != "WatchfilesRustInternalError":
                raise
            yield set(present)  # the library cannot express names that are not UTF-8


def _present(folders: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
    """The folders that are there, with the numbers that tell a folder from another of its name."""
    found: dict[bytes, tuple[int, int]] = {}
    for folder in folders:
        try:
            at = os.stat(folder)
        except OSError:
            continue
        found[folder] = at.st_dev, at.st_ino
    return found


def _seen(folders: Sequence[bytes]) -> Callable[[object, str], bool]:
    """A filter of watchfiles: whether a path below a folder is not hidden, or is an ignore file."""

    def visible(change: object, path: str) -> bool:
        raw = os.fsencode(path)
        below = min((os.path.relpath(raw, folder) for folder in folders), key=len)
        *above, name = below.split(b"/")
        return not any(part.startswith(b".") and part != b"." for part in above) and (
            not name.startswith(b".") or name in (b".", *NAMES)
        )

    return visible
