"""stream.py: texts in blocks, each with its vector, its kept fields, or the reason that it has none."""

from __future__ import annotations

import numpy as np
import pytest

from jina_local.bulk import stream
from jina_local.bulk.cache import VectorCache
from jina_local.embedding.request import PRECISIONS
from jina_local.errors import TextError, UsageError
from jina_local.records.readers import Item, Reading
from jina_local.records.writers import UNUSABLE

from ..fakes import FakeEmbedder

SKIP = Reading(skip=True, records=True)


def item(number, text="", fault=None, **record):
    return Item(number, text, {"text": text, **record}, fault, "line", "in.jsonl")


def run(items, reading=SKIP, embedder=None, words=None, **more):
    """(the blocks, the tally)"""
    tally = stream.Tally(100)
    made = stream.embed(embedder or FakeEmbedder(), items, words or {}, tally, reading=reading, **more)
    return list(made), tally


def test_blocks_have_the_vectors_of_their_texts_in_order_and_grow():
    texts = [f"text {i}" for i in range(200)]
    fake = FakeEmbedder()
    blocks, tally = run([item(i, text) for i, text in enumerate(texts, 1)], embedder=fake)
    assert fake.calls == [64, 128, 8]
    assert [block.indices for block in blocks] == [range(64), range(64, 192), range(192, 200)]
    assert np.array_equal(np.concatenate([block.vectors for block in blocks]), FakeEmbedder().embed(texts).vectors)
    assert blocks[0].token_counts.tolist() == [len(text) for text in texts[:64]]
    assert (tally.total, tally.cut, tally.failed, tally.bad) == (200, 0, 0, 0)


def test_a_block_is_embedded_before_the_next_is_read():
    taken = []

    def items():
        for i in range(1, 200):
            taken.append(i)
            yield item(i, "x")

    made = stream.embed(FakeEmbedder(), items(), {}, stream.Tally(100), reading=SKIP)
    assert taken == []
    next(made)
    assert len(taken) == 64


def test_shards_are_all_items_once_with_their_places_among_all():
    texts = [f"text {i}" for i in range(300)]
    rows = [item(i, text) for i, text in enumerate(texts, 1)]
    whole = FakeEmbedder().embed(texts).vectors
    seen = {}
    for number in (1, 2, 3):
        blocks, tally = run(rows, shard=stream.Shard(number, 3))
        for block in blocks:
            seen.update(zip(block.indices, block.vectors, strict=True))
        assert tally.total == 100
    assert sorted(seen) == list(range(300))
    assert all(np.array_equal(seen[i], whole[i]) for i in seen)
    assert run(rows[:1], shard=stream.Shard(2, 2))[0] == []


class Remembers:
    """A Memory that knows some texts from the start."""

    def __init__(self, texts):
        answer = FakeEmbedder().embed(texts)
        # Not what the model would say.
        self.known = {text: stream.Known(-answer.vectors[i], True) for i, text in enumerate(texts)}
        self.told = []

    def get(self, texts):
        return [self.known.get(text) for text in texts]

    def put(self, texts, answer):
        self.told.append((texts, answer.failed))


def test_memories_are_asked_in_their_order_before_the_model_is():
    near, far = Remembers(["a"]), Remembers(["a", "b"])
    fake = FakeEmbedder()
    texts = ["c", "b", FakeEmbedder.BROKEN, "a", "c"]
    rows = [item(i, text) for i, text in enumerate(texts)]
    (block,), tally = run(rows, embedder=fake, journal=near, cache=far)
    a, b, c = FakeEmbedder().embed(["a", "b", "c"]).vectors
    assert np.array_equal(block.vectors, [c, -b, 0 * a, -a, c])
    assert block.token_counts.tolist() == [1, 0, 7, 0, 1]
    assert block.truncated.tolist() == [False, True, False, True, False]
    assert (fake.calls, block.failed, tally.failed) == ([3], {2: UNUSABLE}, 1)
    assert near.told == [(["c", "b", FakeEmbedder.BROKEN, "c"], (2,))]
    assert far.told == [(["c", FakeEmbedder.BROKEN, "c"], (1,))]


