"""The projector of the listwise reranker: two matrices after the model, ReLU between them, no bias.

A published checkpoint has it in its weight files. Beside converted weights it has a file of its own, with the names
of Jina's GGUF repository or the names of its MLX repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamaged
from ..formats.checks import FLOATS, check_types, finite
from ..formats.safetensors import SafetensorsFile
from .checkpoint import Checkpoint

FILE = "projector.safetensors"
NAMINGS = (("projector.0.weight", "projector.2.weight"), ("linear1.weight", "linear2.weight"))


@dataclass(frozen=True)
class Projector:
    """`first` (middle, hidden) and `second` (out, middle), float32."""

    first: NDArray[np.float32]
    second: NDArray[np.float32]

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, hidden) states after the final norm -> (n, out), not normalised."""
        return np.asarray(np.maximum(states @ self.first.T, 0) @ self.second.T, np.float32)


def read(path: Path, hidden: int) -> Projector:
    """Read a projector file, or the projector of a checkpoint folder. Raises ModelDamaged.

    hidden: the width of the model.
    """
    if path.is_dir():
        with Checkpoint(path) as checkpoint:
            return from_tensors(checkpoint.projector(), hidden, str(path))
    with SafetensorsFile(path) as file:
        check_types({name: tensor.dtype for name, tensor in file.tensors.items()}, FLOATS, str(path))
        tensors = {name: finite(file.read_f32(name), f"{path}: {name}") for name in file.tensors}
    return from_tensors(tensors, hidden, str(path))


def from_tensors(tensors: Mapping[str, NDArray[np.float32]], hidden: int, where: str) -> Projector:
    """Find the two matrices under one of the namings, and check them against the model. Raises ModelDamaged."""
    names = next((names for names in NAMINGS if set(names) == set(tensors)), None)
    if names is None:
        expected = " or ".join(" and ".join(names) for names in NAMINGS)
        raise ModelDamaged(
            f"{where}: has no projector: expected exactly the tensors {expected}, found "
            f"{', '.join(sorted(tensors)) or 'none'}. Without it the reranker has no scores."
        )
    first, second = (tensors[name] for name in names)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != hidden or second.shape[1] != first.shape[0]:
        raise ModelDamaged(
            f"{where}: a projector of {first.shape} and {second.shape} does not follow a model of width {hidden}."
        )
    return Projector(first, second)
