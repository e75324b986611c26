"""A published checkpoint, the base with its adapters as on the hub -> the model in it."""

from __future__ import annotations

import os
from pathlib import Path

from .. import registry
from ..errors import UsageError
from ..formats import manifest
from ..spec import RERANK, ModelFiles
from ..weights.checkpoint import Checkpoint
from . import beside
from .request import Request, how_to_convert, require_reader, require_tasks


def says_tasks(folder: Path) -> bool:
    """Whether a folder has a checkpoint that says which tasks it serves. Raises ModelDamaged."""
    if not is_there(folder):
        return False
    with Checkpoint(folder) as base:
        return bool(base.tasks) or base.arch.labels > 0


def is_there(folder: Path) -> bool:
    """Whether a folder has the files of a checkpoint."""
    return os.path.lexists(folder / "config.json") and any(folder.glob("model*.safetensors*"))


def read(folder: Path, request: Request) -> ModelFiles:
    """The files of a checkpoint folder, every adapter opened once. Raises UsageError, ModelDamaged."""
    engine = require_reader(request, "checkpoint", f"{folder} is a published checkpoint")
    with Checkpoint(folder) as base:
        arch = base.arch
        row = registry.identify(architecture=arch.kind, rope_theta=arch.rope_theta, where=str(folder))
        length = f"{folder}: max_position_embeddings"
        registry.check_length(row, hidden=arch.hidden, max_positions=arch.max_positions, where=length)
        if request.label and request.label.casefold() != base.dtype.casefold():
            command = how_to_convert(request.label, str(folder))
            raise UsageError(
                f"{folder}: its weights are {base.dtype}, not {request.label!r}. Make them: `{command}`."
            )
        # A reranker has no adapters.
        tasks = [RERANK] if row.spec.scoring else registry.tasks_served(row, base.tasks)
        if not tasks:
            raise UsageError(
                f"{folder}: has no adapters/ and no {manifest.NAME} that says which task it was merged for. Take the "
                f"published {row.repo or row.spec.name}, or merge with `python -m convert merge`."
            )
        adapters = {task: base.adapter_place(task) for task in tasks if task in base.tasks}
        for task in adapters:
            with base.adapter(task):
                pass
        require_tasks(request, row, tasks, folder)
        return ModelFiles(
            model=registry.narrow(row, hidden=arch.hidden, max_positions=arch.max_positions, tasks=tasks),
            form="checkpoint",
            files=dict.fromkeys(tasks, folder),
            label=base.dtype,
            tokenizer=beside.required_tokenizer(folder),
            revision=None,
            reasons=(*request.reasons, f"{engine}, because {folder} is a published checkpoint"),
            adapters=adapters,
            projector=beside.projector_of(row, folder, folder),
            engine=engine,
        )
