"""v3 through the Embedder: tasks and their words, prompts, the base alone, what is merged; and who ranks instead."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import numpy as np
import pytest

import jina_local
from jina_local import backends, load, loading, registry
from jina_local.embedding.embedder import Embedder
from jina_local.errors import UsageError
from jina_local.reranking.reranker import Ranked, Reranker
from jina_local.spec import ModelFiles
from tests import made, tiny, tiny_v3_and_rerankers
from tests.fakes import FakeBackend

ROW = registry.lookup("v3").spec
ADAPTERS = tiny_v3_and_rerankers.V3_TASKS
PROMPTS = {**tiny_v3_and_rerankers.V3_PROMPTS, "none": ""}
# (task, prompt_name) -> the model's own task.
WORDS = [
    *((task, None, task) for task in ROW.tasks),
    ("clustering", None, "separation"),
    ("retrieval", None, "retrieval.passage"),
    ("retrieval", "query", "retrieval.query"),
    ("retrieval", "document", "retrieval.passage"),
    ("retrieval", "passage", "retrieval.passage"),
    (None, "query", "retrieval.query"),
    (None, "document", "retrieval.passage"),
]


@pytest.fixture
def fakes(monkeypatch):
    """Every backend that is opened is a fake: (engine, task merged into it)."""
    opened: list[tuple[FakeBackend, str | None]] = []

    def open_backend(name, path, *, task=None, adapters=None, device=None, threads=None, isolate=None):
        opened.append((FakeBackend(hidden=1024, adapters=tuple(adapters or ()), looks_ahead=True), task))
        return opened[-1][0]

    monkeypatch.setattr(backends, "open_backend", open_backend)
    return opened


@pytest.fixture
def files(tmp_path):
    """form, tasks -> what the finder says: adapters beside the base, or merged where the form is GGUF."""
    tiny.tokenizer("v3").save(str(tmp_path / "tokenizer.json"))

    def found(form="checkpoint", tasks=ADAPTERS):
        adapters = {} if form == "gguf" else dict.fromkeys(tasks, tmp_path)
        served = [task for task in ROW.tasks if task in tasks or (adapters and task == "none")]
        row = registry.narrow(registry.lookup("v3"), hidden=1024, max_positions=8192, tasks=served)
        paths = {task: tmp_path / task if form == "gguf" else tmp_path for task in served}
        return ModelFiles(row, form, paths, "BF16", tmp_path / "tokenizer.json", None, ("why",), adapters)

    return found


@pytest.mark.parametrize("form", ["checkpoint", "mlx", "gguf"])
@pytest.mark.parametrize(("task", "prompt", "own"), WORDS)
def test_every_word_for_a_task_reaches_its_adapter_with_its_prompt(fakes, files, form, task, prompt, own):
    with Embedder(files(form, ROW.tasks if form == "gguf" else ADAPTERS)) as embedder:
        got = embedder.encode("Berlin is big", task=task, prompt_name=prompt)
        engine, merged = fakes[-1]
        assert (engine.asked, merged) == ([None if form == "gguf" else own], None)
        expected = tiny.tokenizer("v3").encode(PROMPTS[own] + "Berlin is big").ids
        assert engine.batches[0].ids.tolist() == expected
        assert len(engine.batches[0].rows) == len(expected), "a mean takes every token"
        assert embedder.tokenize("Berlin is big", task=task, prompt_name=prompt)[0].tolist() == expected
        assert embedder.embed("Berlin is big", task=task, prompt_name=prompt).spec.task == own
        np.testing.assert_allclose(np.linalg.norm(got), 1, atol=1e-6)


def test_without_a_task_the_choices_are_named(fakes, files):
    with Embedder(files()) as embedder:
        for call in (embedder.encode, embedder.embed, embedder.tokenize):
            with pytest.raises(
                UsageError,
                match=r"embeddings-v3 needs a task: one of retrieval\.query, .*, none \('none': the base without",
            ):
                call("x")
        np.testing.assert_array_equal(embedder.encode_query("x"), embedder.encode("x", task="retrieval.query"))
        np.testing.assert_array_equal(embedder.encode_document("x"), embedder.encode("x", task="retrieval.passage"))
        with pytest.raises(UsageError, match="prompt_name 'query' does not go with task 'separation'"):
            embedder.encode_query("x", task="separation")


def test_tokenize_needs_no_task_where_the_prompt_is_the_same_for_all(fakes, tmp_path):
    tiny.tokenizer("nano").save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("v5-nano").spec
    found = ModelFiles(row, "gguf", dict.fromkeys(row.tasks, tmp_path), "Q8_0", tmp_path / "tokenizer.json", None, ())
    with Embedder(found) as embedder:
        plain = embedder.tokenize("x", prompt_name="query")[0].tolist()
        assert embedder.tokenize("x", task="clustering", prompt_name="query")[0].tolist() == plain
        with pytest.raises(UsageError, match="unknown task 'poetry'"):
            embedder.tokenize("x", task="poetry")


def test_a_word_for_one_task_is_merged_and_a_word_for_two_is_not(fakes, files):
    for task, merged, why in (
        ("clustering", "separation", "the adapter is merged into the base at load, because a task was given; other"),
        (
            "retrieval.query",
            "retrieval.query",
            "the adapter is merged into the base at load, because a task was given",
        ),
        ("none", "none", "the base is run without an adapter, because a task was given; other tasks reload it"),
        ("retrieval", None, "one base serves .*, its adapters beside it .*, because no single task was given"),
        (None, None, "one base serves .*, its adapters beside it .*, because no single task was given"),
    ):
        with Embedder(files(), task=task) as embedder:
            assert fakes[-1][1] == merged
            embedder.encode("x", task=task or "none")
            assert fakes[-1][0].asked == ([None] if merged else ["retrieval.passage" if task else "none"])
            reason = embedder.spec.origin.reasons[1]
            assert re.match(why, reason), reason
    assert len(fakes) == 5, "each was opened once"


def test_one_adapter_and_the_base_alone_share_the_base(fakes, files):
    with Embedder(files(tasks=("separation",))) as embedder:
        assert embedder.spec.tasks == ("separation", "none")
        a, b = embedder.encode("x", task="separation"), embedder.encode("x", task="none")
        assert not np.allclose(a, b)
        assert ([merged for _, merged in fakes], fakes[0][0].asked) == ([None], ["separation", "none"])


def test_files_of_one_task_need_no_word(fakes, files):
    with Embedder(files("gguf", ("none",))) as embedder:
        assert embedder.spec.default_task == "none"
        np.testing.assert_array_equal(embedder.encode("x"), embedder.encode("x", task="none"))
    with Embedder(files("gguf", ("retrieval.query",)), task="retrieval.query") as embedder:
        np.testing.assert_array_equal(embedder.encode_query("x"), embedder.encode("x"))
        with pytest.raises(UsageError, match=r"unknown task 'separation'.*has: retrieval\.query\."):
            embedder.encode("x", task="separation")


def test_a_task_that_is_not_there_is_refused_before_anything_is_opened(fakes, files):
    with pytest.raises(UsageError, match="unknown task 'search'"):
        Embedder(files(), task="search")
    with pytest.raises(UsageError, match="unknown task 'clustering'"):
        Embedder(files(tasks=("classification",)), task="clustering")
    assert fakes == []


def test_an_embedder_is_not_for_a_reranker(fakes, tmp_path):
    tiny.tokenizer("reranker-v2").save(str(tmp_path / "tokenizer.json"))
    row = registry.lookup("reranker-v2").spec
    found = ModelFiles(row, "gguf", {"rerank": tmp_path}, "Q8_0", tmp_path / "tokenizer.json", None, ())
    with pytest.raises(UsageError, match="ranks documents and has no vectors for texts"):
        Embedder(found)
    assert fakes == []


@pytest.mark.mlx
def test_the_real_engine_runs_every_task_and_the_base_alone():
    folder = made.v3("v3", "checkpoint")
    texts = ["Berlin is big", "naïve café", ""]
    with load(folder) as embedder:
        held = {task: embedder.encode(texts, task=task) for task in embedder.spec.tasks}
    flat = [v[0] for v in held.values()]
    assert all(not np.allclose(a, b, atol=1e-3) for i, a in enumerate(flat) for b in flat[:i])
    for word, own in (("clustering", "separation"), ("none", "none"), ("retrieval", "retrieval.passage")):
        with load(folder, task=word) as embedder:
            np.testing.assert_allclose(embedder.encode(texts, task=word), held[own], atol=1e-5)


@pytest.mark.llama
def test_merged_files_serve_words_and_the_base_alone():
    with load(made.v3("v3", "F32"), task="retrieval", backend="llama") as embedder:
        query, document = embedder.encode_query("Berlin"), embedder.encode_document("Berlin")
        assert embedder.spec.tasks == ROW.tasks
        assert query @ document < 0.999
        np.testing.assert_array_equal(document, embedder.encode("Berlin", task="retrieval"))
        assert embedder.encode("Berlin", task="none") @ document < 0.999


def test_the_names_that_type_checkers_know_are_the_registrys_rerankers():
    known = {n for row in registry.PUBLISHED if row.spec.scoring for n in (row.spec.name, *row.aliases)}
    assert set(typing.get_args(loading.RerankerName)) == known


def test_what_ranks_comes_as_a_reranker(monkeypatch):
    seen = []

    class Spy(Reranker):
        def __init__(self, found, *, device=None, threads=None, isolate=None, queue=None):
            seen.append((found.model.name, device, threads))

    monkeypatch.setattr(loading, "Reranker", Spy)
    for kind in ("reranker-v3", "reranker-v2"):
        assert isinstance(load(made.checkpoint(kind), device="cpu", threads=2), Spy)
    assert seen == [
        ("jina-reranker-v3", "cpu", 2), ("jina-reranker-v2-base-multilingual", "cpu", 2),
    ]  # fmt: skip
    with pytest.raises(
        UsageError, match=r"unknown task 'retrieval'\. jina-reranker-v2-base-multilingual has: rerank"
    ):
        load(made.checkpoint("reranker-v2"), task="retrieval")


@pytest.mark.mlx
def test_a_loaded_reranker_ranks():
    with load(made.checkpoint("reranker-v2")) as reranker:
        assert isinstance(reranker, jina_local.Reranker)
        ranked = reranker.rerank("planet", ["Mars", "Venus"])
    assert all(isinstance(one, jina_local.Ranked) for one in ranked)
    assert (jina_local.Ranked, jina_local.Reranker) == (Ranked, Reranker)


def test_type_checkers_tell_the_two_apart(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    path = tmp_path / "use.py"
    path.write_text(
        "from jina_local import Embedder, Reranker, load\n"
        "a: Reranker = load('reranker-v3')\nb: Embedder = load('v3', task='none')\nc: Embedder = load()\n"
        "d: Embedder = load('reranker-v2')\n"
    )
    root = Path(__file__).resolve().parents[1]
    out, _, code = mypy.run(["--config-file", str(root / "pyproject.toml"), "--no-error-summary", str(path)])
    assert code == 1
    assert [line.split(":")[1] for line in out.splitlines()] == ["5"], out
