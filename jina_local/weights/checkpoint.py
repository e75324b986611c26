"""A published checkpoint folder: config, sharded weights, task adapters -> float32 tensors, one at a time.

Layout: config.json; model.safetensors, or shards named by model.safetensors.index.json; adapters in the layouts of
adapters/published.py. Names may start with `model.` or `roberta.`. Every tensor of the source is used or is listed in
`dropped`; an unknown tensor stops the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamaged, UsageError
from ..formats.checks import check_shapes, finite
from ..formats.files import read_json
from ..formats.safetensors import SafetensorsFile
from ..spec import NO_TASK
from . import architecture
from .adapters import published
from .adapters.published import Adapter

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_DROPPED = (
    (re.compile(r"lm_head\.(weight|bias|dense\..*|decoder\..*|layer_norm\..*)"), "a vocabulary head, not used here"),
    (re.compile(r"pooler\.dense\..*"), "the pooler of the pretraining; v3 takes the mean instead"),
    (re.compile(r"embeddings\.position_ids"), "the numbers from 0 on"),
)
_INSIDE = re.compile(r"(.*)\.parametrizations\.weight\.0\.lora_([AB])")
_ORIGINAL = re.compile(r"(.*)\.parametrizations\.weight\.original")
_PROJECTOR = re.compile(r"projector\.\d+\.weight")


class Checkpoint:
    """One checkpoint folder, opened and checked against its own config. Tensors are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.arch = architecture.from_config(self.config, str(folder / "config.json"))
        self.dropped: dict[str, str] = {}
        self._base: dict[str, tuple[SafetensorsFile, str]] = {}
        self._inside: dict[str, tuple[SafetensorsFile, str]] = {}
        self._projector: dict[str, tuple[SafetensorsFile, str]] = {}
        with ExitStack() as opened:
            self.files = [opened.enter_context(SafetensorsFile(path)) for path in _shards(folder)]
            self._index()
            self._opened = opened.pop_all()
        file, stored = self._base[self.arch.table]
        self.dtype = file.tensors[stored].dtype
        self._folders = {} if self._inside else published.folders(folder, self.arch)

    def _index(self) -> None:
        """Find the use of every stored tensor, and check the names and shapes against the config."""
        for file in self.files:
            for stored in file.tensors:
                self._place(file, stored)
        check_shapes(
            {name: file.tensors[stored].shape for name, (file, stored) in self._base.items()},
            architecture.tensors(self.arch),
            str(self.folder),
        )

    def _place(self, file: SafetensorsFile, stored: str) -> None:
        name = stored.removeprefix("model.").removeprefix("roberta.")
        if why := next((why for pattern, why in _DROPPED if pattern.fullmatch(name)), None):
            self.dropped[stored] = why
            return
        places = self._base
        if self.arch.xlm_roberta and (inside := _INSIDE.fullmatch(name)):
            places, name = self._inside, f"{inside[1]}.weight|{inside[2]}"
        elif self.arch.xlm_roberta and (original := _ORIGINAL.fullmatch(name)):
            name = f"{original[1]}.weight"
        elif self.arch.kind == "qwen3" and _PROJECTOR.fullmatch(name):
            places = self._projector
        if name in places:
            raise ModelDamaged(f"{file.path}: tensor {stored!r} is there twice.")
        places[name] = (file, stored)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have an adapter; none in a plain or merged checkpoint."""
        if self._inside:
            return published.inside_tasks(self.config, str(self.folder))
        return tuple(sorted(self._folders))

    def adapter(self, task: str) -> Adapter:
        """Open one task's adapter. Raises UsageError if there is none, and ModelDamaged."""
        if self._inside and task in self.tasks:
            return published.from_inside(str(self.folder), self.config, self._inside, self.arch, task)
        if task in self._folders:
            return published.from_folder(self._folders[task], self.arch)
        raise UsageError(
            f"no adapter for task {task!r} in {self.folder}. "
            f"There: {', '.join(self.tasks) or 'none (a merged or plain checkpoint)'}."
        )

    def adapter_place(self, task: str) -> Path:
        """The folder of a task's adapter: its own, or the checkpoint's if the adapter is inside the weight files."""
        return self._folders.get(task, self.folder)

    def adapter_files(self, task: str) -> list[Path]:
        """The files of a task's adapter; none if the adapter is inside the base's weight files."""
        return (
            [self._folders[task] / name for name in (published.CONFIG, published.WEIGHTS)]
            if task in self._folders
            else []
        )

    def projector(self) -> dict[str, NDArray[np.float32]]:
        """The tensors of a listwise reranker's projector in the weight files: name -> float32 matrix."""
        return {
            name: finite(file.read_f32(stored), f"{file.path}: {stored}")
            for name, (file, stored) in self._projector.items()
        }

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One base weight in float32. Raises ModelDamaged for NaN and infinity."""
        file, stored = self._base[name]
        return finite(file.read_f32(stored), f"{file.path}: {stored}")

    def merged(self, task: str | None) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every weight plus the adapter of `task`, W + (alpha / r) B A in float32, always computed from the base.

        None or NO_TASK gives the base unchanged. Tensors come in the order of `architecture.tensors`.
        """
        if task is None or task == NO_TASK:
            for name in architecture.tensors(self.arch):
                yield name, self.tensor(name)
            return
        with self.adapter(task) as adapter:
            for name in architecture.tensors(self.arch):
                yield name, adapter.add_to(name, self.tensor(name))

    def close(self) -> None:
        """Close the weight files."""
        self._opened.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
