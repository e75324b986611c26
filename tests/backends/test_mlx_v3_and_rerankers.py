"""v3 and the rerankers on MLX: the right rows in any company, adapters on tables, the logits of a classifier."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convert.mlx.folders import to_mlx
from convert.verify.reference import hidden_states, logits
from jina_local import backends
from jina_local.backends import padding
from jina_local.backends.mlx import MlxBackend
from jina_local.errors import EngineError, ModelDamaged
from jina_local.spec import NO_TASK, RERANK
from jina_local.weights import architecture, projector
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny, tiny_v3_and_rerankers
from tests.backends.test_mlx import batch, cosines
from tests.backends.test_mlx_adapters import beside, files_of
from tests.convert.test_mlx_folders import rewrite

pytestmark = pytest.mark.mlx

KINDS = ("v3", "reranker-v3", "reranker-v2")
TASKS = tiny_v3_and_rerankers.V3_TASKS
TASK = {"v3": "text-matching"}  # of the rerankers there is none to merge
# Whole vectors are compared for v3 and reranker-v3; of reranker-v2 the logits, which lie within one of zero.
CLOSE = 2e-5


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind):
    backend = backends.open_backend("mlx", made.checkpoint(kind), task=TASK.get(kind), device="cpu")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def texts(engine) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, engine.vocab, n) for n in (1, 2, 7, 8, 9, 31, 32, 33, 16, 8)]


@pytest.fixture(scope="module")
def expected(kind, texts) -> list[np.ndarray]:
    """Of every text, what the plain numpy forward pass gives: all states, or the logits in one row."""
    return plain(made.checkpoint(kind), TASK.get(kind), texts)


@pytest.fixture(scope="module")
def converted(kind, tmp_path_factory):
    """Bits -> an MLX folder, made once."""
    folders: dict[int, Path] = {}

    def make(bits: int) -> Path:
        if bits not in folders:
            folders[bits] = tmp_path_factory.mktemp(kind) / str(bits)
            to_mlx(made.checkpoint(kind), folders[bits], tasks=[TASK.get(kind, RERANK)], bits=bits)
        return folders[bits]

    return make


def plain(folder: Path, task: str | None, texts: list[np.ndarray]) -> list[np.ndarray]:
    with Checkpoint(folder) as checkpoint:
        weights = dict(checkpoint.merged(task))
        run = logits if checkpoint.arch.labels else hidden_states
        return [run(checkpoint.arch, weights, ids).reshape(-1, checkpoint.arch.width) for ids in texts]


def wanted(engine: backends.Backend, texts: list[np.ndarray]):
    """The rows that the model is asked for: all, or the one that the classifier reads."""
    return batch(texts, [[0]] * len(texts) if engine.hidden == 1 else "all")


def close(mine: np.ndarray, theirs: np.ndarray, atol: float = CLOSE) -> None:
    assert mine.shape == theirs.shape
    if mine.shape[1] > 1:
        assert cosines(mine, theirs).min() >= 0.999999
    np.testing.assert_allclose(mine, theirs, atol=atol)


def test_equals_the_plain_reference(engine, texts, expected, kind):
    rows = engine.forward(wanted(engine, texts))
    assert rows.dtype == np.float32
    assert engine.hidden == {"v3": 256, "reranker-v3": 256, "reranker-v2": 1}[kind]
    assert np.concatenate(expected).std(axis=0).min() > 0.03  # what is compared does differ from text to text
    close(rows, np.concatenate(expected))


@pytest.mark.parametrize("task", [*TASKS, NO_TASK])
def test_every_task_of_v3_merged_at_load(task):
    backend = backends.open_backend("mlx", made.checkpoint("v3"), task=task, device="cpu")
    rng = np.random.default_rng(2)
    texts = [rng.integers(0, backend.vocab, n) for n in (1, 5, 40)]
    close(backend.forward(batch(texts, "all")), np.concatenate(plain(made.checkpoint("v3"), task, texts)))
    backend.close()


def test_a_text_has_one_result_in_any_company(engine, texts):
    alone = [engine.forward(wanted(engine, [t])) for t in texts]
    for order in (np.arange(len(texts)), np.random.default_rng(1).permutation(len(texts))):
        together = engine.forward(wanted(engine, [texts[i] for i in order]))
        close(together, np.concatenate([alone[i] for i in order]), 4e-6)


def test_what_stands_in_the_pads_does_not_matter(engine, texts, monkeypatch):
    before = engine.forward(wanted(engine, texts))
    monkeypatch.setattr(padding, "PAD", engine.vocab - 1)
    np.testing.assert_array_equal(engine.forward(wanted(engine, texts)), before)


def test_chosen_rows_are_those_of_all(engine, kind, texts):
    if kind == "reranker-v2":
        pytest.skip("a classifier has one row")
    everything = engine.forward(batch(texts, "all"))
    rng = np.random.default_rng(3)
    some = [sorted(rng.choice(len(t), rng.integers(0, min(len(t), 6) + 1), replace=False)) for t in texts]
    for rows in (some, [[0]] * len(texts), "last"):
        b = batch(texts, rows)
        close(engine.forward(b), everything[b.rows], 4e-6)


def test_a_prompt_with_many_marks_in_blocks_of_queries(kind, engine, monkeypatch):
    from jina_local.backends.mlx import layers

    rng = np.random.default_rng(6)
    ids = rng.integers(0, engine.vocab, 250)
    marks = [0] if kind == "reranker-v2" else sorted(rng.choice(250, 126, replace=False))
    b = batch([ids], [marks])
    whole = engine.forward(b)
    for limit, value in (("QUERY_BLOCK", 48), ("_MOST_SCORES", 4 * 250 * 20)):
        with monkeypatch.context() as patch:
            patch.setattr(layers, limit, value)
            np.testing.assert_allclose(engine.forward(b), whole, atol=4e-6)
    close(whole, plain(made.checkpoint(kind), TASK.get(kind), [ids])[0][marks], 4e-5)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("bits", "least"), [(32, 0.999999), (16, 0.99999), (8, 0.999), (6, 0.99), (5, 0.975), (4, 0.92)]
)
def test_fidelity_by_bits(kind, engine, converted, texts, expected, bits, least):
    backend = backends.open_backend("mlx", converted(bits), device="cpu")
    rows, theirs = backend.forward(wanted(engine, texts)), np.concatenate(expected)
    backend.close()
    if backend.hidden > 1:
        assert cosines(rows, theirs).min() > least
    else:
        # Of logits the noise against what tells texts apart: the same quantity as for a cosine near one.
        assert np.square(rows - theirs).mean() < 2 * (1 - least) * np.square(theirs).mean() + 1e-9


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [4, 8])
def test_widened_at_load_equals_quantised_products(kind, engine, converted, texts, bits):
    import mlx.core as mx

    from jina_local.backends.mlx.layers import Packed

    backend = backends.open_backend("mlx", converted(bits), device="cpu")
    widened = backend.forward(wanted(engine, texts))
    backend.close()
    weights, model = opened(converted(bits), mx.float32)
    packed = {name for name, weight in weights.items() if isinstance(weight, Packed)}
    assert packed == {backend.arch.table, *architecture.projections(backend.arch)}
    kept = np.array(model(padding.pad(wanted(engine, texts), 8)))
    assert np.abs(kept - widened).max() <= 1e-5 * max(1, np.abs(widened).max())


def opened(folder: Path, dtype, task: str | None = None):
    """(weights, model) as the Metal path has them, codes kept."""
    from jina_local.backends.mlx.folder import open_folder
    from jina_local.backends.mlx.transformer import Transformer
    from jina_local.backends.mlx.xlm_roberta import XlmRoberta

    found = open_folder(folder, task)
    weights = dict(found.weights(dtype, keep_packed=True))
    found.close()
    make = XlmRoberta if found.arch.xlm_roberta else Transformer
    return weights, make(found.arch, weights, fused=False)


def test_float16_as_on_metal(kind, engine, texts, expected):
    """The arithmetic of the Metal path, on the CPU: types must not be mixed and the result has to be close."""
    import mlx.core as mx

    weights, model = opened(made.checkpoint(kind), mx.float16, TASK.get(kind))
    assert {w.dtype for w in weights.values()} == {mx.float16}
    short = [t[:8] for t in texts[:6]]
    found = np.array(model(padding.pad(wanted(engine, short), 8)))
    theirs = np.concatenate(plain(made.checkpoint(kind), TASK.get(kind), short))
    if engine.hidden > 1:
        assert cosines(found, theirs).min() > 0.9999
    else:
        np.testing.assert_allclose(found, theirs, atol=0.01)


# Adapters of v3 beside their base


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """Bits -> a folder of v3's base and its five adapters, made once."""
    folders: dict[int, Path] = {}

    def make(bits: int) -> Path:
        if bits not in folders:
            folders[bits] = tmp_path_factory.mktemp("separate") / str(bits)
            to_mlx(made.checkpoint("v3"), folders[bits], tasks=list(TASKS), bits=bits, separate=True)
        return folders[bits]

    return make


