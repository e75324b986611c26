"""How long search takes: the scan of all vectors beside other libraries, and whole questions to an index.

    python -m tests.bench.search nearest --sizes 10000,100000,1000000
    python -m tests.bench.search questions --sizes 10000,100000,1000000 --work FOLDER
    python -m tests.bench.search indexing --model pico --files 2000

`nearest`: clustered random vectors of 256 dimensions. All contenders answer the same questions in turns, so that the
ratio to numpy holds on a busy machine, and so does the least CPU time in brackets; recall@10 is that of float32.
usearch, sqlite-vec and lancedb take part if they are installed.
`questions`: the median time, and in brackets the least CPU time, which holds on a busy machine. Passages of 100 words
by Zipf's law out of 200,000, twenty to a file, in an index written by the library; it is kept in --work. A million
take some ten minutes to write, and 2 GB.
`indexing`: Markdown files of 100 words on average, in a new index without a cache; then the same passages in one call
of the model, so that the ratio of tokens per second says what the index costs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import Index, load
from jina_local.embedding import vectors as after
from jina_local.search import nearest
from jina_local.search.database import Database
from jina_local.search.query import MODES, Question, search
from jina_local.search.writer import writing
from tests.search.made_index import Made, Passage, chunk_row, document_row

from .code import ROOT
from .quality import table

DIM = 256
WORDS, RANKS = 100, 200_000
QUESTIONS = {
    "rare words": (1000, 4000, 9000),
    "common and rare words": (20, 60, 300, 4000),
    "stop words and two others": (0, 1, 2, 3, 5, 8, 500, 3000),
    "stop words alone": (0, 1, 2, 3, 5),
}
Matrix = NDArray[np.float32]
Contender = Callable[[Matrix], NDArray[np.int64]]  # a question, (dim,) -> the ten nearest


def clustered(count: int, seed: int = 1) -> Matrix:
    """(count, DIM) float32 of unit length around 2,000 centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((2000, DIM), np.float32)
    out = np.empty((count, DIM), np.float32)
    for start in range(0, count, 50_000):
        part = out[start : start + 50_000]
        part[:] = centres[rng.integers(0, len(centres), len(part))] + rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def contenders(rows: Matrix) -> Iterator[tuple[str, Contender]]:
    """Name -> how it answers."""
    codes = np.concatenate(
        [np.asarray(after.quantise(rows[n : n + 50_000], "int8")) for n in range(0, len(rows), 50_000)]
    )
    halves = rows.astype(np.float16)

    def ours(query: Matrix) -> NDArray[np.int64]:
        places = nearest.best(nearest.scan(codes, query), nearest.RESCORED)
        return places[nearest.best(nearest.rescore(halves[places], query), 10)]

    def without_numkong(query: Matrix) -> NDArray[np.int64]:
        dots = nearest._numpy(codes, after.quantise(query[None], "int8"))
        places = nearest.best(dots, nearest.RESCORED)
        return places[nearest.best(nearest.rescore(halves[places], query), 10)]

    yield "numpy, float32", lambda query: nearest.best(rows @ query, 10)
    yield f"jina_local ({nearest.kernel()})", ours
    if nearest.kernel() != "numpy":
        yield "jina_local (numpy)", without_numkong
    if importlib.util.find_spec("usearch"):
        yield "usearch, exact, int8", _usearch(codes)
        if len(rows) <= 10_000:  # building it takes minutes beyond
            yield "usearch, HNSW, float16", _hnsw(rows)
    if importlib.util.find_spec("sqlite_vec"):
        try:
            yield "sqlite-vec, int8", _sqlite_vec(codes)
        except (AttributeError, sqlite3.OperationalError) as error:
            print(
                f"sqlite-vec is left out, because this Python loads no extensions of SQLite: {error}", file=sys.stderr
            )
    if importlib.util.find_spec("lancedb"):
        yield "lancedb, flat, float32", _lancedb(rows)


