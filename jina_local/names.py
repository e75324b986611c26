"""Tensor names: checkpoint on the left, GGUF on the right, `{n}` the layer; one table per architecture."""

from __future__ import annotations

from . import architecture
from .architecture import Architecture

_EUROBERT = {
    "embed_tokens": "token_embd",
    "layers.{n}.input_layernorm": "blk.{n}.attn_norm",
    "layers.{n}.self_attn.q_proj": "blk.{n}.attn_q",
    "layers.{n}.self_attn.k_proj": "blk.{n}.attn_k",
    "layers.{n}.self_attn.v_proj": "blk.{n}.attn_v",
    "layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
    "layers.{n}.post_attention_layernorm": "blk.{n}.ffn_norm",
    "layers.{n}.mlp.gate_proj": "blk.{n}.ffn_gate",
    "layers.{n}.mlp.up_proj": "blk.{n}.ffn_up",
    "layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
    "norm": "output_norm",
}
_QWEN3 = {
    **_EUROBERT,
    "layers.{n}.self_attn.q_norm": "blk.{n}.attn_q_norm",
    "layers.{n}.self_attn.k_norm": "blk.{n}.attn_k_norm",
}
TABLES = {"qwen3": _QWEN3, "eurobert": _EUROBERT}


def gguf_names(arch: Architecture) -> dict[str, str]:
    """Every checkpoint name of `arch` -> its GGUF name, in the order of `architecture.tensors`.

    Raises ValueError where the table and the architecture do not cover each other exactly.
    """
    table = {
        f"{left.format(n=n)}.weight": f"{right.format(n=n)}.weight"
        for left, right in TABLES[arch.kind].items()
        for n in range(arch.layers)
    }
    wanted = architecture.tensors(arch)
    uncovered, unused = wanted.keys() - table.keys(), table.keys() - wanted.keys()
    if uncovered or unused:
        raise ValueError(
            f"names of {arch.kind}: no GGUF name for {sorted(uncovered)}, no tensor for {sorted(unused)}"
        )
    return {name: table[name] for name in wanted}


def checkpoint_names(arch: Architecture) -> dict[str, str]:
    """The reverse: every GGUF name of `arch` -> its checkpoint name."""
    return {right: left for left, right in gguf_names(arch).items()}
