"""A model's weights -> its graph as the engine runs it: padded ids in, the wanted rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ...formats.onnx_file import Graph
from ...weights.architecture import Architecture
from . import transformer, xlm_roberta
from .layers import Ends, Layers, Weight, factor_names


def build(arch: Architecture, weights: Mapping[str, Weight], *, adapted: Iterable[str] = ()) -> Graph:
    """The graph of one model. Its inputs are those of `layers.Ends`, `pick` (n_rows,), and the adapter's factors.

    weights: exactly `architecture.tensors(arch)`.
    adapted: the weights for which each pass brings the factors of an adapter.

    Its output is `rows`, (n_rows, hidden or labels) float32.
    """
    g, whole = Graph(), np.int64
    rotary, some = bool(arch.rope_theta), not takes_all(arch)
    ends = Ends(
        ids=g.input("ids", whole, ("B", "L")),
        lengths=g.input("lengths", whole, ("B",)) if not arch.causal else "",
        places=g.input("places", whole, ("B", "L")),
        long=g.input("long", np.bool_, (1,)),
        cosines=g.input("cosines", np.float32, ("L", arch.head_dim // 2)) if rotary else "",
        sines=g.input("sines", np.float32, ("L", arch.head_dim // 2)) if rotary else "",
        at=g.input("at", whole, ("B", "R")) if some else "",
        flat_at=g.input("flat_at", whole, ("BR",)) if some else "",
    )
    pick = g.input("pick", whole, ("rows",))
    names = list(adapted)
    for name in names:
        a, b = factor_names(name)
        g.input(a, np.float32, (f"{a}_rank", f"{a}_in"))
        g.input(b, np.float32, (f"{b}_out", f"{b}_rank"))
    layers = Layers(g, arch, weights, ends, frozenset(names))
    states = (xlm_roberta if arch.xlm_roberta else transformer).states(layers)
    g.output("rows", g.node("Gather", states, pick), np.float32, ("rows", arch.width))
    return g


def takes_all(arch: Architecture) -> bool:
    """Whether every row is wanted, as for a mean over all tokens, so that the last block has nothing to leave out."""
    return arch.kind == "jina-bert-v3"
