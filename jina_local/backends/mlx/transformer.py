"""The forward pass in MLX: pre-norm RMS blocks with rotary positions, for Qwen3 and EuroBERT alike.

The two differ by three facts of their Architecture: causal or not, norms on queries and keys or not, and sizes.
Plain arrays and not mlx.nn modules: those draw random weights at birth and so move the caller's random state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ...architecture import Architecture
from .padding import Padded

# Without the fused kernel the scores of all queries stand in memory at once: 16 heads x 4096 x 4096 are 1.2 GB.
# Blocks of queries give the same result in the same time.
QUERY_BLOCK = 512
_MOST_SCORES = 1 << 26  # in one block; what bounds it at 32k keys


@dataclass(frozen=True)
class Packed:
    """A matrix that stays quantised: (out, in) weights as codes, a scale and a bias for each group."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int


Matrix = mx.array | Packed


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one matrix: y = x W^T + (x A^T) B^T. Its scale is in `b`."""

    a: mx.array  # (r, in)
    b: mx.array  # (out, r)


# One adapter: for each block, projection -> factors. Chosen for each call by reference; nothing is written to.
Beside = Sequence[Mapping[str, Factors]]
_NOTHING: Mapping[str, Factors] = {}


class Transformer:
    """Weights and the pass over them. Every call has to come from the thread that made the arrays."""

    def __init__(self, arch: Architecture, weights: Mapping[str, Matrix], *, fused: bool) -> None:
        """`weights`: exactly `architecture.tensors(arch)`, evaluated. `fused`: the device has the fused kernels."""
        self._arch = arch
        self._table = weights["embed_tokens.weight"]
        self._norm = _float(weights["norm.weight"])
        # In float64 and as a table: `base=` computes the frequencies in float32, five times further off at 8k.
        steps = np.arange(0, arch.head_dim, 2) / arch.head_dim
        periods = mx.array((arch.rope_theta**steps).astype(np.float32))
        # Compiling on the CPU runs a C++ compiler and loads what lies in the temp folder under a known name.
        gated = mx.compile(_gated, shapeless=True) if fused else _gated
        self._blocks = [_Block(arch, weights, n, periods, gated, fused) for n in range(arch.layers)]

    def __call__(self, padded: Padded, beside: Beside | None = None) -> mx.array:
        """(n_rows, hidden) float32, lazy: the states after the final norm at the wanted rows, in their order.

        `beside`: the adapter to run with the weights in this call; it has one entry for each block.
        """
        extra = beside if beside is not None else (_NOTHING,) * len(self._blocks)
        if self._arch.causal:
            mask: mx.array | str | None = "causal"  # real tokens never look at the pads behind them
        else:
            mask = _array(padded.key_mask())
        x = _embed(self._table, mx.array(padded.ids))
        for block, factors in zip(self._blocks[:-1], extra[:-1], strict=True):
            x = block(x, factors, mask)
        if padded.at is None:
            x = self._blocks[-1](x, extra[-1], mask)
        else:
            last = _array(padded.causal_mask()) if self._arch.causal else mask
            x = self._blocks[-1](x, extra[-1], last, padded.at)
        x = x.reshape(-1, self._arch.hidden)[mx.array(padded.pick)]
        return mx.fast.rms_norm(x, self._norm, self._arch.eps).astype(mx.float32)


class _Block:
    def __init__(
        self,
        arch: Architecture,
        weights: Mapping[str, Matrix],
        n: int,
        periods: mx.array,
        gated: Callable[[mx.array, mx.array], mx.array],
        fused: bool,
    ) -> None:
        self._arch, self._periods, self._gated, self._fused = arch, periods, gated, fused
        prefix = f"layers.{n}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(prefix)
        }
        self._linear = {name: weight for name, weight in own.items() if name.endswith("_proj")}
        self._norms = {name: _float(weight) for name, weight in own.items() if name.endswith("norm")}

    def __call__(
        self,
        x: mx.array,
        factors: Mapping[str, Factors],
        mask: mx.array | str | None,
        at: np.ndarray | None = None,
    ) -> mx.array:
        """(B, L, hidden) -> the same, or with `at` (B, R) only those positions of it: (B, R, hidden)."""

        def project(name: str, x: mx.array) -> mx.array:
            return _linear(x, self._linear[name], factors.get(name))

        normed = self._rms(x, "input_layernorm")
        keys = self._turned(self._heads(project("self_attn.k_proj", normed), "k_norm"))
        values = self._heads(project("self_attn.v_proj", normed)).swapaxes(1, 2)
        if at is None:
            queries = self._turned(self._heads(project("self_attn.q_proj", normed), "q_norm"))
        else:
            flat = mx.array((np.arange(len(at))[:, None] * x.shape[1] + at).astype(np.int32))
            x = x.reshape(-1, x.shape[-1])[flat]
            normed = self._rms(x, "input_layernorm")
            queries = self._turned_at(self._heads(project("self_attn.q_proj", normed), "q_norm"), at)
        mixed = attend(queries, keys, values, mask, blocked=not self._fused)
        x = x + project("self_attn.o_proj", mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1))
        normed = self._rms(x, "post_attention_layernorm")
        gated = self._gated(project("mlp.gate_proj", normed), project("mlp.up_proj", normed))
        return x + project("mlp.down_proj", gated)

    def _rms(self, x: mx.array, name: str) -> mx.array:
        return mx.fast.rms_norm(x, self._norms[name], self._arch.eps)

    def _heads(self, x: mx.array, norm: str | None = None) -> mx.array:
        """(B, n, heads x head_dim) -> (B, n, heads, head_dim), normed per head where the model does that."""
        out = x.reshape(*x.shape[:2], -1, self._arch.head_dim)
        return self._rms(out, f"self_attn.{norm}") if norm and self._arch.qk_norm else out

    def _turned(self, x: mx.array) -> mx.array:
        """(B, n, heads, head_dim) -> (B, heads, n, head_dim), rotated by positions 0 to n - 1."""
        return self._rope(x.swapaxes(1, 2), 0)

    def _turned_at(self, x: mx.array, at: np.ndarray) -> mx.array:
        """The same for rows that stand at the positions `at` (B, n): each is a sequence of one with an offset."""
        batch, n, heads, width = x.shape
        turned = self._rope(x.reshape(batch * n, heads, 1, width), mx.array(at.reshape(-1)))
        return turned.reshape(batch, n, heads, width).swapaxes(1, 2)

    def _rope(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, self._arch.head_dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._periods
        )


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, *, blocked: bool) -> mx.array:
    """Attention of (B, heads, n, d) queries over (B, kv_heads, L, d); `blocked` bounds what it holds at once.

    `mask`: None, "causal" (n == L), or bool that broadcasts to (B, 1, n, L).
    """
    scale = q.shape[-1] ** -0.5
    batch, heads, n, _ = q.shape
    step = max(1, min(QUERY_BLOCK, _MOST_SCORES // (batch * heads * k.shape[2])))
    if not blocked or n <= step:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    parts = []
    for start in range(0, n, step):
        part, stop = slice(start, start + step), k.shape[2]
        of_part = mask
        if isinstance(mask, str):
            stop = min(start + step, n)
        elif mask is not None and mask.shape[2] > 1:
            of_part = mask[:, :, part]
        parts.append(
            mx.fast.scaled_dot_product_attention(
                q[:, :, part], k[:, :, :stop], v[:, :, :stop], scale=scale, mask=of_part
            )
        )
    return mx.concatenate(parts, axis=2)


def _linear(x: mx.array, weight: Matrix, factors: Factors | None) -> mx.array:
    if isinstance(weight, Packed):
        y = mx.quantized_matmul(
            x, weight.codes, weight.scales, weight.biases, group_size=weight.group_size, bits=weight.bits
        )
    else:
        y = x @ weight.T
    return y if factors is None else mx.addmm(y, x @ factors.a.T, factors.b.T)


def _embed(table: Matrix, ids: mx.array) -> mx.array:
    if isinstance(table, Packed):
        return mx.dequantize(
            table.codes[ids], table.scales[ids], table.biases[ids], group_size=table.group_size, bits=table.bits
        )
    return table[ids]


def _gated(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def _float(weight: Matrix) -> mx.array:
    if isinstance(weight, Packed):
        raise TypeError("norms are never quantised")
    return weight


def _array(mask: np.ndarray | None) -> mx.array | None:
    return None if mask is None else mx.array(mask)
