"""Which texts share a forward pass, and the pass itself: lengths -> groups; the ids of a group -> TokenBatch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..spec import Budget, TokenBatch, round_up
from ..text.tokenizer import Encoded

_UNEVEN = 1.15  # the loss to an uneven end that lanes may have; one context on all threads loses 5 to 20 %
_RUN = 4096  # texts planned at once by the dynamic programme; longer lists are cut after sorting


def plan(lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """Cut the texts into passes that cost little; every index is in exactly one group.

    A padded engine pays longest x count, a packed engine the sum of lengths. No text is ever shortened:
    one that alone exceeds the budget is a group of its own. Longest groups come first, so that parallel
    lanes end at the same time.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if not budget.padded:
        return _packed(order, lengths, budget)
    groups: list[list[int]] = []
    for start in range(0, len(order), _RUN):
        groups.extend(_padded(order[start : start + _RUN], lengths, budget))
    return groups


def cost(group: Sequence[int], lengths: Sequence[int], budget: Budget) -> int:
    """Tokens that one pass over the group computes, padding included, overhead not."""
    if not budget.padded:
        return sum(lengths[i] for i in group)
    return round_up(max(lengths[i] for i in group), budget.multiple) * len(group)


def lanes_for(loads: Sequence[int], most: int) -> int:
    """How many passes to run side by side: `most` if the lanes would end together, else one with all threads.

    loads: the cost of each pass, in the order in which free lanes take them. Of few passes, a long one would
    run on its lane's share of the threads while the other lanes are idle.
    """
    ends = [0] * min(most, len(loads))
    for load in loads:
        ends[ends.index(min(ends))] += load
    return len(ends) if max(ends) * len(ends) <= _UNEVEN * sum(loads) else 1


def pack(encoded: Encoded, group: Sequence[int], pooling: str) -> TokenBatch:
    """The texts of one group as a pass, with the rows that their pooling reads."""
    return lay_out([encoded.ids[i] for i in group], pooling)


def lay_out(texts: Sequence[NDArray[np.int32]], wanted: str | Sequence[NDArray[np.int32]]) -> TokenBatch:
    """Texts, each (n_tokens,) ids, end to end as one pass. Every TokenBatch of the runtime is built here.

    wanted: "last" or "first" asks for that token's row of each text, "mean" for all rows; or, for each text, the
    positions in it whose rows are wanted, ascending.
    """
    lengths = np.array([len(ids) for ids in texts], np.int32)
    starts = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    owner = np.arange(len(texts), dtype=np.int32)
    if wanted == "mean":
        rows, owner = np.arange(starts[-1], dtype=np.int32), np.repeat(owner, lengths)
    elif wanted == "last":
        rows = starts[1:] - 1
    elif wanted == "first":
        rows = starts[:-1].copy()
    else:
        rows = np.concatenate([start + at for start, at in zip(starts[:-1], wanted, strict=True)]).astype(np.int32)
        owner = np.repeat(owner, [len(at) for at in wanted])
    return TokenBatch(np.concatenate(texts), starts, rows, owner)


def _packed(order: list[int], lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    # Next fit over falling lengths: like sizes share a pack, which is what unmasked attention tiles want.
    groups: list[list[int]] = []
    room = 0
    for i in order:
        if not groups or lengths[i] > room or len(groups[-1]) == budget.texts:
            groups.append([])
            room = budget.tokens
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def _padded(order: list[int], lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """Optimal cuts of a falling list: least sum of overhead + longest x count over all groups."""
    n = len(order)
    padded = [round_up(lengths[i], budget.multiple) for i in order]
    best = [0] * (n + 1)  # best[i]: the least cost of order[i:]
    cut = [n] * n  # cut[i]: where the group that starts at i ends
    for i in range(n - 1, -1, -1):
        most = min(n - i, budget.texts, max(1, budget.tokens // padded[i]))
        best[i] = budget.overhead + padded[i] + best[i + 1]
        cut[i] = i + 1
        for count in range(2, most + 1):
            total = budget.overhead + padded[i] * count + best[i + count]
            if total < best[i]:
                best[i], cut[i] = total, i + count
    groups: list[list[int]] = []
    start = 0
    while start < n:
        groups.append(order[start : cut[start]])
        start = cut[start]
    return groups
