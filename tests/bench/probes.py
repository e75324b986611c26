"""What is fitted on vectors to judge them: a linear probe, nearest neighbours, k-means. Deterministic, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .metrics import Floats, Ints, Matrix

_STEPS = 150
# Half of it times the squared weights stands beside the mean loss: with Banking77's 10,003 texts that is
# scikit-learn's C = 10, whose classifier agrees to 0.002.
DECAY = 1e-5
_ROUNDS = 100


def linear_probe(train: Matrix, labels: Ints, test: Matrix) -> Ints:
    """(n_test,) classes by softmax regression on (n_train, dim) vectors."""
    return np.asarray(np.argmax(_with_one(test) @ softmax_regression(train, labels), axis=1))


def softmax_regression(train: Matrix, labels: Ints, decay: float = DECAY) -> Floats:
    """(dim + 1, classes) weights, the intercept last, at the least mean loss plus decay / 2 of their squares.

    Steps of Böhning's bound (1992): half the features' second moment bounds the curvature of the loss whatever
    the weights are, so one inverse serves all steps and there is no rate to choose. Nesterov's momentum on top.
    """
    classes = int(labels.max()) + 1
    x = _with_one(train)
    wanted = np.eye(classes)[labels]
    penalty = np.full(x.shape[1], decay)
    penalty[-1] = 1e-9  # the intercept is free
    inverse = np.linalg.inv(0.5 * x.T @ x / len(x) + np.diag(penalty))
    weights = ahead = np.zeros((x.shape[1], classes))
    for step in range(_STEPS):
        gradient = x.T @ (_softmax(x @ ahead) - wanted) / len(x) + penalty[:, None] * ahead
        before, weights = weights, ahead - inverse @ gradient
        ahead = weights + step / (step + 3) * (weights - before)
    return weights


def _with_one(vectors: Matrix) -> Floats:
    return np.concatenate([vectors.astype(np.float64), np.ones((len(vectors), 1))], axis=1)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def neighbours(train: Matrix, labels: Ints, test: Matrix, k: int = 10) -> Ints:
    """(n_test,) classes: the k most similar training texts vote with their cosine. Vectors have unit length."""
    similarity = test @ train.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(test), int(labels.max()) + 1))
    voices = np.take_along_axis(similarity, nearest, axis=1)
    np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), voices)
    return np.asarray(np.argmax(votes, axis=1))


def k_means(vectors: Matrix, k: int, seed: int) -> Ints:
    """(n,) clusters by Lloyd's rounds from a k-means++ start. An emptied cluster keeps its centre."""
    x = vectors.astype(np.float64)
    centres = _start(x, k, np.random.default_rng(seed))
    found = np.full(len(x), -1)
    for _ in range(_ROUNDS):
        before, found = found, np.argmin(_distances(x, centres), axis=1)
        if np.array_equal(before, found):
            break
        counts = np.bincount(found, minlength=k)
        sums = np.zeros_like(centres)
        np.add.at(sums, found, x)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return found


def _start(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """k-means++: each next centre is a point, drawn by its squared distance to the nearest centre so far."""
    chosen = [int(rng.integers(len(x)))]
    nearest = _distances(x, x[chosen])[:, 0]
    while len(chosen) < k:
        total = nearest.sum()
        weights = nearest / total if total > 0 else None
        chosen.append(int(rng.choice(len(x), p=weights)))
        nearest = np.minimum(nearest, _distances(x, x[chosen[-1:]])[:, 0])
    return np.asarray(x[chosen])


def _distances(x: Floats, centres: Floats) -> NDArray[np.float64]:
    squares = (x * x).sum(axis=1)[:, None] + (centres * centres).sum(axis=1) - 2 * x @ centres.T
    return np.asarray(np.maximum(squares, 0.0))
