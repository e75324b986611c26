"""Damaged index files: `python -m tests.search.damage [--count N] [--seed N]`.

Bytes are flipped, overwritten, moved or cut off. Every file has to be refused, or `verify` has to name a fault, or
the damage has to be harmless: rows, vectors and the answers of full-text search are as they were. Before `verify` is
asked, all rows are read, and a row has to come back as it was or not at all. Each file is opened in a child, so that
a crash would be counted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from jina_local.errors import JinaError, SearchIndexError
from jina_local.search.database import COLUMNS, Database
from jina_local.search.verify import faults
from jina_local.search.writer import writing
from tests.search.kills import WORDS, State, commits, transaction

OUTCOMES = ("refused", "found by verify", "harmless")


def make(path: Path) -> None:
    """An index of some pages, every table filled."""
    state: State = {}
    for _ in range(2):
        with writing(path, "damage") as writer:
            for _ in range(40):
                number = commits(writer) + 1
                with writer.transaction():
                    transaction(state, "damage", number, writer)


def content(path: Path) -> dict[str, object]:
    """Everything that is read from an index: the rows of each table, or the error, and the answers to words."""
    found: dict[str, object] = {}
    with Database(path) as database:
        for table in COLUMNS:
            try:
                with database.reader() as reader:
                    found[table] = {row[0]: row for row in reader.rows(table)}
            except SearchIndexError as error:
                found[table] = error
        for word in WORDS:
            try:
                with database.reader() as reader:
                    sql = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ? ORDER BY rowid"
                    found[word] = reader.connection.execute(sql, (word,)).fetchall()
            except SearchIndexError as error:
                found[word] = error
    return found


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """What was done, and the damaged bytes."""
    kind = rng.choice(("flip", "flip", "overwrite", "zeros", "cut", "splice", "page"))
    at = rng.randrange(len(data))
    span = min(rng.choice((1, 4, 64, 1000)), len(data) - at)
    if kind == "flip":
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 8))):
            out[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return kind, bytes(out)
    if kind == "cut":
        return kind, data[:at]
    if kind == "page":  # an older state, or another place, of a whole page
        size = 8192
        a, b = (rng.randrange(len(data) // size) * size for _ in range(2))
        return kind, data[:a] + data[b : b + size] + data[a + size :]
    if kind == "splice":
        other = rng.randrange(len(data) - span)
        piece = data[other : other + span]
    else:
        piece = rng.randbytes(span) if kind == "overwrite" else bytes(span)
    return kind, data[:at] + piece + data[at + span :]


def outcome(path: Path, pristine: dict[str, object]) -> str:
    """One of OUTCOMES. Raises AssertionError if damage was neither found nor harmless."""
    start = time.monotonic()
    try:
        with Database(path):
            pass
    except JinaError:
        assert time.monotonic() - start < 1, "opening took too long"
        return "refused"
    now = content(path)
    for table in COLUMNS:
        rows, before = now[table], pristine[table]
        if isinstance(rows, dict) and isinstance(before, dict):
            assert all(before.get(key) == row for key, row in rows.items()), f"a row of {table} is another"
    try:
        with writing(path, "damage") as writer:
            problems = list(faults(writer))
    except JinaError:
        return "found by verify"
    if problems:
        return "found by verify"
    assert now == pristine, "damage that verify does not see"
    return "harmless"


def run(count: int, seed: int) -> Counter[str]:
    """Damage so many files; how often there was each outcome."""
    folder = Path(tempfile.mkdtemp(prefix="damage-"))
    counted: Counter[str] = Counter()
    try:
        path = folder / "whole.sqlite"
        make(path)
        pristine, data = content(path), path.read_bytes()
        for number in range(count):
            kind, damaged = damage(data, random.Random(f"{seed} {number}"))
            target = folder / "damaged.sqlite"
            for file in folder.glob("damaged.*"):
                file.unlink()
            target.write_bytes(damaged)
            child = os.fork()
            if not child:
                try:
                    os._exit(10 + OUTCOMES.index(outcome(target, pristine)))
                except BaseException as error:
                    print(f"{seed} {number} {kind}: {error!r}", flush=True)
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            counted[OUTCOMES[code - 10] if code >= 10 else "CRASHED" if code < 0 else "NOT FOUND"] += 1
    finally:
        shutil.rmtree(folder)
    return counted


def main() -> int:
    """The command: 1 if a file crashed the reader, or was neither found nor harmless."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    start = time.monotonic()
    counted = run(args.count, args.seed)
    print(f"{args.count} damaged files: {dict(counted)}; {time.monotonic() - start:.0f} s")
    return int(set(counted) > set(OUTCOMES) or not set(counted) <= set(OUTCOMES))


if __name__ == "__main__":
    sys.exit(main())
