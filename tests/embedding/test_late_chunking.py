"""Late chunking: which rows a chunk's mean takes, over a made-up engine; then the vectors, on real ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from convert.verify import reference
from jina_local import backends, load, registry
from jina_local.embedding.embedder import Embedder
from jina_local.errors import NonFiniteError, TextError, UsageError
from jina_local.spec import ModelFiles, TokenBatch
from jina_local.text import chunks
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny, tiny_v3_and_rerankers
from tests.fakes import FakeBackend

DOCUMENT = (
    "Berlin is the capital and largest city of Germany. Its 3.85 million inhabitants make it the most populous. "
    "The city is also one of the states, and the third smallest in area.\nNaïve café – Ångström! "
    "日本語のテキスト。次の文。"
)
PROMPT = tiny_v3_and_rerankers.V3_PROMPTS["retrieval.passage"]
EXAMPLE = chunks.sentences(DOCUMENT)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer("v3")


@pytest.fixture
def fake(monkeypatch, tmp_path, tokenizer):
    """(embedder, engine): v3 over an engine whose rows depend on all of a pass."""
    engines: list[FakeBackend] = []

    def open_backend(name, path, *, task=None, adapters=None, device=None, threads=None, isolate=None):
        engines.append(FakeBackend(hidden=1024, adapters=tuple(adapters or ()), looks_ahead=True))
        return engines[-1]

    monkeypatch.setattr(backends, "open_backend", open_backend)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("v3").spec
    adapters = {task: tmp_path for task in row.tasks if task != "none"}
    files = dict.fromkeys(row.tasks, tmp_path)
    found = ModelFiles(row, "checkpoint", files, "BF16", tmp_path / "tokenizer.json", None, (), adapters)
    with Embedder(found) as embedder:
        yield embedder, engines[0]


def rows_of(engine, ids, task="retrieval.passage"):
    """What the fake says of every token of one pass: a row depends on the whole text, so each place has its own."""
    n = len(ids)
    batch = TokenBatch(
        np.array(ids, np.int32), np.array([0, n], np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    )
    return engine.forward(batch, 1, task) + np.arange(n, dtype=np.float32)[:, None]


@pytest.fixture
def placed(fake):
    """As `fake`, where a row depends on its place too: what a chunk takes from which place is in its vector."""
    embedder, engine = fake
    plain = engine.forward

    def forward(batch, sharers=1, task=None):
        return plain(batch, sharers, task) + batch.rows.astype(np.float32)[:, None]

    engine.forward = forward
    engine.plain = plain
    return embedder, engine


def test_a_chunk_is_the_mean_of_its_tokens_and_the_ends_take_what_stands_around(placed, tokenizer):
    embedder, engine = placed
    whole = tokenizer.encode(PROMPT + DOCUMENT, add_special_tokens=True)
    got = embedder.encode_chunks(DOCUMENT, EXAMPLE, normalize=False)
    (batch,) = engine.batches
    np.testing.assert_array_equal(batch.ids, whole.ids)
    assert engine.asked == ["retrieval.passage"]
    engine.forward = engine.plain
    rows = rows_of(engine, whole.ids)
    for n, (start, end) in enumerate(EXAMPLE):
        places = enumerate(whole.offsets[1:-1], 1)
        inside = [i for i, (a, _) in places if len(PROMPT) + start <= a < len(PROMPT) + end]
        inside = [*(range(inside[0]) if n == 0 else ()), *inside]  # <s> and the prompt
        inside += [len(whole.ids) - 1] if n == len(EXAMPLE) - 1 else []  # </s>
        np.testing.assert_allclose(got[n], rows[inside].mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_a_chunk_that_is_the_whole_document_is_its_ordinary_vector(placed):
    embedder, engine = placed
    got = embedder.encode_chunks(DOCUMENT, [(0, len(DOCUMENT))])
    np.testing.assert_allclose(got[0], embedder.encode(DOCUMENT, task="retrieval.passage"), atol=1e-6)
    for task in ("none", "separation", "retrieval.query"):
        got = embedder.encode_chunks(DOCUMENT, [(0, len(DOCUMENT))], task=task)
        np.testing.assert_allclose(got[0], embedder.encode(DOCUMENT, task=task), atol=1e-6)
    joined = embedder.encode([DOCUMENT], task="clustering", late_chunking=True)
    np.testing.assert_allclose(joined[0], embedder.encode(DOCUMENT, task="separation"), atol=1e-6)
    assert engine.asked[-1] == "separation"


def test_chunks_may_overlap_and_leave_gaps_and_only_wanted_rows_are_read(placed):
    embedder, engine = placed
    n = len(DOCUMENT)
    parts = [(0, 60), (10, 40), (30, n)]
    got = embedder.encode_chunks(DOCUMENT, parts)
    for part, vector in zip(parts, got, strict=True):
        np.testing.assert_allclose(embedder.encode_chunks(DOCUMENT, [part])[0], vector, atol=1e-6)
    assert 0 < len(engine.batches[-1].rows) < len(engine.batches[-1].ids)
    inner = embedder.encode_chunks(DOCUMENT, [(10, 40)], normalize=False)
    assert engine.batches[-1].rows[0] > 1, "a chunk from the middle has neither <s> nor the prompt"
    assert engine.batches[-1].rows[-1] < len(engine.batches[-1].ids) - 1
    assert inner.shape == (1, 1024)


def test_cut_normalised_and_quantised_as_ever(fake):
    embedder, _ = fake
    whole = [(0, len(DOCUMENT))]
    for request in (
        {"truncate_dim": 64}, {"precision": "ubinary"}, {"precision": "int8", "truncate_dim": 128},
        {"normalize": False},
    ):  # fmt: skip
        expected = embedder.encode([DOCUMENT], task="retrieval.passage", **request)
        got = embedder.encode_chunks(DOCUMENT, whole, **request)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(got, expected, atol=1e-6 if got.dtype == np.float32 else 1)


def test_a_callable_finds_the_chunks(fake):
    embedder, _ = fake
    expected = embedder.encode_chunks(DOCUMENT, EXAMPLE)
    np.testing.assert_array_equal(embedder.encode_chunks(DOCUMENT, chunks.sentences), expected)
    pieces = embedder.spans(DOCUMENT, 20)
    assert "".join(DOCUMENT[a:b] for a, b in pieces) == DOCUMENT
    assert {len(embedder.tokenize(DOCUMENT[a:b], task="none")[0]) for a, b in pieces[:-1]} <= set(range(20, 25))
    assert len(embedder.encode_chunks(DOCUMENT, lambda d: embedder.spans(d, 20))) == len(pieces)


def test_a_long_document_is_read_in_windows_that_each_have_the_prompt(placed, tokenizer):
    embedder, engine = placed
    document = " ".join([DOCUMENT] * 6)
    prompt = len(tokenizer.encode(PROMPT, add_special_tokens=False).ids)
    body = tokenizer.encode(document, add_special_tokens=False)
    spans = embedder.spans(document, 30)
    got = embedder.encode_chunks(document, spans, max_length=100, overlap_tokens=20, normalize=False)
    room = 100 - prompt - 2
    expected = chunks.windows(len(body.ids), room, 20)
    assert len(engine.batches) == len(expected) > 5
    head = engine.batches[0].ids[: 1 + prompt].tolist()
    for batch, window in zip(engine.batches, expected, strict=True):
        assert batch.ids.tolist() == [*head, *body.ids[window.start : window.end], 2]
        assert len(batch.ids) == 100
    engine.forward = engine.plain
    tables = [rows_of(engine, [*head, *body.ids[w.start : w.end], 2]) for w in expected]
    places = [o[0] for o in body.offsets]
    for n, (a, b) in enumerate(spans):
        taken = [
            table[1 + prompt + t - w.start]
            for t, place in enumerate(places)
            if a <= place < b
            for table, w in zip(tables, expected, strict=True)
            if w.first <= t < w.last
        ]
        taken += [*tables[0][: 1 + prompt]] if n == 0 else []
        taken += [tables[-1][-1]] if n == len(spans) - 1 else []
        np.testing.assert_allclose(got[n], np.mean(taken, axis=0, dtype=np.float64), rtol=1e-5, atol=1e-5)


def test_a_window_without_a_chunk_is_not_run(placed):
    embedder, engine = placed
    document = " ".join([DOCUMENT] * 6)
    embedder.encode_chunks(document, [(len(document) - 30, len(document))], max_length=100)
    assert len(engine.batches) == 1


@pytest.mark.parametrize("overlap", [0, 20, 256, 100_000])
def test_one_window_is_no_window(fake, overlap):
    embedder, engine = fake
    tokens = len(embedder.tokenize(DOCUMENT, task="retrieval.passage")[0])
    plain = embedder.encode_chunks(DOCUMENT, EXAMPLE)
    np.testing.assert_array_equal(
        embedder.encode_chunks(DOCUMENT, EXAMPLE, max_length=tokens, overlap_tokens=overlap), plain
    )
    engine.batches.clear()
    other = embedder.encode_chunks(DOCUMENT, EXAMPLE, max_length=tokens - 1, overlap_tokens=overlap)
    assert len(engine.batches) == 2
    assert not np.allclose(other, plain)


def test_texts_are_joined_token_by_token_as_if_by_a_space(placed):
    embedder, engine = placed
    texts = ["Organic skincare", "for sensitive skin", "with aloe vera  and chamomile "]
    got = embedder.embed(texts, late_chunking=True)
    joined = " ".join(texts)
    np.testing.assert_array_equal(engine.batches[0].ids, embedder.tokenize(joined, task="retrieval.passage")[0])
    starts = np.cumsum([0, *(len(t) + 1 for t in texts)])
    spans = [(int(a), int(a) + len(t)) for a, t in zip(starts, texts, strict=False)]
    np.testing.assert_array_equal(embedder.encode_chunks(joined, spans), got.vectors)
    assert sum(got.token_counts) == len(engine.batches[0].ids)
    assert not got.truncated.any()
    np.testing.assert_array_equal(embedder.encode(tuple(texts), late_chunking=True), got.vectors)


def test_too_many_tokens_together_are_refused_with_the_count(fake, tokenizer):
    embedder, engine = fake
    texts = ["one two three"] * 10
    count = len(tokenizer.encode(PROMPT + " ".join(texts)).ids)
    assert len(embedder.encode(texts, max_length=count, late_chunking=True)) == 10
    with pytest.raises(
        UsageError, match=rf"the 10 texts have {count} tokens together.*one pass of at most {count - 1}\."
    ):
        embedder.encode(texts, max_length=count - 1, late_chunking=True)
    engine.batches.clear()
    with pytest.raises(UsageError, match=r"have more than \d+ tokens together.*at most 8192"):
        embedder.encode(["one", "two three " * 50_000], late_chunking=True)
    assert engine.batches == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_chunks(DOCUMENT, []), "no chunks were given"),
        (lambda m: m.encode_chunks("   ", chunks.sentences), "no chunks were given"),
        (
            lambda m: m.encode_chunks("ab  cd", [(0, 2), (2, 4)]),
            r"chunk 1, \(2, 4\), has no token of its own.*'  ' is",
        ),
        (lambda m: m.encode_chunks("ab", [(0, 3)]), "is not within the 2 characters of the document"),
        (lambda m: m.encode_chunks(DOCUMENT, EXAMPLE, overlap_tokens=-1), "overlap_tokens -1: expected a whole"),
        (lambda m: m.encode_chunks(DOCUMENT, EXAMPLE, overlap_tokens=1.5), r"overlap_tokens 1\.5"),
        (lambda m: m.encode_chunks(DOCUMENT, EXAMPLE, task="search"), "unknown task 'search'"),
        (lambda m: m.encode_chunks(DOCUMENT, EXAMPLE, truncate_dim=7), "truncate_dim 7 is not a trained width"),
        (lambda m: m.encode_chunks(DOCUMENT, EXAMPLE, max_length=10), "max_length 10 leaves no room beside"),
        (lambda m: m.encode_chunks(7, EXAMPLE), "text 0: is int, expected str"),
        (lambda m: m.encode("one text", late_chunking=True), "texts are one str"),
        (lambda m: m.encode([], late_chunking=True), "no texts were given"),
        (lambda m: m.encode(["a", " \n", "b"], late_chunking=True), "text 1: has no token of its own"),
        (lambda m: m.encode(["", "b"], late_chunking=True), "text 0: has no token of its own"),
        (lambda m: m.encode(["a", "\ud800"], late_chunking=True), "text 1: invalid surrogate"),
        (lambda m: m.spans(DOCUMENT, 0), "chunks of 0 tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_a_pass(fake, call, message):
    embedder, engine = fake
    with pytest.raises(UsageError, match=message):
        call(embedder)
    assert engine.batches == []


def test_a_text_error_says_which(fake):
    with pytest.raises(TextError) as error:
        fake[0].encode(["a", "b", "\t"], late_chunking=True)
    assert error.value.index == 2


def test_a_document_without_usable_states_is_an_error(fake):
    embedder, engine = fake
    engine.poison = frozenset(embedder.tokenize("\N{DEGREE SIGN}", task="none")[0][1:-1].tolist())
    with pytest.raises(NonFiniteError, match="for 2 of 2 chunks.*the chunks of a document are read together"):
        embedder.encode_chunks("ab cd \N{DEGREE SIGN}", [(0, 3), (3, 7)])
    assert embedder.embed(["ab", "\N{DEGREE SIGN}"], late_chunking=True).failed == (0, 1)


@pytest.mark.parametrize("name", ["v5-nano", "v5-small", "pico"])
def test_models_that_read_the_last_token_are_refused_with_the_reason(monkeypatch, tmp_path, name):
    monkeypatch.setattr(backends, "open_backend", lambda *args, **kwargs: FakeBackend(hidden=1024, vocab=200_000))
    tiny.tokenizer("small" if name == "v5-small" else "nano").save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup(name).spec
    found = ModelFiles(row, "gguf", dict.fromkeys(row.tasks, tmp_path), "Q8_0", tmp_path / "tokenizer.json", None, ())
    with Embedder(found) as embedder:
        for call in (
            lambda: embedder.encode_chunks(DOCUMENT, EXAMPLE),
            lambda: embedder.encode(["a"], late_chunking=True),
            lambda: embedder.embed(["a"], late_chunking=True),
        ):
            with pytest.raises(
                UsageError, match=rf"{row.name} has no late chunking: .*last token.*jina-embeddings-v3\."
            ):
                call()


@pytest.fixture(scope="module")
def states():
    """(task, ids) -> the states of the reference, all tokens."""
    checkpoint = Checkpoint(made.checkpoint("v3"))

    def of(task, ids):
        return reference.hidden_states(checkpoint.arch, dict(checkpoint.merged(task)), ids)

    with checkpoint:
        yield of


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("form", "least"),
    [
        pytest.param("checkpoint", 0.999999, marks=pytest.mark.mlx),
        pytest.param("F32", 0.99999, marks=pytest.mark.llama),
    ],
)
def test_the_vectors_are_those_of_a_plain_calculation(states, tokenizer, form, least):
    document = " ".join([DOCUMENT] * 3)
    spans = chunks.sentences(document)
    whole = tokenizer.encode(PROMPT + document)
    rows = states("retrieval.passage", whole.ids)
    starts = np.array([a for a, _ in whole.offsets]) - len(PROMPT)
    cuts = [0, *(int(np.searchsorted(starts[1:-1], a)) + 1 for a, _ in spans[1:]), len(whole.ids)]
    expected = np.array([rows[a:b].mean(axis=0) for a, b in pairwise(cuts)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with load(made.v3("v3", form)) as embedder:
        got = embedder.encode_chunks(document, spans)
        assert ((got * expected).sum(axis=1) > least).all()
        plain = embedder.encode(document, task="retrieval.passage")
        np.testing.assert_allclose(embedder.encode_chunks(document, [(0, len(document))])[0], plain, atol=1e-6)
        alone = embedder.encode([document[a:b] for a, b in spans], task="retrieval.passage")
        assert ((got * alone).sum(axis=1) < 0.9999).all(), "each chunk is read in the light of the others"
        windows = embedder.encode_chunks(document, spans, max_length=150, overlap_tokens=60)
        assert ((windows * expected).sum(axis=1) > 0.9).all()
