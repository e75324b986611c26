"""The ONNX engine: the right states for all models, whatever shares the pass, and refusals instead of crashes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convert.onnx.folders import to_onnx
from jina_local import backends, load
from jina_local.backends import padding
from jina_local.errors import EngineError, ModelDamaged, UsageError
from jina_local.formats import safetensors
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.spec import NO_TASK
from jina_local.weights import architecture
from tests import made
from tests.backends.test_mlx import batch, cosines
from tests.backends.test_mlx_v3_and_rerankers import plain

pytestmark = pytest.mark.onnx

KINDS = ("nano", "small", "v3", "reranker-v3", "reranker-v2")
TASK = {"nano": "retrieval", "small": "retrieval", "v3": "text-matching"}  # of the rerankers there is none to merge
LENGTHS = (1, 2, 7, 8, 9, 31, 32, 33, 16, 8, 3)


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind):
    backend = backends.open_backend("onnx", made.checkpoint(kind), task=TASK.get(kind))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def whole_numbers(kind):
    """The same model in INT8."""
    backend = backends.open_backend("onnx", made.onnx(kind, 8))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def texts(engine) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, engine.vocab, n) for n in LENGTHS]


@pytest.fixture(scope="module")
def expected(kind, texts) -> list[np.ndarray]:
    """Of every text, what the plain numpy forward pass gives: all states, or the logits in one row."""
    return plain(made.checkpoint(kind), TASK.get(kind), texts)


def wanted(engine, texts, rows="all"):
    """The rows that the model can be asked for: a classifier reads the first of each text."""
    return batch(texts, [[0]] * len(texts) if engine.hidden == 1 else rows)


def relative(mine: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))


def test_equals_the_plain_reference_in_every_row(engine, texts, expected):
    mine, theirs = engine.forward(wanted(engine, texts)), np.concatenate(expected)
    assert (mine.shape, mine.dtype) == (theirs.shape, np.float32)
    assert theirs.std(axis=0).min() > 0.03  # what is compared does differ from text to text
    np.testing.assert_allclose(mine, theirs, atol=2e-5)
    if mine.shape[1] > 1:
        assert cosines(mine, theirs).min() > 0.9999999


def test_chosen_rows_are_those_of_all(engine, kind, texts):
    if kind == "reranker-v2":
        pytest.skip("a classifier has one row a text")
    everything, starts = engine.forward(batch(texts, "all")), batch(texts).starts
    np.testing.assert_allclose(engine.forward(batch(texts)), everything[starts[1:] - 1], atol=5e-6)
    rng = np.random.default_rng(3)
    some = [sorted(rng.choice(len(t), rng.integers(0, min(len(t), 6) + 1), replace=False)) for t in texts]
    chosen = batch(texts, some)
    assert len(set(map(len, some))) > 2
    np.testing.assert_allclose(engine.forward(chosen), everything[chosen.rows], atol=5e-6)


@pytest.mark.parametrize("form", ["engine", "whole_numbers"])
def test_a_text_has_one_result_in_any_company(request, form, texts):
    engine = request.getfixturevalue(form)
    alone = np.concatenate([engine.forward(wanted(engine, [t], "last")) for t in texts])
    together = engine.forward(wanted(engine, texts, "last"))
    back = engine.forward(wanted(engine, texts[::-1], "last"))[::-1]
    # In whole numbers a difference in the last bit of a state can become a step of its code.
    closest = 3e-6 if form == "engine" else 2e-2
    assert relative(alone, together) < closest
    assert relative(back, together) < closest


def test_whole_numbers_depend_on_company_no_more_than_their_last_bits_do(whole_numbers, texts):
    """A scale for all tokens of a pass would make a text's vector as coarse as the largest state beside it."""
    engine, short = whole_numbers, texts[3:4]
    alone = engine.forward(wanted(engine, short, "last"))
    crowded = engine.forward(wanted(engine, short + texts, "last"))[:1]
    assert relative(crowded, alone) < 2e-2


