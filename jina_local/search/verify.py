"""Every fault of an index: pages, checksums, what belongs together, vectors that are not finite, words."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from ..embedding import vectors
from ..errors import IndexDamaged
from .database import COLUMNS, SCHEMA, checksum_of
from .folder import shown
from .words import words_of
from .writer import LEARN, Writer

_BATCH = 20_000  # chunks whose words are indexed again at once
# Sums over all places of words: they differ if a word is in another passage, column or place.
_PLACES = (
    "SELECT count(*), sum((doc * (offset + 1)) % 999983), "
    "sum((doc * CASE col WHEN 'text' THEN 1 WHEN 'path' THEN 2 ELSE 3 END) % 999979) FROM temp.places"
)
# Rows that have no row where they belong.
_ORPHANS = {
    "chunks without their document": "SELECT count(*) FROM chunks WHERE document NOT IN (SELECT id FROM documents)",
    "vectors without their chunk": "SELECT count(*) FROM halves WHERE chunk NOT IN (SELECT id FROM chunks)",
    "chunks without their words": "SELECT count(*) FROM chunks WHERE id NOT IN (SELECT id FROM words_docsize)",
    "words without their chunk": "SELECT count(*) FROM words_docsize WHERE id NOT IN (SELECT id FROM chunks)",
}


def faults(writer: Writer) -> Iterator[str]:
    """The faults, as sentences that name what is at fault, and for a passage its file."""
    try:
        pages = [row[0] for row in writer.connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
        yield from (f"SQLite: {fault}" for fault in pages)
        if pages:
            return  # what is read from such pages means nothing
        rows = list(_rows(writer)) or list(_orphans(writer))
        yield from rows
        if rows:
            return  # the rest reads them
        writer.generation()
        yield from _vectors(writer)
        yield from _words(writer)
    except (sqlite3.DatabaseError, IndexDamaged) as error:
        yield f"cannot be read further: {error}"


def _rows(writer: Writer) -> Iterator[str]:
    """Rows whose checksum is another."""
    for table, columns in COLUMNS.items():
        for *row, checksum in writer.connection.execute(f"SELECT {columns}, checksum FROM {table}"):
            if checksum != checksum_of(row):
                yield f"{table}: row {row[0]!r} was changed{_source(writer, table, row[0])}"


def _orphans(writer: Writer) -> Iterator[str]:
    for what, sql in _ORPHANS.items():
        if count := writer.connection.execute(sql).fetchone()[0]:
            yield f"{count} {what}"


def _source(writer: Writer, table: str, key: object) -> str:
    """Of which file the row of a chunk or vector is, as far as it can be told."""
    if table not in ("chunks", "halves"):
        return ""
    sql = "SELECT d.path FROM documents d JOIN chunks c ON c.document = d.id WHERE c.id = ?"
    found = writer.connection.execute(sql, (key,)).fetchone()
    return f" ({found[0].decode('utf-8', 'backslashreplace')})" if found else ""


def _vectors(writer: Writer) -> Iterator[str]:
    """Slots and float16 rows that do not agree, and values that are not those of a unit vector."""
    placed: list[int] = []
    for block in writer.blocks():
        used = np.flatnonzero(block.chunks)
        ids = block.chunks[used].tolist()
        placed += ids
        halves = writer.halves(ids)
        if len(halves) < len(ids):
            yield f"vectors: {len(ids) - len(halves)} of block {block.number} have no float16"
            continue
        if not ids:
            continue
        wide = np.stack([halves[chunk] for chunk in ids]).astype(np.float32)
        norms = np.linalg.norm(wide, axis=1)
        for at in np.flatnonzero(~(np.abs(norms - 1) < 0.01)):
            yield f"halves: the vector of chunk {ids[at]} is none of length 1{_source(writer, 'halves', ids[at])}"
        codes = np.asarray(vectors.quantise(np.nan_to_num(wide), "int8"), np.int16)
        for at in np.flatnonzero(np.abs(codes - block.int8[used]).max(axis=1) > 1):
            yield f"vectors: the two vectors of chunk {ids[at]} differ{_source(writer, 'halves', ids[at])}"
    twice = [chunk for chunk, count in Counter(placed).items() if count > 1]
    if twice:
        yield f"vectors: {len(twice)} chunks have two of them, for example {twice[0]}"
    if len(set(placed)) != writer.counts().vectors:
        yield f"vectors: {len(set(placed))} as int8, {writer.counts().vectors} as float16"


def _words(writer: Writer) -> Iterator[str]:
    """Whether full-text search holds the words that the chunks have: they are indexed once more, in memory."""
    try:
        writer.connection.execute("INSERT INTO words(words) VALUES ('integrity-check')")
    except sqlite3.DatabaseError as error:
        yield f"words: {error}"
        return
    expected = _Words()
    paths = {row.id: words_of(shown(row.path, row.root)) for row in writer.documents()}
    chunks = writer.chunks()
    while batch := list(islice(chunks, _BATCH)):
        with closing(sqlite3.connect(":memory:")) as memory:
            memory.executescript(SCHEMA)
            memory.executemany(
                LEARN, ((c.id, words_of(c.text), words_of(c.context), paths[c.document]) for c in batch)
            )
            expected.add(memory)
    held = _Words()
    held.add(writer.connection)
    for term in sorted(term for term in held.terms | expected.terms if held.terms[term] != expected.terms[term])[:20]:
        yield f"words: {term!r} is in {held.terms[term]} passages, and should be in {expected.terms[term]}"
    if (held.places != expected.places).any() or held.lengths != expected.lengths:
        yield "words: some are at other places than in the passages"
    totals = writer.connection.execute("SELECT block FROM words_data WHERE id = 1").fetchone()[0]
    if expected.totals[0] and _numbers(totals) != expected.totals.tolist():
        yield "words: the total lengths of the passages are wrong"
    for term in held.terms:
        if writer.connection.execute("SELECT 1 FROM vocabulary WHERE term = ?", (term,)).fetchone() is None:
            yield f"words: {term!r} is not found by its name"


class _Words:
    """What full-text search holds, summed up, so that batches can be added."""

    def __init__(self) -> None:
        self.terms: Counter[str] = Counter()
        self.places = np.zeros(3, object)
        self.lengths = 0
        self.totals = np.zeros(4, object)  # passages, words of each column

    def add(self, connection: sqlite3.Connection) -> None:
        """Add the words of a database. Every scan runs in SQLite."""
        connection.execute("CREATE VIRTUAL TABLE temp.places USING fts5vocab(main, words, 'instance')")
        for term, passages in connection.execute("SELECT term, doc FROM vocabulary"):
            self.terms[term] += passages
        self.places += [value or 0 for value in connection.execute(_PLACES).fetchone()]
        for chunk, sizes in connection.execute("SELECT id, sz FROM words_docsize"):
            numbers = _numbers(sizes)
            if len(numbers) != len(self.totals) - 1:
                raise IndexDamaged(f"the lengths of passage {chunk} are {sizes!r:.40}")
            self.lengths += zlib.crc32(sizes, chunk)
            self.totals += [1, *numbers]
        connection.execute("DROP TABLE temp.places")


def _numbers(record: object) -> list[int]:
    """The variable-length integers in a record: seven bits a byte, the highest bit says that more follow."""
    found, value = [], 0
    for byte in record if isinstance(record, bytes) else b"":
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            found.append(value)
            value = 0
    return found
