"""The parts of the graphs: tables, products with plain or quantised matrices, norms, rotation, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats.onnx_file import Graph
from ...weights.architecture import Architecture
from ...weights.int8 import LEVELS, PARTS, Int8, Int8Rows, low_of, scales_of

_FLOAT, _INT32 = 1, 6  # ONNX's numbers of types
_ZERO_POINT = np.uint8(128)  # activations are unsigned, because the fast products are of u8 by s8
_STEP, _PART, _ONE = np.float32(1 / LEVELS), np.float32(1 / PARTS), np.float32(1)
_ONE_ROW = np.array([-1])
_LEAST = np.float32(1e-30)  # keeps a row of zeros a row of zeros


Weight = NDArray[np.float32] | Int8 | Int8Rows


@dataclass(frozen=True)
class Rows:
    """States of n tokens: the value (n, width), times a scale (n, 1) if there is one, both float32."""

    value: str
    scale: str | None = None


@dataclass(frozen=True)
class _Codes:
    """States in whole numbers, u8 around 128, with a scale for each token."""

    high: str  # (n, width)
    low: Callable[[], str]  # (n, width), in steps of 1 / PARTS; added to the graph by the first call
    scale: str  # (n, 1) float32; NaN if a state is not finite


@dataclass(frozen=True)
class Ends:
    """A pass's inputs, by their names in the graph: B texts, padded to L tokens, with R wanted places in each."""

    ids: str  # (B, L) int64
    lengths: str  # (B,) int64: the tokens of each text
    places: str  # (B, L) int64: 0 to L - 1; of learned positions, the rows of their table
    long: str  # (1,) bool: whether attention is computed in tiles, for which no text may be padded
    cosines: str = ""  # (L, head_dim / 2) float32, if there are rotations
    sines: str = ""
    at: str = ""  # (B, R) int64: the wanted places; "": all
    flat_at: str = ""  # (B x R,) int64: the same among the B x L tokens


