"""A graph that Jina publishes as onnx/model.onnx, held against the known one before an engine sees a byte of it.

Known is: ids and a mask go in, the last states and the pooled, normalised vector come out, and every operator between
them computes its outputs from its inputs and does nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelDamaged, UsageError
from ..formats import onnx_reader
from ..formats.files import read_json
from ..formats.onnx_reader import OnnxFile
from ..formats.schema import shown
from . import architecture
from .architecture import Architecture

FILE = "model.onnx"
IDS, MASK, STATES, VECTOR = "input_ids", "attention_mask", "last_hidden_state", "sentence_embedding"
_INPUTS = {name: (np.dtype(np.int64), 2) for name in (IDS, MASK)}
_OUTPUTS = {STATES: (np.dtype(np.float32), 3), VECTOR: (np.dtype(np.float32), 2)}
_LABELS = {"float32": "F32", "float16": "F16", "int8": "INT8", "uint8": "INT8"}  # type of the token table -> label
_KINDS = ("qwen3", "eurobert")  # their graphs have these outputs, pooled at the last token

# Operators that compute their outputs from their inputs and do nothing else, by domain.
_OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset((
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Attention", "Cast", "CastLike", "Ceil", "Clip", "Concat",
        "Constant", "ConstantOfShape", "Cos", "CumSum", "DequantizeLinear", "Div", "DynamicQuantizeLinear",
        "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
        "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "LayerNormalization", "Less",
        "LessOrEqual", "Log", "LpNormalization", "MatMul", "MatMulInteger", "Max", "Mean", "Min", "Mod", "Mul",
        "Neg", "Not", "Or", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Range", "Reciprocal", "ReduceL2",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape",
        "RotaryEmbedding", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign",
        "SimplifiedLayerNormalization", "Sin", "Size", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
        "Swish", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    )),
    "com.microsoft": frozenset((
        "BiasGelu", "DynamicQuantizeMatMul", "FastGelu", "FusedMatMul", "Gelu", "GroupQueryAttention",
        "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QuickGelu", "RotaryEmbedding",
        "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    )),
}  # fmt: skip


@dataclass(frozen=True)
class PublishedGraph:
    """A graph that was judged, the model's shape, and the type of its weights."""

    file: OnnxFile
    arch: Architecture
    label: str


def folder_of(path: Path) -> Path | None:
    """The folder with the graph: `path` or its `onnx`, if there is one. Weights in safetensors are another layout."""
    for folder in (path / "onnx", path):
        if os.path.lexists(folder / FILE) and not any(folder.glob("model*.safetensors")):
            return folder
    return None


def beside(folder: Path, name: str) -> Path:
    """A file of the model: beside the graph, or in the folder above, as in a repository."""
    return folder / name if os.path.lexists(folder / name) else folder.absolute().parent / name


def read(folder: Path) -> PublishedGraph:
    """Read and judge the graph in a folder. Raises ModelDamaged, or UsageError for a graph that is not run here."""
    config = beside(folder, "config.json")
    arch = architecture.from_config(read_json(config), str(config))
    file = onnx_reader.read(folder / FILE)
    if arch.kind not in _KINDS or "task_id" in file.inputs:
        raise UsageError(
            f"{file.path}: the published graphs that are run here are those of jina-embeddings-v5-text, one for each "
            f"task. This one is of another model{_asks(file)}: open its checkpoint instead."
        )
    for what, found, known in (("inputs", file.inputs, _INPUTS), ("outputs", file.outputs, _OUTPUTS)):
        if found != known:
            raise ModelDamaged(
                f"{file.path}: its {what} are {_listed(found)}; those of the known graph are {_listed(known)}."
            )
    unknown = sorted(
        f"{domain}{'.' if domain else ''}{operator}"
        for domain, operator in file.operators
        if operator not in _OPERATORS.get(domain, ())
    )
    if unknown:
        raise ModelDamaged(
            f"{file.path}: has operators that are not run here, because this model's computation does not need them: "
            f"{', '.join(map(ascii, unknown[:10]))}."
        )
    return PublishedGraph(file, arch, _label(file, arch))


def _label(file: OnnxFile, arch: Architecture) -> str:
    """The type of the token table, without which graph and config do not belong together. Raises ModelDamaged."""
    tables = (one for one in file.tensors.values() if one.shape == (arch.vocab, arch.hidden))
    for table in tables:
        if label := _LABELS.get(table.dtype.name):
            return label
    raise ModelDamaged(
        f"{file.path}: has no table of {arch.vocab} tokens by {arch.hidden}, which its config.json says that it has."
    )


def _asks(file: OnnxFile) -> str:
    return ", which chooses an adapter by its input task_id" if "task_id" in file.inputs else ""


def _listed(values: Mapping[str, tuple[np.dtype[Any], int]]) -> str:
    return (
        ", ".join(f"{shown(name)} ({dtype}, {dims} dimensions)" for name, (dtype, dims) in values.items()) or "none"
    )
