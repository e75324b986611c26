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
_JINA_BERT_V3 = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "emb_ln": "token_embd_norm",
    "encoder.layers.{n}.mixer.Wqkv": "blk.{n}.attn_qkv",
    "encoder.layers.{n}.mixer.out_proj": "blk.{n}.attn_output",
    "encoder.layers.{n}.norm1": "blk.{n}.attn_output_norm",
    "encoder.layers.{n}.mlp.fc1": "blk.{n}.ffn_up",
    "encoder.layers.{n}.mlp.fc2": "blk.{n}.ffn_down",
    "encoder.layers.{n}.norm2": "blk.{n}.layer_output_norm",
}
_BERT = {
    **_JINA_BERT_V3,
    "embeddings.position_embeddings": "position_embd",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}
# A key of ours, for models with learned positions: the padding token's row, which llama.cpp's table leaves out.
PADDING_POSITION_KEY = "jina_local.padding_position"
TABLES = {"qwen3": _QWEN3, "eurobert": _EUROBERT, "jina-bert-v3": _JINA_BERT_V3, "bert": _BERT}


def gguf_names(arch: Architecture) -> dict[str, str]:
    """Every checkpoint name of `arch` -> its GGUF name, in the order of `architecture.tensors`.

    Raises ValueError unless the table and the architecture cover each other exactly.
    """
    wanted = architecture.tensors(arch)
    table: dict[str, str] = {}
    for left, right in TABLES[arch.kind].items():
        for n in range(arch.layers if "{n}" in left else 1):
            for part in ("weight", "bias"):
                name = f"{left.format(n=n)}.{part}"
                if part == "weight" or name in wanted:
                    table[name] = f"{right.format(n=n)}.{part}"
    uncovered, unused = wanted.keys() - table.keys(), table.keys() - wanted.keys()
    if uncovered or unused:
        raise ValueError(
            f"names of {arch.kind}: no GGUF name for {sorted(uncovered)}, no tensor for {sorted(unused)}"
        )
    return {name: table[name] for name in wanted}


def checkpoint_names(arch: Architecture) -> dict[str, str]:
    """The reverse: every GGUF name of `arch` -> its checkpoint name."""
    return {right: left for left, right in gguf_names(arch).items()}


def gguf_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Every GGUF name of `arch` -> its shape, which only for learned positions differs from the checkpoint's.

    A checkpoint has architecture.POSITION_OFFSET rows before the first position, which no token uses. llama.cpp
    counts positions from 0, and wants the table without these rows.
    """
    shapes = architecture.tensors(arch)
    renamed = {right: shapes[left] for left, right in gguf_names(arch).items()}
    if "position_embd.weight" in renamed:
        renamed["position_embd.weight"] = (arch.max_positions, arch.hidden)
    return renamed
