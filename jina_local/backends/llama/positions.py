"""Learned positions under llama.cpp where a text spells `<pad>`, whose token is not counted and has its own row.

llama.cpp's table begins at the first counted position, so the row of the padding token is not in it. llama.cpp takes
positions that repeat: a padding token is given the position of the token before it. What the table adds there is
taken off its embedding beforehand, and its own row is added. A pass with such a text thus brings embeddings, not ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, ModelDamaged
from ...formats.gguf import Header
from ...spec import TokenBatch
from ...weights.tensor_names import PADDING_POSITION_KEY
from ..learned_positions import PADDING, counted
from .library import Library
from .tableless import Table

_TABLE = "position_embd.weight"
Floats = NDArray[np.float32]


class PaddingTokens:
    """The rows of one file that a padding token needs."""

    def __init__(self, lib: Library, header: Header) -> None:
        """Raises ModelDamaged if the table of positions is missing, or if the row of the padding token is damaged."""
        if _TABLE not in header.tensors:
            raise ModelDamaged(f"{header.path}: holds no {_TABLE}; its model has learned positions and needs them.")
        self._path: Path = header.path
        self._tokens, self._positions = Table(lib, header), Table(lib, header, _TABLE)
        self._row = _padding_row(header)

    def place(self, batch: TokenBatch, embeddings: Floats | None) -> tuple[NDArray[np.int32], Floats | None]:
        """A pass -> (n_tokens,) positions, and (n_tokens, hidden) embeddings, None if the ids will do.

        embeddings: those of the batch if the weights have no token table; they may be changed.
        Raises EngineError if there is a padding token and the file has no row for it.
        """
        texts = np.split(batch.ids, batch.starts[1:-1])
        positions = np.maximum(np.concatenate([counted(ids) for ids in texts]) - 1, 0)
        padding = np.flatnonzero(batch.ids == PADDING)
        if not len(padding):
            return positions, embeddings
        if self._row is None:
            raise EngineError(
                f"{self._path}: a text spells the padding token, <pad>, and this file has no position for it. "
                "Convert the published checkpoint again (python -m convert gguf), use the mlx backend, or take <pad> "
                "out of the text."
            )
        if embeddings is None:
            embeddings = self._tokens.rows(batch.ids)
        embeddings[padding] += self._row - self._positions.rows(positions[padding])
        return positions, embeddings


def _padding_row(header: Header) -> Floats | None:
    """(hidden,) the row of positions of the padding token; None in files of other converters."""
    values = header.keys.get(PADDING_POSITION_KEY)
    if values is None:
        return None
    width = header.tensors[_TABLE].shape[1]
    row = np.array(values, np.float32) if isinstance(values, list) and _numbers(values) else None
    if row is None or row.shape != (width,) or not np.isfinite(row).all():
        raise ModelDamaged(f"{header.path}: {PADDING_POSITION_KEY} is not a row of {width} numbers.")
    return row


def _numbers(values: list[object]) -> bool:
    return all(isinstance(value, float) for value in values)
