"""The Embedder over a made-up engine: planning, company, failures, tasks, threads; then over the real ones."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from jina_local import backends, load, registry
from jina_local.errors import EngineError, ModelDamaged, NonFiniteError, TextError, UsageError
from jina_local.model import Embedder
from jina_local.spec import Budget, Weights
from tests import made, tiny
from tests.conftest import FakeBackend

TEXTS = [("word " * (i % 23)).strip() + str(i) for i in range(60)]


@pytest.fixture
def fakes(monkeypatch):
    """Every backend that `load` opens is a fake; the list of those opened, with their paths and adapters."""
    opened: list[tuple[FakeBackend, object, str | None]] = []

    def open_backend(name, path, *, task, device=None, threads=None):
        engine = FakeBackend(hidden=768, vocab=1000, lanes=3, budget=Budget(tokens=100, texts=8, padded=False))
        opened.append((engine, path, task))
        return engine

    monkeypatch.setattr(backends, "open_backend", open_backend)
    return opened


@pytest.fixture
def embedder(fakes, tmp_path):
    tiny.tokenizer("nano").save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("v5-nano").spec
    found = Weights(
        row, "gguf", {t: tmp_path / t for t in row.tasks}, "Q8_0", tmp_path / "tokenizer.json", None, ("why",)
    )
    with Embedder(found) as m:
        yield m


def test_a_list_gives_a_matrix_and_a_text_gives_a_vector(embedder):
    many, one = embedder.encode(TEXTS), embedder.encode(TEXTS[4])
    assert (many.shape, many.dtype, one.shape) == ((60, 768), np.float32, (768,))
    np.testing.assert_array_equal(many[4], one)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)


def test_company_and_order_change_nothing(embedder):
    many = embedder.encode(TEXTS)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(embedder.encode([TEXTS[i] for i in order]), many[order])
    np.testing.assert_array_equal(embedder.encode(TEXTS, deterministic=True), many)


def test_deterministic_runs_one_text_a_pass(embedder, fakes):
    embedder.encode(TEXTS)
    assert len(fakes[0][0].batches) < 60
    fakes[0][0].batches.clear()
    embedder.encode(TEXTS, deterministic=True)
    assert [len(b.starts) - 1 for b in fakes[0][0].batches] == [1] * 60


def test_prompts_and_tasks_reach_the_engine(embedder, fakes):
    query, document = embedder.encode_query("x"), embedder.encode_document("x")
    assert not np.allclose(query, document)
    np.testing.assert_array_equal(document, embedder.encode("x"))
    np.testing.assert_array_equal(query, embedder.encode("x", prompt_name="query", task="retrieval"))
    ids = embedder.tokenize("x", prompt_name="query")[0]
    np.testing.assert_array_equal(fakes[0][0].batches[0].ids, ids)


def test_tasks_open_on_first_use_and_only_two_stay(embedder, fakes):
    for task in ("clustering", "retrieval", "classification", "retrieval"):
        embedder.encode("x", task=task)
    assert [str(path).rsplit("/", 1)[1] for _, path, _ in fakes] == ["retrieval", "clustering", "classification"]
    assert [engine.closed for engine, _, _ in fakes] == [False, True, False]


def test_an_unknown_task_opens_nothing(embedder, fakes):
    with pytest.raises(UsageError, match="unknown task 'search'"):
        embedder.encode("x", task="search")
    assert len(fakes) == 1


def test_the_report_has_counts_and_what_was_cut(embedder, caplog):
    texts = ["short", "long " * 60]
    report = embedder.embed(texts, max_length=20)
    assert report.truncated.tolist() == [False, True]
    assert report.token_counts.tolist() == [len(i) for i in embedder.tokenize(texts, max_length=20)]
    assert report.token_counts[1] == 20
    with caplog.at_level(logging.WARNING, "jina_local"):
        embedder.encode(texts, max_length=20)
    assert caplog.messages == ["1 of 2 texts were cut to 20 tokens (index 1)"]
    with pytest.raises(TextError, match="text 1: has more than the 20 tokens"):
        embedder.encode(texts, max_length=20, overflow="error")


def test_a_text_without_a_vector_is_an_error_for_itself_alone(embedder, fakes):
    good = embedder.encode(TEXTS)
    poison = embedder.tokenize("\x07")[0]
    fakes[0][0].poison = frozenset(set(poison.tolist()) - set(np.concatenate(embedder.tokenize(TEXTS)).tolist()))
    assert fakes[0][0].poison
    texts = [*TEXTS[:30], "\x07", *TEXTS[30:]]
    report = embedder.embed(texts)
    assert report.failed == (30,)
    assert not report.vectors[30].any()
    np.testing.assert_array_equal(np.delete(report.vectors, 30, axis=0), good)
    with pytest.raises(NonFiniteError, match=r"no usable vector for 1 of 61 texts \(index 30\)") as error:
        embedder.encode(texts)
    assert error.value.indices == (30,)
    assert len(fakes[0][0].batches[-1].starts) == 2, "it was tried once more, alone"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no texts were given"),
        (b"x", "texts are bytes"),
        (7, "texts are int"),
        (iter(["a"]), "texts are list_iterator"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(embedder, texts, message):
    with pytest.raises(UsageError, match=message):
        embedder.encode(texts)


def test_eight_threads_get_their_own_vectors(embedder):
    expected = embedder.encode(TEXTS)
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed).permutation(60)[:20]
        if not np.array_equal(embedder.encode([TEXTS[i] for i in order]), expected[order]):
            wrong.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_a_closed_model_says_so_and_closes_its_engines(embedder, fakes):
    embedder.close()
    assert fakes[0][0].closed
    with pytest.raises(EngineError, match="this model is closed"):
        embedder.encode("x")


def test_a_tokenizer_of_another_model_is_refused(fakes, tmp_path):
    tok = tiny.tokenizer("nano")
    tok.add_tokens([f"extra{i}" for i in range(600)])
    tok.save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("v5-nano").spec
    found = Weights(row, "gguf", {"retrieval": tmp_path}, "Q8_0", tmp_path / "tokenizer.json", None, ())
    with pytest.raises(ModelDamaged, match="the tokenizer is another model's"):
        Embedder(found, task="retrieval")


def test_what_was_chosen_and_why_is_in_the_spec(embedder):
    origin = embedder.spec.origin
    assert origin is not None
    assert (origin.backend, origin.weights, origin.reasons) == ("llama", "Q8_0", ("why", "it is a fake"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "unknown backend 'onnx'"),
        ({"threads": 0}, "threads 0 is out of range"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
@pytest.mark.llama
def test_load_refuses_what_it_cannot_do(options, message):
    with pytest.raises(UsageError, match=message):
        load(made.gguf_file("nano", "F16"), **options)
