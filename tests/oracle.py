"""transformers as the oracle: hidden states of a published checkpoint with one adapter merged, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jina_local.bench.rivals import torch_model


class Oracle:
    """transformers' own class with the weights of a checkpoint, one adapter merged, in float32."""

    def __init__(self, folder: Path, task: str | None) -> None:
        import torch

        self._torch = torch
        self.model = torch_model(folder, task)

    def states(self, ids: np.ndarray) -> np.ndarray:
        """(n,) ids -> (n, hidden) float32 after the final norm."""
        with self._torch.no_grad():
            batch = self._torch.from_numpy(np.asarray(ids, np.int64))[None]
            out = self.model(input_ids=batch, attention_mask=self._torch.ones_like(batch))
        return out.last_hidden_state[0].numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
