"""The forward pass of v3 and of reranker-v2 in plain numpy, float32: what the converted files are held against.

As reference.py, it shares no line with either engine. Post-norm blocks, exact GELU, a bias everywhere; positions by
rotation (v3) or learned (reranker-v2). Each text by itself, no padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jina_local.weights.architecture import Architecture

Floats = NDArray[np.float32]
_PAD = 1  # padding tokens have this row of positions and are not counted; the others count up from the next row
_PARTS = ("mixer.Wqkv", "mixer.out_proj", "norm1", "mlp.fc1", "mlp.fc2", "norm2")  # of a block
_GRID = np.linspace(-6, 6, 12289)  # erf is 1 to the last bit of float32 beyond 4
_ERF = np.array([math.erf(x) for x in _GRID])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-(_GRID**2))


def states(arch: Architecture, weights: Mapping[str, Floats], texts: Sequence[NDArray[np.int32]]) -> list[Floats]:
    """The ids of each text, (n_tokens,) -> (n_tokens, hidden) float32, after the last block.

    `weights`: every tensor of `architecture.tensors(arch)`, the adapter added; each is asked for once.
    """
    entries = _once(weights, [f"embeddings.{name}.weight" for name in ("word_embeddings", "token_type_embeddings")])
    words, types = entries.values()
    found = [words[ids] + types[0] for ids in texts]
    if arch.kind != "jina-bert-v3":
        places = weights["embeddings.position_embeddings.weight"]
        counted = [ids != _PAD for ids in texts]
        found = [x + places[_PAD + np.cumsum(c) * c] for x, c in zip(found, counted, strict=True)]
    w = _once(weights, ["emb_ln.weight", "emb_ln.bias"])
    found = [_norm(x, w, "emb_ln", arch.eps) for x in found]
    for layer in range(arch.layers):
        block = f"encoder.layers.{layer}"
        w = _once(weights, [f"{block}.{name}.{part}" for name in _PARTS for part in ("weight", "bias")])
        found = [_block(arch, w, block, x) for x in found]
    return found


def _once(weights: Mapping[str, Floats], names: Sequence[str]) -> dict[str, Floats]:
    return {name: weights[name] for name in names}


def _block(arch: Architecture, w: Mapping[str, Floats], block: str, x: Floats) -> Floats:
    n, size = len(x), arch.hidden // arch.heads
    turns = np.exp(1j * np.outer(np.arange(n), (arch.rope_theta or 1.0) ** (-np.arange(size // 2) * 2 / size)))
    q, k, v = np.split(_linear(x, w, f"{block}.mixer.Wqkv"), 3, axis=1)
    mixed = np.empty_like(x)
    for head in range(arch.heads):
        own = slice(head * size, (head + 1) * size)
        one, other = (_turn(y[:, own], turns) if arch.kind == "jina-bert-v3" else y[:, own] for y in (q, k))
        scores = one @ other.T / math.sqrt(size)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed[:, own] = scores / scores.sum(axis=1, keepdims=True) @ v[:, own]
    x = _norm(x + _linear(mixed, w, f"{block}.mixer.out_proj"), w, f"{block}.norm1", arch.eps)
    wide = _linear(x, w, f"{block}.mlp.fc1")
    wide = (0.5 * wide * (1 + _erf(wide / math.sqrt(2)))).astype(np.float32)
    return _norm(x + _linear(wide, w, f"{block}.mlp.fc2"), w, f"{block}.norm2", arch.eps)


def classify(weights: Mapping[str, Floats], state: Floats) -> Floats:
    """(hidden,), the state of the first token -> (labels,): dense, tanh, out_proj."""
    dense = np.tanh(_linear(state[None], weights, "classifier.dense"))
    logits: Floats = _linear(dense, weights, "classifier.out_proj")[0]
    return logits


def _linear(x: Floats, weights: Mapping[str, Floats], name: str) -> Floats:
    return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], np.float32)


def _norm(x: Floats, weights: Mapping[str, Floats], name: str, eps: float) -> Floats:
    centred = x - x.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return np.asarray(centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"], np.float32)


def _turn(x: Floats, turns: NDArray[np.complex128]) -> Floats:
    """Rotate by halves (NEOX): component i is the real part and component i + size / 2 the imaginary one."""
    half = x.shape[1] // 2
    turned = (x[:, :half] + 1j * x[:, half:]) * turns
    return np.concatenate([turned.real, turned.imag], axis=1).astype(np.float32)


def _erf(x: Floats) -> NDArray[np.float64]:
    """The error function by cubic pieces through exact values and slopes 1/1024 apart: right to 1e-14."""
    wide = np.clip(x.astype(np.float64), -6, 6)
    step = _GRID[1] - _GRID[0]
    left = np.minimum(((wide + 6) / step).astype(np.int64), len(_GRID) - 2)
    t = (wide - _GRID[left]) / step
    a, b = _ERF[left], _ERF[left + 1]
    da, db = _SLOPE[left] * step, _SLOPE[left + 1] * step
    return np.asarray(a + t * (da + t * (3 * (b - a) - 2 * da - db + t * (2 * (a - b) + da + db))))
