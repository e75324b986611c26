"""A run that can be stopped: its vectors by text, in a file beside the output, until the output is whole.

The next run reads its input from the start, takes the vectors that are there, and asks the model for the others. So
it may find other texts, another order, other fields or another format: a vector belongs to its text, not to a place.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from ..errors import JinaError, Locked, OutputError, UsageError
from ..records.writers import DTYPES
from ..spec import Embedded
from .cache import digest_of
from .stream import Known

SUFFIX = ".resume"
_KIND = int.from_bytes(b"jinR", "big")  # SQLite's application_id
_SCHEMA = f"""
PRAGMA application_id = {_KIND};
CREATE TABLE header (request TEXT);
CREATE TABLE vectors (digest BLOB, run INTEGER, truncated INTEGER, vector BLOB);
CREATE INDEX by_digest ON vectors (digest, run);
"""


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
    path.unlink()


class Journal:
    """A Memory in a SQLite file. A call's vectors are there together or not at all, whenever the process ends."""

    def __init__(self, path: Path, request: Mapping[str, str]) -> None:
        self._path, self._kind = path, DTYPES[request["precision"]]
        try:
            self._file = sqlite3.connect(path, timeout=0, isolation_level=None)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._open(request)
            self.count, last = self._file.execute("SELECT count(*), max(run) FROM vectors").fetchone()
        except BaseException as error:
            self._file.close()
            raise self._unusable(error) if isinstance(error, sqlite3.Error) else error from None
        self._run: int = (last or 0) + 1
        self._given: list[tuple[int, int]] = []  # (this run, rowid) of the vectors that the last `get` has found

    def get(self, texts: Sequence[str]) -> list[Known | None]:
        """A vector that an earlier run has left for each text. Each is given once in a run.

        So a text that stands there twice gets both vectors that it had: their last bits may differ in other company.
        """
        find = "SELECT vector, truncated, rowid FROM vectors WHERE digest = ? AND run < ? ORDER BY rowid"
        found: dict[str, sqlite3.Cursor] = {}
        try:
            for text in texts:
                if text not in found:
                    found[text] = self._file.execute(find, (digest_of(text), self._run))
            rows = [found[text].fetchone() for text in texts]
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        self._given = [(self._run, row[2]) for row in rows if row]
        return [row and Known(np.frombuffer(row[0], self._kind), bool(row[1])) for row in rows]

    def put(self, texts: Sequence[str], answer: Embedded) -> None:
        """Keep the answer to a call with `texts`. Texts without a usable vector are tried again by the next run."""
        failed = set(answer.failed)
        rows = (
            (digest_of(text), self._run, bool(answer.truncated[i]), one.tobytes())
            for i, (text, one) in enumerate(zip(texts, answer.vectors, strict=True))
            if i not in failed
        )
        try:
            self._file.execute("BEGIN")
            self._file.executemany("UPDATE vectors SET run = ? WHERE rowid = ?", self._given)
            self._file.executemany("INSERT INTO vectors VALUES (?, ?, ?, ?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Undo what is half written, and let the next process in."""
        self._file.close()

    def _open(self, now: Mapping[str, str]) -> None:
        """Lock the file, and make its tables or compare its header."""
        self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._file.execute("BEGIN EXCLUSIVE")
        (kind,) = self._file.execute("PRAGMA application_id").fetchone()
        (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            for statement in _SCHEMA.strip().split(";\n"):
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

    def _unusable(self, error: sqlite3.Error) -> JinaError:
        if "locked" in str(error):
            return Locked(f"{self._path}: another process is writing the same output.")
        return OutputError(f"{self._path}: {error}. Remove the file to begin anew.")
