"""Adapters that run beside a base: their factors as inputs of every pass. See weights/adapters/beside.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...spec import NO_TASK
from ...weights import architecture
from ...weights.adapters import beside
from ...weights.adapters.beside import Base
from .folder import Folder, PlainFolder
from .layers import factor_names

Factors = Mapping[str, NDArray[np.float32]]  # input's name -> factor


def load(paths: Mapping[str, Path], folder: Folder) -> tuple[frozenset[str], dict[str, Factors]]:
    """The weights that any adapter changes, and task -> factors for all of them. Raises as `beside.load`.

    A weight that the task's own adapter does not change gets factors of zeros. So do all for NO_TASK.
    """
    checkpoint = folder.checkpoint if isinstance(folder, PlainFolder) else None
    found = dict(beside.load(paths, Base(folder.path, folder.arch, checkpoint, folder.base)))
    adapted = frozenset(name for pairs in found.values() for name in pairs)
    if found:
        found[NO_TASK] = {}
    shapes = architecture.tensors(folder.arch)
    return adapted, {
        task: {
            key: factor
            for name in adapted
            for key, factor in zip(factor_names(name), pairs.get(name) or _zeros(shapes[name]), strict=True)
        }
        for task, pairs in found.items()
    }


def _zeros(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows, width = shape
    return np.zeros((1, width), np.float32), np.zeros((rows, 1), np.float32)
