"""TokenBatch -> a rectangle: right-padded ids, the wanted rows, and the masks. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spec import TokenBatch, round_up

PAD = 0  # any row of the table: no wanted row ever looks at a pad


@dataclass(frozen=True)
class Padded:
    """One pass with a text in each row, from position 0, because a shift costs digits of the rotations."""

    ids: NDArray[np.int32]  # (n_texts, length)
    lengths: NDArray[np.int32]  # (n_texts,)
    at: NDArray[np.int32] | None  # (n_texts, most): wanted positions in each text, padded with 0; None: all
    pick: NDArray[np.int32]  # (n_rows,): the batch's rows among the n_texts x most (or x length) computed ones

    @property
    def full(self) -> bool:
        """Whether there is no padding at all."""
        return bool((self.lengths == self.ids.shape[1]).all())

    def key_mask(self) -> NDArray[np.bool_] | None:
        """(n_texts, 1, 1, length), True at tokens, in every row at least once; None if nothing is padded."""
        if self.full:
            return None
        return (np.arange(self.ids.shape[1]) < self.lengths[:, None])[:, None, None, :]

    def causal_mask(self) -> NDArray[np.bool_] | None:
        """(n_texts, 1, most, length) for the rows `at`, True up to each; None if all of them are the last row."""
        if self.at is None:
            raise ValueError("a causal mask is for chosen rows; all rows take the engine's own")
        last = self.ids.shape[1] - 1
        if (self.at == last).all():
            return None
        return np.arange(last + 1) <= self.at[:, None, :, None]


def pad(batch: TokenBatch, multiple: int) -> Padded:
    """Pad texts to a multiple of `multiple`. Texts of one length are not padded, and need no mask."""
    lengths = np.diff(batch.starts)
    longest = int(lengths.max())
    width = longest if (lengths == longest).all() else round_up(longest, multiple)
    ids = np.full((len(lengths), width), PAD, np.int32)
    ids[np.arange(width) < lengths[:, None]] = batch.ids
    where = batch.rows - batch.starts[batch.owner]
    if len(batch.rows) == len(batch.ids):
        return Padded(ids, lengths, None, batch.owner * width + where)
    counts = np.bincount(batch.owner, minlength=len(lengths))
    place = np.arange(len(batch.rows)) - (np.cumsum(counts) - counts)[batch.owner]
    at = np.zeros((len(lengths), int(counts.max())), np.int32)
    at[batch.owner, place] = where
    return Padded(ids, lengths, at, (batch.owner * at.shape[1] + place).astype(np.int32))
