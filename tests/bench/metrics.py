"""The measures of quality: each a value and how it falls out when the queries, pairs or texts are drawn again.

Two scores over the same units share their draws, so the noise of their difference is that of the paired
difference, which is much smaller than what the two errors alone would say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]
Ints = NDArray[np.int64]
DRAWS = 1000


@dataclass(frozen=True)
class Score:
    """A measured value with its bootstrap draws, (DRAWS,)."""

    value: float
    draws: Floats

    @property
    def error(self) -> float:
        """The bootstrap standard error."""
        return float(self.draws.std(ddof=1))

    def minus(self, other: Score) -> Score:
        """The difference, draw by draw: paired where both were measured over the same units."""
        return Score(self.value - other.value, self.draws - other.draws)


@lru_cache(maxsize=8)
def resamples(n: int) -> Ints:
    """(DRAWS, n) indices drawn with replacement; the same for the same n, always."""
    return np.random.default_rng([20261121, n]).integers(0, n, (DRAWS, n))


def mean(units: NDArray[np.generic]) -> Score:
    """The mean over units, one a query or a text."""
    values = units.astype(np.float64)
    return Score(float(values.mean()), values[resamples(len(values))].mean(axis=1))


def resampled(n: int, measure: Callable[[Ints], float]) -> Score:
    """Any measure of a choice of units."""
    return Score(measure(np.arange(n)), np.array([measure(draw) for draw in resamples(n)]))


def ranked(similarity: Matrix, relevant: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """(n_queries, k): which of the first k documents are relevant. Ties keep the order of the documents."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(relevant, order, axis=1)


def ndcg(similarity: Matrix, relevant: NDArray[np.bool_], k: int = 10) -> Floats:
    """(n_queries,): binary gain, discount 1 / log2(1 + rank), over that of the best possible first k."""
    hits = ranked(similarity, relevant, k)
    discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.cumsum(discount)[np.minimum(_count(relevant), hits.shape[1]) - 1]
    return np.asarray(hits @ discount / ideal)


def recall(similarity: Matrix, relevant: NDArray[np.bool_], k: int = 10) -> Floats:
    """(n_queries,): the share of the relevant documents that is among the first k."""
    return np.asarray(ranked(similarity, relevant, k).sum(axis=1) / _count(relevant))


def _count(relevant: NDArray[np.bool_]) -> Ints:
    counts: Ints = relevant.sum(axis=1)
    if not counts.all():
        raise ValueError(f"query {int(np.argmin(counts))} has no relevant document.")
    return counts


def ranks(values: NDArray[np.generic]) -> Floats:
    """(n,): ranks from 0, equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[where])


def spearman(a: NDArray[np.generic], b: NDArray[np.generic]) -> Score:
    """The rank correlation of two lists of numbers; 0 where one of them is constant."""

    def measure(units: Ints) -> float:
        x, y = ranks(a[units]), ranks(b[units])
        x, y = x - x.mean(), y - y.mean()
        size = np.sqrt((x @ x) * (y @ y))
        return float(x @ y / size) if size else 0.0

    return resampled(len(a), measure)


def v_measure(truth: Ints, found: Ints) -> float:
    """The harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg 2007), 0 to 1."""
    width = int(found.max()) + 1
    table = np.bincount(truth * width + found, minlength=(int(truth.max()) + 1) * width).reshape(-1, width)
    total = len(truth)
    of_truth, of_found, of_both = (_entropy(t, total) for t in (table.sum(axis=1), table.sum(axis=0), table))
    shared = of_truth + of_found - of_both
    # A single class or a single cluster leaves nothing to tell apart: it is pure, or complete, by definition.
    pure = shared / of_truth if of_truth else 1.0
    complete = shared / of_found if of_found else 1.0
    return 2 * pure * complete / (pure + complete) if pure + complete > 0 else 0.0


def _entropy(counts: Ints, total: int) -> float:
    p = counts[counts > 0] / total
    return float(-(p * np.log(p)).sum())


def clusterings(truth: Ints, runs: Sequence[Ints]) -> Score:
    """The mean V-measure of several clusterings; a draw takes texts and runs again."""
    table = np.array([[v_measure(truth[units], run[units]) for run in runs] for units in resamples(len(truth))])
    chosen = resamples(len(runs))
    value = float(np.mean([v_measure(truth, run) for run in runs]))
    return Score(value, np.take_along_axis(table, chosen, axis=1).mean(axis=1))
