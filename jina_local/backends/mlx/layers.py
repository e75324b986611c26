"""The parts of the forward passes: products with plain or quantised matrices, rotation, attention, adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from ...weights.architecture import Architecture

# Without the fused kernel the scores of all queries are in memory at once: 16 heads x 4096 x 4096 are 1.2 GB.
# Blocks of queries give the same result in the same time.
QUERY_BLOCK = 512
_MOST_SCORES = 1 << 24  # in one block: 64 MiB. The engine holds about ten blocks at a time, however long the text is


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
    """The addition of an adapter to one matrix: y = x W^T + (x A^T) B^T. Its scale is in `b`.

    Row i of a table gets B[i] A.
    """

    a: mx.array  # (r, in)
    b: mx.array  # (out, r)


@dataclass(frozen=True)
class Beside:
    """One adapter. Each call chooses one by reference; nothing is written to it."""

    blocks: Sequence[Mapping[str, Factors]]  # of each block: module -> factors
    tables: Mapping[str, Factors] = field(default_factory=dict)  # embedding table -> factors


# A block: states, an adapter's factors, mask -> states. With positions (B, R), the states of these rows alone.
Block = Callable[[mx.array, Mapping[str, Factors], mx.array | str | None, np.ndarray | None], mx.array]


def through(
    blocks: Sequence[Block],
    x: mx.array,
    beside: Beside | None,
    mask: mx.array | str | None,
    *,
    at: np.ndarray | None,
    last: mx.array | str | None,
    after_block: Callable[[mx.array], object] | None,
) -> mx.array:
    """(B, L, hidden) -> (B, L, hidden), or (B, R, hidden) for the positions `at`: the last block computes no others.

    last: the mask of the last block.
    after_block: called with the states after every block but the last.
    """
    extra = beside.blocks if beside is not None else ({},) * len(blocks)
    for block, factors in zip(blocks[:-1], extra[:-1], strict=True):
        x = block(x, factors, mask, None)
        if after_block is not None:
            after_block(x)
    return blocks[-1](x, extra[-1], last, at)


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, *, blocked: bool) -> mx.array:
    """Attention of (B, heads, n, d) queries over (B, kv_heads, L, d).

    mask: None, "causal" (n == L), or bool that broadcasts to (B, 1, n, L).
    blocked: compute a block of queries at a time, which bounds the memory.
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


class Rotation:
    """Rotary positions by halves (NEOX)."""

    def __init__(self, arch: Architecture) -> None:
        # A table computed in float64: MLX's `base=` computes in float32, and is five times further off at 8k.
        steps = np.arange(0, arch.head_dim, 2) / arch.head_dim
        self._periods = mx.array((arch.rope_theta**steps).astype(np.float32))

    def __call__(self, x: mx.array, at: np.ndarray | None = None) -> mx.array:
        """(B, n, heads, head_dim) -> (B, heads, n, head_dim), rotated by positions 0 to n - 1, or by `at` (B, n)."""
        if at is None:
            return self._rotated(x.swapaxes(1, 2), 0)
        batch, n, heads, width = x.shape
        # Each row is a sequence of one, with an offset of its own.
        rotated = self._rotated(x.reshape(batch * n, heads, 1, width), mx.array(at.reshape(-1)))
        return rotated.reshape(batch, n, heads, width).swapaxes(1, 2)

    def _rotated(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=offset, freqs=self._periods
        )


def linear(x: mx.array, weight: Matrix, factors: Factors | None = None, bias: mx.array | None = None) -> mx.array:
    """x W^T, plus an adapter's part, plus the bias."""
    if isinstance(weight, Packed):
        y = mx.quantized_matmul(
            x, weight.codes, weight.scales, weight.biases, group_size=weight.group_size, bits=weight.bits
        )
    else:
        y = x @ weight.T
    if factors is not None:
        y = mx.addmm(y, x @ factors.a.T, factors.b.T)
    return y if bias is None else y + bias


def embed(table: Matrix, ids: mx.array, factors: Factors | None = None) -> mx.array:
    """Rows of a table, plus an adapter's part: (...) ids -> (..., hidden)."""
    if isinstance(table, Packed):
        rows = mx.dequantize(
            table.codes[ids], table.scales[ids], table.biases[ids], group_size=table.group_size, bits=table.bits
        )
    else:
        rows = table[ids]
    return rows if factors is None else mx.addmm(rows, factors.b[ids], factors.a)


def outputs(weight: Matrix, part: slice) -> Matrix:
    """The matrix of some of the outputs: rows `part` of `weight`."""
    if isinstance(weight, Packed):
        return Packed(weight.codes[part], weight.scales[part], weight.biases[part], weight.group_size, weight.bits)
    return weight[part]


def rows_at(x: mx.array, at: np.ndarray) -> mx.array:
    """(B, L, hidden) -> (B, R, hidden): the positions `at` (B, R) of each text."""
    flat = mx.array((np.arange(len(at))[:, None] * x.shape[1] + at).astype(np.int32))
    return x.reshape(-1, x.shape[-1])[flat]


def plain(weight: Matrix) -> mx.array:
    """A weight that is never quantised: a norm, a bias, a small table."""
    if isinstance(weight, Packed):
        raise TypeError("only the token table and the linear layers of the blocks are ever quantised")
    return weight


def optional(mask: np.ndarray | None) -> mx.array | None:
    """A numpy mask as the engine's array; None stays None."""
    return None if mask is None else mx.array(mask)
