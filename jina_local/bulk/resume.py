"""A run that can be stopped: its vectors by text, in a file beside the output, until the output is whole.

The next run reads its input from the start, takes the vectors that are there, and asks the model for the others. So
it may find other texts, another order, other fields or another format: a vector belongs to its text, not to a place.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from ..errors import Locked, OutputError, UsageError
from ..records.writers import DTYPES
from ..spec import Embedded
from .cache import digest_of
from .stream import Known

SUFFIX = ".resume"
_KIND = int.from_bytes(b"jinR", "big")  # SQLite's application_id
_SCHEMA = (
    f"PRAGMA application_id = {_KIND}",
    "CREATE TABLE header (request TEXT)",
    "CREATE TABLE vectors (digest BLOB, truncated INTEGER, vector BLOB)",
)

# A piece of SQLite's message -> the way out. The first that fits decides.
_WAYS = (
    ("full", "What was done before is kept: free some space, and give the same command again."),
    ("unable to open", "Make its folder writable."),
    ("readonly", "Make it writable."),
    ("", "Remove the file to begin anew."),
)


@contextmanager
def journal(output: Path, request: Mapping[str, str]) -> Iterator[Journal]:
    """The vectors that a stopped run to `output` has left. Their file is removed if the block ends well.

    request: all that a vector depends on, beside its text; `precision` among it.
    Raises UsageError with the difference if they are of another request or model, Locked if another process writes
    this output, and OutputError.
    """
    path = output.with_name(output.name + SUFFIX)
    with closing(Journal(path, request)) as opened:
        yield opened
    for name in (f"{path}-journal", path):  # SQLite's own, which a killed run may have left
        Path(name).unlink(missing_ok=True)


class Journal:
    """A Memory in a SQLite file. A call's vectors are there together or not at all, whenever the process ends."""

    def __init__(self, path: Path, request: Mapping[str, str]) -> None:
        self._path, self._kind = path, DTYPES[request["precision"]]
        self._given: list[tuple[bytes, int]] = []  # of `left_over`, by the last `get`
        with self._translated():
            self._file = sqlite3.connect(path, timeout=0, isolation_level=None)
            try:
                self._open(request)
            except BaseException:
                self._file.close()
                raise

    def get(self, texts: Sequence[str]) -> list[Known | None]:
        """A vector that earlier runs have left for each text. Each is given once.

        So a text that stands there twice gets both vectors that it had: their last bits may differ in other company.
        """
        find = (
            "SELECT vector, truncated, place FROM left_over JOIN vectors ON vectors.rowid = place "
            "WHERE left_over.digest = ? ORDER BY place LIMIT ?"
        )
        digests = [digest_of(text) for text in texts]
        with self._translated():
            found = {one: iter(self._file.execute(find, (one, n)).fetchall()) for one, n in Counter(digests).items()}
        rows = [next(found[digest], None) for digest in digests]
        self._given = [(digest, row[2]) for digest, row in zip(digests, rows, strict=True) if row]
        return [row and Known(np.frombuffer(row[0], self._kind), bool(row[1])) for row in rows]

    def put(self, texts: Sequence[str], answer: Embedded) -> None:
        """Keep the answer to a call with `texts`. Texts without a usable vector are tried again by the next run."""
        failed = set(answer.failed)
        rows = (
            (digest_of(text), bool(answer.truncated[i]), one.tobytes())
            for i, (text, one) in enumerate(zip(texts, answer.vectors, strict=True))
            if i not in failed
        )
        with self._translated():
            self._file.execute("BEGIN")
            self._file.executemany("DELETE FROM left_over WHERE digest = ? AND place = ?", self._given)
            self._file.executemany("INSERT INTO vectors VALUES (?, ?, ?)", rows)
            self._file.execute("COMMIT")

    def close(self) -> None:
        """Undo what is half written, and let the next process in."""
        self._file.close()

    def _open(self, now: Mapping[str, str]) -> None:
        """Lock the file, make its tables or compare its header, and list the vectors that are there."""
        self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._file.execute("BEGIN EXCLUSIVE")
        (kind,) = self._file.execute("PRAGMA application_id").fetchone()
        (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            for statement in _SCHEMA:
                self._file.execute(statement)
            self._file.execute("INSERT INTO header VALUES (?)", (json.dumps(dict(now)),))
        elif kind != _KIND:
            raise OutputError(f"{self._path}: was not made by --resume, which needs a file of this name.")
        self._file.execute("COMMIT")
        before = json.loads(self._file.execute("SELECT request FROM header").fetchone()[0])
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            said = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
            raise UsageError(
                f"{self._path} has vectors of another request: {said}. Give the same options as before, or remove "
                "the file to begin anew."
            )
        # An index of all vectors in the file itself would cost more than they do, because digests come in no order.
        self._file.execute(
            "CREATE TEMP TABLE left_over (digest BLOB, place INTEGER, PRIMARY KEY (digest, place)) WITHOUT ROWID"
        )
        list_all = "INSERT INTO left_over SELECT digest, rowid FROM vectors ORDER BY digest, rowid"
        self.count = self._file.execute(list_all).rowcount

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise Locked(f"{self._path}: another process is writing the same output.") from error
            way = next(way for piece, way in _WAYS if piece in str(error))
            raise OutputError(f"{self._path}: {error}. {way}") from error
