"""A model folder -> evaluated MLX arrays: a checkpoint with an adapter to merge, or MLX's own quantised layout.

Nothing is loaded before the header, the config, and the names, shapes and types of all tensors agree. Tensors are
read one at a time, the token table first. The peak of memory is the larger of these two: the weights in the type of
the computation plus twice the largest matrix of a layer, or 2.4 times the token table in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ...errors import ModelDamaged, UsageError
from ...formats.checks import FLOATS, check_shapes, check_types
from ...formats.files import read_json
from ...formats.safetensors import SafetensorsFile, to_f16
from ...formats.schema import Members, one_of
from ...weights import architecture
from ...weights.adapters.mlx_file import BASE
from ...weights.architecture import Architecture
from ...weights.checkpoint import Checkpoint
from .layers import Matrix, Packed

_BITS, _GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class _Code:
    """The code of one quantised matrix."""

    bits: int
    group_size: int


class PlainFolder:
    """Weights in floating point: published, merged, or converted at 16 or 32 bits.

    base: the digest of the published base, in a converted folder with separate adapters; None in other folders.
    """

    def __init__(self, path: Path, task: str | None) -> None:
        self.path, self._task = path, task
        self.checkpoint = Checkpoint(path)
        self.arch = self.checkpoint.arch
        converted = all(file.metadata.get("format") == "mlx" for file in self.checkpoint.files)
        self.exact = converted and self.checkpoint.dtype == "F32"  # converted at 32 bits, so computed at 32 bits
        self.stored = self.checkpoint.dtype
        self.base = self.checkpoint.files[0].metadata.get(BASE) if converted else None

    def weights(self, dtype: mx.Dtype, *, keep_packed: bool) -> Iterator[tuple[str, Matrix]]:
        """Every tensor in `dtype`. The adapter is merged in float32, and the sum is rounded once."""
        for name, weight in self.checkpoint.merged(self._task):
            yield name, evaluated(weight, dtype, name)

    def close(self) -> None:
        """Close the files. Arrays that were read stay."""
        self.checkpoint.close()


class QuantisedFolder:
    """Affine codes in the layout of mlx-lm: <module>.weight, .scales, .biases, and `quantization` in the config.

    The token table and the linear layers of the blocks may be codes, nothing else.
    """

    exact = False

    def __init__(self, path: Path, config: Mapping[str, object]) -> None:
        self.path = path
        self.arch = architecture.from_config(config, str(path / "config.json"))
        names = sorted(p.name for p in path.glob("model*.safetensors"))
        if names != ["model.safetensors"]:
            raise ModelDamaged(
                f"{path}: expected one model.safetensors, found {', '.join(names) or 'none'}. Weights of several "
                "precisions need a folder each; together they would be loaded as a blend."
            )
        self._file = SafetensorsFile(path / "model.safetensors")
        try:
            prefix = _prefix(self.arch)
            self._stored = {name.removeprefix(prefix): name for name in self._file.tensors}
            if len(self._stored) != len(self._file.tensors):
                raise ModelDamaged(
                    f"{self._file.path}: a tensor is there twice, with `{prefix}` before it and without."
                )
            self.base = self._file.metadata.get(BASE)
            self._codes = self._plan(_quantization(config, path))
            self._check_types()
        except BaseException:
            self._file.close()
            raise
        self.stored = "/".join(f"{bits}bit" for bits in sorted({code.bits for code in self._codes.values()}))

    def weights(self, dtype: mx.Dtype, *, keep_packed: bool) -> Iterator[tuple[str, Matrix]]:
        """Every tensor in `dtype`. `keep_packed`: matrices stay quantised; otherwise they are widened."""
        for name in architecture.tensors(self.arch):
            if name not in self._codes:
                yield name, evaluated(self._read(name), dtype, name)
                continue
            code = self._codes[name]
            scales, biases = (name.removesuffix("weight") + part for part in ("scales", "biases"))
            packed = Packed(
                codes=mx.array(self._file.read(self._stored[name])),
                scales=evaluated(self._read(scales), dtype, scales),
                biases=evaluated(self._read(biases), dtype, biases),
                group_size=code.group_size,
                bits=code.bits,
            )
            yield name, packed if keep_packed else _widened(packed)

    def close(self) -> None:
        """Close the file. Arrays that were read stay."""
        self._file.close()

    def _read(self, name: str) -> NDArray[np.float32]:
        data = self._file.read_f32(self._stored[name])
        if not np.isfinite(data).all():
            raise ModelDamaged(f"{self._file.path}: {self._stored[name]}: holds NaN or infinite values.")
        return data

    def _plan(self, entries: Mapping[str, object]) -> dict[str, _Code]:
        """The quantised matrices. All names and shapes are checked against the config and the codes."""
        codes: dict[str, _Code] = {}
        quantisable = {self.arch.table, *architecture.projections(self.arch)}
        expected: dict[str, tuple[int, ...]] = {}
        for name, shape in architecture.tensors(self.arch).items():
            module = name.removesuffix(".weight")
            expected[name] = shape
            if name not in quantisable or f"{module}.scales" not in self._stored:
                continue
            code = codes[name] = _code(entries, module, _prefix(self.arch), self._file.path)
            rows, columns = shape
            if columns % code.group_size:
                raise ModelDamaged(f"{self._file.path}: {name}: rows of {columns} in groups of {code.group_size}.")
            expected[name] = (rows, columns * code.bits // 32)
            expected[f"{module}.scales"] = expected[f"{module}.biases"] = (rows, columns // code.group_size)
        shapes = {name: self._file.tensors[stored].shape for name, stored in self._stored.items()}
        check_shapes(shapes, expected, str(self._file.path))
        return codes

    def _check_types(self) -> None:
        # Engines load by shape: whole numbers in the place of floats would be taken as they are.
        for codes, allowed in ((True, ("U32",)), (False, FLOATS)):
            some = [stored for name, stored in self._stored.items() if (name in self._codes) is codes]
            check_types({name: self._file.tensors[name].dtype for name in some}, allowed, str(self._file.path))


Folder = PlainFolder | QuantisedFolder


def open_folder(path: Path, task: str | None) -> Folder:
    """Check a folder and open it. Raises ModelDamaged, or UsageError for a task that cannot be merged."""
    config = read_json(path / "config.json")
    if "quantization" not in config and "quantization_config" not in config:
        return PlainFolder(path, task)
    if task is not None:
        raise UsageError(
            f"{path} is quantised: the adapter of task {task!r} cannot be merged into it. Convert the published "
            f"checkpoint: python -m convert mlx SRC OUT --task {task}."
        )
    return QuantisedFolder(path, config)


def _quantization(config: Mapping[str, object], path: Path) -> Mapping[str, object]:
    entries = config.get("quantization", config.get("quantization_config"))
    if not isinstance(entries, Mapping) or "bits" not in entries:
        raise ModelDamaged(
            f"{path / 'config.json'}: quantization is {entries!r}; this engine reads MLX's affine codes."
        )
    return entries


def _prefix(arch: Architecture) -> str:
    """The optional start of the names."""
    return "roberta." if arch.xlm_roberta else "model."


def _code(entries: Mapping[str, object], module: str, prefix: str, where: Path) -> _Code:
    """The module's own entry, under its name with or without the prefix, else the entry for all modules."""
    entry = entries.get(f"{prefix}{module}", entries.get(module, entries))
    if not isinstance(entry, Mapping):
        raise ModelDamaged(f"{where}: {module} is quantised, its entry under quantization is {entry!r}.")
    members = Members(entry, f"{where}: quantization of {module}")
    members.take("mode", one_of("affine"), "affine")
    return _Code(members.take("bits", one_of(*_BITS)), members.take("group_size", one_of(*_GROUP_SIZES)))


def evaluated(data: NDArray[np.float32], dtype: mx.Dtype, name: str) -> mx.array:
    """`data` as an MLX array. For float16 its range is checked."""
    # An array from numpy is filled at once, so nothing lazy is left that another thread could not evaluate.
    return mx.array(to_f16(data, name) if dtype == mx.float16 else data)


def _widened(packed: Packed) -> mx.array:
    wide = mx.dequantize(packed.codes, packed.scales, packed.biases, group_size=packed.group_size, bits=packed.bits)
    mx.eval(wide)
    return wide
