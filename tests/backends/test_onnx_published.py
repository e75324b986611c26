"""Graphs as Jina publishes them: our vectors through our tokens and pooling, and a trial that faulty graphs fail."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from convert.onnx import public_graph
from jina_local import backends, load
from jina_local.backends.onnx.published import PublishedBackend
from jina_local.errors import EngineError, ModelDamaged, UsageError
from jina_local.formats import manifest
from jina_local.inference import batching
from jina_local.weights.checkpoint import Checkpoint
from tests import made
from tests.oracle import Oracle, cosines

pytestmark = pytest.mark.onnx
TEXTS = ("a text", "Another one, and a little longer.", "", "日本語", "x " * 300)


def write(folder: Path, **parts) -> Path:
    """nano's published graph once more, with parts of its making replaced."""
    shutil.copytree(made.published_graph("nano"), folder)
    with_mask = lambda m, q, k, v, last: m._whole(m.graph, q, k, v)  # noqa: E731
    with (
        Checkpoint(made.onnx("nano", 32)) as checkpoint,
        mock.patch.object(public_graph._MaskedLayers, "attend", parts.pop("attend", with_mask)),
        mock.patch.multiple(public_graph, FILE=public_graph.FILE, **parts),
    ):
        public_graph.write(folder / "onnx", "model.onnx_data", checkpoint.arch, "last")
    return folder


@pytest.mark.parametrize("kind", ["nano", "small"])
def test_the_vectors_are_those_of_our_own_graph(kind):
    with load(made.onnx(kind, 32), backend="onnx") as model:
        expected = model.encode(TEXTS)
    for folder in (made.published_graph(kind), made.published_graph(kind) / "onnx"):
        with load(folder, backend="onnx") as model:
            found = model.encode(TEXTS)
            assert (model.spec.tasks, model.spec.origin.form) == (("retrieval",), "graph")
            assert "F32 weights run in the published graph" in model.spec.origin.reasons
            alone = np.stack([model.encode(text) for text in TEXTS])
        assert cosines(found, expected).min() > 0.9999999
        assert np.abs(found - alone).max() < 1e-6


def test_rows_at_any_places():
    texts = [np.arange(3, 12, dtype=np.int32), np.array([7], np.int32)]
    with closing(backends.open_backend("onnx", made.published_graph("nano") / "onnx")) as engine:
        every = engine.forward(batching.lay_out(texts, "mean"))
        some = engine.forward(batching.lay_out(texts, [np.array([0, 5]), np.array([0])]))
        assert np.abs(some - every[[0, 5, 9]]).max() < 1e-6
        with pytest.raises(EngineError, match="outside the model's table of 544 rows"):
            engine.forward(batching.lay_out([np.array([544], np.int32)], "last"))
    with pytest.raises(EngineError, match="this model is closed"):
        engine.forward(batching.lay_out(texts, "last"))


def test_in_a_process_of_its_own():
    with load(made.published_graph("nano"), backend="onnx", isolate="process") as model:
        found = model.encode(TEXTS)
    with load(made.published_graph("nano"), backend="onnx") as model:
        assert np.array_equal(model.encode(TEXTS), found)


@pytest.mark.parametrize("settings", [{"task": "retrieval"}, {"adapters": {"retrieval": Path("x")}}])
def test_a_graph_takes_no_adapter(settings):
    with pytest.raises(UsageError, match="takes no adapter"):
        PublishedBackend(made.published_graph("nano") / "onnx", **settings)


def test_a_mask_that_masks_nothing(tmp_path):
    """The fault of an export whose example had no padding."""

    def attend(m, q, k, v, last):
        return m.graph.node("Attention", q, k, v, q_num_heads=m.arch.heads, kv_num_heads=m.arch.kv_heads)

    with pytest.raises(ModelDamaged, match="depends on its padding or its company"):
        PublishedBackend(write(tmp_path / "x", attend=attend) / "onnx")


def test_another_pooling(tmp_path):
    shares = public_graph._shares
    folder = write(tmp_path / "x", _shares=lambda g, mask, pooling: shares(g, mask, "mean"))
    with pytest.raises(ModelDamaged, match="sentence_embedding is not the normalised state of the last token"):
        PublishedBackend(folder / "onnx")


def test_weights_that_are_not_finite(tmp_path):
    folder = write(tmp_path / "x")
    path = folder / "onnx" / "model.onnx_data"
    raw = bytearray(path.read_bytes())
    raw[-400_000:] = np.full(100_000, np.nan, np.float32).tobytes()
    path.write_bytes(raw)
    with pytest.raises(ModelDamaged, match="states of texts are not finite"):
        PublishedBackend(folder / "onnx")


def test_a_graph_that_the_engine_refuses_is_an_error_of_ours(tmp_path):
    folder = write(tmp_path / "x", _is_long=lambda g, mask: g.node("Gemm", mask, mask, mask))
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        PublishedBackend(folder / "onnx")


def test_the_digest_is_that_of_graph_and_weights(tmp_path):
    folder = write(tmp_path / "x") / "onnx"
    digests = {manifest.digest_of(folder)}
    for name in ("model.onnx", "model.onnx_data"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        digests.add(manifest.digest_of(folder))
    assert len(digests) == 3


def test_the_engine_opens_no_file(tmp_path):
    """The weights are gone once they were read, and passes go on."""
    folder = write(tmp_path / "x") / "onnx"
    with closing(PublishedBackend(folder)) as engine:
        for name in os.listdir(folder):
            (folder / name).unlink()
        assert np.isfinite(engine.forward(batching.lay_out([np.array([5, 6], np.int32)], "last"))).all()


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("kind", ["nano", "small"])
def test_an_export_of_transformers(tmp_path, kind):
    """Another maker's graph of the same model: its operators are known, and its vectors are ours."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript", reason="torch exports with it: pip install onnxscript")

    class Exported(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            rows = states[torch.arange(states.shape[0]), attention_mask.sum(1) - 1]
            return states, torch.nn.functional.normalize(rows, dim=-1)

    folder = tmp_path / f"jina-embeddings-v5-text-{kind}-retrieval"
    shutil.copytree(made.published_graph(kind), folder, ignore=shutil.ignore_patterns("onnx"))
    (folder / "onnx").mkdir()
    ids = torch.arange(5, 32).reshape(3, 9)
    mask = (torch.arange(9) < torch.tensor([[9], [6], [2]])).long()  # zeros, or the exporter leaves the mask out
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("length", min=2, max=1024)}
    torch.onnx.export(
        Exported(Oracle(made.checkpoint(kind), "retrieval").model), (ids, mask), str(folder / "onnx" / "model.onnx"),
        dynamo=True, external_data=True, verbose=False, input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", "sentence_embedding"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
    )  # fmt: skip
    with load(folder, backend="onnx") as model:
        found = model.encode(TEXTS)
    with load(made.onnx(kind, 32), backend="onnx") as model:
        assert cosines(found, model.encode(TEXTS)).min() > 0.999999
