"""Files on disk, opened with care: regular files only, strict JSON of bounded size, digests in pieces, links."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
import time
from collections import OrderedDict
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from ..errors import ModelDamaged
from .schema import shown

Identity = tuple[int, ...]
T = TypeVar("T")

_MAX_JSON = 64 << 20
_FRESH = 2.0  # seconds: a file that changed this recently may change again within one tick of its clock


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading and make sure that it is one: a FIFO or device would hang or never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise ModelDamaged(f"{path}: cannot be opened ({error.strerror}).") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelDamaged(f"{path}: is not a regular file.")
    return os.fdopen(descriptor, "rb")


def within(path: Path, *roots: Path) -> Path:
    """The file that a path leads to through all its links. Raises ModelDamaged unless it lies in one of `roots`."""
    try:
        target = path.resolve(strict=True)
        inside = [root.resolve(strict=True) for root in roots]
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise ModelDamaged(f"{path}: leads nowhere ({error}).") from error
    if not any(target.is_relative_to(root) for root in inside):
        raise ModelDamaged(
            f"{path}: is a link to {target}, which lies outside {' and '.join(map(str, roots))}. It is not followed: "
            "remove the link and fetch the file again."
        )
    return target


def read_all(path: Path, most: int) -> tuple[bytes, Identity | None]:
    """The content of a file of bounded size, and its identity while it was read. Raises ModelDamaged."""
    with open_regular(path) as file:
        before = identity(file)
        raw = file.read(most + 1)
        after = identity(file)
    if len(raw) > most:
        raise ModelDamaged(f"{path}: larger than {most >> 20} MiB.")
    return raw, after if before == after else None


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size. Raises ModelDamaged, ModelNotFound is the finder's."""
    return parse_json(read_all(path, _MAX_JSON)[0], str(path))


def parse_json(raw: bytes, where: str) -> dict[str, object]:
    """A JSON object in UTF-8, without repeated names, NaN and infinity. Raises ModelDamaged."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelDamaged(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelDamaged(f"{where}: holds {type(value).__name__}, expected a JSON object.")
    return value


def sha256(path: Path, size: int | None = None) -> str:
    """Hex digest of a file, or of its first `size` bytes, read in pieces."""
    return _sha256(path, size)[0]


def unchanged(path: Path, digest: str, size: int | None = None) -> bool:
    """Whether a file, or its first `size` bytes, have this SHA-256. Raises ModelDamaged.

    A file that has not changed is read once in a process.
    """
    with open_regular(path) as file:
        known = _digests.get(_sized(identity(file), size))
    if known is None:
        known, found = _sha256(path, size)
        _digests.put(_sized(found, size), known)
    return known == digest


def _sized(found: Identity | None, size: int | None) -> Identity | None:
    return None if found is None else (*found, -1 if size is None else size)


def identity(file: BinaryIO) -> Identity | None:
    """Five numbers that tell the content of an open file from any other.

    None if the file changed so recently that it may change again without a change of these numbers.
    """
    now = os.fstat(file.fileno())
    if abs(time.time() - max(now.st_mtime, now.st_ctime)) < _FRESH:
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


class Remembered(Generic[T]):
    """What was found out about the files read last, by their identity. Safe to share between threads."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._found = OrderedDict[Identity, T]()

    def get(self, key: Identity | None) -> T | None:
        """What is known of a file; None if nothing is."""
        with self._lock:
            if key is None or key not in self._found:
                return None
            self._found.move_to_end(key)
            return self._found[key]

    def put(self, key: Identity | None, found: T) -> None:
        """Keep what was found out of a file, and forget what was not asked for the longest."""
        if key is None:
            return
        with self._lock:
            self._found[key] = found
            while len(self._found) > self._most:
                self._found.popitem(last=False)


_digests = Remembered[str](256)


def _sha256(path: Path, size: int | None = None) -> tuple[str, Identity | None]:
    digest, left = hashlib.sha256(), sys.maxsize if size is None else size
    with open_regular(path) as file:
        before = identity(file)
        while left and (piece := file.read(min(1 << 20, left))):
            digest.update(piece)
            left -= len(piece)
        after = identity(file)
    return digest.hexdigest(), after if before == after else None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands there twice")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
