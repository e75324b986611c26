"""One index as one SQLite file: schema, header, one writer, many readers. Knows no model, and walks no folder.

Tables:
    header      key, value: the schema, the space of the vectors, the folders, and `generation`, which each commit raises
    documents   one row a file; `seen_ns` is when it was read, `path` is absolute, and bytes
    skipped     files that have no text, and why
    chunks      the passages of the documents, with exact spans
    words       FTS5 over `words_of` of the chunks' text, context and path; without content, rowid is the chunk's id
    vocabulary  the terms of `words`, and in how many chunks each stands
    vectors     blocks of SLOTS vectors as int8; an id of 0 is an empty slot; `generation` is the commit that wrote it
    halves      the same vectors as float16, one row a chunk; a chunk without a row has no vector yet

Rows and blocks carry a checksum, which every read compares: a damaged row is an error, never a hit.

The file is in WAL mode. One process writes: it holds `flock` on a file beside it, which names it. Readers open the
file read-only, so that only the writer checkpoints (SQLite before 3.51.3 may damage a file that two checkpoint at
once), and nothing is mapped into memory. A commit survives the death of the process; all commits up to a checkpoint,
which ends every run, survive the loss of power.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import IndexDamaged, IndexMismatch, IndexNotFound, JinaError, Locked, OutputError
from .words import TOKENIZER, words_of

SCHEMA_VERSION = 1
SLOTS = 256  # vectors a block: a commit writes whole blocks
_APPLICATION = 0x4A4E4158  # of the file's header; `file` and SQLite's own tools show it
_PAGE = 8192
_BUSY = 10.0  # seconds that a connection waits for SQLite's own locks, which are held for moments

_SCHEMA = f"""
CREATE TABLE header(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents(
    id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, root BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, seen_ns INTEGER NOT NULL, digest BLOB NOT NULL, language TEXT,
    checksum INTEGER NOT NULL);
CREATE TABLE skipped(
    path BLOB PRIMARY KEY, root BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, seen_ns INTEGER NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks(
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    start_char INTEGER NOT NULL, end_char INTEGER NOT NULL, start_byte INTEGER, end_byte INTEGER,
    start_line INTEGER NOT NULL, end_line INTEGER NOT NULL, context TEXT NOT NULL, defines TEXT NOT NULL,
    text TEXT NOT NULL, digest BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE UNIQUE INDEX chunks_of_document ON chunks(document, ordinal);
CREATE VIRTUAL TABLE words USING fts5(text, context, path, content='', tokenize="{TOKENIZER}");
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(words, 'row');
CREATE TABLE vectors(
    block INTEGER PRIMARY KEY, generation INTEGER NOT NULL, chunks BLOB NOT NULL, int8 BLOB NOT NULL,
    checksum INTEGER NOT NULL);
CREATE TABLE halves(
    chunk INTEGER PRIMARY KEY, float16 BLOB NOT NULL, checksum INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class DocumentRow:
    """A file that has text. `id` is 0 until it is stored."""

    id: int
    path: bytes  # absolute
    root: bytes  # the folder given by the user that it was found in
    size: int
    mtime_ns: int
    inode: int
    seen_ns: int
    digest: bytes  # SHA-256 of the file
    language: str | None


@dataclass(frozen=True)
class ChunkRow:
    """A passage of a document. `id` and `document` are 0 until it is stored."""

    id: int
    document: int
    ordinal: int
    start_char: int  # of the extracted text
    end_char: int
    start_byte: int | None  # of the file; None if its text was extracted from something else
    end_byte: int | None
    start_line: int  # of the file, from 1; pages of a PDF
    end_line: int  # the last line, included
    context: str  # "Guide > Install", or a qualified name
    defines: str  # names that the passage defines, a line each
    text: str
    digest: bytes  # of what the model reads


@dataclass(frozen=True)
class SkippedRow:
    """A file that is not in the index, and why."""

    path: bytes
    root: bytes
    size: int
    mtime_ns: int
    inode: int
    seen_ns: int
    reason: str


@dataclass(frozen=True)
class Block:
    """SLOTS vectors, as they lie in the file."""

    number: int
    chunks: NDArray[np.int32]  # (SLOTS,): ids, 0 for an empty slot
    int8: NDArray[np.int8]  # (SLOTS, dim)


@dataclass(frozen=True)
class Counts:
    """How much an index holds."""

    documents: int
    chunks: int
    vectors: int
    skipped: int


_DOCUMENT = ", ".join(field.name for field in fields(DocumentRow))
_CHUNK = ", ".join(field.name for field in fields(ChunkRow))
_SKIPPED = ", ".join(field.name for field in fields(SkippedRow))
_LEARN = "INSERT INTO words(rowid, text, context, path) VALUES (?, ?, ?, ?)"
_FORGET = "INSERT INTO words(words, rowid, text, context, path) VALUES ('delete', ?, ?, ?, ?)"
_IDS = ("application_id", "user_version")


class Database:
    """An index that is read, from any number of threads. Close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """Raises IndexNotFound, IndexDamaged, IndexMismatch if the file is of another version."""
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        if not path.is_file():
            raise IndexNotFound(f"{path}: there is no index here.")
        with self.reader() as reader:
            check_schema(reader.connection, path)

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A Reader that sees one state of the index until the block ends. Keep the block short: the WAL grows."""
        with _translated(self.path):
            with self._lock:
                if self._closed:
                    raise IndexNotFound(f"{self.path}: this index is closed.")
                connection = self._idle.pop() if self._idle else None
            connection = connection or _connect(self.path, read_only=True)
            kept = False
            try:
                connection.execute("BEGIN")
                yield Reader(connection, self.path)
                connection.rollback()
                kept = True
            finally:
                with self._lock:
                    kept = kept and not self._closed
                    if kept:
                        self._idle.append(connection)
                if not kept:
                    connection.close()

    def close(self) -> None:
        """Close all connections; those in use when their block ends."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Reader:
    """Reads one state of an index. `connection` is for the SQL of `search.query`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self._path = path

    def header(self) -> dict[str, str]:
        """All of the header."""
        return dict(self.connection.execute("SELECT key, value FROM header"))

    def generation(self) -> int:
        """The number of commits so far: two equal ones mean that nothing has changed."""
        return int(self._one("SELECT value FROM header WHERE key = 'generation'"))

    def counts(self) -> Counts:
        """How many rows there are of each kind."""
        tables = ("documents", "chunks", "halves", "skipped")
        return Counts(*(int(self._one(f"SELECT count(*) FROM {table}")) for table in tables))

    def documents(self, ids: Iterable[int] | None = None) -> Iterator[DocumentRow]:
        """The documents of these ids in any order, or all by id."""
        for row in self._rows("documents", _DOCUMENT, "id", ids):
            yield DocumentRow(*row)

    def document(self, path: bytes) -> DocumentRow | None:
        """The document of an absolute path."""
        found = self.connection.execute("SELECT id FROM documents WHERE path = ?", (path,)).fetchone()
        return None if found is None else next(self.documents([found[0]]))

    def chunks(self, ids: Iterable[int] | None = None) -> Iterator[ChunkRow]:
        """The chunks of these ids in any order, or all by id. An id that is not there is passed over."""
        for row in self._rows("chunks", _CHUNK, "id", ids):
            yield ChunkRow(*row)

    def chunks_of(self, document: int) -> list[ChunkRow]:
        """The chunks of a document, in their order."""
        found = [ChunkRow(*row) for row in self._rows("chunks", _CHUNK, "document", [document])]
        return sorted(found, key=lambda chunk: chunk.ordinal)

    def skipped(self) -> Iterator[SkippedRow]:
        """All skipped files, by path."""
        for row in self.connection.execute(f"SELECT {_SKIPPED} FROM skipped ORDER BY path"):
            yield SkippedRow(*row)

    def without_vector(self) -> list[tuple[int, bytes]]:
        """(id, digest) of the chunks that have no vector yet, those of the newest files first."""
        return self.connection.execute(
            "SELECT c.id, c.digest FROM chunks c JOIN documents d ON d.id = c.document "
            "LEFT JOIN halves h ON h.chunk = c.id WHERE h.chunk IS NULL ORDER BY d.mtime_ns DESC, c.id"
        ).fetchall()

    def blocks(self, after: int = 0) -> Iterator[Block]:
        """The blocks of vectors that were written after a generation; with 0 all of them."""
        sql = "SELECT block, chunks, int8, checksum FROM vectors WHERE generation > ? ORDER BY block"
        for number, chunks, int8, checksum in self.connection.execute(sql, (after,)):
            ids = np.frombuffer(chunks, np.int32)
            if checksum != _block_checksum(number, chunks, int8) or len(ids) != SLOTS or len(int8) % SLOTS:
                raise IndexDamaged(_damaged(self._path, f"block {number} of the vectors"))
            yield Block(number, ids, np.frombuffer(int8, np.int8).reshape(SLOTS, -1))

    def halves(self, ids: Iterable[int]) -> dict[int, NDArray[np.float16]]:
        """Chunk -> its vector, (dim,) float16, for the chunks among `ids` that have one."""
        found = {}
        for chunk, half, checksum in self._by_id("SELECT chunk, float16, checksum FROM halves WHERE chunk", ids):
            if checksum != _checksum((chunk, half)):
                raise IndexDamaged(_damaged(self._path, f"the vector of chunk {chunk}"))
            found[int(chunk)] = np.frombuffer(half, np.float16)
        return found

    def _one(self, sql: str) -> int | str:
        row = self.connection.execute(sql).fetchone()
        if row is None:
            raise IndexDamaged(_damaged(self._path, "the header"))
        value: int | str = row[0]
        return value

    def _rows(self, table: str, columns: str, key: str, ids: Iterable[int] | None) -> Iterator[tuple[object, ...]]:
        sql = f"SELECT {columns}, checksum FROM {table}"
        rows = (
            self.connection.execute(f"{sql} ORDER BY id") if ids is None else self._by_id(f"{sql} WHERE {key}", ids)
        )
        for *row, checksum in rows:
            if checksum != _checksum(row):
                raise IndexDamaged(_damaged(self._path, f"row {row[0]} of {table}"))
            yield tuple(row)

    def _by_id(self, sql: str, ids: Iterable[int]) -> Iterator[tuple[object, ...]]:
        wanted = [int(one) for one in ids]
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            yield from self.connection.execute(f"{sql} IN ({', '.join('?' * len(part))})", part)


class Writer(Reader):
    """The one writer of an index; see `writing`. Used from one thread."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection, path)
        self._slots: NDArray[np.int32] | None = None  # (blocks, SLOTS) ids, as in the table
        self._removed: list[int] = []
        self._generation = 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the block are committed together, or none of them."""
        with _translated(self._path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                self._generation = self.generation() + 1
                yield
                self._empty_slots()
                self.set_header({"generation": str(self._generation)})
                self.connection.execute("COMMIT")
            except BaseException:
                self._slots, self._removed = None, []
                with suppress(sqlite3.Error):  # a full disk has rolled back already
                    self.connection.execute("ROLLBACK")
                raise

    def set_header(self, values: Mapping[str, str]) -> None:
        """Set some keys; others stay."""
        self.connection.executemany("INSERT OR REPLACE INTO header VALUES (?, ?)", values.items())

    def add(self, document: DocumentRow, chunks: Sequence[ChunkRow]) -> None:
        """Store a document in place of that of the same path, if there is one."""
        self.remove(document.path)
        document = replace(document, id=self._next("documents"))
        self._put(document)
        first = self._next("chunks")
        stored = [replace(chunk, id=first + n, document=document.id) for n, chunk in enumerate(chunks)]
        self._insert("chunks", _CHUNK, map(astuple, stored))
        self._index_words(_LEARN, stored, document)

    def put_back(self, old: DocumentRow, new: DocumentRow) -> None:
        """Store other facts of a document whose content is the same: it was touched, or moved."""
        new = replace(new, id=old.id)
        if (old.path, old.root) != (new.path, new.root):
            self.remove(new.path)
            chunks = self.chunks_of(old.id)
            self._index_words(_FORGET, chunks, old)
            self._index_words(_LEARN, chunks, new)
        self.connection.execute("DELETE FROM documents WHERE id = ?", (old.id,))
        self._put(new)

    def skip(self, row: SkippedRow) -> None:
        """Store why a file is not in the index; what was there of it goes."""
        self.remove(row.path)
        values = astuple(row)
        self.connection.execute(f"INSERT INTO skipped({_SKIPPED}) VALUES ({_marks(values)})", values)

    def remove(self, path: bytes) -> None:
        """Take away a document with its chunks, words and vectors, or a skipped file, if there is one."""
        self.connection.execute("DELETE FROM skipped WHERE path = ?", (path,))
        document = self.document(path)
        if document is None:
            return
        chunks = self.chunks_of(document.id)
        self._index_words(_FORGET, chunks, document)
        for chunk in chunks:
            self.connection.execute("DELETE FROM halves WHERE chunk = ?", (chunk.id,))
        self.connection.execute("DELETE FROM chunks WHERE document = ?", (document.id,))
        self.connection.execute("DELETE FROM documents WHERE id = ?", (document.id,))
        self._removed += [chunk.id for chunk in chunks]

    def put_vectors(self, ids: Sequence[int], int8: NDArray[np.int8], halves: NDArray[np.float16]) -> None:
        """Store the vectors of chunks that have none: (n, dim) in both types."""
        if not len(ids):
            return
        self._insert(
            "halves", "chunk, float16", ((int(i), half.tobytes()) for i, half in zip(ids, halves, strict=True))
        )
        self._empty_slots()
        slots = self._load_slots()
        free = np.flatnonzero(slots.ravel() == 0)[: len(ids)]
        missing = len(ids) - len(free)
        new = np.arange(missing) + slots.size
        slots = np.concatenate([slots, np.zeros((-(-missing // SLOTS), SLOTS), np.int32)])
        at = np.concatenate([free, new])
        slots.ravel()[at] = ids
        self._slots = slots
        for block in np.unique(at // SLOTS):
            mine = at // SLOTS == block
            codes = self._codes(int(block), int8.shape[1])
            codes[at[mine] % SLOTS] = int8[mine]
            self._write_block(int(block), codes)

    def clear(self) -> None:
        """Take away all documents, skipped files, words and vectors."""
        for table in ("documents", "skipped", "chunks", "vectors", "halves"):
            self.connection.execute(f"DELETE FROM {table}")
        self.connection.execute("INSERT INTO words(words) VALUES ('delete-all')")
        self._slots, self._removed = None, []

    def _put(self, document: DocumentRow) -> None:
        self._insert("documents", _DOCUMENT, [astuple(document)])

    def _insert(self, table: str, columns: str, rows: Iterable[tuple[object, ...]]) -> None:
        marks = _marks(columns.split(", "))
        self.connection.executemany(
            f"INSERT INTO {table}({columns}, checksum) VALUES ({marks}, ?)", ((*row, _checksum(row)) for row in rows)
        )

    def _next(self, table: str) -> int:
        return int(self._one(f"SELECT coalesce(max(id), 0) + 1 FROM {table}"))

    def _index_words(self, sql: str, chunks: Iterable[ChunkRow], document: DocumentRow) -> None:
        path = words_of(shown(document.path, document.root))
        self.connection.executemany(
            sql, ((chunk.id, words_of(chunk.text), words_of(chunk.context), path) for chunk in chunks)
        )

    def _load_slots(self) -> NDArray[np.int32]:
        if self._slots is None:
            found = self.connection.execute("SELECT chunks FROM vectors ORDER BY block").fetchall()
            self._slots = np.frombuffer(b"".join(row[0] for row in found), np.int32).reshape(-1, SLOTS).copy()
        return self._slots

    def _empty_slots(self) -> None:
        """Give the slots of removed chunks free."""
        if not self._removed:
            return
        slots = self._load_slots()
        dead = np.isin(slots, self._removed)
        self._removed = []
        slots[dead] = 0
        for block in np.flatnonzero(dead.any(axis=1)):
            self._write_block(int(block), self._codes(int(block), None))

    def _codes(self, block: int, dim: int | None) -> NDArray[np.int8]:
        row = self.connection.execute("SELECT int8 FROM vectors WHERE block = ?", (block + 1,)).fetchone()
        if row is None:
            assert dim is not None
            return np.zeros((SLOTS, dim), np.int8)
        return np.frombuffer(row[0], np.int8).reshape(SLOTS, -1).copy()

    def _write_block(self, block: int, codes: NDArray[np.int8]) -> None:
        number, ids, data = block + 1, self._load_slots()[block].tobytes(), codes.tobytes()
        self.connection.execute(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)",
            (number, self._generation, ids, data, _block_checksum(number, ids, data)),
        )


@contextmanager
def writing(path: Path, command: str, wait: float = 0) -> Iterator[Writer]:
    """The one Writer of an index, which is created if it is not there; at the end all is on disk.

    command: what others are told if they meet the lock. wait: seconds to wait for another writer.
    Raises Locked, IndexDamaged, IndexMismatch, OutputError.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with held(path.with_name(path.name + ".lock"), command, wait), _translated(path):
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = _connect(path, read_only=False)
        try:
            _create(connection)
            check_schema(connection, path)
            yield Writer(connection, path)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()


@contextmanager
def held(path: Path, command: str, wait: float) -> Iterator[None]:
    """Hold the lock in the file `path`, which says who holds it. Raises Locked."""
    until = time.monotonic() + wait
    descriptor = _take(path)
    while descriptor is None:
        if time.monotonic() >= until:
            raise Locked(f"{path.with_suffix('')}: is being written by {_holder(path)}. Wait for it, or end it.")
        time.sleep(0.1)
        descriptor = _take(path)
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Delete an index, with all files beside it. The caller holds its lock."""
    for suffix in ("", "-wal", "-shm", ".lock"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def shown(path: bytes, root: bytes) -> str:
    """A document's path below the folder that was given, for people and for full-text search."""
    return os.path.relpath(path, root).decode("utf-8", "backslashreplace")


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Raise IndexDamaged for a file that is not such an index, IndexMismatch for one of another version."""
    application, version = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in _IDS)
    if not application and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise IndexNotFound(f"{path}: is empty. Index a folder first.")
    if application != _APPLICATION:
        raise IndexDamaged(f"{path}: is a SQLite file, but no index of jina_local.")
    if version != SCHEMA_VERSION:
        way = "Update jina_local" if version > SCHEMA_VERSION else "Make it again: `index --rebuild`"
        raise IndexMismatch(f"{path}: has version {version}, and this jina_local reads {SCHEMA_VERSION}. {way}.")
    if _objects(connection) != _expected():
        raise IndexDamaged(_damaged(path, "the schema"))


def _expected() -> set[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.executescript(_SCHEMA)
        return _objects(memory)


def _objects(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    # The tables in which FTS5 keeps its data are its own business.
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL")
    return {(name, sql) for name, sql in found if not name.startswith("words_")}


def _create(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    connection.execute(f"PRAGMA page_size = {_PAGE}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA} INSERT INTO header VALUES ('generation', '0');"
        f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
    )


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
        uri=True,
        timeout=_BUSY,
        isolation_level=None,
        check_same_thread=False,  # a pool lends it to one thread at a time
    )
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")  # no text of the user in /tmp
    if not read_only:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")  # macOS
        connection.execute("PRAGMA cache_size = -65536")  # KiB; a transaction of many files stays in memory
    return connection


def _take(path: Path) -> int | None:
    """The descriptor of a lock file that is ours from here on; None if it is another's."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # it was deleted with its index in between


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_bytes())
        return f"process {about['pid']} on {about['host']}: {about['command']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"  # which has not written its name yet


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _checksum(row: Iterable[object]) -> int:
    parts = (
        v if isinstance(v, bytes) else b"" if v is None else str(v).encode("utf-8", "surrogatepass") for v in row
    )
    return zlib.crc32(b"\0".join(parts))


def _block_checksum(number: int, chunks: bytes, int8: bytes) -> int:
    return zlib.crc32(int8, zlib.crc32(chunks, number))


def _damaged(path: Path, what: str) -> str:
    return f"{path}: {what} is damaged. `index --verify` lists the damage, `index --rebuild` mends it."


# A piece of SQLite's message -> our error, and what can be done. The first that fits decides.
_FAULTS: tuple[tuple[str, type[JinaError], str], ...] = (
    ("disk is full", OutputError, "What was committed before is kept: free some space, and run the command again"),
    ("readonly", OutputError, "Make the file and its folder writable"),
    ("locked", Locked, "Another program keeps the file locked; end it"),
    ("unable to open", OutputError, "Check the rights of the file and its folder"),
    ("", IndexDamaged, "`index --rebuild` makes it again"),
)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.DatabaseError, sqlite3.Warning) as error:
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
            raise  # a bug of ours
        kind, way = next((kind, way) for piece, kind, way in _FAULTS if piece in str(error))
        raise kind(f"{path}: {error}. {way}.") from error
