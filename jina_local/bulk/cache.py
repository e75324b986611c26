"""Vectors that were computed before, by the digest of their text: one SQLite file for all indexes and long runs.

A vector is found again if its text and its space are the same; see `Embedder.space`. The file holds no texts. It is
bounded: vectors that were not asked for the longest go first. Losing it costs time only, so it has a plain rollback
journal, and any process may write it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexDamaged, Locked, OutputError

LIMIT = 2 << 30  # bytes of the file
_APPLICATION = 0x4A4E4143
_DAY = 86400
_KEPT = 0.8  # of the limit, after the oldest went
_BUSY = 30.0  # seconds to wait for another process's commit
_SCHEMA = (
    "CREATE TABLE vectors(key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, vector BLOB NOT NULL, checksum INTEGER)",
    "CREATE INDEX by_use ON vectors(used)",
    f"PRAGMA application_id = {_APPLICATION}",
)


@dataclass(frozen=True)
class Info:
    """How much the cache holds."""

    path: Path
    vectors: int
    bytes: int
    limit: int


def digest_of(text: str) -> bytes:
    """The digest by which a text's vector is found."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class VectorCache:
    """The cache, open. Safe to use from several threads and processes. Close it, or use it in a `with`."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Open the file, or make it. Raises IndexDamaged, OutputError, Locked."""
        self.path, self._limit = path, limit
        self._lock = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with self._translated():
            self._connection = sqlite3.connect(path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            with self._translated():
                self._connection.execute("PRAGMA journal_mode = TRUNCATE")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._make()
        except BaseException:
            self._connection.close()
            raise

    def get(self, space: str, digests: Sequence[bytes]) -> dict[int, NDArray[np.float32]]:
        """Place in `digests` -> the vector of that text in a space, (dim,) float32, where there is one."""
        places: dict[bytes, list[int]] = {}
        for place, digest in enumerate(digests):
            places.setdefault(_key(space, digest), []).append(place)
        found: dict[int, NDArray[np.float32]] = {}
        today, keys, old = _today(), list(places), []
        with self._lock, self._translated():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ", ".join("?" * len(part))
                sql = f"SELECT key, used, vector, checksum FROM vectors WHERE key IN ({marks})"
                for key, used, data, checksum in self._connection.execute(sql, part):
                    if checksum != zlib.crc32(data):
                        continue  # it is computed again, and replaced
                    found.update(dict.fromkeys(places[key], np.frombuffer(data, np.float32)))
                    if used < today:
                        old.append((today, key))
            if old:
                with self._transaction():
                    self._connection.executemany("UPDATE vectors SET used = ? WHERE key = ?", old)
        return found

    def put(self, space: str, digests: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep (n, dim) float32, the vectors of n texts. The oldest go if there is no room."""
        rows = []
        for digest, vector in zip(digests, vectors, strict=True):
            data = np.ascontiguousarray(vector, np.float32).tobytes()
            rows.append((_key(space, digest), _today(), data, zlib.crc32(data)))
        with self._lock, self._translated(), self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
            self._make_room()

    def info(self) -> Info:
        """How much there is."""
        with self._lock, self._translated():
            count = int(self._connection.execute("SELECT count(*) FROM vectors").fetchone()[0])
            return Info(self.path, count, self._bytes(), self._limit)

    def clear(self) -> None:
        """Forget all vectors."""
        with self._lock, self._translated():
            self._connection.execute("DELETE FROM vectors")
            self._connection.execute("VACUUM")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> VectorCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _make(self) -> None:
        if self._pragma("application_id") == _APPLICATION:
            return
        with self._transaction():
            if self._pragma("application_id") == _APPLICATION:
                return  # another process was quicker
            if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise IndexDamaged(f"{self.path}: is a SQLite file, but no cache of jina_local.")
            for statement in _SCHEMA:
                self._connection.execute(statement)

    def _make_room(self) -> None:
        size = self._bytes()
        if size <= self._limit:
            return
        count = int(self._connection.execute("SELECT count(*) FROM vectors").fetchone()[0])
        going = int(count * (1 - _KEPT * self._limit / size)) + 1
        sql = "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors ORDER BY used, rowid LIMIT ?)"
        self._connection.execute(sql, (going,))

    def _bytes(self) -> int:
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a bug of ours
        except sqlite3.DatabaseError as error:
            text = f"{self.path}: the cache of vectors: {error}."
            if "locked" in str(error):
                raise Locked(f"{text} Another process holds it; end that, and try again.") from error
            if "full" in str(error) or "readonly" in str(error) or "unable to open" in str(error):
                raise OutputError(f"{text} Free some space, or make its folder writable.") from error
            raise IndexDamaged(f"{text} Delete the file: nothing but time is lost with it.") from error


def _key(space: str, digest: bytes) -> bytes:
    return hashlib.blake2b(digest + space.encode(), digest_size=20).digest()


def _today() -> int:
    return int(time.time()) // _DAY
