"""model.onnx: the whole model as a graph for other programs, whose weights are the tensors of model.safetensors.

Inputs, both (batch, sequence) int64: `input_ids`, and `attention_mask`, which may mask any tokens. A masked token is
not seen and has no position, so that a text has one vector however it is padded. Outputs, all float32:

    last_hidden_state   (batch, sequence, hidden): after the final norm. Not of a pairwise reranker.
    sentence_embedding  (batch, hidden): pooled as the model pools, of unit length. Of embedding models.
    logits              (batch, 1): of a pairwise reranker.

A listwise reranker scores by the states at its prompt's marks, so it has `last_hidden_state` alone.
jina_local does not open this file: it builds its own graph from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jina_local.backends.learned_positions import PADDING
from jina_local.backends.onnx import transformer, xlm_roberta
from jina_local.backends.onnx.layers import Ends, Layers, Rows, Weight
from jina_local.formats.onnx_file import Graph
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.weights import architecture
from jina_local.weights.architecture import Architecture
from jina_local.weights.int4 import BLOCK
from jina_local.weights.int8 import Int8, Int8Rows, low_of, scales_of

FILE = "model.onnx"
_FLOAT, _INT32, _INT64, _BOOL, _DOUBLE = 1, 6, 7, 9, 11  # ONNX's numbers of types
_DTYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "I8": np.int8, "U8": np.uint8}
LONG = 1024  # from this length on, attention of unmasked texts is computed without the matrix of all scores
_SECOND = np.array([1])


def write(folder: Path, weights: str, arch: Architecture, pooling: str) -> None:
    """Write the graph into a folder, beside its safetensors file `weights`. pooling: as a ModelSpec has it."""
    with SafetensorsFile(folder / weights) as file:
        tensors = file.tensors
    # The graph says only the types and shapes of the weights, so no data is read.
    shapes = {name: np.broadcast_to(_DTYPES[t.dtype](0), t.shape) for name, t in tensors.items()}

    def place(name: str) -> tuple[str, int, int]:
        return weights, tensors[name].start, tensors[name].end - tensors[name].start

    (folder / FILE).write_bytes(build(arch, shapes, pooling).model(place))


def build(arch: Architecture, tensors: Mapping[str, NDArray[Any]], pooling: str) -> Graph:
    """The graph of one model. `tensors` has the names, types and shapes of the file; the data is not looked at."""
    g = Graph()
    ids, mask = (g.input(name, np.int64, ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
    mask = g.node("Cast", mask, to=_BOOL)
    ends = Ends(ids=ids, lengths="", places=_places(g, arch, ids, mask), long=_is_long(g, mask))
    if arch.rope_theta:
        cosines, sines = _rotations(g, arch, ids)
        ends = replace(ends, cosines=cosines, sines=sines)
    if arch.labels:
        first = g.node("ArgMax", g.node("Cast", mask, to=_INT32), axis=1, keepdims=1)
        ends = replace(ends, at=first, flat_at=_flat(g, ids, first))
    layers = _MaskedLayers(g, arch, _weights(arch, tensors), ends, mask)
    states = (xlm_roberta if arch.xlm_roberta else transformer).states(layers)
    if arch.labels:
        g.output("logits", states, np.float32, ("batch", arch.labels))
        return g
    states = layers.by_text(states, arch.hidden)
    g.output("last_hidden_state", states, np.float32, ("batch", "sequence", arch.hidden))
    if pooling in ("last", "mean"):
        mean = g.node("Squeeze", g.node("MatMul", _shares(g, mask, pooling), states), g.constant(_SECOND))
        unit = g.node("LpNormalization", mean, axis=-1, p=2)
        g.output("sentence_embedding", unit, np.float32, ("batch", arch.hidden))
    return g


class _MaskedLayers(Layers):
    """Layers whose attention is masked token by token, and whose matrices in 4 bits stay so."""

    def __init__(
        self, graph: Graph, arch: Architecture, weights: Mapping[str, Weight], ends: Ends, mask: str
    ) -> None:
        super().__init__(graph, arch, weights, ends, frozenset())
        self._mask = graph.node("Unsqueeze", mask, graph.constant(np.array([1, 2])))
        self._seen = self._seen_by_each()

    def product(self, x: Rows, name: str) -> Rows:
        """As `Layers.product`."""
        g, weight = self.graph, self._weights[name]
        if not isinstance(weight, Int8) or weight.codes.ndim == 2:
            return super().product(x, name)
        outputs, blocks, _ = weight.codes.shape
        codes, scales = g.weight(name, weight.codes), self._scales(name, weight)
        sizes = {"K": blocks * BLOCK, "N": outputs, "bits": 4, "block_size": BLOCK}
        return Rows(g.node("MatMulNBits", self.scaled(x), codes, scales, **sizes))

    def by_text(self, x: str, width: int) -> str:
        """As `Layers.by_text`. The width is said, because ONNX Runtime takes an unknown one for 0 and warns of it."""
        made = super().by_text(x, width)
        return self.graph.describe(made, np.float32, ("batch", f"{made}_places", width))

    def attend(self, q: str, k: str, v: str, *, last: bool) -> str:
        """As `Layers.attend`."""
        if last and self.ends.at:
            return self._seeing(self._mask, self.graph, q, k, v)
        return super().attend(q, k, v, last=last)

    def _whole(self, g: Graph, q: str, k: str, v: str) -> str:
        return self._seeing(self._seen, g, q, k, v)

    def _seeing(self, seen: str, g: Graph, q: str, k: str, v: str) -> str:
        heads = {"q_num_heads": self.arch.heads, "kv_num_heads": self.arch.kv_heads}
        return g.node("Attention", q, k, v, seen, **heads)

    def _seen_by_each(self) -> str:
        """(B, 1, L, L) bool. A masked token sees itself, because a token that sees nothing has no finite state."""
        g, keys = self.graph, _every(self.graph, self.ends.ids)
        queries = g.node("Unsqueeze", keys, g.constant(_SECOND))
        seen = g.node("And", self._mask, g.node("GreaterOrEqual", queries, keys)) if self.arch.causal else self._mask
        return g.node("Or", seen, g.node("Equal", queries, keys))


def _weights(arch: Architecture, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Weight]:
    """The tensors of a file as weights of the model."""
    out: dict[str, Weight] = {}
    for name in architecture.tensors(arch):
        weight, scales = tensors[name], tensors.get(scales_of(name))
        if scales is None:
            out[name] = weight
        else:
            out[name] = (Int8Rows if name == arch.table else Int8)(weight, scales, tensors.get(low_of(name)))
    return out


def _is_long(g: Graph, mask: str) -> str:
    """(1,) bool: whether attention is computed in tiles, which know no mask."""
    length = g.node("Shape", mask, start=1)
    every = g.node("ReduceMin", g.node("Cast", mask, to=_INT32), keepdims=0)
    full = g.node("Cast", every, to=_BOOL)
    return g.node("And", g.node("GreaterOrEqual", length, g.constant(np.array([LONG]))), full)


def _every(g: Graph, ids: str) -> str:
    """0 to L - 1, (L,) int64."""
    length = g.node("Squeeze", g.node("Shape", ids, start=1))
    return g.node("Range", g.constant(np.int64(0)), length, g.constant(np.int64(1)))


def _flat(g: Graph, ids: str, at: str) -> str:
    """Places (B, R) in their texts -> (B x R,) among the B x L tokens."""
    texts, length = (g.node("Squeeze", g.node("Shape", ids, start=axis, end=axis + 1)) for axis in (0, 1))
    starts = g.node("Mul", g.node("Range", g.constant(np.int64(0)), texts, g.constant(np.int64(1))), length)
    flat = g.node("Add", at, g.node("Unsqueeze", starts, g.constant(_SECOND)))
    return g.node("Reshape", flat, g.constant(np.array([-1])))


def _places(g: Graph, arch: Architecture, ids: str, mask: str) -> str:
    """(B, L) int64: the place of each token among the unmasked ones; of learned positions, the row of their table."""
    axis, one = g.constant(np.int64(1)), g.constant(np.int64(1))
    if arch.rope_theta:
        count = g.node("CumSum", g.node("Cast", mask, to=_INT64), axis)
        return g.node("Max", g.node("Sub", count, one), g.constant(np.int64(0)))
    padding = g.constant(np.int64(PADDING))
    counted = g.node("And", mask, g.node("Not", g.node("Equal", ids, padding)))
    rows = g.node("Add", g.node("CumSum", g.node("Cast", counted, to=_INT64), axis), padding)
    return g.node("Where", counted, rows, padding)


def _rotations(g: Graph, arch: Architecture, ids: str) -> tuple[str, str]:
    """cos and sin of the rotary angles, (L, head_dim / 2) float32, computed in float64."""
    steps = arch.rope_theta ** -(np.arange(0, arch.head_dim, 2) / arch.head_dim)
    places = g.node("Unsqueeze", g.node("Cast", _every(g, ids), to=_DOUBLE), g.constant(_SECOND))
    angles = g.node("Mul", places, g.constant(steps))
    return g.node("Cast", g.node("Cos", angles), to=_FLOAT), g.node("Cast", g.node("Sin", angles), to=_FLOAT)


def _shares(g: Graph, mask: str, pooling: str) -> str:
    """(B, 1, L) float32: the share that each token has in the pooled state."""
    number = g.node("Cast", mask, to=_FLOAT)
    if pooling == "mean":
        count = g.node("ReduceSum", number, g.constant(_SECOND), keepdims=1)
        return g.node("Unsqueeze", g.node("Div", number, count), g.constant(_SECOND))
    last = g.node("ArgMax", g.node("Cast", mask, to=_INT32), axis=1, keepdims=1, select_last_index=1)
    chosen = g.node("Equal", last, _every(g, mask))
    return g.node("Unsqueeze", g.node("Cast", chosen, to=_FLOAT), g.constant(_SECOND))
