"""The one writer of an index: transactions in which documents are added, moved and removed, and vectors stored."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexDamaged, IndexMismatch
from .database import (
    APPLICATION,
    COLUMNS,
    SCHEMA,
    SLOTS,
    VERSION,
    ChunkRow,
    DocumentRow,
    Reader,
    SkippedRow,
    check_schema,
    checksum_of,
    connect,
    translate_errors,
)
from .folder import shown
from .lock import held
from .words import words_of

_PAGE = 8192
_KEPT = ("created", "folders", "include", "exclude", "request")  # of the header, if all else goes
LEARN = "INSERT INTO words(rowid, text, context, path) VALUES (?, ?, ?, ?)"
_FORGET = "INSERT INTO words(words, rowid, text, context, path) VALUES ('delete', ?, ?, ?, ?)"


class Writer(Reader):
    """Reads and writes an index, from one thread. All changes are made in a `transaction`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection, path)
        self._slots: NDArray[np.int32] | None = None  # (blocks, SLOTS) ids, as in the table
        self._removed: list[int] = []  # chunks whose slots are still taken
        self._generation = 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the block are committed together, or none of them."""
        with translate_errors(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                self._generation = self.generation() + 1
                yield
                self._free_slots()
                self.set_header({"generation": str(self._generation)})
                self.connection.execute("COMMIT")
            except BaseException:
                self._slots, self._removed = None, []
                with suppress(sqlite3.Error):  # SQLite has rolled back already if the disk is full
                    self.connection.execute("ROLLBACK")
                raise

    def set_header(self, values: Mapping[str, str]) -> None:
        """Set these keys; others stay."""
        self._put("header", values.items())

    def add(self, document: DocumentRow, chunks: Sequence[ChunkRow]) -> None:
        """Store a document in place of the one of the same path."""
        self.remove(document.path)
        document = replace(document, id=self._next("documents"))
        self._put("documents", [_values(document)])
        first = self._next("chunks")
        stored = [replace(chunk, id=first + n, document=document.id) for n, chunk in enumerate(chunks)]
        self._put("chunks", map(_values, stored))
        self._index_words(LEARN, stored, document)

    def update(self, old: DocumentRow, new: DocumentRow) -> None:
        """Store other facts of a document whose content is the same: it was touched, or moved."""
        if (old.path, old.root) != (new.path, new.root):
            if new.path != old.path:
                self.remove(new.path)
            chunks = self.chunks_of(old.id)
            self._index_words(_FORGET, chunks, old)
            self._index_words(LEARN, chunks, new)
        self._put("documents", [_values(replace(new, id=old.id))])

    def skip(self, row: SkippedRow) -> None:
        """Store why a file is not in the index. What was stored of it goes."""
        self.remove(row.path)
        self._put("skipped", [_values(row)])

    def remove(self, path: bytes) -> None:
        """Take away what is stored of a file: its document, chunks, words and vectors, or why it was skipped."""
        self.connection.execute("DELETE FROM skipped WHERE path = ?", (path,))
        document = self.document(path)
        if document is None:
            return
        chunks = self.chunks_of(document.id)
        self._index_words(_FORGET, chunks, document)
        self.connection.executemany("DELETE FROM halves WHERE chunk = ?", ((chunk.id,) for chunk in chunks))
        self.connection.execute("DELETE FROM chunks WHERE document = ?", (document.id,))
        self.connection.execute("DELETE FROM documents WHERE id = ?", (document.id,))
        self._removed += [chunk.id for chunk in chunks]

    def add_vectors(self, ids: Sequence[int], int8: NDArray[np.int8], float16: NDArray[np.float16]) -> None:
        """Store the vectors of chunks that have none: (n, dim) of both types."""
        if not len(ids):
            return
        self._put("halves", ((int(i), half.tobytes()) for i, half in zip(ids, float16, strict=True)))
        self._free_slots()
        slots = self._all_slots()
        free = np.flatnonzero(slots.ravel() == 0)[: len(ids)]
        lacking = len(ids) - len(free)
        self._slots = slots = np.concatenate([slots, np.zeros((-(-lacking // SLOTS), SLOTS), np.int32)])
        places = np.concatenate([free, slots.size - (-(-lacking // SLOTS)) * SLOTS + np.arange(lacking)])
        slots.ravel()[places] = ids
        for row in np.unique(places // SLOTS):
            mine = places // SLOTS == row
            codes = self._codes(int(row), int8.shape[1])
            codes[places[mine] % SLOTS] = int8[mine]
            self._put_block(int(row), codes)

    def clear(self) -> None:
        """Take away everything but the folders, their patterns and the request for a model."""
        kept = {key: value for key, value in self.header().items() if key in _KEPT}
        self.connection.execute("DELETE FROM header")
        self.set_header(kept)
        for table in ("documents", "skipped", "chunks", "vectors", "halves"):
            self.connection.execute(f"DELETE FROM {table}")
        self.connection.execute("INSERT INTO words(words) VALUES ('delete-all')")
        self._slots, self._removed = None, []

    def _put(self, table: str, rows: Iterable[tuple[object, ...]]) -> None:
        marks = "?, " * len(COLUMNS[table].split(", "))
        self.connection.executemany(
            f"INSERT OR REPLACE INTO {table}({COLUMNS[table]}, checksum) VALUES ({marks}?)",
            ((*row, checksum_of(row)) for row in rows),
        )

    def _next(self, table: str) -> int:
        return int(self.connection.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0])

    def _index_words(self, sql: str, chunks: Iterable[ChunkRow], document: DocumentRow) -> None:
        path = words_of(shown(document.path, document.root))
        self.connection.executemany(
            sql, ((chunk.id, words_of(chunk.text), words_of(chunk.context), path) for chunk in chunks)
        )

    def _all_slots(self) -> NDArray[np.int32]:
        if self._slots is None:
            found = self.connection.execute("SELECT chunks FROM vectors ORDER BY block").fetchall()
            self._slots = np.frombuffer(b"".join(row[0] for row in found), np.int32).reshape(-1, SLOTS).copy()
        return self._slots

    def _free_slots(self) -> None:
        """Empty the slots of removed chunks."""
        if not self._removed:
            return
        slots = self._all_slots()
        dead = np.isin(slots, self._removed)
        self._removed = []
        slots[dead] = 0
        for row in np.flatnonzero(dead.any(axis=1)):
            self._put_block(int(row), self._codes(int(row)))

    def _codes(self, row: int, dim: int = 0) -> NDArray[np.int8]:
        """(SLOTS, dim) of a block, a copy; zeros if the block is new."""
        found = [codes for *_, codes in self.rows("vectors", "block", [row + 1])]
        return (
            np.frombuffer(found[0], np.int8).reshape(SLOTS, -1).copy() if found else np.zeros((SLOTS, dim), np.int8)
        )

    def _put_block(self, row: int, codes: NDArray[np.int8]) -> None:
        ids = self._all_slots()[row]
        self._put("vectors", [(row + 1, self._generation, ids.tobytes(), codes.tobytes())])


def _values(row: DocumentRow | ChunkRow | SkippedRow) -> tuple[object, ...]:
    return tuple(vars(row).values())  # dataclasses.astuple copies every value, which takes longer than SQLite


@contextmanager
def writing(path: Path, command: str, wait: float = 0, *, rebuild: bool = False) -> Iterator[Writer]:
    """The one Writer of an index, which is made if it is not there; at the end all commits are on disk.

    command: what the lock says to others. wait: seconds to wait for another writer.
    rebuild: all that it holds goes, but not what was asked for. A file that is damaged, or of another version, is
        deleted.
    Raises Locked, IndexDamaged, IndexMismatch, OutputError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with held(path, command, wait), translate_errors(path):
        try:
            connection = _open(path)
            if rebuild:
                _clear(Writer(connection, path))
        except (IndexDamaged, IndexMismatch):
            if not rebuild:
                raise
            delete(path)
            connection = _open(path)
        with closing(connection):
            yield Writer(connection, path)
            _sync(path.with_name(path.name + "-wal"))  # because a reader at work may keep the next step from it
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def delete(path: Path) -> None:
    """Delete an index, with the files beside it but the lock's. The caller holds the lock."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        fcntl.fcntl(file, fcntl.F_FULLFSYNC) if hasattr(fcntl, "F_FULLFSYNC") else os.fsync(file)


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        _create(path)
    with translate_errors(path):
        connection = connect(path, read_only=False)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA checkpoint_fullfsync = ON")  # of macOS
            connection.execute("PRAGMA cache_size = -65536")  # KiB
            check_schema(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _clear(writer: Writer) -> None:
    try:
        with writer.transaction():
            writer.clear()
    except BaseException:
        writer.connection.close()
        raise


def _create(path: Path) -> None:
    """Make an empty index. It takes its name when it is whole: readers could not repair one that is not."""
    new = path.with_name(f"{path.name}.new")
    delete(new)
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb"), translate_errors(path):
        with closing(connect(new, read_only=False)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # it is synced once, below
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
            writer = Writer(connection, new)
            now = str(time.time_ns() // 1_000_000)
            writer.set_header({"created": now, "generation": now})
        os.fsync(descriptor)
        os.replace(new, path)
