"""One folder of safetensors for each task, published together: what `merge`, `mlx` and `onnx` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local.formats import safetensors
from jina_local.formats.manifest import Probes
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.checkpoint import Checkpoint

from . import source
from .publish import staging, write_manifest
from .verify import probes

Progress = Callable[[str, int, int], None]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
BASE = "base"  # stands for a task where a form's tensors are wanted without any adapter
WEIGHTS = "model.safetensors"
_BYTES = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class Form:
    """How one kind of folder is written."""

    name: str  # the manifest's form
    label: str  # the manifest's label of the weights
    layout: Layout  # every tensor of the file: name -> dtype, shape
    metadata: Mapping[str, str]
    tensors: Callable[[str], Iterator[tuple[str, NDArray[np.generic]]]]  # task (or BASE) -> them, one at a time
    configs: Callable[[Path, str], None]  # everything beside the weights of a task (or BASE), into the folder given


def size_of(layout: Layout) -> int:
    """Bytes of the tensors."""
    return sum(math.prod(shape) * _BYTES[dtype] for dtype, shape in layout.values())


def write_folders(
    checkpoint: Checkpoint,
    out: Path,
    tasks: Sequence[str],
    form: Form,
    *,
    force: bool,
    source_name: str | None,
    revision: str | None,
) -> None:
    """Write `out` for one task, `out`/<task> for several, each whole in itself with a manifest of its own."""
    record = source.describe(checkpoint, source_name or checkpoint.folder.resolve().name, revision, tasks)
    tokenizer = Tokenizer.from_file(checkpoint.folder / "tokenizer.json")
    fingerprint, model = tokenizer.fingerprint(), source.narrowed(checkpoint, tasks)

    def seal(folder: Path, tasks: Mapping[str, str], numbers: Probes) -> None:
        weights = {path: (task, form.label) for path, task in tasks.items()}
        known = {task: numbers[task] for task in tasks.values()}
        write_manifest(
            folder,
            form=form.name,
            model=model.name,
            source=record,
            tokenizer=fingerprint,
            weights=weights,
            probes=known,
        )

    with staging(out, force=force, needs=size_of(form.layout) * len(tasks)) as temp:
        folders = {task: temp if len(tasks) == 1 else temp / task for task in tasks}
        numbers: dict[str, Mapping[str, Sequence[Sequence[float]]]] = {}
        for task, folder in folders.items():
            folder.mkdir(exist_ok=True)
            safetensors.write(folder / WEIGHTS, form.layout, form.tensors(task), form.metadata)
            form.configs(folder, task)
            numbers |= probes.of_files({folder / WEIGHTS: (task, form.label)}, checkpoint, model, tokenizer)
            if folder != temp:
                seal(folder, {WEIGHTS: task}, numbers)
        seal(temp, {(f / WEIGHTS).relative_to(temp).as_posix(): task for task, f in folders.items()}, numbers)
