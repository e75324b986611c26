"""Losses on the student's states, each summed over the Matryoshka widths. z: states, y: target unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def widths(loss: Callable[..., Tensor], dims: Sequence[int], *z: Tensor) -> Tensor:
    """The mean of `loss` over the first d columns of every z, normalised, for each d of `dims`."""
    parts = [loss(*(functional.normalize(one[:, :d], dim=1) for one in z)) for d in dims]
    return torch.stack(parts).mean()


def distil(z: Tensor, y: Tensor) -> Tensor:
    """One minus the cosine of student and teacher."""
    return 1 - (z * y).sum(1).mean()


def relate(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    """How the texts of a batch lie to each other: KL of the two softmaxed similarity matrices, diagonal left out."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        n = len(z)
        others = ~torch.eye(n, dtype=torch.bool)
        mine, theirs = ((m @ m.T)[others].view(n, n - 1) / temperature for m in (z, y))
        return functional.kl_div(
            functional.log_softmax(mine, 1), functional.log_softmax(theirs, 1), log_target=True, reduction="batchmean"
        )

    return loss


def agree(temperature: float) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """How a batch's queries rank its documents: KL of the softmaxed scores, the teacher's and the student's."""

    def loss(q: Tensor, d: Tensor, taught_q: Tensor, taught_d: Tensor) -> Tensor:
        mine = functional.log_softmax(q @ d.T / temperature, 1)
        theirs = functional.log_softmax(taught_q @ taught_d.T / temperature, 1)
        return functional.kl_div(mine, theirs, log_target=True, reduction="batchmean")

    return loss


def contrast(temperature: float, same: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """InfoNCE both ways. `same` (n, n) marks pairs off the diagonal that are no negatives of each other."""
    target = torch.arange(len(same))

    def loss(q: Tensor, d: Tensor) -> Tensor:
        scores = (q @ d.T / temperature).masked_fill(same, -1e4)
        return (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)) / 2

    return loss


def rank(temperature: float, wanted: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """CoSENT: log(1 + sum of exp((s_i - s_j) / t)) over the pairs where the teacher puts i below j."""
    below = wanted[:, None] + 0.02 < wanted[None, :]

    def loss(a: Tensor, b: Tensor) -> Tensor:
        scores = (a * b).sum(1) / temperature
        differences = (scores[:, None] - scores[None, :])[below]
        return torch.logsumexp(torch.cat([differences.new_zeros(1), differences]), 0) / 10

    return loss


def spread(z: Tensor) -> Tensor:
    """The global orthogonal regulariser: unrelated texts have cosines of mean 0 and mean square 1/d."""
    n, d = z.shape
    cosines = (z @ z.T)[~torch.eye(n, dtype=torch.bool)]
    return cosines.mean().square() + functional.relu(cosines.square().mean() - 1 / d)