def test_a_text_that_is_refused_is_named_by_its_place_among_the_known():
    rows = [item(1, "a"), item(2, "\ud800"), item(3, "a"), item(4, "b")]
    with pytest.raises(UsageError, match=r"^in\.jsonl line 2: invalid surrogate"):
        run(rows, Reading(), journal=Remembers(["a"]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_cache_has_float32_for_every_precision(tmp_path, precision):
    rows = [item(i, text) for i, text in enumerate(["a", "x" * 101, FakeEmbedder.BROKEN, "b", "\ud800"])]
    (plain,), _ = run(rows, words={"precision": precision})
    fake = FakeEmbedder()
    with VectorCache(tmp_path / "vectors.sqlite") as cache:
        for asked in (5, 3):  # what was cut, has no vector or was refused is not kept
            fake.calls.clear()
            words = {"precision": precision}
            (block,), tally = run(rows, embedder=fake, words=words, cache=stream.Cached(cache, "space"))
            assert fake.calls[0] == asked
            assert (block.vectors.dtype, block.vectors.tolist()) == (plain.vectors.dtype, plain.vectors.tolist())
            assert (block.failed, tally.cut, tally.failed, tally.bad) == (plain.failed, 1, 1, 1)
        (block,), _ = run(rows[:1], embedder=fake, cache=stream.Cached(cache, "another space"))
        assert fake.calls[-1] == 1


def test_each_row_says_why_it_has_no_vector():
    rows = [
        item(1, "good"),
        item(2, fault="no text."),
        item(3, FakeEmbedder.BROKEN),
        item(4, "\ud800"),
        item(5, "x" * 101),
    ]
    (block,), tally = run(rows)
    assert block.failed == {1: "no text.", 2: UNUSABLE, 3: "invalid surrogate at character 10."}
    assert not block.vectors[1:4].any()
    assert block.token_counts.tolist() == [4, 0, 7, 0, 100]
    good = FakeEmbedder().embed(["good", "x" * 101]).vectors
    assert np.array_equal(block.vectors[[0, 4]], good)
    assert (tally.total, tally.cut, tally.failed, tally.bad) == (5, 1, 1, 2)
    assert (tally.first_cut, tally.first_failed, tally.first_bad) == (rows[4], rows[2], rows[1])


def test_texts_that_the_model_refuses_end_the_run_or_not():
    rows = [item(i, "x" * 200 if i % 2 else "x") for i in range(1, 7)]
    with pytest.raises(UsageError, match=r"^in\.jsonl line 1: has more than the 100 tokens .* \(--errors skip"):
        run(rows, Reading(), words={"overflow": "error"})
    fake = FakeEmbedder()
    (block,), tally = run(rows, embedder=fake, words={"overflow": "error"})
    assert sorted(block.failed) == [0, 2, 4]
    assert (fake.calls, tally.bad) == ([6, 5, 4, 3], 3)


def test_a_block_of_bad_rows_has_the_width_and_kind_of_the_others():
    (block,), tally = run([item(1, fault="a"), item(2, fault="b")], words={"precision": "ubinary"})
    assert (block.vectors.shape, block.vectors.dtype) == ((2, 8), np.uint8)
    assert (tally.bad, tally.failed) == (2, 0)
    assert run([]) == ([], stream.Tally(100))


def test_nothing_that_is_not_finite_gets_out(monkeypatch):
    fake = FakeEmbedder()
    plain = fake.embed

    def odd(texts, **words):
        answer = plain(texts, **words)
        answer.vectors[1, 3] = np.inf
        return answer

    monkeypatch.setattr(fake, "embed", odd)
    (block,), tally = run([item(1, "a"), item(2, "b")], embedder=fake)
    assert (block.failed, tally.failed) == ({1: UNUSABLE}, 1)
    assert np.isfinite(block.vectors).all()


def test_fields_are_kept_and_absent_ones_are_none():
    rows = [item(1, "a", key="k1", year=1), item(2, "b", key=2), item(3, fault="no text.", key="k3")]
    rows[2] = rows[2]._replace(record={"key": "k3"})
    (block,), _ = run(rows, keep={"id": "key", "year": "year", "text": "text"})
    assert block.kept == {"id": ["k1", 2, "k3"], "year": [1, None, None], "text": ["a", "b", None]}


def test_a_misspelled_field_is_found_before_anything_is_embedded():
    fake = FakeEmbedder()
    with pytest.raises(UsageError, match=r"none of the first 2 records has 'yaer'\. They have: 'text', 'year'"):
        run([item(1, "a", year=1), item(2, "b", year=2)], embedder=fake, keep={"yaer": "yaer"})
    assert fake.calls == []


@pytest.mark.parametrize("bad", [None, True, 1.5, ["a"]])
def test_every_row_has_an_id_or_is_a_bad_row(bad):
    rows = [item(1, "a", key=7), item(2, "b", key=bad), item(3, "c", key="")]
    with pytest.raises(UsageError, match=r"line 2: --id key: expected a string or a whole number, not "):
        run(rows, Reading(records=True), keep={"id": "key"})
    (block,), tally = run(rows, keep={"id": "key"})
    assert (sorted(block.failed), tally.bad) == ([1], 1)


class Late(FakeEmbedder):
    def embed(self, texts, *, show_progress=None, deterministic=False, **words):
        assert words.pop("late_chunking")
        for i, text in enumerate(texts):
            if not text.strip():
                raise TextError(i, "has no token of its own.")
        return super().embed(texts, **words)


def test_the_pieces_of_a_document_are_one_block(monkeypatch):
    fake = Late()
    rows = [item(i, f"piece {i}") for i in range(1, 201)]
    rows[10] = item(11, " ")
    (block,), tally = run(rows, embedder=fake, words={"late_chunking": True})
    assert (fake.calls, tally.total, tally.bad) == ([199], 200, 1)
    assert len(block.vectors) == 200
    monkeypatch.setattr(stream, "_CHARS", 1000)
    with pytest.raises(UsageError, match=r"in\.jsonl line \d+: more than 1000 characters so far, and late chunking"):
        run(rows, embedder=fake, words={"late_chunking": True})
