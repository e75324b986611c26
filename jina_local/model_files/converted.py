"""A folder that our converters wrote, told by its manifest -> the model in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from .. import registry
from ..errors import ModelDamaged, UsageError
from ..formats import manifest
from ..formats.files import read_json
from ..formats.manifest import Manifest
from ..formats.safetensors import SafetensorsFile
from ..registry import Published
from ..spec import NO_TASK, ModelFiles
from ..weights import architecture, projector
from ..weights.architecture import Architecture
from ..weights.checkpoint import Checkpoint
from . import beside, ggufs
from .request import Request, require_reader, require_tasks


def read(folder: Path, request: Request) -> ModelFiles:
    """The files of a converted folder: merged weights for each task, or a base with its adapters.

    Raises UsageError, ModelDamaged.
    """
    record = manifest.load(folder)
    weights = {name: entry for name, entry in record.files.items() if entry.weights}
    merged = bool(weights) and not record.bases and not record.adapters
    shared = len(weights) == len(record.bases) > 0 and bool(record.adapters) and record.form != "checkpoint"
    if not merged and not shared:
        raise ModelDamaged(
            f"{folder}: its manifest does not say which file has which task's weights: neither is each file one "
            "task's, nor is there a base with adapters and nothing else. Convert again."
        )
    engine = require_reader(request, record.form, f"{folder} has {record.form} weights", record.source.name)
    if record.form == "gguf":
        entries = {folder / name: entry for name, entry in (weights | record.adapters).items()}
        files = ggufs.read(entries, folder, request, named(record))
        if files.model.name != record.model:
            raise ModelDamaged(f"{folder}: its manifest says {record.model}, its files are {files.model.name}.")
        return recorded(files, record)
    types = sorted({str(entry.weights) for entry in weights.values()})
    if len(types) > 1:
        raise ModelDamaged(f"{folder}: mixes weights of {' and '.join(types)}; each needs a folder of its own.")
    if request.label is not None and request.label.casefold() != types[0].casefold():
        raise UsageError(f"{folder}: has no weights {request.label!r}. There: {types[0]}.")
    return _of_safetensors(folder, record, request, types[0], engine)


def recorded(files: ModelFiles, record: Manifest) -> ModelFiles:
    """GGUF files with what their manifest says of them."""
    return replace(
        files,
        revision=record.source.revision,
        fingerprint=record.tokenizer,
        probes=_probes(record, files.label, files.files),
    )


def _probes(record: Manifest, label: str, tasks: Iterable[str]) -> dict[str, Sequence[Sequence[float]]]:
    return {task: numbers for task, numbers in record.expected(label).items() if task in set(tasks)}


def named(record: Manifest) -> Published | None:
    """The row of the model that a manifest names; None if it is none of them."""
    return next((row for row in registry.PUBLISHED if row.spec.name == record.model), None)


def _of_safetensors(folder: Path, record: Manifest, request: Request, label: str, engine: str) -> ModelFiles:
    """A folder of MLX or ONNX weights, or of merged checkpoints."""
    adapters = {str(entry.task): folder / name for name, entry in record.adapters.items()}
    if adapters and (list(record.bases) != ["model.safetensors"] or len(adapters) < len(record.adapters)):
        raise ModelDamaged(f"{folder}: its manifest names {len(record.bases)} bases, or two adapters of one task.")
    merged = {str(entry.task): folder / name for name, entry in record.files.items() if entry.task and entry.weights}
    arch = _shape(folder, merged.values() or [folder / "model.safetensors"], record.form)
    for path in adapters.values():
        SafetensorsFile(path).close()
    row = registry.identify(architecture=arch.kind, rope_theta=arch.rope_theta, where=str(folder))
    length = f"{folder}: max_position_embeddings"
    registry.check_length(row, hidden=arch.hidden, max_positions=arch.max_positions, where=length)
    if row.spec.name != record.model:
        raise ModelDamaged(f"{folder}: its manifest says {record.model}, its config {row.spec.name}.")
    if unknown := adapters.keys() - (set(row.spec.tasks) - {NO_TASK}):
        raise ModelDamaged(f"{folder}: has adapters for {', '.join(sorted(unknown))}, which {row.spec.name} has not.")
    files = {task: path.parent for task, path in merged.items()}
    if adapters:
        files = dict.fromkeys(registry.tasks_served(row, adapters), folder)
    require_tasks(request, row, files, folder)
    home = next(iter(files.values()))
    return ModelFiles(
        model=registry.narrow(row, hidden=arch.hidden, max_positions=arch.max_positions, tasks=files),
        form=record.form,
        files=files,
        label=label,
        tokenizer=beside.required_tokenizer(home),
        revision=record.source.revision,
        reasons=(*request.reasons, f"{engine}, because {folder} has {record.form} weights"),
        adapters=adapters,
        projector=beside.projector_of(row, home),
        fingerprint=record.tokenizer,
        probes=_probes(record, label, files),
        engine=engine,
    )


def _shape(folder: Path, weights: Iterable[Path], form: str) -> Architecture:
    """The shape that all weight files have. Each is opened once, and must be alone in its folder."""
    shapes: set[Architecture] = set()
    for path in weights:
        home = path.parent
        known = {path, home / projector.FILE}
        if others := sorted(other.name for other in home.glob("*.safetensors") if other not in known):
            raise ModelDamaged(
                f"{home}: {', '.join(others)} is not in the manifest; each precision needs its folder."
            )
        if form == "checkpoint":
            with Checkpoint(home) as checkpoint:
                shapes.add(checkpoint.arch)
        else:
            shapes.add(architecture.from_config(read_json(home / "config.json"), str(home / "config.json")))
            SafetensorsFile(path).close()
    if len(shapes) > 1:
        raise ModelDamaged(f"{folder}: its tasks have configs of different models.")
    return shapes.pop()
