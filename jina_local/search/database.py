"""One index as one SQLite file: schema, header, readers. Knows no model, and walks no folder. `writer` writes it.

Tables:
    header      key, value: the folders, the space of the vectors, and `generation`, which every commit raises by one;
                it begins with the milliseconds of `created`, so that a new file never repeats those of an old one
    documents   a row for each file; `seen_ns` is when it was read
    skipped     files that have no text, and why
    chunks      the passages of the documents, with their spans
    words       FTS5 over `words_of` of a chunk's text, context and path, without content; rowid is the chunk's id
    vocabulary  the terms of `words`, and in how many chunks each stands
    vectors     blocks of SLOTS vectors as int8; an id of 0 is an empty slot; `generation` is the commit that wrote it
    halves      the same vectors as float16, one a chunk; a chunk without a row has no vector yet

Every row carries a checksum, and every read compares it: a damaged row is an error, never a hit.

The file is in WAL mode. Readers open it read-only, so that only the writer checkpoints, because SQLite before 3.51.3
may damage a file that two processes checkpoint at once. Nothing is mapped into memory. A commit survives the death of
the process, and the loss of power from the next checkpoint on, with which every run of the writer ends.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineMissing, IndexDamaged, IndexMismatch, IndexNotFound, JinaError, Locked, OutputError
from .words import TOKENIZER

VERSION = 1  # of the schema
SLOTS = 256  # vectors a block; a commit writes whole blocks
APPLICATION = 0x4A4E4158  # tells the file from other SQLite files
_OLDEST = (3, 37, 0)  # SQLite
_BUSY = 10.0  # seconds to wait for SQLite's own locks, which are held for moments

SCHEMA = f"""
CREATE TABLE header(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE documents(
    id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, root BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, seen_ns INTEGER NOT NULL, digest BLOB NOT NULL, language TEXT,
    unit TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE skipped(
    path BLOB PRIMARY KEY, root BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, seen_ns INTEGER NOT NULL, reason TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
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
CREATE TABLE halves(chunk INTEGER PRIMARY KEY, float16 BLOB NOT NULL, checksum INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class DocumentRow:
    """A file that has text. `id` is 0 until it is stored."""

    id: int
    path: bytes  # absolute
    root: bytes  # the folder of the index in which it was found
    size: int
    mtime_ns: int
    inode: int
    seen_ns: int
    digest: bytes  # SHA-256 of the file
    language: str | None
    unit: str = "line"  # what the lines of its chunks count: "line", "page" of a PDF, ...


@dataclass(frozen=True)
class ChunkRow:
    """A passage of a document. `id` and `document` are 0 until it is stored."""

    id: int
    document: int
    ordinal: int
    start_char: int  # of the extracted text
    end_char: int
    start_byte: int | None  # of the file; None if the text had to be extracted from another format
    end_byte: int | None
    start_line: int  # of the file, from 1, in the document's unit
    end_line: int  # the last line, included
    context: str  # "Guide > Install", or a qualified name
    defines: str  # the names that the passage defines, a line each
    text: str
    digest: bytes  # of what the model reads


@dataclass(frozen=True)
class SkippedRow:
    """A file without text."""

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

    number: int  # from 1
    generation: int
    chunks: NDArray[np.int32]  # (SLOTS,): ids, 0 for an empty slot
    int8: NDArray[np.int8]  # (SLOTS, dim)


@dataclass(frozen=True)
class Counts:
    """How much an index holds."""

    documents: int
    chunks: int
    vectors: int
    skipped: int


COLUMNS = {
    "header": "key, value",
    "documents": ", ".join(field.name for field in fields(DocumentRow)),
    "skipped": ", ".join(field.name for field in fields(SkippedRow)),
    "chunks": ", ".join(field.name for field in fields(ChunkRow)),
    "vectors": "block, generation, chunks, int8",
    "halves": "chunk, float16",
}


class Database:
    """An index that is read, from any number of threads. Close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """Raises IndexNotFound, IndexDamaged, or IndexMismatch if the file is of another version."""
        self.path = path
        self._idle: list[tuple[int, sqlite3.Connection]] = []  # with the number of the file
        self._lock = threading.Lock()
        self._closed = False
        with self.reader() as reader:
            check_schema(reader.connection, path)

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A Reader that sees one state of the index until the block ends. Keep the block short: the WAL grows."""
        with translate_errors(self.path):
            with self._lock:
                if self._closed:
                    raise IndexNotFound(f"{self.path}: this index is closed.")
                inode, connection = self._idle.pop() if self._idle else (0, None)
            now = self._inode()
            if connection is not None and inode != now:
                connection.close()  # another file has taken the place of its file
                connection = None
            connection = connection or connect(self.path, read_only=True)
            healthy = False
            try:
                connection.execute("BEGIN")
                yield Reader(connection, self.path)
                connection.rollback()
                healthy = True
            finally:
                with self._lock:
                    keep = healthy and not self._closed
                    if keep:
                        self._idle.append((now, connection))
                if not keep:
                    connection.close()

    def _inode(self) -> int:
        if not self.path.is_file():
            raise IndexNotFound(f"{self.path}: there is no index here. Make one: `index FOLDER`.")
        return self.path.stat().st_ino

    def close(self) -> None:
        """Close all connections; those in use when their block ends."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop()[1].close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Reader:
    """Reads one state of an index. `connection` is for the SQL of a question; rows that it reads are not checked."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path

    def header(self) -> dict[str, str]:
        """All of the header."""
        return dict(self.rows("header"))

    def generation(self) -> int:
        """The number of commits so far: nothing has changed if it is the same."""
        found = [value for _, value in self.rows("header", "key", ["generation"])]
        if not found:
            raise IndexDamaged(damaged(self.path, "the header"))
        return int(found[0])

    def counts(self) -> Counts:
        """How many rows there are of each kind."""
        return Counts(*(self._count(table) for table in ("documents", "chunks", "halves", "skipped")))

    def documents(self, ids: Iterable[int] | None = None) -> Iterator[DocumentRow]:
        """The documents of these ids in any order, or all."""
        return (DocumentRow(*row) for row in self.rows("documents", "id", _integers(ids)))

    def document(self, path: bytes) -> DocumentRow | None:
        """The document of an absolute path."""
        return next((DocumentRow(*row) for row in self.rows("documents", "path", [path])), None)

    def chunks(self, ids: Iterable[int] | None = None) -> Iterator[ChunkRow]:
        """The chunks of these ids in any order, or all. An id that is not there is passed over."""
        return (ChunkRow(*row) for row in self.rows("chunks", "id", _integers(ids)))

    def chunks_of(self, document: int) -> list[ChunkRow]:
        """The chunks of a document, in their order."""
        found = (ChunkRow(*row) for row in self.rows("chunks", "document", [document]))
        return sorted(found, key=lambda chunk: chunk.ordinal)

    def skipped(self) -> Iterator[SkippedRow]:
        """All files without text."""
        return (SkippedRow(*row) for row in self.rows("skipped"))

    def without_vector(self) -> NDArray[np.int32]:
        """The ids of the chunks that have no vector yet, those of the newest files first."""
        found = self.connection.execute(
            "SELECT c.id FROM chunks c JOIN documents d ON d.id = c.document WHERE c.id NOT IN (SELECT chunk FROM "
            "halves) ORDER BY d.mtime_ns DESC, d.id, c.ordinal"
        )
        return np.fromiter((row[0] for row in found), np.int32)

    def blocks(self, after: int = 0) -> Iterator[Block]:
        """The blocks of vectors that were written after a generation; with 0 all of them."""
        sql = "SELECT block, generation, chunks, int8, checksum FROM vectors WHERE generation > ? ORDER BY block"
        for number, generation, chunks, int8 in self._checked("vectors", self.connection.execute(sql, (after,))):
            ids = np.frombuffer(chunks, np.int32)
            yield Block(number, generation, ids, np.frombuffer(int8, np.int8).reshape(SLOTS, -1))

    def halves(self, ids: Iterable[int] | None = None) -> dict[int, NDArray[np.float16]]:
        """Chunk -> its vector, (dim,) float16, of the chunks among `ids` that have one, or of all."""
        return {
            chunk: np.frombuffer(half, np.float16) for chunk, half in self.rows("halves", "chunk", _integers(ids))
        }

    def rows(self, table: str, key: str = "", values: Iterable[object] | None = None) -> Iterator[tuple[Any, ...]]:
        """The rows of a table with one of `values` in the column `key`, or all. Raises IndexDamaged."""
        sql = f"SELECT {COLUMNS[table]}, checksum FROM {table}"
        if values is None:
            yield from self._checked(table, self.connection.execute(sql))
            return
        wanted = list(values)
        for start in range(0, len(wanted), 500):  # SQLite before 3.32 takes 999 parameters
            part = wanted[start : start + 500]
            found = self.connection.execute(f"{sql} WHERE {key} IN ({', '.join('?' * len(part))})", part)
            yield from self._checked(table, found)

    def _checked(self, table: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for *row, checksum in rows:
            if checksum != checksum_of(row):
                raise IndexDamaged(damaged(self.path, f"row {row[0]!r} of {table}"))
            yield tuple(row)

    def _count(self, table: str) -> int:
        return int(self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def checksum_of(row: Iterable[object]) -> int:
    """The checksum of a row's other columns, in the order of COLUMNS: the types count, too."""
    value = 0
    for item in row:
        data = item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass")
        value = zlib.crc32(data, zlib.crc32(type(item).__name__.encode(), value))
    return value


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Raise IndexDamaged for a file that is not such an index, IndexMismatch for one of another version."""
    application, version = (_pragma(connection, name) for name in ("application_id", "user_version"))
    if application != APPLICATION:
        raise IndexDamaged(f"{path}: is no index of jina_local, or its start is damaged.")
    if version != VERSION:
        way = "Update jina_local" if version > VERSION else "Make it again with `index --rebuild`"
        raise IndexMismatch(f"{path}: is an index of version {version}; this jina_local reads {VERSION}. {way}.")
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.executescript(SCHEMA)
        expected = _objects(memory)
    if _objects(connection) != expected:
        raise IndexDamaged(damaged(path, "the list of tables"))


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection to an existing file; transactions are begun and ended by hand."""
    _require_sqlite()
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
        uri=True,
        timeout=_BUSY,
        isolation_level=None,
        check_same_thread=False,  # Database lends it to one thread at a time
    )
    # Nothing is mapped, and no text of the user lies in /tmp.
    for pragma in ("mmap_size = 0", "temp_store = MEMORY", "cell_size_check = ON", "trusted_schema = OFF"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@lru_cache
def _require_sqlite() -> None:
    """Raise EngineMissing if the SQLite of this Python is too old, or has no full-text search."""
    with closing(sqlite3.connect(":memory:")) as memory:
        try:
            memory.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
        except sqlite3.OperationalError as error:
            raise EngineMissing(
                f"an index needs SQLite with FTS5, and that of this Python ({sqlite3.sqlite_version}) has none "
                f"({error}). Use a Python of python.org, of a Linux distribution, of Homebrew or of uv."
            ) from error
    if sqlite3.sqlite_version_info < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise EngineMissing(
            f"an index needs SQLite {wanted}; that of this Python is {sqlite3.sqlite_version}. Use a newer Python."
        )


def damaged(path: Path, what: str) -> str:
    """The message about damage."""
    return f"{path}: {what} is damaged. `index --verify` lists the damage, `index --rebuild` makes the index again."


def _integers(ids: Iterable[int] | None) -> list[int] | None:
    return None if ids is None else [int(one) for one in ids]  # SQLite does not take numpy's


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _objects(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    # The tables in which FTS5 keeps its data are its own business, and differ between its versions.
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL")
    return {(name, sql) for name, sql in found if not name.startswith("words_")}


# A piece of SQLite's message, or of the error's name -> our error, and the way out. The first that fits decides.
_FAULTS: tuple[tuple[str, type[JinaError], str], ...] = (
    ("disk is full", OutputError, "What was committed is kept: free some space, and run the same command again"),
    ("readonly", OutputError, "Make the file and its folder writable"),
    ("unable to open", OutputError, "Make the file and its folder readable and writable"),
    ("SHORT_READ", IndexDamaged, "`index --rebuild` makes the index again"),
    (
        "disk I/O error",
        OutputError,
        "The disk, or a limit on the size of files, refuses to go on. What was committed is kept",
    ),
    ("locked", Locked, "Another program locks the file; end it"),
    ("", IndexDamaged, "`index --rebuild` makes the index again"),
)


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Errors of SQLite become ours."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a bug of ours
    except UnicodeDecodeError as error:
        if not bytes(error.object).startswith(b"malformed"):
            raise
        raise IndexDamaged(damaged(path, "the list of tables")) from error  # which SQLite's message quotes
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")  # from Python 3.11 on
        kind, way = next((kind, way) for piece, kind, way in _FAULTS if piece in f"{error} {name}")
        raise kind(f"{path}: {error}. {way}.") from error
