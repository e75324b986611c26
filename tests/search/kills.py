"""A writer that is killed at any moment: `python -m tests.search.kills [--kills N] [--seed N]`.

A child changes an index in endless transactions and says the number of each that is committed. It is killed with
SIGKILL. The index then has to open without repair, to be without a fault, and to hold exactly the rows after the last
transaction that was acknowledged, or after the one on which the child was at work. What a transaction does follows
from the seed and its number, so the rows are known. Every tenth index is a new one, whose making is interrupted, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jina_local.embedding import vectors
from jina_local.errors import IndexNotFound
from jina_local.search.database import ChunkRow, Database, DocumentRow, Reader
from jina_local.search.verify import faults
from jina_local.search.writer import Writer, writing
from tests.fakes import noise

WORDS = ("router", "button", "press", "reset", "cable", "light", "window", "garden", "music", "letter", "paper")
FILES = 30
DIM = 16
RENEWED = 10  # kills until the index is made anew

# Path -> (text of each chunk, whether they have vectors): what an index holds.
State = dict[bytes, tuple[tuple[str, ...], bool]]


def vector_of(text: str) -> np.ndarray:
    """(DIM,) float32 of unit length."""
    raw = noise(text.encode(), DIM)
    return raw / np.linalg.norm(raw)


def transaction(state: State, seed: str, number: int, writer: Writer | None = None) -> None:
    """Apply the transaction of this number to the rows, and to the index if there is a writer."""
    rng = random.Random(f"{seed} {number}")
    for _ in range(rng.randint(1, 6)):
        path = b"/notes/%d.md" % rng.randrange(FILES)
        other = b"/notes/%d.md" % rng.randrange(FILES)
        texts = tuple(" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(rng.randint(1, 4)))
        action = rng.choice(("add", "add", "remove", "move", "vectors"))
        if action == "add":
            state[path] = (texts, False)
            if writer:
                writer.add(document(path), [chunk(n, text) for n, text in enumerate(texts)])
        elif action == "remove":
            state.pop(path, None)
            if writer:
                writer.remove(path)
        elif action == "move" and path in state and path != other:
            state[other] = state.pop(path)
            if writer:
                writer.update(writer.document(path), document(other))
        elif action == "vectors":
            state.update({path: (texts, True) for path, (texts, _) in state.items()})
            if writer:
                rows = {row.id: row.text for row in writer.chunks(writer.without_vector())}
                made = np.array([vector_of(text) for text in rows.values()], np.float32).reshape(-1, DIM)
                writer.add_vectors(list(rows), vectors.quantise(made, "int8"), made.astype(np.float16))


def document(path: bytes) -> DocumentRow:
    return DocumentRow(0, path, b"/notes", 1, 1, 1, 1, b"d", "markdown", "line")


def chunk(n: int, text: str) -> ChunkRow:
    return ChunkRow(0, 0, n, 0, len(text), 0, len(text), 1, 1, "", "", text, b"d")


def held(path: Path) -> tuple[int, State]:
    """How many transactions an index has seen, and what it holds. AssertionError for a vector of another text."""
    with Database(path) as database, database.reader() as reader:
        state: State = {}
        placed = {
            int(i): codes for block in reader.blocks() for i, codes in zip(block.chunks, block.int8, strict=True) if i
        }
        for row in reader.documents():
            chunks = reader.chunks_of(row.id)
            halves = reader.halves([c.id for c in chunks])
            state[row.path] = (tuple(c.text for c in chunks), len(halves) == len(chunks))
            for c in chunks:
                if c.id in halves:
                    assert np.array_equal(halves[c.id], vector_of(c.text).astype(np.float16))
                    assert np.array_equal(placed[c.id], vectors.quantise(vector_of(c.text)[None], "int8")[0])
        return commits(reader), state


def commits(reader: Reader) -> int:
    """How many transactions an index has seen."""
    return reader.generation() - int(reader.header()["created"])


def work(path: Path, seed: str, state: State, pipe: int) -> None:
    """Commit transactions without end; after each, write its number to the pipe."""
    while True:
        with writing(path, "kills") as writer:
            for _ in range(25):  # then all is checkpointed, and the file opened again
                number = commits(writer) + 1
                with writer.transaction():
                    transaction(state, seed, number, writer)
                os.write(pipe, number.to_bytes(4, "big"))


def killed(path: Path, seed: str, state: State, rng: random.Random) -> int:
    """Kill a child after some acknowledgements and a moment more; the number of the last one."""
    reading, writing_end = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work(path, seed, state, writing_end)
        os._exit(1)
    os.close(writing_end)
    wanted, data = 4 * rng.randint(0, 30), b""
    while len(data) < wanted and (piece := os.read(reading, 1 << 16)):
        data += piece
    time.sleep(rng.uniform(0, 0.005 if wanted else 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed before it was killed"
    while piece := os.read(reading, 1 << 16):
        data += piece
    os.close(reading)
    return int.from_bytes(data[-4:], "big")


def run(kills: int, seed: int) -> tuple[int, int]:
    """Kill so many children; how many transactions were acknowledged, and how many more were found."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    path, rng = folder / "kills.sqlite", random.Random(seed)
    state: State = {}
    generation = acknowledged = more = 0
    try:
        for number in range(kills):
            if number % RENEWED == 0:
                for file in folder.iterdir():
                    file.unlink()
                state, generation = {}, 0
            name = f"{seed} {number // RENEWED}"
            last = killed(path, name, dict(state), rng) or generation
            acknowledged += last - generation
            try:
                found, rows = held(path)
            except IndexNotFound:
                assert last == 0, f"kill {number}: an index that was acknowledged is gone"
                continue
            assert found in (last, last + 1), f"kill {number}: transaction {last} was acknowledged, {found} is there"
            more += found - last
            for step in range(generation + 1, found + 1):
                transaction(state, name, step)
            assert rows == state, f"kill {number}: the rows are not those after transaction {found}"
            generation = found
            with writing(path, "check") as writer:
                problems = list(faults(writer))
            assert not problems, f"kill {number}: {problems}"
    finally:
        shutil.rmtree(folder)
    return acknowledged, more


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    start = time.monotonic()
    acknowledged, more = run(args.kills, args.seed)
    seconds = time.monotonic() - start
    print(
        f"{args.kills} kills, {acknowledged} transactions acknowledged, 0 of them lost, {more} found that were not "
        f"acknowledged yet, 0 faults; {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