class Layers:
    """Adds the parts of one model to one graph."""

    def __init__(
        self, graph: Graph, arch: Architecture, weights: Mapping[str, Weight], ends: Ends, adapted: frozenset[str]
    ) -> None:
        """weights: exactly `architecture.tensors(arch)`. adapted: the weights for which each pass brings factors."""
        self.graph, self.arch, self.ends = graph, arch, ends
        self._weights, self._adapted = weights, adapted
        self._quantised: dict[Rows, _Codes] = {}
        self._texts = graph.node("Shape", ends.ids, end=1)

    def tokens(self) -> str:
        """The token table's rows of all ids: (B x L, hidden)."""
        return self.embed(self.arch.table, self.graph.node("Reshape", self.ends.ids, self.graph.constant(_ONE_ROW)))

    def embed(self, name: str, ids: str) -> str:
        """Rows of a table: ids (n,) -> (n, width)."""
        g, table = self.graph, self._weights[name]
        if isinstance(table, Int8Rows):
            rows = g.node("Cast", g.node("Gather", g.weight(name, table.codes), ids), to=_FLOAT)
            if table.low is not None:
                low = g.node("Cast", g.node("Gather", g.weight(low_of(name), table.low), ids), to=_FLOAT)
                rows = g.node("Add", rows, g.node("Mul", low, g.constant(_PART)))
            rows = g.node("Mul", rows, g.node("Gather", self._scales(name, table), ids))
        else:
            rows = g.node("Gather", self.plain(name), ids)
        if name in self._adapted:
            a, b = factor_names(name)
            rows = g.node("Gemm", g.node("Gather", b, ids), a, rows)
        return rows

    def plain(self, name: str) -> str:
        """A weight that is never quantised: a norm, a bias, a small table."""
        weight = self._weights[name]
        if not isinstance(weight, np.ndarray):
            raise TypeError(f"{name}: only the token table and the linear layers of the blocks are ever quantised")
        return self.graph.weight(name, weight)

    def linear(self, x: Rows, name: str, *, biased: bool = False) -> str:
        """x W^T, plus an adapter's part, plus the bias: (n, out)."""
        bias = self.plain(name.removesuffix("weight") + "bias") if biased else ""
        if bias and isinstance(self._weights[name], np.ndarray) and name not in self._adapted:
            return self.graph.node("Gemm", self.scaled(x), self.plain(name), bias, transB=1)
        y = self.scaled(self.product(x, name))
        return self.graph.node("Add", y, bias) if bias else y

    def product(self, x: Rows, name: str) -> Rows:
        """x W^T, plus an adapter's part. The result's scale may still be to be applied."""
        g, weight = self.graph, self._weights[name]
        if isinstance(weight, Int8):
            y = self._in_whole_numbers(x, name, weight)
        else:
            y = Rows(g.node("Gemm", self.scaled(x), self.plain(name), transB=1))
        if name in self._adapted:
            a, b = factor_names(name)
            small = g.node("Gemm", self.scaled(x), a, transB=1)
            y = Rows(g.node("Gemm", small, b, self.scaled(y), transB=1))
        return y

    def scaled(self, x: Rows) -> str:
        """The states themselves."""
        return x.value if x.scale is None else self.graph.node("Mul", x.value, x.scale)

    def rms(self, x: str, name: str) -> str:
        """RMS norm over the last dimension."""
        return self.graph.node("RMSNormalization", x, self.plain(name), axis=-1, epsilon=self.arch.eps)

    def layer_norm(self, x: str, name: str) -> str:
        """LayerNorm over the last dimension."""
        weight, bias = self.plain(f"{name}.weight"), self.plain(f"{name}.bias")
        return self.graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=self.arch.eps)

    def flat(self, x: str, width: int) -> str:
        """(..., width) -> (n, width)."""
        return self.graph.node("Reshape", x, self.graph.constant(np.array([-1, width])))

    def by_text(self, x: str, width: int) -> str:
        """(B x n, width) -> (B, n, width)."""
        shape = self.graph.node("Concat", self._texts, self.graph.constant(np.array([-1, width])), axis=0)
        return self.graph.node("Reshape", x, shape)

    def rows_at(self, x: str) -> str:
        """(B x L, width) -> (B x R, width): the wanted places; all rows if none are named."""
        return self.graph.node("Gather", x, self.ends.flat_at) if self.ends.at else x

    def rotated(self, x: str, heads: int, places: str) -> str:
        """(B, n, heads x head_dim), rotated by halves (NEOX), by the places (B, n)."""
        return self.graph.node("RotaryEmbedding", x, self.ends.cosines, self.ends.sines, places, num_heads=heads)

    def attend(self, q: str, k: str, v: str, *, last: bool) -> str:
        """Attention of queries (B, n, heads x d) over keys and values (B, L, kv_heads x d): (B, n, heads x d).

        last: the queries are the wanted places only, unless none are named.
        """
        g, arch, ends = self.graph, self.arch, self.ends
        heads = {"q_num_heads": arch.heads, "kv_num_heads": arch.kv_heads}
        if last and ends.at:
            if not arch.causal:
                return g.node("Attention", q, k, v, "", "", "", ends.lengths, **heads)
            return g.node("Attention", q, k, v, self._seen_from_rows(), **heads)
        tiled, whole = g.branch(), g.branch()
        whole.add_output(self._whole(whole, q, k, v))
        tiled.add_output(self._tiled(tiled, q, k, v))
        return g.node("If", ends.long, then_branch=tiled, else_branch=whole)

    def _whole(self, g: Graph, q: str, k: str, v: str) -> str:
        """Attention by the matrix of all scores."""
        heads = {"q_num_heads": self.arch.heads, "kv_num_heads": self.arch.kv_heads}
        if self.arch.causal:
            return g.node("Attention", q, k, v, is_causal=1, **heads)
        return g.node("Attention", q, k, v, "", "", "", self.ends.lengths, **heads)

    def _tiled(self, g: Graph, q: str, k: str, v: str) -> str:
        """Attention without the matrix of all scores, and without its memory. It knows no padding."""
        arch = self.arch
        if not arch.causal:
            return g.node("MultiHeadAttention", q, k, v, num_heads=arch.heads)
        one = g.constant(np.array(1, np.int32))
        lengths = g.node("Cast", g.node("Expand", g.node("Shape", self.ends.ids, start=1), self._texts), to=_INT32)
        total = g.node("Cast", g.node("Shape", self.ends.ids, start=1), to=_INT32)
        inputs = (q, k, v, "", "", g.node("Sub", lengths, one), total)
        return g.nodes("GroupQueryAttention", *inputs, outputs=3, num_heads=arch.heads, kv_num_heads=arch.kv_heads)[0]

    def _seen_from_rows(self) -> str:
        """(B, 1, R, L) bool: the places up to each wanted one."""
        g = self.graph
        length = g.node("Squeeze", g.node("Shape", self.ends.ids, start=1))
        every = g.node("Range", g.constant(np.int64(0)), length, g.constant(np.int64(1)))
        at = g.node("Unsqueeze", self.ends.at, g.constant(np.array([1, 3])))
        return g.node("GreaterOrEqual", at, every)

    def _scales(self, name: str, weight: Int8 | Int8Rows) -> str:
        return self.graph.weight(scales_of(name), weight.scales)

    def _in_whole_numbers(self, x: Rows, name: str, weight: Int8) -> Rows:
        """x W^T in whole numbers. In 16 bits the product of both low parts is left out, as too small."""
        g, codes, scales = self.graph, self._codes(x), self._scales(name, weight)
        high, kind = g.weight(name, weight.codes), weight.codes.dtype
        y = whole_product(g, codes.high, high, kind, scales)
        if weight.low is not None:
            low = g.weight(low_of(name), weight.low)
            for states, matrix in ((codes.high, low), (codes.low(), high)):
                y = g.node("Add", y, whole_product(g, states, matrix, kind, scales, _PART))
        return Rows(y, codes.scale)

    def _codes(self, x: Rows) -> _Codes:
        """States as whole numbers with a scale for each token, so that no vector depends on its company."""
        if x not in self._quantised:
            g, axis = self.graph, self.graph.constant(np.array([1]))
            most = g.node("ReduceMax", x.value, axis, keepdims=0)
            least = g.node("Neg", g.node("ReduceMin", x.value, axis, keepdims=0))
            step = g.node("Mul", g.node("Max", most, least, g.constant(_LEAST)), g.constant(_STEP))
            zeros = g.node("Expand", g.constant(_ZERO_POINT), g.node("Shape", step))
            high = g.node("QuantizeLinear", x.value, step, zeros, axis=0)
            # The engine's maxima and codes drop a NaN that stands alone in a row; a sum does not.
            total = g.node("ReduceSum", x.value, axis, keepdims=0)
            checked = g.node("Add", step, g.node("Mul", total, g.constant(np.float32(0))))
            scale = g.node("Unsqueeze", checked, axis)

            @cache
            def low() -> str:
                rest = g.node("Sub", x.value, g.node("DequantizeLinear", high, step, zeros, axis=0))
                return g.node("QuantizeLinear", rest, g.node("Mul", step, g.constant(_PART)), zeros, axis=0)

            self._quantised[x] = _Codes(high, low, scale if x.scale is None else g.node("Mul", scale, x.scale))
        return self._quantised[x]


def whole_product(
    g: Graph, states: str, codes: str, dtype: np.dtype[Any], scales: str, step: np.float32 = _ONE
) -> str:
    """u8 states (n, in) around 128 by codes (in, out) of s8, or of u8 around 128, times step and scales: (n, out)."""
    zero = g.constant(_ZERO_POINT)
    around = (zero,) if dtype == np.uint8 else ()
    return g.node("MatMulIntegerToFloat", states, codes, g.constant(step), scales, zero, *around)


def factor_names(name: str) -> tuple[str, str]:
    """The inputs that carry an adapter's A (r, in) and B (out, r), its scale included, for one weight."""
    module = name.removesuffix(".weight")
    return f"{module}.lora_A", f"{module}.lora_B"