def test_what_stands_in_the_pads_does_not_matter(engine, whole_numbers, texts, monkeypatch):
    for one in (engine, whole_numbers):
        before = one.forward(wanted(one, texts, "last"))
        monkeypatch.setattr(padding, "PAD", one.vocab - 1)
        np.testing.assert_array_equal(one.forward(wanted(one, texts, "last")), before)
        monkeypatch.setattr(padding, "PAD", 0)


def test_attention_in_tiles_gives_the_same(engine, kind, monkeypatch):
    """The kernel for long texts, on texts of every length that the plain one takes."""
    from jina_local.backends import onnx

    rng = np.random.default_rng(1)
    for lengths in ([1], [50], [33, 33, 33], [64, 3, 17]):  # padded texts take the tiles in causal models alone
        texts = [rng.integers(0, engine.vocab, n) for n in lengths]
        whole = engine.forward(wanted(engine, texts))
        monkeypatch.setattr(onnx, "LONG", 1)
        tiled = engine.forward(wanted(engine, texts))
        monkeypatch.undo()
        np.testing.assert_allclose(tiled, whole, atol=1e-5)


@pytest.mark.slow
def test_the_longest_text(engine, kind):
    """As long as the model has positions for; a state in its middle is that of plain attention."""
    from jina_local.backends import onnx

    ids = [np.random.default_rng(2).integers(0, engine.vocab, min(engine._longest, 2048))]
    tiled = engine.forward(wanted(engine, ids, "last"))
    long, onnx.LONG = onnx.LONG, 1 << 30
    try:
        whole = engine.forward(wanted(engine, ids, "last"))
    finally:
        onnx.LONG = long
    np.testing.assert_allclose(tiled, whole, atol=2e-5)


def test_fidelity_of_whole_numbers(whole_numbers, engine, texts, expected):
    """These models are small and random; at full size mean 0.998 and least 0.997 were measured on nano."""
    mine, theirs = whole_numbers.forward(wanted(engine, texts)), np.concatenate(expected)
    assert relative(mine, theirs) < 0.04
    if mine.shape[1] > 1:
        assert cosines(mine, theirs).min() > 0.999


@pytest.mark.parametrize("bits", [16, 32])
def test_floating_point_is_computed_in_32_bits(kind, bits, texts, expected):
    engine = backends.open_backend("onnx", made.onnx(kind, bits))
    mine, theirs = engine.forward(wanted(engine, texts)), np.concatenate(expected)
    engine.close()
    assert relative(mine, theirs) < {16: 2e-3, 32: 2e-6}[bits]


def test_lanes_give_the_bits_of_a_pass_alone(whole_numbers, texts):
    passes = [wanted(whole_numbers, [t], "last") for t in texts] * 3
    alone = [whole_numbers.forward(one) for one in passes]
    assert whole_numbers.lanes == whole_numbers.threads
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda one: whole_numbers.forward(one, whole_numbers.lanes), passes))
    for mine, theirs in zip(shared, alone, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-2 * np.abs(theirs).max())
    lane = backends.open_backend("onnx", made.onnx("nano", 8), threads=2)
    lane.close()
    with pytest.raises(EngineError, match="this model is closed"):
        lane.forward(batch([np.arange(5)]), 2)


