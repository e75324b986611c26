"""Adapters that run beside a base: converted files, or a published checkpoint's folders -> their factors by weight.

Every shape and type is checked against the base before anything is read. A converted file carries the digest of its
base (see mlx_file.py). A published folder carries none, so it has to lie in the folder of the base. The path of the
base in a published config is never followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...formats.checks import finite
from .. import architecture
from ..architecture import Architecture
from ..checkpoint import Checkpoint
from .mlx_file import AdapterFile
from .published import Adapter

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Base:
    """The weights that adapters are opened beside.

    checkpoint: the folder's, if it is a published one.
    digest: of the published base, if the folder was converted with adapters.
    """

    path: Path
    arch: Architecture
    checkpoint: Checkpoint | None
    digest: str | None


def load(paths: Mapping[str, Path], base: Base) -> Iterator[tuple[str, dict[str, Pair]]]:
    """Task by task: weight -> A (r, in) and B (out, r) times the adapter's scale, float32. Without one: unchanged.

    All files are checked before the first is read. Raises ModelDamaged, or UsageError for a folder elsewhere.
    """
    for task, path in paths.items():
        with _opened(task, path, base):
            pass
    for task, path in paths.items():
        with _opened(task, path, base) as adapter:
            yield task, dict(_pairs(adapter, base.arch, path))


@contextmanager
def _opened(task: str, path: Path, base: Base) -> Iterator[Adapter | AdapterFile]:
    if not path.is_dir():
        file = AdapterFile(path, task, base.arch, base.digest, base.path)
        try:
            yield file
        finally:
            file.close()
    elif base.checkpoint is not None and path.absolute() == base.checkpoint.adapter_place(task).absolute():
        with base.checkpoint.adapter(task) as adapter:
            yield adapter
    else:
        raise UsageError(
            f"{path} lies outside {base.path} and names no base. Run it with the checkpoint that it was published "
            "in, or convert both: python -m convert mlx SRC OUT --adapters separate."
        )


def _pairs(adapter: Adapter | AdapterFile, arch: Architecture, path: Path) -> Iterator[tuple[str, Pair]]:
    for name in architecture.adaptable(arch):
        if (pair := adapter.factors(name)) is not None:
            yield name, (pair[0], _scaled(pair[1], adapter.scale, f"{path}: the factors of {name}"))


def _scaled(b: NDArray[np.float32], scale: float, where: str) -> NDArray[np.float32]:
    """B times the scale; exact if the scale is a power of two, which it is in the published adapters."""
    if scale == 1:
        return b
    with np.errstate(over="ignore"):
        return finite(b * np.float32(scale), f"{where} times alpha / rank")
