"""Whether two contenders compute the same model: the cosine of their vectors, or the correlation of their scores."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

Results = NDArray[np.float64]

# Bits of a weight -> the least mean cosine to float32 that is taken for rounding. Random weights of full size, whose
# errors grow most, have 0.9994, 0.995, 0.988 and 0.942 at 8, 6, 5 and 4 bits (tests/bench/README.md).
_ROUNDING = {32: 0.999, 16: 0.999, 8: 0.99, 6: 0.985, 5: 0.97, 4: 0.9, 3: 0.75, 2: 0.5, 1: 0.3}
_SCORES = 0.8  # correlation of a reranker's scores, at any bits: a single score has nothing to average errors over


def bits(label: str) -> int:
    """The bits of a weight: 16 of "BF16", 8 of "Q8_0", 4 of "IQ4_XS"."""
    found = re.search(r"\d+", label)
    return int(found[0]) if found else 0


def expected(first: str, second: str, *, scores: bool) -> float:
    """The least agreement of two weight types of one model."""
    return _SCORES if scores else _ROUNDING.get(min(bits(first), bits(second)), 0.0)


def agreement(found: Results, reference: Results) -> float:
    """(n, dim) vectors: the mean cosine. (n,) scores: their correlation.

    -1 if the shapes differ or a number is not finite.
    """
    if found.shape != reference.shape or not np.isfinite(found).all():
        return -1.0
    if found.ndim == 1:
        return float(np.corrcoef(found, reference)[0, 1])
    products = np.einsum("ij,ij->i", found, reference)
    return float(np.mean(products / np.linalg.norm(found, axis=1) / np.linalg.norm(reference, axis=1)))
