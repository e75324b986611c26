"""model.onnx in other programs: onnxruntime and optimum give our vectors, however the texts are padded."""

from __future__ import annotations

import ast
import functools
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from convert.onnx import public_graph
from convert.onnx.folders import to_onnx
from jina_local import backends, load
from jina_local.formats import manifest
from jina_local.inference import batching
from tests import made
from tests.oracle import Oracle, cosines
from tests.oracle_v3_and_reranker_v2 import OracleV3

pytestmark = pytest.mark.onnx

ROOT = Path(__file__).resolve().parents[2]
TASKS = {"small": "retrieval", "nano": "retrieval", "v3": "text-matching", "reranker-v3": None, "reranker-v2": None}
# Beside 8-bit weights states are rounded too, and a difference in the last digit can move a state by a whole step.
LEAST = {32: 0.9999999, 16: 0.99999, 8: 0.9995, 4: 0.99}
LENGTHS = (7, 1, 20, 13)
PADDINGS = ("none", "right", "left", "both", "holes")


def folder(kind: str, bits: int) -> Path:
    return made.onnx(kind, bits)


@functools.cache
def session(kind, bits):
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder(kind, bits) / public_graph.FILE))


def some_ids() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 500, length).astype(np.int32) for length in LENGTHS]


def padded(texts: list[np.ndarray], padding: str) -> dict[str, np.ndarray]:
    """Where there is no token, an id that means something, so that a look at it is seen."""
    width = max(map(len, texts)) + (0 if padding == "none" else 12)
    ids, mask = np.full((len(texts), width), 5, np.int64), np.zeros((len(texts), width), np.int64)
    for row, text in enumerate(texts):
        start = {"left": width - len(text), "both": (width - len(text)) // 2}.get(padding, 0)
        at = start + np.arange(len(text)) + (np.arange(len(text)) // 3 if padding == "holes" else 0)
        ids[row, at], mask[row, at] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def ran(kind: str, bits: int, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session(kind, bits).get_outputs()]
    return dict(zip(names, session(kind, bits).run(names, feed), strict=True))


@functools.cache
def ours(kind: str, bits: int) -> list[np.ndarray]:
    """The rows that our engine gives for each text alone: all of them, or a classifier's one."""
    wanted = "first" if kind == "reranker-v2" else "mean"
    with closing(backends.open_backend("onnx", folder(kind, bits))) as engine:
        return [engine.forward(batching.lay_out([text], wanted)) for text in some_ids()]


def pooled(kind: str, states: list[np.ndarray]) -> np.ndarray:
    return np.stack([rows.mean(axis=0) if kind == "v3" else rows[-1] for rows in states])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("kind", TASKS)
def test_plain_onnxruntime_gives_our_vectors(kind, bits, padding):
    feed, expected = padded(some_ids(), padding), ours(kind, bits)
    found = ran(kind, bits, feed)
    if kind == "reranker-v2":
        assert found.keys() == {"logits"}
        assert np.abs(found["logits"] - np.concatenate(expected)).max() < {4: 0.2, 8: 0.05, 16: 1e-3, 32: 1e-5}[bits]
        return
    for states, mask, mine in zip(found["last_hidden_state"], feed["attention_mask"], expected, strict=True):
        assert cosines(states[mask == 1], mine).min() >= LEAST[bits]
    assert np.isfinite(found["last_hidden_state"]).all()
    if kind == "reranker-v3":
        assert found.keys() == {"last_hidden_state"}
        return
    vectors = found["sentence_embedding"]
    assert cosines(vectors, pooled(kind, expected)).min() >= LEAST[bits]
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


@pytest.mark.reference
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("kind", ["small", "nano", "v3"])
def test_plain_onnxruntime_gives_the_vectors_of_transformers(kind, padding):
    oracle = (OracleV3 if kind == "v3" else Oracle)(made.checkpoint(kind), TASKS[kind])
    expected = pooled(kind, [oracle.states(text) for text in some_ids()])
    found = ran(kind, 32, padded(some_ids(), padding))["sentence_embedding"]
    assert cosines(found, expected).min() >= 0.9999999


@pytest.mark.parametrize("kind", ["small", "nano", "v3"])
def test_a_long_text_takes_tiles_and_has_the_same_vector(kind):
    """At 1024 tokens without padding attention is computed in tiles, and with any padding by the whole matrix."""
    text = np.random.default_rng(1).integers(3, 500, public_graph.LONG).astype(np.int32)
    if kind == "v3":
        text = text[: public_graph.LONG - 2]
    found = [ran(kind, 32, padded([text], padding))["sentence_embedding"] for padding in ("none", "left")]
    assert cosines(*found).min() >= 0.9999999


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("kind", TASKS)
def test_the_graph_passes_the_checker_and_names_bytes_of_the_one_weight_file(kind, bits):
    onnx = pytest.importorskip("onnx")
    path = folder(kind, bits) / public_graph.FILE
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(str(path), load_external_data=False).graph
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {
        "model.safetensors"
    }
    assert sum(len(t.raw_data) for t in graph.initializer) < 10_000
    assert [i.name for i in graph.input] == ["input_ids", "attention_mask"]


def test_the_same_input_gives_the_same_graph_and_the_manifest_has_it(tmp_path):
    to_onnx(made.checkpoint("nano"), tmp_path / "again", tasks=["retrieval"], bits=8, source_name="nano")
    raw = (tmp_path / "again" / public_graph.FILE).read_bytes()
    assert raw == (folder("nano", 8) / public_graph.FILE).read_bytes()
    assert manifest.read(tmp_path / "again").files[public_graph.FILE].bytes == len(raw)


def test_a_base_with_separate_adapters_has_no_graph(tmp_path):
    to_onnx(made.checkpoint("nano"), tmp_path / "out", tasks=["retrieval"], bits=8, separate=True, source_name="nano")
    assert not list((tmp_path / "out").rglob(public_graph.FILE))


def test_our_engine_builds_its_own_graph(tmp_path):
    """Another graph of the right size and digest changes no vector."""
    out = tmp_path / "out"
    to_onnx(made.checkpoint("nano"), out, tasks=["retrieval"], bits=32, source_name="nano")
    with load(out, backend="onnx") as model:
        expected = model.encode("a text")
    path = out / public_graph.FILE
    known, raw = manifest.read(out).files[public_graph.FILE].sha256, b"\0" * path.stat().st_size
    path.write_bytes(raw)
    text = (out / manifest.NAME).read_text().replace(known, manifest.sha256(path))
    (out / manifest.NAME).write_text(text)
    with load(out, backend="onnx") as model:
        assert np.array_equal(model.encode("a text"), expected)


def test_the_lines_of_the_readme(monkeypatch):
    text = (ROOT / "convert" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import onnxruntime.*?)```", text, re.S)
    assert len(ast.parse(code).body) == 5
    monkeypatch.chdir(folder("nano", 8).parent)
    names: dict[str, np.ndarray] = {}
    exec(code.replace("OUT", folder("nano", 8).name), names)
    with load(folder("nano", 8), backend="onnx") as model:
        assert cosines(names["vectors"], model.encode(["a text"])).min() > LEAST[8]


@pytest.mark.filterwarnings("ignore")  # of libraries that are not ours
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("kind", TASKS)
def test_optimum_gives_our_vectors(kind, bits):
    pytest.importorskip("optimum.onnxruntime", reason="optimum is not installed: pip install optimum-onnx, apart")
    import torch
    import transformers
    from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTModelForSequenceClassification

    opener = ORTModelForSequenceClassification if kind == "reranker-v2" else ORTModelForFeatureExtraction
    # The transformers that optimum goes with knows neither EuroBERT nor v3. Nothing in the config is asked for.
    config = transformers.PretrainedConfig.from_json_file(folder(kind, bits) / "config.json")
    model = opener.from_pretrained(folder(kind, bits), config=config, file_name=public_graph.FILE)
    for padding in ("right", "left"):
        feed = padded(some_ids(), padding)
        found = model(**{name: torch.from_numpy(array) for name, array in feed.items()})
        for name, expected in ran(kind, bits, feed).items():
            if name in found:
                assert np.abs(found[name].numpy() - expected).max() < 1e-6
        assert found.keys() & {"logits", "last_hidden_state"}
