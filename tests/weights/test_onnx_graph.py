"""The gate before a published graph: the known inputs, outputs and operators, and nothing else."""

from __future__ import annotations

import json
import shutil

import pytest

from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats.onnx_file import _bytes
from jina_local.weights import onnx_graph
from tests import made
from tests.fuzz.graphs import Message


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(made.published_graph("nano"), tmp_path / "repository") / "onnx"


def change(folder, work):
    """Let `work` change the graph's message."""
    model = Message((folder / "model.onnx").read_bytes(), "Model")
    work(next(m[4] for m in model.members if m[1] == "graph"))
    (folder / "model.onnx").write_bytes(model.dump())


def renamed(folder, member, old, new):
    def work(graph):
        for value in (m[4] for m in graph.members if m[1] == member):
            value.members = [[*m[:4], new if m[4] == old else m[4]] for m in value.members]

    change(folder, work)


@pytest.mark.parametrize("kind", ["nano", "small"])
def test_the_known_graph(kind):
    graph = onnx_graph.read(made.published_graph(kind) / "onnx")
    assert graph.label == "F32"
    assert graph.arch.kind == {"nano": "eurobert", "small": "qwen3"}[kind]


@pytest.mark.parametrize(
    ("operator", "domain"),
    [("If", b""), ("Loop", b""), ("Scan", b""), ("RandomNormalLike", b""), ("StringConcat", b""), ("Gelu", b"custom"),
     ("EPContext", b"com.microsoft"), ("PyOp", b"com.microsoft"), ("Gelu", b"ai.onnx.ml"), ("", b""), ("add", b""),
     ("\u0410dd", b"")],
)  # fmt: skip
def test_an_operator_that_is_not_on_the_list(folder, operator, domain):
    body = _bytes(4, operator.encode()) + _bytes(7, domain)
    change(folder, lambda graph: graph.members.append([1, "node", "Node", 2, Message(body, "Node")]))
    with pytest.raises(ModelDamaged, match="has operators that are not run here"):
        onnx_graph.read(folder)


def test_the_other_name_of_onnx_s_own_operators(folder):
    change(folder, lambda graph: graph.members[0][4].members.append([7, "domain", "text", 2, b"ai.onnx"]))
    onnx_graph.read(folder)


@pytest.mark.parametrize(
    ("member", "old", "new", "message"),
    [
        ("input", b"attention_mask", b"mask", r"its inputs are 'input_ids' \(int64, 2 dimensions\), 'mask'"),
        (
            "output",
            b"sentence_embedding",
            b"pooler_output",
            r"outputs are .*'pooler_output' .*the known graph are",
        ),
        ("output", b"sentence_embedding", b"last_hidden_state", "two values of the graph have one name"),
    ],
)
def test_other_inputs_and_outputs(folder, member, old, new, message):
    renamed(folder, member, old, new)
    with pytest.raises(ModelDamaged, match=message):
        onnx_graph.read(folder)


def test_another_input(folder):
    extra = _bytes(1, b"position_ids") + _bytes(2, _bytes(1, b"\x08\x07" + _bytes(2, b"")))
    change(folder, lambda graph: graph.members.append([11, "input", "Value", 2, Message(extra, "Value")]))
    with pytest.raises(ModelDamaged, match=r"'position_ids' \(int64, 0 dimensions\)"):
        onnx_graph.read(folder)


def test_the_graph_of_v3_is_refused_with_the_reason(folder):
    extra = _bytes(1, b"task_id") + _bytes(2, _bytes(1, b"\x08\x07" + _bytes(2, b"")))
    change(folder, lambda graph: graph.members.append([11, "input", "Value", 2, Message(extra, "Value")]))
    shutil.copy(made.checkpoint("v3") / "config.json", folder)
    with pytest.raises(UsageError, match="chooses an adapter by its input task_id: open its checkpoint instead"):
        onnx_graph.read(folder)


def test_a_config_of_another_size(folder):
    config = json.loads((folder.parent / "config.json").read_text())
    (folder.parent / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] - 1}))
    with pytest.raises(ModelDamaged, match="has no table of 543 tokens by 256"):
        onnx_graph.read(folder)


def test_a_folder_with_safetensors_is_another_layout(folder):
    assert onnx_graph.folder_of(folder) == onnx_graph.folder_of(folder.parent) == folder
    (folder / "model.safetensors").touch()
    assert onnx_graph.folder_of(folder) is None
