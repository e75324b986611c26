"""Logits or projected states of a reranker -> scores, and their order. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def sigmoid(logits: NDArray[np.float32] | Scores) -> Scores:
    """Any shape -> float64 of that shape, 0 to 1. NaN stays NaN, and no logit overflows."""
    x = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def cosines(query: NDArray[np.float32] | Scores, documents: NDArray[np.float32]) -> Scores:
    """(dim,) and (n, dim) -> (n,) float64, -1 to 1. NaN if either vector is zero or not finite."""
    q, d = unit(query[None, :])[0], unit(documents)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.clip(d @ q, -1.0, 1.0))


def unit(vectors: NDArray[np.float32] | Scores) -> Scores:
    """(n, dim) -> (n, dim) float64 of length 1. A row comes out as NaN if it is zero or not finite."""
    x = np.asarray(vectors, np.float64)
    # A row is divided by its largest component first, so that no square overflows or vanishes.
    largest = np.abs(x).max(axis=1, keepdims=True)
    usable = np.isfinite(largest) & (largest > 0)
    x = np.divide(x, largest, out=np.full_like(x, np.nan), where=usable)
    return np.asarray(x / np.sqrt(np.einsum("ij,ij->i", x, x))[:, None])


def listwise(queries: NDArray[np.float32], documents: Sequence[NDArray[np.float32]]) -> Scores:
    """Blocks -> scores of all their documents, in order: (n_documents,) float64 cosines.

    queries: (n_blocks, dim), the projected query of each block. documents: for each block (n, dim), projected.
    As published, all documents are compared with one query: the mean of the blocks' queries, not normalised, each
    weighted with the best (1 + cosine) / 2 of its own block. A single block thus keeps its own cosines. A block has
    no weight and only NaN scores if its query is zero or not finite. A document's score is NaN if its vector is.
    """
    own = [cosines(query, block) for query, block in zip(queries, documents, strict=True)]
    weights = np.array([max(((1 + s) / 2 for s in scores if np.isfinite(s)), default=0.0) for scores in own])
    usable = np.array([bool(np.isfinite(unit(query[None, :])).all()) for query in queries])
    if weights[usable].sum() == 0:
        weights = np.where(usable, 1.0, 0.0)  # every document is the opposite of the query, so no block is better
    counted = np.asarray(queries, np.float64)[usable]
    if len(counted) == 0:
        return np.concatenate([np.full(len(block), np.nan) for block in documents])
    query = np.average(counted, axis=0, weights=weights[usable])
    scores = [
        cosines(query, block) if fine else np.full(len(block), np.nan)
        for block, fine in zip(documents, usable, strict=True)
    ]
    return np.concatenate(scores)


def best(scores: Scores, owner: NDArray[np.int32], n: int) -> Scores:
    """(n_parts,) -> (n,): the best score among each document's parts, at least one each. NaN if any is NaN."""
    out = np.full(n, -np.inf)
    with np.errstate(invalid="ignore"):
        np.maximum.at(out, owner, scores)  # numpy's maximum keeps NaN
    return out


def order(scores: Scores) -> list[int]:
    """Places by falling score. Equal scores keep their order, and places without a score (NaN) are left out."""
    return [int(i) for i in np.argsort(-scores, kind="stable") if not np.isnan(scores[i])]
