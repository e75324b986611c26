"""A question -> the passages that answer it: words and vectors, their standardised scores added, factors of code."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..spec import Reranking
from . import nearest, ranking
from .database import ChunkRow, Database, DocumentRow, Reader
from .folder import shown
from .nearest import Vectors
from .words import match_of

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Embed = Callable[[str], Floats]  # a question -> its unit vector, (dim,) float32
Rerank = Callable[[str, Sequence[str]], Sequence[float]]  # a question and passages -> a score each, in their order

MODES = ("hybrid", "vector", "lexical")
POOL = 200  # passages that the factors of code may reorder
RERANKED = 50  # passages that a reranker reads
_COLUMNS = (1.0, 3.0, 3.0)  # BM25's weights of text, context, path
_AT_ONCE = 500  # parameters of a statement; SQLite takes 999 or more
_SLOW_WITHOUT_KERNEL = 200_000  # vectors

# Chosen on the sets of tests/bench/README.md.
_COSINE = 0.8  # the vectors' part of the sum, beside 1 for the words
_REACH = 0.4  # words count in full if the best passage has this share of the question's weight


class Ranks(Protocol):
    """What a reranker is to an index."""

    def rerank(self, query: str, documents: list[str], /, *, show_progress: bool | None) -> Reranking:
        """See `Reranker.rerank`."""
        ...


@dataclass(frozen=True)
class Question:
    """What is asked. Filters narrow the answer, and change no score.

    languages: of documents, as the index names them. paths: globs of paths below the indexed folders or of names of
        files, or folders. since_ns: only files changed then or later. min_score: of `Hit.score`.
    """

    text: str
    k: int = 10
    mode: str = "hybrid"
    languages: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    since_ns: int | None = None
    min_score: float | None = None


@dataclass(frozen=True)
class Hit:
    """A passage that answers, and why.

    score: what the hits are sorted by: the reranker's if there is one; else the sum of the standardised scores
        (hybrid), the cosine (vector) or BM25 (lexical), and all factors on top.
    bm25: None if no word of the question is in it. cosine: None if it has no vector, or none was asked for.
    factors: of ranking.WEIGHTS, each with its part of the score.
    state: "changed" or "gone" if the file is not as it was indexed, else "".
    """

    document: DocumentRow
    chunk: ChunkRow
    score: float
    bm25: float | None = None
    cosine: float | None = None
    factors: Mapping[str, float] = field(default_factory=dict)
    reranked: float | None = None
    state: str = ""


@dataclass(frozen=True)
class Answer:
    """The hits, best first; the mode that answered; and in `missing`, as sentences, all that had no part in it."""

    hits: tuple[Hit, ...]
    mode: str
    missing: tuple[str, ...]
    chunks: int  # of the whole index
    vectors: Vectors  # for the next question


@dataclass(frozen=True)
class _Scores:
    """The scores of chunks, (n,) each, NaN if there is none. `slope`: what a cosine's change by 1 adds to `total`."""

    ids: Ints
    total: Floats
    bm25: Floats
    cosine: Floats
    slope: float = 0.0

    def at(self, places: NDArray[np.intp]) -> _Scores:
        return _Scores(self.ids[places], self.total[places], self.bm25[places], self.cosine[places], self.slope)


def search(
    database: Database,
    question: Question,
    embed: Embed | None = None,
    rerank: Rerank | None = None,
    *,
    vectors: Vectors = nearest.NONE,
    missing: Sequence[str] = (),
) -> Answer:
    """Answer a question.

    embed: None if there is no model. Words answer then, and the answer says so.
    vectors: of the answer before; only newer ones are read.
    missing: what the caller could not provide, such as a model that does not open; it is passed on.
    Raises UsageError, IndexDamaged.
    """
    _check(question)
    asked = embed(question.text) if embed and question.mode != "lexical" else None
    notes = list(missing)
    if asked is None and question.mode != "lexical" and not missing:
        notes.append("No model was given: words alone answered.")
    with database.reader() as reader:
        rows = int(reader.connection.execute("SELECT count(*) FROM chunks").fetchone()[0])
        if question.mode != "lexical":
            vectors = nearest.read(reader, vectors)
        mode, scores = _scores(reader, question, vectors, asked, rows, notes)
        hits = _hits(reader, question, scores, asked, max(question.k, RERANKED if rerank else 0))
    if rerank and hits:
        read = rerank(question.text, [hit.chunk.text for hit in hits])
        hits = [replace(hit, score=float(s), reranked=float(s)) for hit, s in zip(hits, read, strict=True)]
        hits.sort(key=lambda hit: -hit.score)
    least = question.min_score
    kept = [hit for hit in hits[: question.k] if least is None or hit.score >= least]
    stated = tuple(replace(hit, state=_state(hit.document)) for hit in kept)
    return Answer(stated, mode, tuple(notes), rows, vectors)


