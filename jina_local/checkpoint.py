"""A published checkpoint folder: config, sharded weights, task adapters -> float32 tensors, one at a time.

Layout read: config.json; model.safetensors, or shards named by model.safetensors.index.json; optionally
adapters/{task}/adapter_config.json and adapter_model.safetensors (PEFT LoRA). Names may carry `model.`.
Every tensor of the source is used or listed in `dropped`; anything else stops the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import architecture
from .architecture import Architecture
from .errors import ModelDamaged, UsageError
from .formats.adapter import check_scale
from .formats.safetensors import SafetensorsFile, open_regular

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_DROPPED = {"lm_head.weight": "the vocabulary head; embeddings do not use it"}
_FLOATS = ("F16", "BF16", "F32")
_MAX_JSON = 64 << 20
# PEFT options that change the arithmetic -> the only value for which W + (alpha / r) B A is right.
_PLAIN_LORA: dict[str, tuple[object, ...]] = {
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
}


class Checkpoint:
    """One checkpoint folder, opened and checked against its own config. Nothing is read until asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.arch = architecture.from_config(self.config, str(folder / "config.json"))
        self.dropped: dict[str, str] = {}
        self._where: dict[str, tuple[SafetensorsFile, str]] = {}
        with ExitStack() as opened:
            self.files = [opened.enter_context(SafetensorsFile(path)) for path in _shards(folder)]
            self._index()
            self._opened = opened.pop_all()
        file, stored = self._where["embed_tokens.weight"]
        self.dtype = file.tensors[stored].dtype

    def _index(self) -> None:
        """Place every stored tensor, and hold the set and the shapes against the config."""
        for file in self.files:
            for stored in file.tensors:
                name = stored.removeprefix("model.")
                if name in _DROPPED:
                    self.dropped[stored] = _DROPPED[name]
                elif name in self._where:
                    raise ModelDamaged(f"{file.path}: tensor {stored!r} is there twice.")
                else:
                    self._where[name] = (file, stored)
        check_shapes(
            {name: file.tensors[stored].shape for name, (file, stored) in self._where.items()},
            architecture.tensors(self.arch),
            str(self.folder),
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The adapters in the folder, by name; empty for a plain or merged checkpoint."""
        return tuple(sorted(p.parent.name for p in self.folder.glob("adapters/*/adapter_config.json")))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One base weight in float32. Raises ModelDamaged where it is not finite."""
        file, stored = self._where[name]
        return finite(file.read_f32(stored), f"{file.path}: {stored}")

    def merged(self, task: str | None) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every weight with the adapter of `task` added, W + (alpha / r) B A in float32, always from the base.

        `task` None gives the base as it is. Tensors come in the order of `architecture.tensors`.
        """
        if task is None:
            for name in architecture.tensors(self.arch):
                yield name, self.tensor(name)
            return
        with Adapter(self.folder / "adapters" / task, self) as adapter:
            for name in architecture.tensors(self.arch):
                yield name, adapter.add_to(name, self.tensor(name))

    def close(self) -> None:
        """Close the weight files."""
        self._opened.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Adapter:
    """One LoRA adapter folder, checked against the checkpoint that it belongs to."""

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        if not folder.is_dir():
            raise UsageError(
                f"no adapter for task {folder.name!r} in {base.folder}. "
                f"There: {', '.join(base.tasks) or 'none (a merged or plain checkpoint)'}."
            )
        self.folder = folder
        config = read_json(folder / "adapter_config.json")
        self.rank, self.alpha = check_scale(config.get("r"), config.get("lora_alpha"), str(folder))
        self.scale = self.alpha / self.rank
        for key, plain in _PLAIN_LORA.items():
            if config.get(key) not in plain:
                raise ModelDamaged(f"{folder}: {key} is {config[key]!r}; only plain LoRA is merged here.")
        self._file = SafetensorsFile(folder / "adapter_model.safetensors")
        try:
            names = {name: _plain(name) for name in self._file.tensors}
            self._pairs = pair_factors(self._file, names, base.arch, self.rank)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def add_to(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """`weight` plus this adapter's delta for it, in float32; unchanged where it has none."""
        pair = self.factors(name)
        if pair is None:
            return weight
        a, b = pair
        return weight + np.float32(self.scale) * (b @ a)

    def factors(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """(A (r, in), B (out, r)) float32 for one base weight, or None."""
        if name not in self._pairs:
            return None
        a, b = self._pairs[name]
        where = f"{self._file.path}: "
        return finite(self._file.read_f32(a), where + a), finite(self._file.read_f32(b), where + b)

    @property
    def targets(self) -> tuple[str, ...]:
        """The base weights that have factors, in the order of `architecture.tensors`."""
        return tuple(self._pairs)


def pair_factors(
    file: SafetensorsFile, names: Mapping[str, str], arch: Architecture, rank: int
) -> dict[str, tuple[str, str]]:
    """Base weight -> the stored names of its A (r, in) and B (out, r), each tensor of the file used once.

    `names`: stored name -> `<module>.lora_A` or `.lora_B`. Raises ModelDamaged where a target is not a linear layer
    of the base, a shape or a type does not fit, a factor has no partner, or there is none at all.
    """
    shapes = architecture.tensors(arch)
    stored = {plain: name for name, plain in names.items()}
    expected: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for name in architecture.projections(arch):
        a, b = (f"{name.removesuffix('.weight')}.lora_{x}" for x in "AB")
        if a in stored or b in stored:
            expected[a], expected[b] = (rank, shapes[name][1]), (shapes[name][0], rank)
            pairs[name] = (stored.get(a, ""), stored.get(b, ""))
    found = {plain: file.tensors[name].shape for plain, name in stored.items()}
    check_shapes(found, expected, str(file.path))
    if not pairs:
        raise ModelDamaged(f"{file.path}: holds no LoRA factors.")
    if len(stored) < len(names):
        raise ModelDamaged(f"{file.path}: a factor is there twice, under two names.")
    for name, tensor in file.tensors.items():
        if tensor.dtype not in _FLOATS:
            raise ModelDamaged(f"{file.path}: {name} is stored as {tensor.dtype}; expected {' or '.join(_FLOATS)}.")
    return pairs


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ModelDamaged unless exactly the expected tensors are there, each in its shape."""
    faults = [
        *_some("missing", sorted(expected.keys() - found.keys())),
        *_some("unknown", sorted(found.keys() - expected.keys())),
        *_some(
            "of another shape",
            [
                f"{n} {found[n]} (expected {expected[n]})"
                for n in sorted(expected.keys() & found.keys())
                if found[n] != expected[n]
            ],
        ),
    ]
    if faults:
        raise ModelDamaged(f"{where}: the tensors do not fit the config: {'; '.join(faults)}.")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size. Raises ModelDamaged, ModelNotFound is the finder's."""
    with open_regular(path) as file:
        raw = file.read(_MAX_JSON + 1)
    if len(raw) > _MAX_JSON:
        raise ModelDamaged(f"{path}: larger than {_MAX_JSON >> 20} MiB.")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelDamaged(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelDamaged(f"{path}: holds {type(value).__name__}, expected a JSON object.")
    return value


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    others = sorted(p.name for p in folder.glob("model*.safetensors"))
    if not index.exists():
        if others != ["model.safetensors"]:
            raise ModelDamaged(
                f"{folder}: expected one model.safetensors or a model.safetensors.index.json, "
                f"found {others or 'neither'}. Weights of several precisions need a folder each."
            )
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ModelDamaged(f"{index}: weight_map is missing or malformed.")
    shards = sorted(set(weight_map.values()))
    bad = [name for name in shards if name != "model.safetensors" and not _SHARD.fullmatch(name)]
    if bad or shards != others:
        raise ModelDamaged(f"{index}: names the shards {shards[:5]}, the folder holds {others[:5]}.")
    return [folder / name for name in shards]


def _plain(name: str) -> str:
    return name.removeprefix("base_model.").removeprefix("model.").removeprefix("model.").removesuffix(".weight")


def finite(data: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """`data`, or ModelDamaged where a value is NaN or infinite."""
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        raise ModelDamaged(f"{where}: {bad} of {data.size} values are NaN or infinite.")
    return data


def _some(what: str, names: Iterable[str]) -> Iterator[str]:
    listed = list(names)
    if listed:
        yield f"{len(listed)} {what}: {', '.join(listed[:10])}{', ...' if len(listed) > 10 else ''}"