def test_eight_threads_at_once(whole_numbers, texts):
    engine = whole_numbers
    passes = [wanted(engine, [t], "last") for t in texts] * 4
    alone = [engine.forward(one) for one in passes]
    with ThreadPoolExecutor(8) as pool:
        for mine, theirs in zip(pool.map(engine.forward, passes), alone, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_causal_looks_back_only_and_encoders_both_ways(engine, kind):
    if kind == "reranker-v2":
        pytest.skip("a classifier shows its first row alone")
    ids = np.arange(40) % engine.vocab
    changed = ids.copy()
    changed[-1] = 3
    a, b = (engine.forward(batch([one], "all")) for one in (ids, changed))
    same = np.abs(a - b).max(axis=1) < 1e-6
    assert same.tolist() == [engine.arch.causal] * 39 + [False]


@pytest.mark.parametrize(
    ("ids", "message"), [([-1], "token id -1 is outside"), ([1 << 30], "token id 1073741824 is outside")]
)
def test_ids_outside_the_table_are_refused(engine, ids, message):
    with pytest.raises(EngineError, match=message):
        engine.forward(batch([np.array(ids)], [[0]]))


def test_options_are_honoured_or_refused(kind):
    folder = made.checkpoint(kind)
    engine = backends.open_backend("onnx", folder, task=TASK.get(kind), device="cpu", threads=1)
    assert (engine.threads, engine.device, engine.dtype) == (1, "cpu", "float32")
    engine.close()
    with pytest.raises(UsageError, match="unknown device 'metal'; ONNX Runtime runs on: cpu"):
        backends.open_backend("onnx", folder, device="metal")
    with pytest.raises(UsageError, match="cannot be merged into it. Convert the published checkpoint"):
        backends.open_backend("onnx", made.onnx(kind, 8), task="retrieval")


def test_closing_lets_a_pass_end_and_no_other_begin(kind):
    engine = backends.open_backend("onnx", made.onnx(kind, 8))
    one = wanted(engine, [np.arange(64) % engine.vocab] * 8, "last")
    expected = engine.forward(one)
    ended, results, refused = threading.Event(), [], []

    def work() -> None:
        while not ended.is_set():
            try:
                results.append(engine.forward(one))
            except EngineError as error:
                refused.append(str(error))
                return

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(work) for _ in range(3)]
        while len(results) < 3:
            pass
        engine.close()
        engine.close()
        for call in calls:
            call.result(timeout=30)
    assert refused == ["this model is closed."] * 3
    for rows in results:
        np.testing.assert_array_equal(rows, expected)


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    """Kind, bits -> a folder of base and adapters."""
    folders: dict[tuple[str, int], Path] = {}

    def make(kind: str, bits: int) -> Path:
        if (kind, bits) not in folders:
            folders[kind, bits] = tmp_path_factory.mktemp("separate") / f"{kind}-{bits}"
            to_onnx(made.checkpoint(kind), folders[kind, bits], tasks=["all"], bits=bits, separate=True)
        return folders[kind, bits]

    return make


@pytest.mark.parametrize("kind", ["nano", "small", "v3"])
def test_an_adapter_beside_its_base_equals_the_merged_weights(kind, separate):
    rng = np.random.default_rng(4)
    folder = separate(kind, 32)
    paths = {path.stem: path for path in (folder / "adapters").iterdir()}
    beside = backends.open_backend("onnx", folder, adapters=paths)
    published = backends.open_backend(
        "onnx", made.checkpoint(kind), adapters={task: _published(kind, task) for task in paths}
    )
    texts = [rng.integers(0, beside.vocab, n) for n in (3, 40, 17)]
    for task in paths:
        (merged,) = {id(e): e for e in [backends.open_backend("onnx", made.checkpoint(kind), task=task)]}.values()
        theirs = merged.forward(batch(texts))
        merged.close()
        for engine in (beside, published):
            np.testing.assert_allclose(engine.forward(batch(texts), 1, task), theirs, atol=2e-5)
    beside.close()
    published.close()


def _published(kind: str, task: str) -> Path:
    from jina_local.weights.checkpoint import Checkpoint

    with Checkpoint(made.checkpoint(kind)) as checkpoint:
        return checkpoint.adapter_place(task)


@pytest.mark.parametrize("bits", [8, 32])
def test_tasks_in_turns_and_at_once_have_the_bits_of_each_alone(separate, bits):
    folder = separate("nano", bits)
    paths = {path.stem: path for path in (folder / "adapters").iterdir()}
    engine = backends.open_backend("onnx", folder, adapters=paths)
    one = batch([np.arange(n) % engine.vocab for n in (9, 30)])
    alone = {task: engine.forward(one, 1, task) for task in (*paths, NO_TASK)}
    assert len({rows.tobytes() for rows in alone.values()}) == len(alone)
    tasks = list(alone) * 6
    with ThreadPoolExecutor(4) as pool:
        for task, rows in zip(tasks, pool.map(lambda task: engine.forward(one, 1, task), tasks), strict=True):
            np.testing.assert_array_equal(rows, alone[task])
    with pytest.raises(EngineError, match="runs its adapters beside one base; name a task"):
        engine.forward(one)
    engine.close()