def related(database: Database, chunk: int, question: Question, *, vectors: Vectors = nearest.NONE) -> Answer:
    """The passages nearest to a passage by their vectors, itself left out. Of the question only filters and k count.

    Raises UsageError if the passage has no vector.
    """
    with database.reader() as reader:
        half = reader.halves([chunk]).get(chunk)
    if half is None:
        raise UsageError("this passage has no vector yet: run `index` to go on, or search by words.")
    asked = replace(question, text=question.text or ".", mode="vector", k=question.k + 1)
    answer = search(database, asked, lambda _: half.astype(np.float32), vectors=vectors)
    others = tuple(hit for hit in answer.hits if hit.chunk.id != chunk)
    return replace(answer, hits=others[: question.k])


def _check(question: Question) -> None:
    if not question.text.strip():
        raise UsageError("the question is empty.")
    if question.mode not in MODES:
        raise UsageError(f"unknown mode {question.mode!r}. Possible: {', '.join(MODES)}.")
    if isinstance(question.k, bool) or not isinstance(question.k, int) or question.k < 1:
        raise UsageError(f"k {question.k!r} is out of range; expected a whole number from 1.")


def _scores(
    reader: Reader, question: Question, vectors: Vectors, asked: Floats | None, rows: int, notes: list[str]
) -> tuple[str, _Scores]:
    """The mode that can answer, and the scores of all chunks that it found."""
    mode = question.mode
    if mode != "lexical":
        without = rows - vectors.count
        if without:
            notes.append(f"{without:,} of {rows:,} passages have no vector yet: run `index` to go on.")
        if vectors.count > _SLOW_WITHOUT_KERNEL and nearest.kernel() == "numpy":
            notes.append("Vectors were compared without numkong, which is faster: pip install 'jina_local[search]'.")
        if asked is None or not vectors.count:
            mode = "lexical"
    if mode == "vector":
        assert asked is not None
        cosine = nearest.scan(vectors.codes, asked)
        return mode, _filled(_Scores(vectors.chunks, cosine, np.full_like(cosine, np.nan), cosine, 1.0))
    ids, bm25, reach = _lexical(reader, question.text, rows, notes)
    if mode == "lexical":
        return mode, _Scores(ids, bm25, bm25, np.full_like(bm25, np.nan))
    assert asked is not None
    return mode, _hybrid(ids, bm25, min(1.0, reach / _REACH), rows, vectors, nearest.scan(vectors.codes, asked))


