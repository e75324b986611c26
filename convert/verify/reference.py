"""The forward pass in plain numpy, float32: what the converted files are held against.

It shares no line with either engine: theta, epsilon, the order of norm and rotation, the head layout and the
mask are written here once more, from the papers and the published configs. Each text by itself, no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jina_local.weights.architecture import Architecture

from . import reference_xlm_roberta

Floats = NDArray[np.float32]


def hidden_states(
    arch: Architecture, weights: Mapping[str, Floats], ids: Sequence[int] | NDArray[np.int32]
) -> Floats:
    """(n_tokens,) ids -> (n_tokens, hidden) float32, after the final norm; of XLM-R's forms after the last block.

    `weights`: every tensor of `architecture.tensors(arch)`, the adapter added.
    """
    return all_hidden_states(arch, weights, [ids])[0]


def all_hidden_states(
    arch: Architecture, weights: Mapping[str, Floats], texts: Sequence[Sequence[int] | NDArray[np.int32]]
) -> list[Floats]:
    """The same of several texts, each by itself; every tensor is asked for once, in the order of the layers."""
    if arch.xlm_roberta:
        return reference_xlm_roberta.states(arch, weights, [np.asarray(ids) for ids in texts])
    table = weights["embed_tokens.weight"]
    states = [table[np.asarray(ids)].astype(np.float32) for ids in texts]
    del table
    for n in range(arch.layers):
        w = {k: weights[f"layers.{n}.{k}.weight"] for k in _names(arch)}
        states = [_block(arch, w, x) for x in states]
    norm = weights["norm.weight"]
    return [_rms(x, norm, arch.eps) for x in states]


def logits(arch: Architecture, weights: Mapping[str, Floats], ids: Sequence[int] | NDArray[np.int32]) -> Floats:
    """(n_tokens,) ids -> (labels,) float32: what the classifier makes of the first token's state, no sigmoid."""
    return reference_xlm_roberta.classify(weights, hidden_states(arch, weights, ids)[0])


def _block(arch: Architecture, w: Mapping[str, Floats], x: Floats) -> Floats:
    x = x + _attention(arch, w, _rms(x, w["input_layernorm"], arch.eps))
    h = _rms(x, w["post_attention_layernorm"], arch.eps)
    gate = h @ w["mlp.gate_proj"].T
    return np.asarray(x + (gate / (1 + np.exp(-gate)) * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T)


def _attention(arch: Architecture, w: Mapping[str, Floats], x: Floats) -> Floats:
    n = len(x)
    cos, sin = _angles(arch, n)
    q = (x @ w["self_attn.q_proj"].T).reshape(n, arch.heads, arch.head_dim)
    k = (x @ w["self_attn.k_proj"].T).reshape(n, arch.kv_heads, arch.head_dim)
    v = (x @ w["self_attn.v_proj"].T).reshape(n, arch.kv_heads, arch.head_dim)
    if arch.qk_norm:
        q, k = _rms(q, w["self_attn.q_norm"], arch.eps), _rms(k, w["self_attn.k_norm"], arch.eps)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    out = np.empty((n, arch.heads, arch.head_dim), np.float32)
    group = arch.heads // arch.kv_heads
    for head in range(arch.heads):
        scores = q[:, head] @ k[:, head // group].T / np.float32(np.sqrt(arch.head_dim))
        if arch.causal:
            scores[np.triu_indices(n, 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = scores / scores.sum(axis=1, keepdims=True) @ v[:, head // group]
    return out.reshape(n, -1) @ w["self_attn.o_proj"].T


def _rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotate by halves (NEOX): component i turns with component i + head_dim / 2."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _angles(arch: Architecture, n: int) -> tuple[Floats, Floats]:
    inverse = arch.rope_theta ** (-np.arange(0, arch.head_dim, 2) / arch.head_dim)
    angles = np.outer(np.arange(n), inverse)[:, None, :]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rms(x: Floats, weight: Floats, eps: float) -> Floats:
    out: Floats = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps)) * weight
    return out


def _names(arch: Architecture) -> list[str]:
    qk = ["self_attn.q_norm", "self_attn.k_norm"] if arch.qk_norm else []
    linear = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    return ["input_layernorm", "post_attention_layernorm", *linear, *qk]
