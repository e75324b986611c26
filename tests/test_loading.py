"""The Embedder over a made-up engine: planning, company, failures, tasks, threads; then over the real ones."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from jina_local import backends, load, registry
from jina_local.errors import EngineError, ModelDamaged, ModelNotFound, NonFiniteError, TextError, UsageError
from jina_local.loading import Embedder
from jina_local.spec import Budget, ModelFiles
from tests import made, tiny
from tests.fakes import FakeBackend

TEXTS = [("word " * (i % 23)).strip() + str(i) for i in range(60)]


@pytest.fixture
def fakes(monkeypatch):
    """Every backend that `load` opens is a fake; the list of those opened, with their paths and merged adapters."""
    opened: list[tuple[FakeBackend, object, str | None]] = []

    def open_backend(name, path, *, task=None, adapters=None, device=None, threads=None, isolate=None):
        budget = Budget(tokens=100, texts=8, padded=False)
        engine = FakeBackend(hidden=768, vocab=1000, lanes=3, budget=budget, adapters=tuple(adapters or ()))
        opened.append((engine, path, task))
        return engine

    monkeypatch.setattr(backends, "open_backend", open_backend)
    return opened


@pytest.fixture
def embedder(fakes, tmp_path):
    tiny.tokenizer("nano").save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("v5-nano").spec
    found = ModelFiles(
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


@pytest.fixture
def shared(tmp_path):
    """form -> what the finder says of a base with adapters for the tasks given."""
    tiny.tokenizer("nano").save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("v5-nano").spec

    def found(form, tasks=row.tasks):
        adapters = {task: tmp_path / "adapters" / task for task in tasks}
        files = dict.fromkeys(tasks, tmp_path)
        return ModelFiles(row, form, files, "8bit", tmp_path / "tokenizer.json", None, ("why",), adapters)

    return found


@pytest.mark.parametrize("form", ["gguf", "mlx"])
@pytest.mark.parametrize("task", [None, "clustering"])
def test_a_base_with_adapters_is_opened_once_for_all_tasks(fakes, shared, form, task):
    with Embedder(shared(form), task=task) as embedder:
        first = embedder.encode(TEXTS, task="retrieval")
        others = [embedder.encode(TEXTS, task=name) for name in embedder.spec.tasks[1:]]
        assert all(not np.allclose(first, other) for other in others)
        np.testing.assert_array_equal(embedder.encode(TEXTS, task="retrieval"), first)
        assert [merged for _, _, merged in fakes] == [None]
        assert set(fakes[0][0].asked) == set(embedder.spec.tasks)
        assert embedder.spec.origin.reasons[1] == (
            "one base serves retrieval, text-matching, clustering, classification, its adapters beside it at a cost "
            "per token, because the files are a base and adapters"
        )
    assert fakes[0][0].closed


def test_a_published_checkpoint_runs_its_adapters_beside_the_base_where_no_task_is_given(fakes, shared):
    with Embedder(shared("checkpoint")) as embedder:
        embedder.encode("x", task="classification")
        assert (fakes[0][0].asked, len(fakes)) == (["classification"], 1)
        assert embedder.spec.origin.reasons[1].endswith("at a cost per token, because no single task was given")


def test_a_published_checkpoint_merges_the_task_that_is_given_or_the_only_one(fakes, shared):
    with Embedder(shared("checkpoint"), task="clustering") as embedder:
        embedder.encode("x", task="clustering")
        embedder.encode("x", task="classification")
        assert [merged for _, _, merged in fakes] == ["clustering", "classification"]
        assert [engine.asked for engine, _, _ in fakes] == [[None], [None]]
        assert embedder.spec.origin.reasons[1] == (
            "the adapter is merged into the base at load, because a task was given; other tasks reload it"
        )
    with Embedder(shared("checkpoint", ("retrieval",))) as embedder:
        assert fakes[-1][2] == "retrieval"
        assert embedder.spec.origin.reasons[1].endswith("merged into the base at load, because there is no other")


def test_threads_with_different_tasks_share_one_base(fakes, shared):
    with Embedder(shared("gguf")) as embedder:
        expected = {task: embedder.encode(TEXTS, task=task) for task in embedder.spec.tasks}
        wrong = []

        def work(seed):
            task = embedder.spec.tasks[seed % 4]
            order = np.random.default_rng(seed).permutation(60)[:20]
            if not np.array_equal(embedder.encode([TEXTS[i] for i in order], task=task), expected[task][order]):
                wrong.append(seed)

        threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert (wrong, len(fakes)) == ([], 1)


def test_an_adapter_is_merged_or_runs_beside_the_base_and_not_both(tmp_path):
    with pytest.raises(
        UsageError, match="task 'retrieval' cannot be merged at load: its adapters run beside the base"
    ):
        backends.open_backend("mlx", tmp_path, task="retrieval", adapters={"retrieval": tmp_path})
    with pytest.raises(UsageError, match="cannot be merged at load: llama.cpp takes merged files, or adapters"):
        backends.open_backend("llama", tmp_path, task="retrieval")


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
        (b"x", "texts are bytes"),
        (7, "texts are int; expected a str or an iterable of str"),
        ({"a": "b"}, r"texts are a dict; .* Give list\(texts.values\(\)\)"),
        (None, "expected texts, or sentences, which is another name"),
        (["a", None], "text 1: is NoneType, expected str"),
    ],
)
def test_what_is_no_iterable_of_texts_is_refused(embedder, texts, message):
    with pytest.raises(UsageError, match=message):
        embedder.encode(texts)


def test_any_iterable_of_texts_is_taken_by_either_name(embedder):
    expected = embedder.encode(["a", "b"])
    for texts in (("a", "b"), iter(["a", "b"]), (text for text in "ab"), {"a": 1, "b": 2}.keys()):
        np.testing.assert_array_equal(embedder.encode(texts), expected)
    np.testing.assert_array_equal(embedder.encode(sentences=["a", "b"]), expected)
    np.testing.assert_array_equal(embedder.encode(sentences="a"), expected[0])
    with pytest.raises(UsageError, match="got both or neither"):
        embedder.encode(["a"], sentences=["a"])


def test_no_texts_give_no_rows_of_the_right_width(embedder):
    full = embedder.spec.dims[-1]
    for words, width, dtype in (
        ({}, full, np.float32),
        ({"truncate_dim": 32}, 32, np.float32),
        ({"precision": "ubinary"}, full // 8, np.uint8),
    ):
        for texts in ([], (), iter([])):
            vectors = embedder.encode(texts, **words)
            assert (vectors.shape, vectors.dtype) == ((0, width), dtype)
    assert embedder.embed([]).truncated.shape == (0,)
    assert embedder.encode_query([]).shape == (0, full)


def test_the_three_steps_are_what_embed_does(embedder):
    prepared = embedder.prepare(TEXTS, task="clustering", truncate_dim=32)
    result = embedder.finish(prepared, embedder.run(prepared))
    whole = embedder.embed(TEXTS, task="clustering", truncate_dim=32)
    np.testing.assert_array_equal(result.vectors, whole.vectors)
    np.testing.assert_array_equal(result.token_counts, whole.token_counts)
    assert result.spec == whole.spec


def test_an_embedding_model_ranks_by_cosine_and_says_so(embedder):
    documents = [*TEXTS[:5], TEXTS[2]]
    cosines = embedder.similarity(embedder.encode_document(documents), embedder.encode_query("which?"))[:, 0]
    ranking = embedder.rerank("which?", iter(documents))
    assert ranking.scoring == "cosine"
    assert [one.index for one in ranking] == np.argsort(-cosines, kind="stable").tolist()
    np.testing.assert_allclose([one.score for one in ranking], np.sort(cosines)[::-1], atol=1e-6)
    assert len(embedder.rerank("which?", documents, top_n=2)) == 2
    assert embedder.rerank("which?", []).results == ()
    for query, given, top_n in ((1, ["a"], None), ("q", "a", None), ("q", ["a"], 0)):
        with pytest.raises(UsageError):
            embedder.rerank(query, given, top_n=top_n)


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
    found = ModelFiles(row, "gguf", {"retrieval": tmp_path}, "Q8_0", tmp_path / "tokenizer.json", None, ())
    with pytest.raises(ModelDamaged, match="the tokenizer is another model's"):
        Embedder(found, task="retrieval")


def test_what_was_chosen_and_why_is_in_the_spec(embedder):
    origin = embedder.spec.origin
    assert origin is not None
    assert (origin.backend, origin.weights, origin.reasons) == ("llama", "Q8_0", ("why", "it is a fake"))


@pytest.mark.parametrize("asked", [None, True, False])
def test_load_leaves_the_bars_of_a_download_to_the_caller(monkeypatch, tmp_path, asked):
    from jina_local.store import hub

    said = []

    def pull(row, engine, **settings):
        said.append(settings["show_progress"])
        raise ModelNotFound("no network in this test")

    monkeypatch.setattr(hub, "pull", pull)
    for name in ("HF_HUB_CACHE", "JINA_LOCAL_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(ModelNotFound, match="no network in this test"):
        load("v5-nano", backend="llama", offline=False, show_progress=asked)
    assert said == [asked]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "torch"}, "unknown backend 'torch'"),
        ({"threads": 0}, "threads 0 is out of range"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
@pytest.mark.llama
def test_load_refuses_what_it_cannot_do(options, message):
    with pytest.raises(UsageError, match=message):
        load(made.gguf_file("nano", "F16"), **options)
