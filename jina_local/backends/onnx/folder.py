"""A model folder -> the weights of the graph: a checkpoint, computed in float32, or whole numbers of our converter.

Nothing is built before the header, the config, and the names, shapes and types of all tensors agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelDamaged, UsageError
from ...formats.checks import check_shapes, finite
from ...formats.files import read_json
from ...formats.safetensors import SafetensorsFile
from ...formats.schema import Members, one_of
from ...weights import architecture, int4, int8
from ...weights.adapters.mlx_file import BASE
from ...weights.checkpoint import Checkpoint
from ...weights.int8 import Int8, Int8Rows, low_of, scales_of
from .layers import Weight


class PlainFolder:
    """Weights in floating point: published, merged, or converted at 16 or 32 bits.

    base: the digest of the published base, in a converted folder with separate adapters; None in other folders.
    """

    def __init__(self, path: Path, task: str | None) -> None:
        self.path, self._task = path, task
        self.checkpoint = Checkpoint(path)
        self.arch, self.stored = self.checkpoint.arch, self.checkpoint.dtype
        self.base = self.checkpoint.files[0].metadata.get(BASE)

    def weights(self) -> dict[str, Weight]:
        """Every tensor in float32, with the adapter merged in float32, if there is one."""
        return dict(self.checkpoint.merged(self._task))

    def close(self) -> None:
        """Close the files. Arrays that were read stay."""
        self.checkpoint.close()


class Int8Folder:
    """Whole numbers: see weights/int8.py for the tensors of the one file."""

    def __init__(self, path: Path, config: Mapping[str, object], stored: str) -> None:
        """stored: a label of `int8.METHODS`."""
        self.path, self.arch = path, architecture.from_config(config, str(path / "config.json"))
        self.stored = stored
        names = sorted(p.name for p in path.glob("model*.safetensors"))
        if names != ["model.safetensors"]:
            raise ModelDamaged(f"{path}: expected one model.safetensors, found {', '.join(names) or 'none'}.")
        self._file = SafetensorsFile(path / "model.safetensors")
        try:
            self.base = self._file.metadata.get(BASE)
            layout = int8.layout(self.arch, stored)
            found = self._file.tensors
            check_shapes(
                {name: tensor.shape for name, tensor in found.items()},
                {name: shape for name, (_, shape) in layout.items()},
                str(self._file.path),
            )
            for name, (dtype, _) in layout.items():
                if found[name].dtype != dtype:
                    raise ModelDamaged(
                        f"{self._file.path}: {name} is stored as {found[name].dtype}; expected {dtype}."
                    )
        except BaseException:
            self._file.close()
            raise

    def weights(self) -> dict[str, Weight]:
        """Every tensor as it is stored; linear layers in 4 bits as INT8."""
        matrices = set(architecture.projections(self.arch))
        out: dict[str, Weight] = {}
        for name in architecture.tensors(self.arch):
            if name in matrices and self.stored == "INT4":
                codes, scales = self._file.read(name), self._floats(scales_of(name))
                out[name] = int8.matrix(int4.widened(codes, scales))
            elif name in matrices or name == self.arch.table:
                kind = Int8 if name in matrices else Int8Rows
                low = self._codes(low_of(name)) if low_of(name) in self._file.tensors else None
                out[name] = kind(self._codes(name), self._floats(scales_of(name)), low)
            else:
                out[name] = self._floats(name)
        return out

    def close(self) -> None:
        """Close the file. Arrays that were read stay."""
        self._file.close()

    def _codes(self, name: str) -> NDArray[np.int8]:
        return self._file.read(name).astype(np.int8, copy=False)

    def _floats(self, name: str) -> NDArray[np.float32]:
        return finite(self._file.read_f32(name), f"{self._file.path}: {name}")


Folder = PlainFolder | Int8Folder


def open_folder(path: Path, task: str | None) -> Folder:
    """Check a folder and open it. Raises ModelDamaged, or UsageError for a task that cannot be merged."""
    config = read_json(path / "config.json")
    quantisation = config.get("quantization_config", config.get("quantization"))
    if quantisation is None:
        return PlainFolder(path, task)
    if not isinstance(quantisation, Mapping):
        raise ModelDamaged(f"{path / 'config.json'}: quantization_config is {quantisation!r}.")
    where = f"{path / 'config.json'}: quantization_config"
    method = Members(quantisation, where).take("quant_method", one_of(*int8.METHODS))
    if task is not None:
        raise UsageError(
            f"{path} is quantised: the adapter of task {task!r} cannot be merged into it. Convert the published "
            f"checkpoint: python -m convert onnx SRC OUT --task {task}."
        )
    return Int8Folder(path, config, int8.METHODS[method])
