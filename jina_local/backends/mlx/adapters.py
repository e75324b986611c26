"""Adapters that run beside a base, as arrays, by block. See weights/adapters/beside.py for what is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ...weights.adapters import beside
from ...weights.adapters.beside import Base, Pair
from .folder import Folder, PlainFolder, evaluated
from .layers import Beside, Factors


def load(paths: Mapping[str, Path], folder: Folder, dtype: mx.Dtype) -> dict[str, Beside]:
    """Task -> the factors that run beside each block of the base in `folder`, in `dtype`. Raises as `beside.load`."""
    checkpoint = folder.checkpoint if isinstance(folder, PlainFolder) else None
    base = Base(folder.path, folder.arch, checkpoint, folder.base)
    return {
        task: _by_block(pairs, folder.arch.layers, dtype, paths[task]) for task, pairs in beside.load(paths, base)
    }


def _by_block(pairs: Mapping[str, Pair], layers: int, dtype: mx.Dtype, path: Path) -> Beside:
    blocks: list[dict[str, Factors]] = [{} for _ in range(layers)]
    tables: dict[str, Factors] = {}
    for name, pair in pairs.items():
        where = f"{path}: the factors of {name}"
        factors = Factors(*(evaluated(factor, dtype, where) for factor in pair))
        head, in_block, rest = name.removesuffix(".weight").partition("layers.")
        if in_block:
            number, module = rest.split(".", 1)
            blocks[int(number)][module] = factors
        else:
            tables[head] = factors
    return Beside(tuple(blocks), tables)