def published(folder: Path) -> backends.Backend:
    with Checkpoint(folder) as checkpoint:
        places = {task: checkpoint.adapter_place(task) for task in checkpoint.tasks}
    return beside(folder, places)


@pytest.fixture(scope="module")
def ids() -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [rng.integers(0, 300, n) for n in (1, 2, 13, 16, 7)]


@pytest.mark.slow
def test_beside_equals_merged_at_32_bits(separate, ids, tmp_path):
    """Of a converted base and of both published layouts."""
    sources = made.checkpoint("v3"), made.checkpoint("v3-native")
    engines = [beside(separate(32)), *map(published, sources)]
    to_mlx(sources[0], tmp_path / "out", tasks=["all", NO_TASK], bits=32)
    for task in (*TASKS, NO_TASK):
        merged = MlxBackend(tmp_path / "out" / task, device="cpu")
        for rows in ("all", "last"):
            theirs = merged.forward(batch(ids, rows))
            for backend in engines:
                close(backend.forward(batch(ids, rows), 1, task), theirs)
        merged.close()
    for backend in engines:
        backend.close()


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_rounded_base_has_the_adapter_added_to_it_exactly(separate, ids, bits):
    """Tables too: the merged sum of what stands in the files, in numpy."""
    backend, weights = beside(separate(bits)), tables_and_all(separate(bits), "separation")
    theirs = np.concatenate([hidden_states(backend.arch, weights, text) for text in ids])
    close(backend.forward(batch(ids, "all"), 1, "separation"), theirs)
    backend.close()


