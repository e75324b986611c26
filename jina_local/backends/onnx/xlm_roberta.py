"""The forward pass as a graph: XLM-R's post-norm blocks, for jina-embeddings-v3 and jina-reranker-v2 alike."""

from __future__ import annotations

import numpy as np

from .layers import Layers, Rows

_EMBEDDINGS = "embeddings."


def states(m: Layers) -> str:
    """The last states at the wanted places, (B x R, hidden) float32; of a classifier its logits, (B x R, labels)."""
    g, first = m.graph, m.graph.constant(np.zeros(1, np.int64))
    x = g.node("Add", m.tokens(), m.embed(f"{_EMBEDDINGS}token_type_embeddings.weight", first))
    if not m.arch.rope_theta:
        rows = g.node("Reshape", m.ends.places, g.constant(np.array([-1])))
        x = g.node("Add", x, m.embed(f"{_EMBEDDINGS}position_embeddings.weight", rows))
    x = m.layer_norm(x, "emb_ln")
    for n in range(m.arch.layers):
        x = _block(m, x, f"encoder.layers.{n}.", last=n == m.arch.layers - 1)
    if m.arch.labels:
        x = m.linear(Rows(x), "classifier.dense.weight", biased=True)
        x = m.linear(Rows(g.node("Tanh", x)), "classifier.out_proj.weight", biased=True)
    return x


def _block(m: Layers, x: str, prefix: str, *, last: bool) -> str:
    """(B x L, hidden) -> the same; of the last block only the wanted places."""
    arch, g = m.arch, m.graph
    made = m.linear(Rows(x), f"{prefix}mixer.Wqkv.weight", biased=True)
    queries, keys, values = g.nodes("Split", made, outputs=3, axis=1, num_outputs=3)
    places = m.ends.places
    if last and m.ends.at:
        x, queries, places = m.rows_at(x), m.rows_at(queries), m.ends.at
    queries, keys, values = (m.by_text(part, arch.hidden) for part in (queries, keys, values))
    if arch.rope_theta:
        queries, keys = m.rotated(queries, arch.heads, places), m.rotated(keys, arch.heads, m.ends.places)
    mixed = m.flat(m.attend(queries, keys, values, last=last), arch.hidden)
    x = g.node("Add", x, m.linear(Rows(mixed), f"{prefix}mixer.out_proj.weight", biased=True))
    x = m.layer_norm(x, f"{prefix}norm1")
    wide = g.node("Gelu", m.linear(Rows(x), f"{prefix}mlp.fc1.weight", biased=True))
    x = g.node("Add", x, m.linear(Rows(wide), f"{prefix}mlp.fc2.weight", biased=True))
    return m.layer_norm(x, f"{prefix}norm2")
