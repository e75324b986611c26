"""Adapters that run beside a base: converted files, or a published checkpoint's folders -> arrays, by block.

Every shape and type is checked against the base before anything is loaded. A converted file carries the digest of its
base (see weights/adapters/mlx_file.py). A published folder carries none, so it has to lie in the folder of the base.
The path of the base in a published config is never followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...formats.checks import finite
from ...weights import architecture
from ...weights.adapters.mlx_file import AdapterFile
from ...weights.adapters.published import Adapter
from ...weights.architecture import Architecture
from .folder import Folder, PlainFolder, evaluated
from .layers import Beside, Factors


def load(paths: Mapping[str, Path], folder: Folder, dtype: mx.Dtype) -> dict[str, Beside]:
    """Task -> the factors that run beside each block of the base in `folder`, in `dtype`.

    All files are checked before the first is read. Raises ModelDamaged, or UsageError for a folder elsewhere.
    """
    for task, path in paths.items():
        with _opened(task, path, folder):
            pass
    loaded = {}
    for task, path in paths.items():
        with _opened(task, path, folder) as adapter:
            loaded[task] = _beside(adapter, folder.arch, dtype, path)
    return loaded


@contextmanager
def _opened(task: str, path: Path, folder: Folder) -> Iterator[Adapter | AdapterFile]:
    if not path.is_dir():
        file = AdapterFile(path, task, folder.arch, folder.base, folder.path)
        try:
            yield file
        finally:
            file.close()
    elif isinstance(folder, PlainFolder) and path.absolute() == folder.checkpoint.adapter_place(task).absolute():
        with folder.checkpoint.adapter(task) as adapter:
            yield adapter
    else:
        raise UsageError(
            f"{path} lies outside {folder.path} and names no base. Run it with the checkpoint that it was published "
            "in, or convert both: python -m convert mlx SRC OUT --adapters separate."
        )


def _beside(adapter: Adapter | AdapterFile, arch: Architecture, dtype: mx.Dtype, path: Path) -> Beside:
    blocks: list[dict[str, Factors]] = [{} for _ in range(arch.layers)]
    tables: dict[str, Factors] = {}
    for name in architecture.adaptable(arch):
        if (pair := adapter.factors(name)) is None:
            continue
        where = f"{path}: the factors of {name}"
        a, b = pair[0], _scaled(pair[1], adapter.scale, where)
        factors = Factors(evaluated(a, dtype, where), evaluated(b, dtype, where))
        head, in_block, rest = name.removesuffix(".weight").partition("layers.")
        if in_block:
            number, module = rest.split(".", 1)
            blocks[int(number)][module] = factors
        else:
            tables[head] = factors
    return Beside(tuple(blocks), tables)


def _scaled(b: NDArray[np.float32], scale: float, where: str) -> NDArray[np.float32]:
    """B times the scale; exact if the scale is a power of two, which it is in the published adapters."""
    if scale == 1:
        return b
    with np.errstate(over="ignore"):
        return finite(b * np.float32(scale), f"{where} times alpha / rank")