def tables_and_all(folder: Path, task: str) -> dict[str, np.ndarray]:
    import mlx.core as mx

    from jina_local.backends.mlx.folder import QuantisedFolder, open_folder
    from jina_local.formats.safetensors import SafetensorsFile

    base = open_folder(folder, None)
    out = {name: np.array(weight) for name, weight in base.weights(mx.float32, keep_packed=False)}
    assert isinstance(base, QuantisedFolder) == ("quantization" in json.loads((folder / "config.json").read_text()))
    base.close()
    with SafetensorsFile(files_of(folder)[task]) as file:
        for name in architecture.adaptable(base.arch):
            a, b = (file.read_f32(f"{name.removesuffix('.weight')}.lora_{x}").astype(np.float64) for x in "AB")
            out[name] = (out[name] + b @ a * float(file.metadata["alpha"]) / int(file.metadata["rank"])).astype("f4")
    return out


@pytest.mark.parametrize("module", ["word_embeddings", "token_type_embeddings"])
def test_the_factors_of_a_table_change_the_result(separate, ids, module, tmp_path):
    copy = shutil.copytree(separate(32), tmp_path / "copy")

    def drop(tensors):
        for name in list(tensors):
            if module in name:
                del tensors[name]

    rewrite(copy / "adapters/separation.safetensors", drop)
    whole, without = (b.forward(batch(ids, "all"), 1, "separation") for b in (beside(separate(32)), beside(copy)))
    assert cosines(whole, without).max() < 0.9999


def test_tasks_come_back_bit_for_bit_and_none_is_the_base(separate, ids):
    backend = beside(separate(32))
    base = MlxBackend(separate(32), device="cpu")
    first = {task: backend.forward(batch(ids, "all"), 1, task) for task in (*TASKS, NO_TASK)}
    np.testing.assert_array_equal(first[NO_TASK], base.forward(batch(ids, "all")))
    base.close()
    for n, task in enumerate(first):
        for other in list(first)[:n]:
            assert cosines(first[task], first[other]).min() < 0.99
    asked = [*first, *reversed(first)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda task: backend.forward(batch(ids, "all"), 1, task), asked))
    for task, rows in zip(asked, found, strict=True):
        np.testing.assert_array_equal(rows, first[task])
    with pytest.raises(EngineError, match="name a task: classification, retrieval"):
        backend.forward(batch(ids))
    backend.close()


def test_q_k_and_v_may_have_an_a_each(ids, tmp_path):
    source = tiny_v3_and_rerankers.write(tmp_path / "src", "v3-native", own_factors=True)
    to_mlx(source, tmp_path / "out", tasks=["classification"], bits=32, separate=True)
    theirs = np.concatenate(plain(source, "classification", ids))
    for backend in (beside(tmp_path / "out"), published(source)):
        close(backend.forward(batch(ids, "all"), 1, "classification"), theirs)
        backend.close()


