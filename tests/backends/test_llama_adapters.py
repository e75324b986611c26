"""llama.cpp with adapters beside one base: the merged vectors, no drift, no company that matters, what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local import load
from jina_local.errors import EngineError, ModelDamaged
from jina_local.formats.gguf import read_header
from jina_local.inference.batching import pack
from jina_local.store import find
from jina_local.weights import architecture
from jina_local.weights.adapters.gguf_file import BASE_KEY
from tests import made, tiny
from tests.backends.test_llama import backend, texts
from tests.layout_files import write_adapter
from tests.oracle import cosines

pytestmark = pytest.mark.llama
LENGTHS = (1, 3, 31, 64, 150, 513)  # in a lane, and in the long one in two ubatches


def folder_of(kind: str, label: str) -> Path:
    return made.gguf_separate(kind, "F32", "Q8_0") if label != "F16" else made.gguf_separate(kind, "F16")


def opened(kind: str, label: str, threads: int = 1):
    folder = folder_of(kind, label)
    adapters = {task: folder / f"v5-{kind}-{task}-adapter.gguf" for task in tiny.TASKS}
    return backend(folder / f"v5-{kind}-base-{label}.gguf", adapters=adapters, threads=threads)


def rows(engine, encoded, task=None, sharers=1):
    """One text a pass: (n, hidden)."""
    return np.concatenate(
        [engine.forward(pack(encoded, [i], "last"), sharers, task) for i in range(len(encoded.ids))]
    )


@pytest.fixture(scope="module", params=["small", "nano"])
def kind(request):
    return request.param


@pytest.mark.sampled
@pytest.mark.parametrize(("label", "least"), [("F32", 0.999999), ("F16", 0.9999)])
def test_beside_the_base_gives_the_merged_vectors(kind, label, least):
    encoded = texts(kind, LENGTHS)
    engine = opened(kind, label)
    for task in tiny.TASKS if label == "F32" else ["retrieval"]:
        merged = backend(made.gguf_file(kind, label, task), threads=1)
        assert cosines(rows(engine, encoded, task), rows(merged, encoded)).min() > least
        merged.close()
    engine.close()


def test_beside_a_quantised_base_is_as_near_to_float32_as_merged(kind):
    """Both are rounded, each in its own way: they differ by about what either differs from float32."""
    encoded = texts(kind, LENGTHS)
    engine = opened(kind, "Q8_0")
    for task in ("retrieval", "clustering"):
        exact, merged = (backend(made.gguf_file(kind, label, task), threads=1) for label in ("F32", "Q8_0"))
        expected, mine = rows(exact, encoded), rows(engine, encoded, task)
        lost, lost_merged = (1 - cosines(x, expected).mean() for x in (mine, rows(merged, encoded)))
        assert cosines(mine, expected).min() > 0.999
        assert lost < 1.3 * lost_merged
        exact.close()
        merged.close()
    engine.close()


@pytest.mark.sampled
@pytest.mark.parametrize("label", ["F32", "Q8_0"])
def test_a_task_gives_the_same_bits_whatever_ran_between(kind, label):
    encoded = texts(kind, LENGTHS)
    engine = opened(kind, label)
    first = {task: rows(engine, encoded, task) for task in tiny.TASKS}
    for one, other in zip(tiny.TASKS, tiny.TASKS[1:], strict=False):
        assert (cosines(first[one], first[other]) < 0.9).all(), "the adapters change every vector"
    for task in (*reversed(tiny.TASKS), "retrieval"):
        np.testing.assert_array_equal(rows(engine, encoded, task), first[task])
    assert len(engine._pool.contexts) == 2, "a small one and the long one: every change was a switch"
    again = opened(kind, label)
    np.testing.assert_array_equal(rows(again, encoded, "clustering"), first["clustering"])
    for e in (engine, again):
        e.close()


@pytest.mark.sampled
def test_threads_with_different_tasks_at_once_get_the_answers_of_one_after_the_other(kind):
    encoded = texts(kind, LENGTHS)
    engine = opened(kind, "Q8_0", threads=4)
    assert engine.lanes == 4
    expected = {task: rows(engine, encoded, task, sharers=4) for task in tiny.TASKS}
    wrong, start = [], threading.Barrier(6)

    def work(seed):
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(20):
            task, i = str(rng.choice(tiny.TASKS)), int(rng.integers(len(LENGTHS)))
            row = engine.forward(pack(encoded, [i], "last"), 4, task)
            if not np.array_equal(row[0], expected[task][i]):
                wrong.append((task, i))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert len(engine._pool.contexts) <= 5, "four small ones and the long one"
    engine.close()


def test_a_context_keeps_its_task_while_there_are_contexts_enough():
    encoded = texts("nano", (5,))
    engine = opened("nano", "Q8_0", threads=2)
    for task in ("retrieval", "clustering", "retrieval", "clustering"):
        rows(engine, encoded, task, sharers=2)
    contexts = engine._pool.contexts
    assert [context.task for context in contexts] == ["retrieval", "clustering"]
    rows(engine, encoded, "classification", sharers=2)
    assert [context.task for context in contexts] == ["classification", "clustering"], "idle longest"
    engine.close()


def test_the_task_has_to_be_one_of_those_opened():
    encoded = texts("nano", (5,))
    engine = opened("nano", "F32")
    with pytest.raises(EngineError, match="adapters beside one base; name a task: retrieval, text-matching, "):
        rows(engine, encoded)
    with pytest.raises(
        EngineError, match="no adapter for task 'search' was opened .* adapters for: retrieval, text-"
    ):
        rows(engine, encoded, "search")
    engine.close()
    with pytest.raises(EngineError, match="this model is closed"):
        rows(engine, encoded, "retrieval")
    merged = backend(made.gguf_file("nano", "F32"))
    with pytest.raises(EngineError, match="'retrieval' was opened .* Its weights are merged; leave the task out"):
        rows(merged, encoded, "retrieval")
    merged.close()


Q, DOWN = "blk.0.attn_q.weight", "blk.0.ffn_down.weight"
OUT, IN = (
    tiny.SIZES["nano"]["num_attention_heads"] * tiny.SIZES["nano"]["head_dim"],
    tiny.SIZES["nano"]["hidden_size"],
)
NAME, ALPHA = "adapter.lora.task_name", "adapter.lora.alpha"
# What is wrong -> the adapter's keys or digest, its tensors, the error.
FAULTS = {
    "base": ({"base": "00" * 32}, {}, r"was made for the base 0{64}, and .*base-Q8_0\.gguf is of the base \w{64}"),
    "digest": ({"base": None}, {}, r"carries no digest of its base .*adapters/<task> .*--adapters separate"),
    "task": ({"task": "clustering"}, {}, "taken for the adapter of retrieval, and names the task 'clustering'"),
    "tasks": ({"keys": {NAME: "clustering"}}, {}, "'retrieval', adapter.lora.task_name 'clustering'"),
    "model": ({"keys": {"general.type": "model"}}, {}, "general.type is 'model'; an adapter's is 'adapter'"),
    "architecture": ({"keys": {"general.architecture": "qwen3"}}, {}, "architecture 'qwen3', its base is eurobert"),
    "kind": ({"keys": {"adapter.type": "ia3"}}, {}, "adapter.type is 'ia3'; only 'lora' is run"),
    "activated": ({"keys": {"adapter.alora.invocation_tokens": [1]}}, {}, "invocation_tokens is set"),
    "alignment": ({"keys": {"general.alignment": 8}}, {}, "general.alignment is 8; an adapter's is 32"),
    "of a model": ({"keys": {"eurobert.rope.freq_base": 1e4}}, {}, "freq_base is 10000.0; an adapter has no such"),
    "a key's type": ({"keys": {"general.name": 7}}, {}, "general.name is 7; expected a text"),
    "alpha 0": ({"keys": {ALPHA: 0.0}}, {}, "adapter.lora: alpha 0.0; expected a positive number"),
    "alpha NaN": ({"keys": {ALPHA: float("nan")}}, {}, "alpha nan; expected a positive number"),
    "alpha inf": ({"keys": {ALPHA: float("inf")}}, {}, "alpha inf; expected a positive number"),
    "alpha below 0": ({"keys": {ALPHA: -4.0}}, {}, "alpha -4.0; expected a positive number"),
    "no alpha": ({"keys": {ALPHA: None}}, {}, "alpha None; expected a positive number"),
    "rank": ({}, {f"{Q}.lora_a": (513, IN), f"{Q}.lora_b": (OUT, 513)}, "rank 513; expected a whole number from 1"),
    "ranks": ({}, {f"{DOWN}.lora_b": (IN, 3)}, r"1 of another shape: blk\.0\.ffn_down\.weight\.lora_b"),
    "transposed": ({}, {f"{Q}.lora_b": (4, OUT)}, rf"attn_q.weight.lora_b \(4, {OUT}\) \(expected \({OUT}, 4\)\)"),
    "half a pair": ({}, {f"{DOWN}.lora_b": None}, r"1 missing: blk\.0\.ffn_down\.weight\.lora_b"),
    "token table": ({}, {"token_embd.weight.lora_a": (4, IN)}, r"1 unknown: token_embd\.weight\.lora_a"),
    "layer": ({}, {"blk.99.attn_q.weight.lora_a": (4, IN)}, r"1 unknown: blk\.99\.attn_q\.weight\.lora_a"),
    "norm": ({}, {"blk.0.attn_norm.weight": (IN,)}, r"1 unknown: blk\.0\.attn_norm\.weight"),
    "no factors": ({}, {f"{s}.lora_{x}": None for s in (Q, DOWN) for x in "ab"}, "holds no LoRA factors"),
    "bfloat16": ({}, {f"{Q}.lora_a": np.zeros((4, IN), np.uint16)}, "lora_a is stored as BF16; expected F32 or F16"),
    "float64": ({}, {f"{Q}.lora_a": np.zeros((4, IN), np.float64)}, "unknown tensor type 28"),
}  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    """The folder of a base and its retrieval adapter, to be written anew; the arguments damage the adapter."""
    base = folder_of("nano", "Q8_0") / "v5-nano-base-Q8_0.gguf"
    header = read_header(base)
    arch = architecture.from_gguf(header.keys, header.tensors["token_embd.weight"].shape[0])
    (tmp_path / base.name).write_bytes(base.read_bytes())

    def write(damage, tensors):
        made_up = {
            name: np.zeros(shape, np.float16) if isinstance(shape, tuple) else shape
            for name, shape in tensors.items()
        }
        options = {"base": header.text(BASE_KEY), **damage}
        return write_adapter(tmp_path / "v5-nano-retrieval-adapter.gguf", arch=arch, tensors=made_up, **options)

    return tmp_path, write


def test_the_made_up_adapter_runs(pair):
    folder, write = pair
    path = write({}, {})
    assert find.find(folder).adapters == {"retrieval": path}
    engine = backend(folder / "v5-nano-base-Q8_0.gguf", adapters={"retrieval": path}, threads=1)
    assert np.isfinite(rows(engine, texts("nano", (9,)), "retrieval")).all()
    engine.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_does_not_fit_is_refused_before_the_engine_sees_it(pair, fault, monkeypatch):
    folder, write = pair
    damage, tensors, message = FAULTS[fault]
    path = write(damage, tensors)
    with pytest.raises(ModelDamaged, match=message) as error:
        find.find(folder)
    assert str(path) in str(error.value)
    base = folder / "v5-nano-base-Q8_0.gguf"
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", None)
    with pytest.raises(ModelDamaged, match=message):
        backend(base, adapters={"retrieval": path})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(pair, value, monkeypatch):
    folder, write = pair
    factor = np.zeros((4, IN), np.float16)
    factor[2, 7] = value
    path = write({}, {f"{Q}.lora_a": factor})
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", None)
    with pytest.raises(
        ModelDamaged, match=r"retrieval-adapter\.gguf: blk\.0\.attn_q\.weight\.lora_a holds NaN or inf"
    ):
        load(folder, task="retrieval")
    assert path.exists()


def test_a_merged_file_takes_no_adapter():
    path = folder_of("nano", "F32") / "v5-nano-retrieval-adapter.gguf"
    with pytest.raises(ModelDamaged, match="carries no digest of a base .* it is merged, or made by other programs"):
        backend(made.gguf_file("nano", "F32"), adapters={"retrieval": path})


def test_one_model_serves_all_tasks_without_loading_again(kind):
    folder = folder_of(kind, "Q8_0")
    with load(folder, weights="F32", threads=1) as shared:
        assert shared.spec.tasks == tiny.TASKS
        assert shared.spec.default_task == "retrieval"
        assert any("one base serves classification, clustering" in why for why in shared.spec.origin.reasons)
        answers = {task: shared.encode(["one text", "and another"], task=task) for task in tiny.TASKS}
        for task, mine in answers.items():
            with load(made.gguf_file(kind, "F32", task), threads=1) as merged:
                assert cosines(mine, merged.encode(["one text", "and another"])).min() > 0.999999
        assert len(shared._model._backends) == 1
    with load(folder / f"v5-{kind}-base-F32.gguf", task="clustering", threads=1) as by_path:
        np.testing.assert_array_equal(
            by_path.encode(["one text", "and another"], task="retrieval"), answers["retrieval"]
        )
