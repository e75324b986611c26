"""GGUF files -> the model, task and precision that each holds, checked before an engine opens it.

Three kinds: the merged weights of one task, a base that tasks share, and a task's adapter beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import registry
from ..errors import ModelDamaged, UsageError
from ..formats import gguf
from ..formats.gguf import FILE_TYPES, Header
from ..formats.manifest import Entry
from ..registry import Published
from ..spec import RERANK, ModelSpec
from ..weights import architecture, gguf_keys
from ..weights.adapters import gguf_file
from ..weights.adapters.gguf_file import BASE_KEY, TASK_KEY
from ..weights.architecture import Architecture
from . import gguf_gate
from .labels import own_name, published_name

SEPARATE = "`python -m convert gguf SRC OUT --task all --adapters separate`"


@dataclass(frozen=True)
class Identity:
    """What a GGUF file with a model in it turned out to be."""

    path: Path
    row: Published
    arch: Architecture
    task: str | None  # None: a base that tasks share
    label: str
    base: str | None  # the digest of the published base; None: the file is merged for a task

    def narrowed(self, tasks: tuple[str, ...]) -> ModelSpec:
        """The registry row, narrowed to these tasks and to the shape of the file."""
        return registry.narrow(self.row, hidden=self.arch.hidden, max_positions=self.arch.max_positions, tasks=tasks)


def not_a_model(path: Path) -> str:
    """The message for an adapter that is given instead of a model."""
    return (
        f"{path}: is an adapter, not a model. Give the path of the base beside it, or of their folder, and name the "
        "task where texts are encoded."
    )


def identify(path: Path, entry: Entry | None = None) -> Identity:
    """Read and check the header of one file with a model in it. `entry`: its entry in a manifest.

    The task comes from the manifest, our own key or the published file name; sources that disagree are refused. A
    base has a digest instead of a task. Raises ModelDamaged, and UsageError for an adapter or if the task is unknown.
    """
    header = gguf.read_header(path)
    if gguf_file.is_adapter(header):
        raise UsageError(not_a_model(path))
    gguf_keys.check_types(header.keys, str(path))
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ModelDamaged(f"{path}: holds no token_embd.weight; it is not a complete model.")
    arch = architecture.from_gguf(header.keys, table.shape[0], str(path))
    row = registry.identify(architecture=arch.kind, rope_theta=arch.rope_theta, where=str(path))
    gguf_gate.check(header, arch, row)
    digest = _base(header, row, entry)
    task = _task(header, row, entry) if digest is None else None
    return Identity(path, row, arch, task, _label(header, entry), digest)


def _task(header: Header, row: Published, entry: Entry | None) -> str:
    name = published_name(header.path)
    said = {
        "its manifest": entry.task if entry else None,
        f"its key {TASK_KEY}": header.text(TASK_KEY),
        "its name": name[1] if name else None,
        "its architecture": RERANK if row.spec.scoring else None,
    }
    found = {where: task for where, task in said.items() if task is not None}
    if name and name[0] is not row:
        raise ModelDamaged(
            f"{header.path}: has the name of {name[0].spec.name} and holds {row.spec.name}. Rename it to "
            f"{row.gguf_file.format(task=name[1], type=name[2])}."
        )
    if not found:
        raise UsageError(
            f"{header.path}: is {row.spec.name}, and nothing says which task it was merged for. Give it the name "
            f"that it was published by, as {row.gguf_file.format(task=row.spec.tasks[0], type='Q8_0')} (tasks: "
            f"{', '.join(row.spec.tasks)}), or convert again with `python -m convert gguf`."
        )
    if len(set(found.values())) > 1:
        told = ", ".join(f"{where} says {task!r}" for where, task in found.items())
        raise ModelDamaged(f"{header.path}: which task is it for? {told}. Rename it, or convert again.")
    task = next(iter(found.values()))
    if task not in row.spec.tasks:
        raise ModelDamaged(
            f"{header.path}: is for the task {task!r}; {row.spec.name} has {', '.join(row.spec.tasks)}."
        )
    return task


def _base(header: Header, row: Published, entry: Entry | None) -> str | None:
    """The digest in a base that tasks share; None if the file is merged for one task."""
    path, merged_for = header.path, header.text(TASK_KEY)
    digest = header.text(BASE_KEY) if merged_for is None else None
    name = own_name(path)
    task = (entry.task if entry else None) or (name[1] if name and name[1] != "base" else None)
    called_base = (name is not None and name[1] == "base") or (entry is not None and bool(entry.weights) and not task)
    if digest is None and called_base:
        raise ModelDamaged(
            f"{path}: its name or manifest says that it is a base that tasks share, and it "
            f"{f'is merged for {merged_for}' if merged_for else f'carries no digest of one ({BASE_KEY})'}. Make base "
            f"and adapters with {SEPARATE}."
        )
    if digest is not None and task:
        raise ModelDamaged(
            f"{path}: is a base that tasks share, and its name or manifest says that it is merged for {task}. Rename "
            f"it to {row.gguf_file.format(task='base', type=header.weights)}, or convert again."
        )
    if digest is not None and name and name[0] is not row:
        raise ModelDamaged(
            f"{path}: has the name of {name[0].spec.name} and holds {row.spec.name}. Rename it to "
            f"{row.gguf_file.format(task='base', type=name[2])}."
        )
    return digest


def _label(header: Header, entry: Entry | None) -> str:
    if entry and entry.weights:
        return entry.weights
    name = own_name(header.path)
    if name and name[2] in FILE_TYPES.values():
        return name[2]
    return header.weights