def _damaged(folder: Path, target: Path, change) -> Path:
    """A copy whose tensors are changed by `change(name, data)`."""
    shutil.copytree(folder, target)
    path = target / "model.safetensors"
    with SafetensorsFile(path) as file:
        layout = {name: (t.dtype, t.shape) for name, t in file.tensors.items()}
        tensors = {name: file.read(name) for name in file.tensors}
    changed = {name: change(name, data) for name, data in tensors.items()}
    path.unlink()
    layout = {
        name: (layout[name][0] if data.dtype == tensors[name].dtype else "F32", data.shape)
        for name, data in changed.items()
    }
    safetensors.write(path, layout, changed.items(), {})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: data[:-1] if name.endswith("down_proj.scales") else data, "do not fit the config"),
        (lambda name, data: data.astype(np.float32) if data.dtype == np.int8 else data, "is stored as F32"),
        (lambda name, data: data * np.float32(np.nan) if name == "norm.weight" else data, "NaN or infinite"),
        (lambda name, data: data * np.float32(np.inf) if name.endswith("scales") else data, "NaN or infinite"),
    ],
)
def test_damaged_whole_numbers_are_refused(change, message, tmp_path):
    folder = _damaged(made.onnx("small", 8), tmp_path / "damaged", change)
    with pytest.raises(ModelDamaged, match=message):
        backends.open_backend("onnx", folder)


def test_other_quantisations_are_refused(tmp_path):
    folder = shutil.copytree(made.onnx("nano", 8), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(ModelDamaged, match="quant_method is 'awq'"):
        backends.open_backend("onnx", folder)


def test_a_graph_in_the_folder_is_never_opened(tmp_path):
    folder = shutil.copytree(made.onnx("nano", 8), tmp_path / "with a graph")
    (folder / "model.onnx").write_bytes(b"not a graph")
    engine, other = (backends.open_backend("onnx", one) for one in (folder, made.onnx("nano", 8)))
    one = batch([np.arange(20) % engine.vocab])
    np.testing.assert_array_equal(engine.forward(one), other.forward(one))


def test_in_a_process_of_its_own_it_has_the_same_bits():
    texts = ["one text", "another text " * 40]
    with load(made.onnx("nano", 8)) as here, load(made.onnx("nano", 8), isolate="process") as there:
        assert here.spec.origin.backend == "onnx"
        np.testing.assert_array_equal(here.encode(texts), there.encode(texts))


def test_onnx_runtime_keeps_no_identifier_and_starts_no_sender(tmp_path):
    """Its builds from 1.29 on do both when they are imported, unless they are told not to."""
    script = (
        "import os, sys; from jina_local.backends.onnx import runtime; runtime();"
        "tasks = '/proc/self/task'; threads = len(os.listdir(tasks)) if os.path.isdir(tasks) else 1;"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], threads)"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    told, threads = done.stdout.split()
    assert (told, int(threads) <= 1) == ("1", True)
    assert list(tmp_path.rglob("*")) == []


def test_whoever_imported_it_first_is_warned(monkeypatch, caplog):
    from jina_local.backends import onnx

    onnx.runtime()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    onnx.runtime()
    assert "imported before jina_local" in caplog.text


def test_every_projection_is_whole_numbers():
    with SafetensorsFile(made.onnx("v3", 8) / "model.safetensors") as file:
        arch = architecture.from_config(json.loads((made.onnx("v3", 8) / "config.json").read_text()))
        codes = {name for name, tensor in file.tensors.items() if tensor.dtype == "I8"}
    assert codes == {arch.table, *architecture.projections(arch)}
