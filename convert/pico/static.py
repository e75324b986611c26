"""The first stage: a weighted mean of token vectors, fitted to the teacher, and put into the student unchanged.

The fitted model is z = sum(a_t d_t), a = softmax over the text's tokens of w_t, d_t of unit length. The student's
first attention layer can compute exactly that at the end token: the values are the token vectors, and the logit of a
token is its w, kept in the last dimension of the table. Everything else begins at zero, so that training starts from
a model that works.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from . import losses
from .settings import Settings
from .student import Student

_SCALE = 0.2  # of w in the table, where token vectors have length 1
_END = 0.5  # the end token's own entry; negative, so that it does not attend to itself


class Mean(nn.Module):
    """The static model."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(table.clone())
        self.weights = nn.Parameter(torch.zeros(len(table)))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        share = torch.softmax(self.weights[ids].masked_fill(~mask, -1e9), 1)
        return functional.embedding_bag(
            ids, functional.normalize(self.vectors, dim=1), per_sample_weights=share, mode="sum"
        )


def fit(
    texts: Sequence[Sequence[int]], targets: NDArray[np.float16], start: Tensor, basis: Tensor, settings: Settings
) -> Mean:
    """Fit to `targets` (n, teacher width), seen through `basis`. `start`: (vocab, hidden - 1) token vectors."""
    model = Mean(start)
    epochs, size, longest = settings.static_epochs, 1024, 64
    steps = epochs * -(-len(texts) // size)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=[0.01], total_steps=steps, pct_start=0.1)
    dims = (*settings.shape.dims[:-1], start.shape[1])
    order = np.argsort([min(len(text), longest) for text in texts], kind="stable")
    generator = np.random.default_rng(settings.seed)
    for epoch in range(epochs):
        total = 0.0
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        for number in generator.permutation(len(groups)):
            group = groups[number]
            ids, mask = _padded([texts[i][:longest] for i in group])
            y = functional.normalize(torch.from_numpy(targets[group].astype(np.float32)) @ basis, dim=1)
            loss = losses.widths(losses.distil, dims, model(ids, mask), y[:, : start.shape[1]])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"static: epoch {epoch + 1} of {epochs}, loss {total / len(groups):.4f}", flush=True)
    return model


def put(model: Mean, student: Student, quiet: Sequence[int], end: int) -> None:
    """Write the static model into the student. `quiet`: tokens (the prompts') that begin with little weight."""
    with torch.no_grad():
        vectors = functional.normalize(model.vectors, dim=1)
        weights = (model.weights - model.weights.mean()).clamp(-4, 4)
        weights[list(quiet)] = -4.0
        table = torch.cat([vectors, _SCALE * weights[:, None]], 1)
        table[end] = 0.0
        table[end, -1] = -_END
        student.embed_tokens.weight.copy_(table)
        width = table.shape[1]
        last = width - 1
        for number, layer in enumerate(student.layers):
            attention = layer.self_attn
            layer.mlp.down_proj.weight.zero_()
            if number:
                attention.o_proj.weight.zero_()
                continue
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight.mul_(0.02)
            # Normed, a token's w is 16 * _SCALE * w at width 256 and the end token's entry -16; the product of the
            # two over the root of the head's width has to be w again. The slowest pair of RoPE hardly turns.
            head = width // attention._heads
            gain = (head**0.5 / (width * _SCALE)) ** 0.5
            for start in range(0, width, head):
                slow = start + head // 2 - 1
                attention.q_proj.weight[slow].zero_()
                attention.k_proj.weight[slow].zero_()
                attention.q_proj.weight[slow, last] = -gain
                attention.k_proj.weight[slow, last] = gain
            attention.v_proj.weight.copy_(torch.eye(width))
            attention.v_proj.weight[last, last] = 0.0
            attention.o_proj.weight.copy_(torch.eye(width))
        student.norm.weight[last] = 0.0


def _padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    mask = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    return ids, mask
