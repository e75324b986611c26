"""The forward pass in MLX: pre-norm RMS blocks with rotary positions, for Qwen3 and EuroBERT alike.

The two differ by three facts of their Architecture: causal or not, norms on queries and keys or not, and sizes.
The weights are plain arrays, because mlx.nn modules draw random weights first, which changes the caller's random
state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from ...weights.architecture import Architecture
from ..padding import Padded
from .layers import Beside, Factors, Matrix, Rotation, attend, embed, linear, optional, plain, rows_at, through


class Transformer:
    """Weights and the pass over them. Every call has to come from the thread that made the arrays."""

    def __init__(self, arch: Architecture, weights: Mapping[str, Matrix], *, fused: bool) -> None:
        """Arrange the weights.

        weights: exactly `architecture.tensors(arch)`, evaluated.
        fused: whether the device has the fused kernels.
        """
        self._arch = arch
        self._table = weights[arch.table]
        self._norm = plain(weights["norm.weight"])
        rotation = Rotation(arch)
        # Compiling on the CPU runs a C++ compiler, and loads a library of a known name from the temp folder.
        gated = mx.compile(_gated, shapeless=True) if fused else _gated
        self._blocks = [_Block(arch, weights, n, rotation, gated, fused) for n in range(arch.layers)]

    def __call__(
        self, padded: Padded, beside: Beside | None = None, after_block: Callable[[mx.array], object] | None = None
    ) -> mx.array:
        """(n_rows, hidden) float32, lazy: the states after the final norm at the wanted rows, in their order.

        beside: the adapter to run with the weights in this call.
        after_block: see layers.through.
        """
        if self._arch.causal:
            mask: mx.array | str | None = "causal"  # real tokens never look at the pads behind them
            last = mask if padded.at is None else optional(padded.causal_mask())
        else:
            mask = last = optional(padded.key_mask())
        x = embed(self._table, mx.array(padded.ids))
        x = through(self._blocks, x, beside, mask, at=padded.at, last=last, after_block=after_block)
        x = x.reshape(-1, self._arch.hidden)[mx.array(padded.pick)]
        return mx.fast.rms_norm(x, self._norm, self._arch.eps).astype(mx.float32)


class _Block:
    def __init__(
        self,
        arch: Architecture,
        weights: Mapping[str, Matrix],
        n: int,
        rotation: Rotation,
        gated: Callable[[mx.array, mx.array], mx.array],
        fused: bool,
    ) -> None:
        self._arch, self._rotation, self._gated, self._fused = arch, rotation, gated, fused
        prefix = f"layers.{n}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(prefix)
        }
        self._linear = {name: weight for name, weight in own.items() if name.endswith("_proj")}
        self._norms = {name: plain(weight) for name, weight in own.items() if name.endswith("norm")}

    def __call__(
        self, x: mx.array, factors: Mapping[str, Factors], mask: mx.array | str | None, at: np.ndarray | None
    ) -> mx.array:
        """(B, L, hidden) -> the same, or with `at` (B, R) only these positions: (B, R, hidden)."""

        def project(name: str, x: mx.array) -> mx.array:
            return linear(x, self._linear[name], factors.get(name))

        normed = self._rms(x, "input_layernorm")
        keys = self._rotation(self._heads(project("self_attn.k_proj", normed), "k_norm"))
        values = self._heads(project("self_attn.v_proj", normed)).swapaxes(1, 2)
        if at is not None:
            x = rows_at(x, at)
            normed = self._rms(x, "input_layernorm")
        queries = self._rotation(self._heads(project("self_attn.q_proj", normed), "q_norm"), at)
        mixed = attend(queries, keys, values, mask, blocked=not self._fused)
        x = x + project("self_attn.o_proj", mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))
        normed = self._rms(x, "post_attention_layernorm")
        gated = self._gated(project("mlp.gate_proj", normed), project("mlp.up_proj", normed))
        return x + project("mlp.down_proj", gated)

    def _rms(self, x: mx.array, name: str) -> mx.array:
        return mx.fast.rms_norm(x, self._norms[name], self._arch.eps)

    def _heads(self, x: mx.array, norm: str | None = None) -> mx.array:
        """(B, n, heads x head_dim) -> (B, n, heads, head_dim), normed per head if the model does so."""
        out = x.reshape(*x.shape[:2], -1, self._arch.head_dim)
        return self._rms(out, f"self_attn.{norm}") if norm and self._arch.qk_norm else out


def _gated(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up
