"""XLM-R's learned positions: a padding token is not counted, wherever it stands, and has a row to itself. Numpy only.

A text that spells `<pad>` has such tokens. As published, the tokens after them go on as though they were not there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..weights.architecture import POSITION_OFFSET

PADDING = POSITION_OFFSET - 1  # the id of the padding token, and its row in the table of positions


def counted(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """(..., n_tokens) ids of texts -> the same shape: how many tokens other than padding end at or before each."""
    return np.cumsum(ids != PADDING, axis=-1, dtype=np.int32)


def table_rows(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """(..., n_tokens) ids of texts -> the same shape: the rows of the published table of positions."""
    return np.where(ids == PADDING, PADDING, counted(ids) + PADDING).astype(np.int32)
