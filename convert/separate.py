"""Published checkpoint -> one base and one small adapter file for each task, published together as one folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import registry
from jina_local.errors import UsageError
from jina_local.formats import safetensors
from jina_local.spec import NO_TASK, ModelSpec
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.adapters import mlx_file as format_
from jina_local.weights.adapters.mlx_file import Header
from jina_local.weights.adapters.published import Adapter
from jina_local.weights.checkpoint import Checkpoint

from . import source
from .publish import staging, write_manifest
from .task_folders import BASE, WEIGHTS, Form, Layout, Progress, size_of
from .verify import probes


def write_separate(
    checkpoint: Checkpoint,
    out: Path,
    tasks: Sequence[str],
    form: Form,
    *,
    dtype: str,
    force: bool,
    source_name: str | None,
    revision: str | None,
    progress: Progress | None,
) -> None:
    """Write `out`/model.safetensors without an adapter, and `out`/adapters/<task>.safetensors for each of `tasks`.

    `dtype`: "F16" or "F32", of the factors. Both sides carry the digest of the published base, which serves NO_TASK
    as it is. Raises UsageError where there is no adapter to write, ModelDamaged, OutputError, Locked.
    """
    model = source.row_of(checkpoint).spec
    _refuse_nothing(checkpoint, model, tasks)
    tasks = [task for task in tasks if task != NO_TASK]
    record = source.describe(checkpoint, source_name or checkpoint.folder.resolve().name, revision, tasks)
    tokenizer = Tokenizer.from_file(checkpoint.folder / "tokenizer.json")
    base = source.base_digest(checkpoint, record)
    layouts = {task: _layout(checkpoint, task, dtype) for task in tasks}
    with staging(out, force=force, needs=size_of(form.layout) + sum(map(size_of, layouts.values()))) as temp:
        safetensors.write(temp / WEIGHTS, form.layout, form.tensors(BASE), {**form.metadata, format_.BASE: base})
        form.configs(temp, BASE)
        weights: dict[str, tuple[str | None, str | None]] = {WEIGHTS: (None, form.label)}
        (temp / "adapters").mkdir()
        for done, (task, layout) in enumerate(layouts.items(), 1):
            name = f"adapters/{task}.safetensors"
            with checkpoint.adapter(task) as adapter:
                metadata = _header(adapter, task, base, model).dump()
                safetensors.write(temp / name, layout, _tensors(adapter, dtype), metadata)
            weights[name] = (task, None)
            if progress:
                progress("adapters", done, len(tasks))
        served = source.narrowed(checkpoint, registry.tasks_served(source.row_of(checkpoint), tasks))
        files = {temp / name: entry for name, entry in weights.items()}
        write_manifest(
            temp,
            form=form.name,
            model=model.name,
            source=record,
            tokenizer=tokenizer.fingerprint(),
            weights=weights,
            probes=probes.of_files(files, checkpoint, served, tokenizer),
        )


def _refuse_nothing(checkpoint: Checkpoint, model: ModelSpec, tasks: Sequence[str]) -> None:
    if model.scoring:
        raise UsageError(f"{model.name} has no adapters to keep beside a base. Leave --adapters separate out.")
    if not checkpoint.tasks:
        raise UsageError(
            f"{checkpoint.folder} is merged already: there are no adapters to keep beside a base. Convert from the "
            "published base checkpoint, or leave --adapters separate out."
        )
    if set(tasks) <= {NO_TASK}:
        raise UsageError(
            f"task {NO_TASK!r} is the base without an adapter: with --adapters separate it comes along with any. "
            f"Name one of {', '.join(checkpoint.tasks)}, or leave --adapters separate out."
        )


def _header(adapter: Adapter, task: str, base: str, model: ModelSpec) -> Header:
    prompt = task if model.default_prompt is None else model.default_prompt
    return Header(task, adapter.rank, adapter.alpha, base, model.prompts, prompt)


def _layout(checkpoint: Checkpoint, task: str, dtype: str) -> Layout:
    with checkpoint.adapter(task) as adapter:
        return {
            name: (dtype, factor.shape)
            for target in adapter.targets
            for name, factor in zip(format_.names(target), adapter.factors(target) or (), strict=True)
        }


def _tensors(adapter: Adapter, dtype: str) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for target in adapter.targets:
        for name, data in zip(format_.names(target), adapter.factors(target) or (), strict=True):
            yield name, data if dtype == "F32" else safetensors.to_f16(data, f"{adapter.where}: {name}")
