"""Whole numbers in the ONNX engine: how near their states are, their bytes, and states that are not finite."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from convert.onnx.folders import to_onnx
from jina_local import backends
from jina_local.errors import ModelDamaged
from jina_local.formats import safetensors
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.weights import architecture, int8
from tests import made
from tests.backends.test_mlx import batch, cosines
from tests.backends.test_onnx import KINDS, LENGTHS, TASK, relative, wanted

pytestmark = pytest.mark.onnx


def states(folder, rows="all"):
    engine = backends.open_backend("onnx", folder)
    rng = np.random.default_rng(5)
    try:
        return engine.forward(wanted(engine, [rng.integers(0, engine.vocab, n) for n in LENGTHS], rows))
    finally:
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "furthest", "closest"), [(4, 0.2, 0.97), (8, 0.04, 0.999), (16, 3e-4, 0.9999999)])
def test_states_are_near_those_of_float32(kind, bits, furthest, closest):
    mine, theirs = states(made.onnx(kind, bits)), states(made.onnx(kind, 32))
    assert 0 < relative(mine, theirs) < furthest
    if mine.shape[1] > 1:
        assert cosines(mine, theirs).min() > closest


def test_both_parts_of_16_bits_count(monkeypatch):
    """Without the low part of the weights, or of the states, it would be no nearer than 8 bits are."""
    from jina_local.backends.onnx import folder, layers

    theirs, exact = states(made.onnx("small", 32)), states(made.onnx("small", 16))
    monkeypatch.setattr(layers, "_PART", np.float32(0))
    assert relative(states(made.onnx("small", 16)), theirs) > 20 * relative(exact, theirs)
    monkeypatch.undo()

    def without_low(codes, scales, low):
        return layers.Int8(codes, scales, np.zeros_like(low))

    monkeypatch.setattr(folder, "Int8", without_low)
    assert relative(states(made.onnx("small", 16)), theirs) > 20 * relative(exact, theirs)


@pytest.mark.parametrize(("label", "steps"), [("INT8", 0.51), ("INT16", 1.01)])
@pytest.mark.parametrize("table", [False, True])
def test_codes_are_as_near_as_their_steps(label, steps, table):
    weight = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32)
    weight[3] = 0
    weight[4, 0] = 100  # the codes of a row do not depend on another row
    stored = dict(int8.tensors("a.weight", weight, label, table=table))
    codes, low = stored["a.weight"], stored.get("a.low")
    assert codes.shape == ((50, 70) if table else (70, 50))
    assert codes.dtype == np.int8
    assert codes.min() == -127
    assert (low is not None) == (label == "INT16")
    step = np.abs(weight).max(axis=1, keepdims=True) / 127 / (256 if label == "INT16" else 1)
    off = np.abs(int8.widened(codes, stored["a.scales"], low) - weight)
    assert (off <= step * steps).all()
    assert np.mean(off <= step * 0.51) > 0.99
    assert off[3].max() == 0


def test_a_low_code_at_the_edge_does_not_wrap():
    """Half a step above a code is 128 low steps, of which there are 127."""
    weight = np.array([[127, 0.5, 1.5, -0.5, -1.5]], np.float32)
    stored = dict(int8.tensors("a.weight", weight, "INT16", table=True))
    wide = int8.widened(stored["a.weight"], stored["a.scales"], stored["a.low"])
    np.testing.assert_allclose(wide, weight, atol=1 / 256)


# Of each kind a weight whose size makes states overflow, so that NaN stands alone in a row.
FORGED = {
    "small": ("layers.0.self_attn.k_norm.weight", 3, 1e38),
    "v3": ("encoder.layers.0.norm2.bias", 3, 1e20),
    "reranker-v3": ("layers.0.self_attn.q_norm.weight", 3, 1e38),
    "reranker-v2": ("emb_ln.bias", slice(None), 1e30),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_state_that_is_not_finite_is_not_lost_in_whole_numbers(kind, tmp_path):
    name, at, size = FORGED[kind]
    rows = {}
    for bits in (8, 16, 32):
        folder = shutil.copytree(made.onnx(kind, bits), tmp_path / str(bits))
        change(folder / "model.safetensors", lambda tensors: tensors[name].__setitem__(at, size))
        rows[bits] = states(folder)
    lost = ~np.isfinite(rows[32]).all(axis=1)
    assert lost.any()
    for bits in (8, 16):
        assert not np.isfinite(rows[bits][lost]).all(axis=1).any()


def change(path, edit):
    """Rewrite a file, its tensors in a dict edited in place."""
    with SafetensorsFile(path) as file:
        layout = {name: (t.dtype, t.shape) for name, t in file.tensors.items()}
        tensors, metadata = {name: file.read(name) for name in file.tensors}, file.metadata
    edit(tensors)
    path.unlink()
    safetensors.write(path, layout, tensors.items(), metadata)


@pytest.mark.parametrize("other", [8, 16])
def test_a_folder_that_says_another_width_is_refused(other, tmp_path):
    folder = shutil.copytree(made.onnx("small", 24 - other), tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": f"jina_local-int{other}"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelDamaged, match="do not fit the config"):
        backends.open_backend("onnx", folder)


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    files = []
    for run in "ab":
        to_onnx(made.checkpoint("nano"), tmp_path / run, tasks=["retrieval"], bits=16)
        files.append((tmp_path / run / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    with SafetensorsFile(tmp_path / "a" / "model.safetensors") as file:
        arch = architecture.from_config(json.loads((tmp_path / "a" / "config.json").read_text()))
        assert {n: (t.dtype, t.shape) for n, t in file.tensors.items()} == int8.layout(arch, "INT16")


@pytest.mark.parametrize("kind", ["nano", "small", "v3"])
def test_adapters_beside_16_bits_equal_float32(kind, tmp_path):
    rows = {}
    for bits in (16, 32):
        to_onnx(made.checkpoint(kind), tmp_path / str(bits), tasks=["all"], bits=bits, separate=True)
        paths = {path.stem: path for path in (tmp_path / str(bits) / "adapters").iterdir()}
        engine = backends.open_backend("onnx", tmp_path / str(bits), adapters=paths)
        one = batch([np.arange(n) % engine.vocab for n in (9, 30)])
        rows[bits] = engine.forward(one, 1, TASK[kind])
        engine.close()
    assert relative(rows[16], rows[32]) < 1e-3