def _usearch(codes: NDArray[np.int8]) -> Contender:
    from usearch.index import search as exact

    return lambda query: np.asarray(
        exact(codes, after.quantise(query[None], "int8"), 10, "cos", exact=True).keys
    ).ravel()


def _hnsw(rows: Matrix) -> Contender:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="cos", dtype="f16")
    index.add(np.arange(len(rows)), rows)
    return lambda query: np.asarray(index.search(query, 10).keys)


def _sqlite_vec(codes: NDArray[np.int8]) -> Contender:
    import sqlite_vec

    database = sqlite3.connect(":memory:")
    database.enable_load_extension(True)
    sqlite_vec.load(database)
    database.execute(f"create virtual table v using vec0(e int8[{DIM}] distance_metric=cosine)")
    database.executemany(
        "insert into v(rowid, e) values (?, vec_int8(?))", ((n, c.tobytes()) for n, c in enumerate(codes))
    )
    sql = "select rowid from v where e match vec_int8(?) and k = 10 order by distance"
    return lambda query: np.array(
        [row[0] for row in database.execute(sql, (after.quantise(query[None], "int8").tobytes(),))]
    )


def _lancedb(rows: Matrix) -> Contender:
    import lancedb
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM)
    given = pa.table({"id": pa.array(np.arange(len(rows))), "vector": vectors})
    made = lancedb.connect(tempfile.mkdtemp()).create_table("v", given)
    return lambda query: np.array(
        [
            row["id"]
            for row in made.search(query).distance_type("cosine").limit(10).select(["id", "_distance"]).to_list()
        ]
    )


def of_nearest(sizes: list[int], rounds: int) -> Iterator[list[str]]:
    """A line for each size and contender."""
    for size in sizes:
        rows = clustered(size)
        rng = np.random.default_rng(9)
        queries = rows[rng.integers(0, size, rounds)] + 0.03 * rng.standard_normal((rounds, DIM)).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        own = dict(contenders(rows))
        times: dict[str, list[float]] = {name: [] for name in own}
        busy: dict[str, list[float]] = {name: [] for name in own}
        recalls: dict[str, list[float]] = {name: [] for name in own}
        for query in queries:
            true = set(np.argsort(-(rows @ query))[:10].tolist())
            for name, answer in own.items():
                start, cpu = time.perf_counter(), time.process_time()
                found = answer(query)
                times[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - cpu)
                recalls[name].append(len(true & set(found.tolist())) / 10)
        first = np.array(times["numpy, float32"])
        for name, spent in times.items():
            ratio = np.median(np.array(spent) / first)
            yield [
                f"{size:,}",
                name,
                f"{1000 * np.median(spent):.1f} ({1000 * min(busy[name]):.1f})",
                f"{ratio:.2f}",
                f"{np.mean(recalls[name]):.3f}",
            ]


@cache
def embed(_: str) -> Matrix:
    """The same vector for each question."""
    return clustered(1, seed=5)[0]


def write_index(path: Path, count: int) -> float:
    """Write an index of `count` passages; return the seconds."""
    start = time.perf_counter()
    rng = np.random.default_rng(1)
    cumulated = np.cumsum(1 / np.arange(1, RANKS + 1))
    names = np.array([f"w{rank}" for rank in range(RANKS)])
    with writing(path, "bench") as writer:
        for begin in range(0, count, 20_000):
            number = min(20_000, count - begin)
            texts = [
                " ".join(row)
                for row in names[np.searchsorted(cumulated, rng.random((number, WORDS)) * cumulated[-1])]
            ]
            with writer.transaction():
                for n in range(0, number, 20):
                    made = Made(f"{(begin + n) // 20}.txt", "text", [Passage(text) for text in texts[n : n + 20]])
                    writer.add(document_row(made), [chunk_row(i, one) for i, one in enumerate(made.passages)])
                rows = clustered(number, seed=begin)
                ids = list(range(begin + 1, begin + number + 1))
                writer.add_vectors(ids, np.asarray(after.quantise(rows, "int8"), np.int8), rows.astype(np.float16))
    return time.perf_counter() - start