def _lexical(reader: Reader, question: str, rows: int, notes: list[str]) -> tuple[Ints, Floats, float]:
    """The chunks that hold words of the question, their BM25, and the best one's share of the question's weight."""

    newest = reader.connection.execute("SELECT max(id) FROM chunks").fetchone()[0]

    def count(term: str, most: int) -> int:
        inner = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?"
        sql = f"SELECT count(*), min(rowid) FROM ({inner})"
        found, oldest = reader.connection.execute(sql, (term, most)).fetchone()
        # Of a common word the newest rows say how dense it is: counting all of them would take too long.
        return int(found) if found < most else max(most, rows * most // (newest - oldest + 1))

    match = match_of(question, count, rows)
    if match is None:
        return np.zeros(0, np.int32), np.zeros(0, np.float32), 0.0
    sql = f"SELECT rowid, -bm25(words, {', '.join(map(str, _COLUMNS))}) FROM words WHERE words MATCH ?"
    if match.most is not None:
        sql += f" ORDER BY rowid DESC LIMIT {match.most}"
        notes.append(f"The question's words are all common: {match.most:,} of the passages with them were compared.")
    found = np.array(reader.connection.execute(sql, (match.expression,)).fetchall(), np.float64).reshape(-1, 2)
    bm25 = found[:, 1].astype(np.float32)
    return found[:, 0].astype(np.int32), bm25, float(bm25.max(initial=0)) / match.weight


def _hybrid(ids: Ints, bm25: Floats, trust: float, rows: int, vectors: Vectors, cosine: Floats) -> _Scores:
    """trust * z(BM25) + _COSINE * z(cosine) over all chunks. Without words BM25 is 0; without a vector z(cosine) is.

    A sum of ranks would not do, because ranks cannot say how far the best stand out. `trust` is small if most of the
    question's words stand nowhere, such as those of another language: its few hits would stand out for no reason.
    """
    held = cosine[vectors.chunks > 0] if vectors.count < len(cosine) else cosine
    middle, spread = float(held.mean()), float(held.std())
    slope = _COSINE / spread if spread > 0 else 0.0
    mean = float(bm25.sum(dtype=np.float64)) / rows
    deviation = max(float(np.square(bm25, dtype=np.float64).sum()) / rows - mean**2, 0) ** 0.5
    weight = trust / deviation if deviation > 0 else 0.0
    total = np.float32(slope) * (cosine - np.float32(middle)) - np.float32(mean * weight)
    own = np.full(len(cosine), np.nan, np.float32)
    places = vectors.places_of(ids)
    known = places >= 0
    own[places[known]] = bm25[known]
    total[places[known]] += np.float32(weight) * bm25[known]
    alone = bm25[~known]
    return _filled(
        _Scores(
            np.concatenate([vectors.chunks, ids[~known]]),
            np.concatenate([total, np.float32(weight) * (alone - np.float32(mean))]),
            np.concatenate([own, alone]),
            np.concatenate([cosine, np.full(len(alone), np.nan, np.float32)]),
            slope,
        )
    )


def _filled(scores: _Scores) -> _Scores:
    """Without the empty places."""
    filled = scores.ids > 0
    return scores if filled.all() else scores.at(np.flatnonzero(filled))


def _hits(reader: Reader, question: Question, scores: _Scores, asked: Floats | None, count: int) -> list[Hit]:
    """The best `count` passages that the filters let through, cosines exact, factors added."""
    allowed = _allowed(reader, question)
    mask = None if allowed is None else np.isin(scores.ids, allowed)
    pool = scores.at(nearest.best(scores.total, max(POOL, count), mask))
    pool = _exact(reader, pool, asked)
    rows = {chunk.id: chunk for chunk in reader.chunks(pool.ids.tolist())}
    documents = {one.id: one for one in reader.documents({chunk.document for chunk in rows.values()})}
    best = float(scores.total.max(initial=0))  # of all, so that a filter changes no score
    facts = ranking.Asked.of(question.text)
    hits = []
    for number, total, bm25, cosine in zip(pool.ids.tolist(), pool.total, pool.bm25, pool.cosine, strict=True):
        chunk = rows[number]
        document = documents[chunk.document]
        path = shown(document.path, document.root)
        shares = ranking.factors(facts, path, document.language, chunk.defines.splitlines())
        parts = {factor: share * best for factor, share in shares.items()}
        score = float(total) + sum(parts.values())
        hits.append(Hit(document, chunk, score, _or_none(bm25), _or_none(cosine), parts))
    return _repeated(hits, best)[:count]


def _exact(reader: Reader, pool: _Scores, asked: Floats | None) -> _Scores:
    """The pool with the cosines of its best in float16's precision."""
    if asked is None or not pool.slope:
        return pool
    halves = reader.halves(pool.ids[: nearest.RESCORED].tolist())
    places = np.array([n for n, one in enumerate(pool.ids.tolist()) if one in halves], np.intp)
    if not len(places):
        return pool
    exact = nearest.rescore(np.stack([halves[one] for one in pool.ids[places].tolist()]), asked)
    total, cosine = pool.total.copy(), pool.cosine.copy()
    total[places] += np.float32(pool.slope) * (exact - cosine[places])
    cosine[places] = exact
    return replace(pool, total=total, cosine=cosine)


def _repeated(hits: list[Hit], best: float) -> list[Hit]:
    """By falling score; of a definition in several passages, each one after the best loses a share more."""
    seen: Counter[tuple[int, str]] = Counter()
    out = []
    for hit in sorted(hits, key=lambda hit: -hit.score):
        definition = hit.document.id, hit.chunk.context
        loss = best * ranking.WEIGHTS["repeated"] * seen[definition]
        seen[definition] += bool(hit.chunk.context) and hit.document.language not in ranking.PROSE
        out.append(replace(hit, score=hit.score + loss, factors={**hit.factors, "repeated": loss}) if loss else hit)
    return sorted(out, key=lambda hit: -hit.score)


def _allowed(reader: Reader, question: Question) -> Ints | None:
    """The chunks that the filters let through; None if there is no filter."""
    if not (question.languages or question.paths or question.since_ns is not None):
        return None
    sql = "SELECT id, path, root, language FROM documents WHERE mtime_ns >= ?"
    rows = reader.connection.execute(sql, (question.since_ns or 0,))
    documents = [
        number
        for number, path, root, language in rows
        if (not question.languages or language in question.languages)
        and (not question.paths or _fits(shown(path, root), question.paths))
    ]
    found: list[int] = []
    for start in range(0, len(documents), _AT_ONCE):
        some = documents[start : start + _AT_ONCE]
        sql = f"SELECT id FROM chunks WHERE document IN ({', '.join('?' * len(some))})"
        found += [row[0] for row in reader.connection.execute(sql, some)]
    return np.array(found, np.int32)


def _fits(path: str, globs: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(path, glob)
        or fnmatch.fnmatchcase(name, glob)
        or fnmatch.fnmatchcase(path, f"{glob.rstrip('/')}/*")
        for glob in globs
    )


def _state(document: DocumentRow) -> str:
    try:
        now = os.stat(document.path)
    except OSError:
        return "gone"
    return "" if (now.st_size, now.st_mtime_ns) == (document.size, document.mtime_ns) else "changed"


def _or_none(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)
