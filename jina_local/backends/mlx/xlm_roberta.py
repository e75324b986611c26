"""The forward pass in MLX: XLM-R's post-norm LayerNorm blocks, for jina-embeddings-v3 and jina-reranker-v2 alike.

They differ in their positions, which are rotations, or a learned table that is added to the tokens. If there is a
classifier, the rows of the result are its logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from ...weights.architecture import Architecture
from ..learned_positions import table_rows
from ..padding import Padded
from .layers import (
    Beside,
    Factors,
    Matrix,
    Rotation,
    attend,
    embed,
    linear,
    optional,
    outputs,
    plain,
    rows_at,
    through,
)

_TYPES = "embeddings.token_type_embeddings"


class XlmRoberta:
    """Weights and the pass over them. Every call has to come from the thread that made the arrays."""

    def __init__(self, arch: Architecture, weights: Mapping[str, Matrix], *, fused: bool) -> None:
        """Arrange the weights.

        weights: exactly `architecture.tensors(arch)`, evaluated.
        fused: whether the device has the fused kernels.
        """
        self._arch = arch
        self._table, self._table_name = weights[arch.table], arch.table.removesuffix(".weight")
        self._types = plain(weights[f"{_TYPES}.weight"])
        self._positions: mx.array | None = None
        rotation = None
        if arch.rope_theta:
            rotation = Rotation(arch)
        else:
            self._positions = plain(weights["embeddings.position_embeddings.weight"])
        self._norm = _Norm(weights, "emb_ln", arch.eps)
        # Compiling on the CPU runs a C++ compiler, and loads a library of a known name from the temp folder.
        gelu = mx.compile(_gelu, shapeless=True) if fused else _gelu
        self._blocks = [_Block(arch, weights, n, rotation, gelu, fused) for n in range(arch.layers)]
        self._classifier = _Classifier(weights) if arch.labels else None

    def __call__(
        self, padded: Padded, beside: Beside | None = None, after_block: Callable[[mx.array], object] | None = None
    ) -> mx.array:
        """(n_rows, hidden or logits) float32, lazy: the last states at the wanted rows, in their order.

        beside: the adapter to run with the weights in this call.
        after_block: see layers.through.
        """
        mask = optional(padded.key_mask())
        x = self._embedded(padded.ids, beside.tables if beside is not None else {})
        x = through(self._blocks, x, beside, mask, at=padded.at, last=mask, after_block=after_block)
        x = x.reshape(-1, self._arch.hidden)[mx.array(padded.pick)].astype(mx.float32)
        return x if self._classifier is None else self._classifier(x)

    def _embedded(self, ids: np.ndarray, factors: Mapping[str, Factors]) -> mx.array:
        """(B, L) ids -> (B, L, hidden): tokens, plus the only token type, plus learned positions."""
        added = embed(self._types, mx.zeros((1,), mx.int32), factors.get(_TYPES))
        if self._positions is not None:
            rows = np.minimum(table_rows(ids), len(self._positions) - 1)  # the fill after a text may lie beyond
            added = added + self._positions[mx.array(rows)]
        return self._norm(embed(self._table, mx.array(ids), factors.get(self._table_name)) + added)


class _Block:
    def __init__(
        self,
        arch: Architecture,
        weights: Mapping[str, Matrix],
        n: int,
        rotation: Rotation | None,
        gelu: Callable[[mx.array], mx.array],
        fused: bool,
    ) -> None:
        self._arch, self._rotation, self._gelu, self._fused = arch, rotation, gelu, fused
        prefix = f"encoder.layers.{n}."
        modules = ("mixer.Wqkv", "mixer.out_proj", "mlp.fc1", "mlp.fc2")
        self._weights = {name: weights[f"{prefix}{name}.weight"] for name in modules}
        self._biases = {name: plain(weights[f"{prefix}{name}.bias"]) for name in modules}
        self._norm1 = _Norm(weights, f"{prefix}norm1", arch.eps)
        self._norm2 = _Norm(weights, f"{prefix}norm2", arch.eps)

    def __call__(
        self, x: mx.array, factors: Mapping[str, Factors], mask: mx.array | str | None, at: np.ndarray | None
    ) -> mx.array:
        """(B, L, hidden) -> the same, or with `at` (B, R) only these positions: (B, R, hidden)."""

        def project(name: str, x: mx.array) -> mx.array:
            return linear(x, self._weights[name], factors.get(name), self._biases[name])

        pair = factors.get("mixer.Wqkv")
        if at is None:
            queries, keys, values = self._heads(project("mixer.Wqkv", x), 3)
        else:
            keys, values = self._heads(self._part_of_qkv(x, slice(self._arch.hidden, None), pair), 2)
            x = rows_at(x, at)
            (queries,) = self._heads(self._part_of_qkv(x, slice(self._arch.hidden), pair), 1)
        mixed = attend(
            self._rotated(queries, at),
            self._rotated(keys, None),
            values.swapaxes(1, 2),
            mask,
            blocked=not self._fused,
        )
        x = self._norm1(x + project("mixer.out_proj", mixed.swapaxes(1, 2).reshape(*x.shape)))
        return self._norm2(x + project("mlp.fc2", self._gelu(project("mlp.fc1", x))))

    def _part_of_qkv(self, x: mx.array, part: slice, factors: Factors | None) -> mx.array:
        """The outputs `part` of Wqkv."""
        of_part = None if factors is None else Factors(factors.a, factors.b[part])
        return linear(x, outputs(self._weights["mixer.Wqkv"], part), of_part, self._biases["mixer.Wqkv"][part])

    def _heads(self, x: mx.array, parts: int) -> tuple[mx.array, ...]:
        """(B, n, parts x hidden) -> for each part (B, n, heads, head_dim)."""
        split = x.reshape(*x.shape[:2], parts, self._arch.heads, self._arch.head_dim)
        return tuple(split[:, :, part] for part in range(parts))

    def _rotated(self, x: mx.array, at: np.ndarray | None) -> mx.array:
        """(B, n, heads, head_dim) -> (B, heads, n, head_dim), rotated if the model does so."""
        return x.swapaxes(1, 2) if self._rotation is None else self._rotation(x, at)


class _Norm:
    """LayerNorm. MLX computes mean and variance in float32, whatever the type of the states is."""

    def __init__(self, weights: Mapping[str, Matrix], name: str, eps: float) -> None:
        self._weight, self._bias = plain(weights[f"{name}.weight"]), plain(weights[f"{name}.bias"])
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, self._weight, self._bias, self._eps)


class _Classifier:
    """(n, hidden) float32 -> (n, labels) float32. Exact, because a logit is a score; its few rows are cheap."""

    def __init__(self, weights: Mapping[str, Matrix]) -> None:
        names = [f"classifier.{name}.{kind}" for name in ("dense", "out_proj") for kind in ("weight", "bias")]
        self._parts = [plain(weights[name]).astype(mx.float32) for name in names]

    def __call__(self, x: mx.array) -> mx.array:
        dense, dense_bias, out, out_bias = self._parts
        return linear(mx.tanh(linear(x, dense, bias=dense_bias)), out, bias=out_bias)


def _gelu(x: mx.array) -> mx.array:
    """The exact GELU, in float32, because in float16 1 + erf(x) loses all digits below -2."""
    wide = x.astype(mx.float32)
    return (wide * (0.5 + 0.5 * mx.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