def of_questions(sizes: list[int], rounds: int, work: Path) -> Iterator[list[str]]:
    """A line for each size: what the index weighs, then the time of each kind of question."""
    for size in sizes:
        path = work / f"search-{size}.sqlite"
        if not path.exists():
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            print(f"writing {size:,} passages: {write_index(part, size):.0f} s", file=sys.stderr)
            part.rename(path)
        with Database(path) as database:
            start = time.perf_counter()
            with database.reader() as reader:
                held = nearest.read(reader)
            loaded = time.perf_counter() - start
            yield [f"{size:,}", "loading the vectors", f"{1000 * loaded:.0f}", *[""] * (len(MODES) - 1)]
            for kind, ranks in QUESTIONS.items():
                text = " ".join(f"w{rank}" for rank in ranks)
                cells = []
                for mode in MODES:
                    spent, busy = [], []
                    for _ in range(rounds):
                        start, cpu = time.perf_counter(), time.process_time()
                        search(database, Question(text, mode=mode), embed, vectors=held)
                        spent.append(time.perf_counter() - start)
                        busy.append(time.process_time() - cpu)
                    cells.append(f"{1000 * np.median(spent):.1f} ({1000 * min(busy):.1f})")
                yield [f"{size:,}", kind, *cells]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield [
            f"{size:,}",
            f"file {path.stat().st_size / 1e6:,.0f} MB, peak memory {peak:,.0f} MB",
            *[""] * len(MODES),
        ]


def of_indexing(model: str, files: int, work: Path) -> Iterator[list[str]]:
    """A line for the index, and one for the model alone."""
    folder = Path(tempfile.mkdtemp(dir=work))
    rng = np.random.default_rng(4)
    known = sorted(set(re.findall(r"[a-z]{3,}", (ROOT / "README.md").read_text(encoding="utf-8"))))
    for n in range(files):
        text = " ".join(rng.choice(known, int(rng.integers(40, 160))))
        (folder / f"{n}.md").write_text(f"# {text[:20]}\n\n{text}\n", encoding="utf-8")
    os.environ["JINA_LOCAL_HOME"] = str(folder / "home")  # a cache and indexes of its own
    with load(model) as embedder, Index.open(folder / "index.sqlite", model=embedder) as index:
        embedder.encode(["once, before the clock starts"], task="retrieval")
        start, cpu = time.perf_counter(), time.process_time()
        done = index.update(folder, include=["*.md"])
        spent, busy = time.perf_counter() - start, time.process_time() - cpu
        with index.database().reader() as reader:
            texts = [f"{one.context}\n{one.text}" if one.context else one.text for one in reader.chunks()]
        start, cpu = time.perf_counter(), time.process_time()
        alone = embedder.embed(texts, task="retrieval", prompt_name="document", show_progress=False)
        seconds, alone_busy = time.perf_counter() - start, time.process_time() - cpu
        tokens = int(alone.token_counts.sum())
        size = index.status().bytes / 1e6
    shares = [done.tokens * own / tokens / whole for own, whole in ((seconds, spent), (alone_busy, busy))]
    yield [
        f"{done.added:,} files, {done.vectors:,} passages, {size:.1f} MB",
        f"{done.tokens / spent:,.0f}",
        *(f"{share:.3f}" for share in shares),
    ]
    yield ["the model alone, the same passages", f"{tokens / seconds:,.0f}", "1", "1"]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["nearest", "questions", "indexing"])
    parser.add_argument("--model", default="pico")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--sizes", default="10000,100000", type=lambda given: [int(one) for one in given.split(",")])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "jina_local-bench")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.part == "nearest":
        head = ["vectors", "", "ms", "times numpy's", "recall@10"]
        print(table(head, of_nearest(args.sizes, args.rounds)))
    elif args.part == "indexing":
        head = ["", "tokens per second", "of the model's own", "by CPU time"]
        print(table(head, of_indexing(args.model, args.files, args.work)))
    else:
        print(table(["passages", "question, ms", *MODES], of_questions(args.sizes, args.rounds, args.work)))


if __name__ == "__main__":
    main()
