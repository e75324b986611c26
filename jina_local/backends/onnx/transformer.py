"""The forward pass as a graph: pre-norm RMS blocks with rotary positions, for Qwen3 and EuroBERT alike."""

from __future__ import annotations

from .layers import Layers, Rows


def states(m: Layers) -> str:
    """The states after the final norm at the wanted places: (B x R, hidden) float32."""
    x = m.tokens()
    for n in range(m.arch.layers):
        x = _block(m, x, f"layers.{n}.", last=n == m.arch.layers - 1)
    return m.rms(x, "norm.weight")


def _block(m: Layers, x: str, prefix: str, *, last: bool) -> str:
    """(B x L, hidden) -> the same; of the last block only the wanted places."""
    arch, g = m.arch, m.graph

    def heads(x: Rows, name: str, count: int) -> str:
        """(B, n, count x head_dim): queries or keys, normed per head if the model does so."""
        made = m.product(x, f"{prefix}self_attn.{name}_proj.weight")
        if not arch.qk_norm:
            return m.by_text(m.scaled(made), count * arch.head_dim)
        normed = m.rms(m.flat(m.scaled(made), arch.head_dim), f"{prefix}self_attn.{name}_norm.weight")
        return m.by_text(normed, count * arch.head_dim)

    normed = Rows(m.rms(x, f"{prefix}input_layernorm.weight"))
    keys = m.rotated(heads(normed, "k", arch.kv_heads), arch.kv_heads, m.ends.places)
    values = m.by_text(m.linear(normed, f"{prefix}self_attn.v_proj.weight"), arch.kv_heads * arch.head_dim)
    places = m.ends.places
    if last and m.ends.at:
        x, places = m.rows_at(x), m.ends.at
        normed = Rows(m.rms(x, f"{prefix}input_layernorm.weight"))
    queries = m.rotated(heads(normed, "q", arch.heads), arch.heads, places)
    mixed = m.flat(m.attend(queries, keys, values, last=last), arch.heads * arch.head_dim)
    x = g.node("Add", x, m.linear(Rows(mixed), f"{prefix}self_attn.o_proj.weight"))
    normed = Rows(m.rms(x, f"{prefix}post_attention_layernorm.weight"))
    gate = g.node("QuickGelu", m.linear(normed, f"{prefix}mlp.gate_proj.weight"), alpha=1.0)  # SiLU
    up = m.product(normed, f"{prefix}mlp.up_proj.weight")
    gated = Rows(g.node("Mul", gate, up.value), up.scale)
    return g.node("Add", x, m.linear(gated, f"{prefix}mlp.down_proj.weight"))