@pytest.mark.parametrize("bits", [8, 16])
def test_an_adapter_in_float16_as_on_metal(separate, ids, bits):
    import mlx.core as mx

    from jina_local.backends.mlx import adapters
    from jina_local.backends.mlx.folder import open_folder

    folder = open_folder(separate(bits), None)
    files = {"separation": files_of(separate(bits))["separation"]}
    loaded = adapters.load(files, folder, mx.float16)["separation"]
    folder.close()
    every = [*loaded.tables.values(), *(pair for block in loaded.blocks for pair in block.values())]
    assert {f.dtype for pair in every for f in (pair.a, pair.b)} == {mx.float16}
    _, model = opened(separate(bits), mx.float16)
    short = [text[:8] for text in ids]
    weights = tables_and_all(separate(bits), "separation")
    theirs = np.concatenate([hidden_states(folder.arch, weights, text) for text in short])
    assert cosines(np.array(model(padding.pad(batch(short, "all"), 8), loaded)), theirs).min() > 0.9999


# Refusals


@pytest.mark.parametrize("rows", ["last", "all", [[0], []]])
def test_a_classifier_has_the_first_row_of_every_text_or_nothing(rows):
    backend = backends.open_backend("mlx", made.checkpoint("reranker-v2"), device="cpu")
    with pytest.raises(EngineError, match="a classifier reads the first token of every text"):
        backend.forward(batch([np.arange(5), np.arange(4)], rows))
    with pytest.raises(EngineError, match="a text of 257 tokens; the model has positions for 256"):
        backend.forward(batch([np.zeros(257, np.int64)], [[0]]))
    assert backend.forward(batch([np.zeros(256, np.int64)], [[0]])).shape == (1, 1)
    backend.close()


def test_the_fill_after_a_text_may_lie_beyond_the_last_position(tmp_path):
    """Passes are as wide as a multiple of 8; 255 positions are not."""
    folder = tiny.write(tmp_path / "odd", "reranker-v2", config={"max_position_embeddings": 257})
    backend = backends.open_backend("mlx", folder, device="cpu")
    texts = [np.arange(2, 257), np.arange(2, 9)]
    alone = [backend.forward(batch([ids], [[0]])) for ids in texts]
    np.testing.assert_allclose(backend.forward(batch(texts, [[0], [0]])), np.concatenate(alone), atol=1e-5)
    backend.close()


def test_names_may_lack_the_prefix_and_the_config_too(converted, kind, engine, texts, tmp_path):
    copy = shutil.copytree(converted(8), tmp_path / "copy")
    prefix = "model." if kind == "reranker-v3" else "roberta."

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    rewrite(copy / "model.safetensors", strip)
    config = json.loads((copy / "config.json").read_text())
    entries = config["quantization"]
    config["quantization"] = {"bits": 2, "group_size": 32} | {
        name.removesuffix(".weight"): {"bits": entries["bits"], "group_size": entries["group_size"]}
        for name in (engine.arch.table, *architecture.projections(engine.arch))
    }
    (copy / "config.json").write_text(json.dumps(config))
    found = [backends.open_backend("mlx", folder, device="cpu") for folder in (converted(8), copy)]
    rows = [backend.forward(wanted(engine, texts)) for backend in found]
    np.testing.assert_array_equal(*rows)


def test_only_what_may_be_codes_is_read_as_codes(tmp_path):
    to_mlx(made.checkpoint("reranker-v2"), tmp_path / "out", tasks=[], bits=8)

    def disguise(tensors):
        half = np.zeros((256, 4), np.float16)
        tensors["classifier.dense.weight"] = ("U32", np.zeros((256, 64), np.uint32))
        tensors["classifier.dense.scales"] = tensors["classifier.dense.biases"] = ("F16", half)

    rewrite(tmp_path / "out/model.safetensors", disguise)
    with pytest.raises(ModelDamaged, match=r"unknown: classifier\.dense\.biases, classifier\.dense\.scales"):
        backends.open_backend("mlx", tmp_path / "out", device="cpu")


def test_the_projector_stands_beside_the_weights(converted, kind):
    beside_weights = converted(8) / projector.FILE
    assert beside_weights.exists() == (kind == "reranker-v3")
    if beside_weights.exists():
        mine, theirs = (projector.read(path, 256) for path in (beside_weights, made.checkpoint(kind)))
        np.testing.assert_array_equal(mine.first, theirs.first)
        np.testing.assert_array_equal(mine.second, theirs.second)
