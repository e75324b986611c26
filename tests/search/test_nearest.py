"""The exact scan against float32, with both kernels; vectors in memory that follow the index."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jina_local.embedding import vectors
from jina_local.search import nearest
from jina_local.search.database import SLOTS, Database
from jina_local.search.writer import writing

from .made_index import Made, Passage, write

DIM = 64


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def clustered():
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((50, DIM))
    return unit(centres[rng.integers(0, 50, 20_000)] + 0.7 * rng.standard_normal((20_000, DIM)))


@pytest.fixture(params=["numkong", "numpy"])
def kernel(request, monkeypatch):
    if request.param == "numkong":
        pytest.importorskip("numkong")
    monkeypatch.setattr(nearest, "kernel", lambda: request.param)
    return request.param


def test_the_best_after_rescoring_are_those_of_float32(clustered, kernel):
    codes = np.asarray(vectors.quantise(clustered, "int8"), np.int8)
    halves = clustered.astype(np.float16)
    found = []
    for query in clustered[:50]:
        query = unit(query[None] + 0.1)[0]
        places = nearest.best(nearest.scan(codes, query), nearest.RESCORED)
        places = places[nearest.best(nearest.rescore(halves[places], query), 10)]
        found.append(len(set(places) & set(np.argsort(-(clustered @ query))[:10])))
    assert np.mean(found) / 10 >= 0.99


def test_a_scan_gives_cosines(clustered, kernel):
    codes = np.asarray(vectors.quantise(clustered, "int8"), np.int8)
    found = nearest.scan(codes, clustered[7])
    assert found.dtype == np.float32
    assert np.abs(found - clustered @ clustered[7]).max() < 0.02
    assert found.argmax() == 7


def test_both_kernels_agree_to_the_last_bit(clustered, monkeypatch):
    pytest.importorskip("numkong")
    codes = np.asarray(vectors.quantise(clustered, "int8"), np.int8)[: 3 * 1024 + 5]
    found = []
    for name in ("numkong", "numpy"):
        monkeypatch.setattr(nearest, "kernel", lambda name=name: name)
        found.append(nearest.scan(codes, clustered[0]))
    assert (found[0] == found[1]).all()


def test_read_only_and_empty_codes_are_scanned(clustered, kernel):
    codes = np.asarray(vectors.quantise(clustered[:9], "int8"), np.int8)
    codes.setflags(write=False)
    assert nearest.scan(codes, clustered[0]).shape == (9,)
    assert nearest.scan(codes[:0], clustered[0]).shape == (0,)


def test_without_numkong_numpy_answers_and_kernel_says_so(clustered, monkeypatch):
    monkeypatch.setitem(sys.modules, "numkong", None)
    assert nearest.kernel() == "numpy"
    assert nearest.scan(np.asarray(vectors.quantise(clustered[:9], "int8"), np.int8), clustered[3]).argmax() == 3


def test_best_keeps_the_order_of_equal_scores():
    scores = np.array([1, 3, 2, 3, 2, 2, 0], np.float32)
    assert nearest.best(scores, 4).tolist() == [1, 3, 2, 4]
    assert nearest.best(scores, 99).tolist() == [1, 3, 2, 4, 5, 0, 6]
    allowed = np.array([1, 0, 1, 1, 0, 1, 1], np.bool_)
    assert nearest.best(scores, 2, allowed).tolist() == [3, 2]
    assert nearest.best(scores, 9, ~allowed).tolist() == [1, 4]
    assert nearest.best(scores, 3, np.zeros(7, np.bool_)).tolist() == []


def rows_of(texts):
    return unit(np.stack([np.random.default_rng(len(text) + ord(text[0])).standard_normal(DIM) for text in texts]))


def document(name, count):
    return Made(f"{name}.txt", "text", [Passage(f"{name}{'x' * n}") for n in range(count)])


def as_read(database, before=nearest.NONE):
    with database.reader() as reader:
        return nearest.read(reader, before)


def test_vectors_follow_the_index(tmp_path):
    path = tmp_path / "index.sqlite"
    write(path, [document("a", 3), document("b", SLOTS)], rows_of)
    with Database(path) as database:
        first = as_read(database)
        assert first.count == SLOTS + 3
        assert first.codes.shape == (2 * SLOTS, DIM)
        assert as_read(database, first) is first
        with writing(path, "test") as writer, writer.transaction():
            writer.remove(b"/made/a.txt")
        second = as_read(database, first)
        again = as_read(database)
        assert second.count == SLOTS
        assert (second.chunks == again.chunks).all()
        assert (second.places == again.places).all()
        assert (second.codes[second.chunks > 0] == again.codes[again.chunks > 0]).all()
        # The state before is as it was: searches under way go on with it.
        assert first.count == SLOTS + 3
        with writing(path, "test") as writer, writer.transaction():
            writer.clear()
        empty = as_read(database, second)
        assert empty.count == 0
        assert empty.places_of(np.array([1, 5], np.int32)).tolist() == [-1, -1]


def test_places_of_chunks(tmp_path):
    path = tmp_path / "index.sqlite"
    write(path, [document("a", 4)], rows_of)
    with Database(path) as database:
        found = as_read(database)
    asked = np.array([3, 1, 99], np.int32)
    places = found.places_of(asked)
    assert found.chunks[places[:2]].tolist() == [3, 1]
    assert places[2] == -1
