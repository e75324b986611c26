"""Adapters that run beside a base: files of ours, or a published checkpoint's folders -> arrays, by block.

Every one is held against the base to the last shape and type before anything is loaded. A file of ours carries the
digest of its base (formats/adapter.py is its page); a published folder carries none, so that it has to lie in the
folder of the base itself. What a config says about the base's path is never followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ...errors import ModelDamaged, UsageError
from ...formats.checks import check_types, finite
from ...formats.safetensors import SafetensorsFile
from ...weights import architecture
from ...weights.adapters import mlx_file as format_
from ...weights.adapters.published import Adapter, pair_factors
from ...weights.architecture import Architecture
from .folder import Folder, PlainFolder, evaluated
from .layers import Beside, Factors


class AdapterFile:
    """A file of ours for one task, checked against the base's shape and digest. Nothing is read until asked for."""

    def __init__(self, path: Path, task: str, arch: Architecture, base: str | None, beside: Path) -> None:
        """`base`: the digest in the base's own file, `beside`: that base's folder, for the error."""
        self._file = SafetensorsFile(path)
        try:
            header = format_.parse(self._file.metadata, str(path))
            if header.task != task:
                raise ModelDamaged(
                    f"{path}: is the adapter of {header.task!r}, not of {task!r}. Put each under the name of its "
                    "own task, or convert again."
                )
            format_.check_base(header.base, base, str(path), str(beside))
            names = {name: name for name in self._file.tensors}
            self._pairs = pair_factors(self._file, names, arch, header.rank)
            types = {name: tensor.dtype for name, tensor in self._file.tensors.items()}
            check_types(types, format_.DTYPES, str(path))
        except BaseException:
            self._file.close()
            raise
        self.scale = header.alpha / header.rank

    def factors(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """(A (r, in), B (out, r)) float32 for one base weight, or None. Raises ModelDamaged where not finite."""
        if name not in self._pairs:
            return None
        a, b = (finite(self._file.read_f32(x), f"{self._file.path}: {x}") for x in self._pairs[name])
        return a, b

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def load(paths: Mapping[str, Path], folder: Folder, dtype: mx.Dtype) -> dict[str, Beside]:
    """Task -> what runs beside each block of the base in `folder`, in `dtype`.

    All files are checked before the first is read. Raises ModelDamaged, or UsageError for a folder elsewhere.
    """
    for task, path in paths.items():
        with _opened(task, path, folder):
            pass
    found = {}
    for task, path in paths.items():
        with _opened(task, path, folder) as adapter:
            found[task] = _beside(adapter, folder.arch, dtype, path)
    return found


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
            f"{path} lies outside {folder.path} and says of no base that it is its own. Run it with the checkpoint "
            "that it was published in, or convert both: python -m convert mlx SRC OUT --adapters separate."
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
    """B with the scale in it; exact where that is a power of two, as in the published adapters."""
    if scale == 1:
        return b
    with np.errstate(over="ignore"):
        return finite(b * np.float32(scale), f"{where} times alpha / rank")
