"""batching: every text once, budgets kept, little waste; integers only."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_local.inference.batching import cost, lanes_for, plan
from jina_local.spec import Budget, round_up

PADDED = Budget(tokens=2048, texts=256, padded=True, overhead=16, multiple=8)
PACKED = Budget(tokens=256, texts=32, padded=False)


def mix(n: int = 256, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return np.clip(np.exp(rng.normal(math.log(60), 0.8, n)).astype(int), 3, 512).tolist()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 700), max_size=80), st.sampled_from([PADDED, PACKED]))
def test_every_text_once_and_within_budget(lengths, budget):
    groups = plan(lengths, budget)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= budget.texts
        assert len(group) == 1 or cost(group, lengths, budget) <= budget.tokens


def test_a_text_over_the_budget_travels_alone():
    assert [9] not in plan([300, 5, 5], PACKED)
    assert plan([300, 5, 6], PACKED) == [[0], [2, 1]]
    assert [0] in plan([4000, 5, 6], PADDED)


def test_padding_on_the_mix_is_under_five_percent():
    lengths = mix()
    groups = plan(lengths, PADDED)
    real = sum(lengths)
    assert sum(cost(g, lengths, PADDED) for g in groups) / real < 1.05
    assert len(groups) < len(lengths) / 4


def test_packs_on_the_mix_are_full():
    lengths = mix()
    groups = plan(lengths, PACKED)
    assert sorted(itertools.chain.from_iterable(groups)) == list(range(len(lengths)))
    fits = [i for i, n in enumerate(lengths) if n <= PACKED.tokens]
    assert len(groups) <= 1.35 * sum(lengths[i] for i in fits) / PACKED.tokens + len(lengths) - len(fits)


def test_the_cuts_are_optimal_for_small_cases():
    rng = np.random.default_rng(3)
    for _ in range(30):
        lengths = rng.integers(1, 60, rng.integers(1, 9)).tolist()
        budget = Budget(tokens=128, texts=4, padded=True, overhead=20, multiple=8)
        found = sum(budget.overhead + cost(g, lengths, budget) for g in plan(lengths, budget))
        assert found == _brute(sorted(lengths, reverse=True), budget)


def _brute(lengths: list[int], budget: Budget) -> int:
    if not lengths:
        return 0
    best = 10**9
    for count in range(1, len(lengths) + 1):
        padded = round_up(lengths[0], budget.multiple) * count
        if count > 1 and (padded > budget.tokens or count > budget.texts):
            break
        best = min(best, budget.overhead + padded + _brute(lengths[count:], budget))
    return best


@pytest.mark.parametrize("budget", [PADDED, PACKED])
def test_the_plan_does_not_depend_on_the_order_of_equal_lists(budget):
    lengths = mix(50)
    shuffled = np.random.default_rng(1).permutation(50)
    a = [[lengths[i] for i in g] for g in plan(lengths, budget)]
    b = [[lengths[shuffled[i]] for i in g] for g in plan([lengths[i] for i in shuffled], budget)]
    assert a == b


@pytest.mark.parametrize(
    ("loads", "most", "expected"),
    [
        ([256, 256], 2, 2),
        ([256, 28], 2, 1),
        ([256], 4, 1),
        ([200, 100, 100], 2, 2),
        ([256] * 3, 2, 1),
        ([256] * 21, 4, 4),
        ([512, *[256] * 40], 4, 4),
    ],
)
def test_lanes_are_used_where_they_end_together(loads, most, expected):
    assert lanes_for(loads, most) == expected


def test_many_texts_are_planned_quickly():
    import time

    lengths = mix(20000)
    start = time.perf_counter()
    plan(lengths, PADDED)
    assert time.perf_counter() - start < 10
