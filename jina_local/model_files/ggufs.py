"""Several GGUF files -> the files of one precision: a merged file for each task, or a base with its adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .. import registry
from ..errors import ModelDamaged, UsageError
from ..formats import gguf
from ..formats.manifest import Entry
from ..registry import Published
from ..spec import ModelFiles
from ..weights.adapters import gguf_file
from ..weights.adapters.gguf_file import Base
from . import beside
from .gguf_model import SEPARATE, Identity, identify, not_a_model
from .labels import own_name, rank
from .request import Request, require_reader


@dataclass(frozen=True)
class Choice:
    """The files of one precision out of several, by task, and why it is this precision."""

    files: Mapping[str, Identity]  # a shared base stands there once for each task
    adapters: Mapping[str, Path]  # empty if the files are merged
    reasons: tuple[str, ...]


def read_folder(folder: Path, request: Request) -> ModelFiles:
    """A folder of GGUF files as Jina publishes them, without a manifest."""
    require_reader(request, "gguf", f"{folder} has GGUF files")
    return read(dict.fromkeys(sorted(folder.glob("*.gguf"))), folder, request)


def read(
    files: Mapping[Path, Entry | None], where: Path, request: Request, row: Published | None = None
) -> ModelFiles:
    """The model in GGUF files.

    files: each with what a manifest says of it. where: what the caller gave. row: the model, if it is known.
    Raises UsageError, ModelDamaged.
    """
    model = (row or _model_of(files)) if request.tasks else None
    tasks = registry.tasks_for(model, request.tasks) if model else request.tasks
    choice = choose(files, str(where), label=request.label, tasks=tasks)
    first = next(iter(choice.files.values()))
    folder = first.path.parent
    tokenizer = beside.tokenizer(folder)
    told = ("tokenizer.json from beside the file",) if tokenizer else ()
    return ModelFiles(
        model=first.narrowed(tuple(choice.files)),
        form="gguf",
        files={task: one.path for task, one in choice.files.items()},
        label=first.label,
        tokenizer=tokenizer,
        revision=None,
        reasons=(*request.reasons, f"llama, because {where} is GGUF", *choice.reasons, *told),
        adapters=choice.adapters,
        projector=beside.projector_of(first.row, folder),
        vocabularies=tuple(dict.fromkeys(one.path for one in choice.files.values())),
    )


def _model_of(files: Mapping[Path, Entry | None]) -> Published | None:
    """The model that files are of, by the first name that says it, else by the first header that does."""
    if name := next((name for path in files if (name := own_name(path))), None):
        return name[0]
    for path, entry in files.items():
        with suppress(ModelDamaged, UsageError):  # `choose` says what is wrong with a file
            return identify(path, entry).row
    return None


def adapters_beside(path: Path, entries: Mapping[str, Entry]) -> dict[Path, Entry | None]:
    """The adapters in the folder of a base; nothing for a merged file. `entries`: the manifest's, by name.

    A file that cannot be read is returned too, because it may be an adapter; `choose` reports its fault. Raises
    UsageError if `path` is an adapter itself.
    """
    kind = _claim(path, entries.get(path.name)).kind
    if kind == "adapter":
        raise UsageError(not_a_model(path))
    if kind == "merged":
        return {}
    adapters: dict[Path, Entry | None] = {}
    for other in sorted(path.parent.glob("*.gguf")):
        entry = entries.get(other.name)
        try:
            kind = _claim(other, entry).kind
        except (ModelDamaged, UsageError):
            kind = "adapter"
        if kind == "adapter" and other.name != path.name:
            adapters[other] = entry
    return adapters


def choose(files: Mapping[Path, Entry | None], where: str, *, label: str | None, tasks: Sequence[str] = ()) -> Choice:
    """Take the files of one precision: `label`, or the first of labels.GGUF that serves all of `tasks`.

    Without `tasks`, a precision that serves a model's default task is preferred. Headers are read only of files that
    are taken, and of files whose name and manifest say nothing. Raises UsageError with the files there, ModelDamaged.
    """
    by_kind: dict[str, dict[str, dict[str, Path]]] = {"merged": {}, "base": {}, "adapter": {}}
    passed_over: list[ModelDamaged | UsageError] = []
    for path, entry in files.items():
        try:
            claim = _claim(path, entry)
        except (ModelDamaged, UsageError) as error:
            passed_over.append(error)
            continue
        other = by_kind[claim.kind].setdefault(claim.label, {}).setdefault(claim.task, path)
        if other != path:
            what = f"{claim.task} in {claim.label}" if claim.label else f"the adapter of {claim.task}"
            raise UsageError(f"{where}: two files for {what}: {other.name} and {path.name}. Give one's path.")
    adapters = by_kind["adapter"].get("", {})
    served = by_kind["merged"] or {kind: dict.fromkeys(adapters, path[""]) for kind, path in by_kind["base"].items()}
    _one_kind(by_kind["merged"], by_kind["base"], adapters, where, passed_over)
    chosen, why = _precision(served, where, label, tasks)
    notes = [f"not used: {error}" for error in passed_over]
    if by_kind["base"]:
        return Choice(*_on_base(by_kind["base"][chosen][""], files, adapters), (*why, *notes))
    notes += [f"not used: {path}: an adapter, and there is no base beside it" for path in adapters.values()]
    identities = {task: identify(path, files[path]) for task, path in sorted(served[chosen].items())}
    first = next(iter(identities.values()))
    for second in identities.values():
        if second.arch != first.arch:
            raise UsageError(
                f"{where}: {first.path.name} and {second.path.name} are different models. Give one file's path."
            )
    return Choice(identities, {}, (*why, *notes))


def _one_kind(
    merged: Mapping[str, object],
    bases: Mapping[str, Mapping[str, Path]],
    adapters: Mapping[str, Path],
    where: str,
    passed_over: Sequence[ModelDamaged | UsageError],
) -> None:
    """Raise unless there are merged files, or bases with adapters, and not both."""
    if not merged and not bases and not adapters:
        raise passed_over[0]
    told = [path.name for base in bases.values() for path in base.values()]
    if merged and bases:
        raise UsageError(
            f"{where}: holds merged files and a base that tasks share ({', '.join(told)}). Keep each kind in a "
            "folder of its own, or give one file's path."
        )
    if bases and not adapters:
        why = "".join(f" Not used: {error}" for error in passed_over)
        raise UsageError(
            f"{where}: {', '.join(told)} is a base that tasks share, and no adapter lies beside it, as "
            f"{_named_like(told[0], base=False)} would. Both come from {SEPARATE}; without it, merged files do.{why}"
        )
    if adapters and not bases and not merged:
        first = next(iter(adapters.values())).name
        raise UsageError(
            f"{where}: holds adapters ({', '.join(sorted(path.name for path in adapters.values()))}) and no base to "
            f"run them beside, as {_named_like(first, base=True)} would be. Give the folder that has both; they come "
            f"from {SEPARATE}."
        )


def _named_like(name: str, *, base: bool) -> str:
    """The file name of a base or an adapter, of the model that `name` belongs to, else of the default model."""
    known = own_name(Path(name))
    row = known[0] if known else registry.lookup(registry.DEFAULT_MODEL)
    task = row.spec.default_task or row.spec.tasks[0]
    return row.gguf_file.format(task="base" if base else task, type="Q8_0" if base else "adapter")


def _on_base(
    path: Path, files: Mapping[Path, Entry | None], adapters: Mapping[str, Path]
) -> tuple[dict[str, Identity], dict[str, Path]]:
    """(task -> base, task -> adapter), each adapter checked against the base."""
    identity = identify(path, files[path])
    if identity.base is None:
        raise AssertionError("identify lets nothing pass that is called a base and has no digest")
    if unknown := sorted(adapters.keys() - set(identity.row.spec.tasks)):
        raise ModelDamaged(
            f"{adapters[unknown[0]]}: is for the task {unknown[0]!r}; {identity.row.spec.name} has "
            f"{', '.join(identity.row.spec.tasks)}."
        )
    base = Base(path, identity.base, identity.arch)
    for task, adapter in adapters.items():
        gguf_file.check(gguf.read_header(adapter), task, base)
    return dict.fromkeys(sorted(adapters), identity), dict(sorted(adapters.items()))


@dataclass(frozen=True)
class _Claim:
    """The kind of a file, by its manifest or its name, else by its header."""

    kind: str  # "merged" | "base" | "adapter"
    task: str  # "" of a base
    label: str  # "" of an adapter


def _claim(path: Path, entry: Entry | None) -> _Claim:
    if entry and (entry.task or entry.weights):
        kind = "base" if not entry.task else "merged" if entry.weights else "adapter"
        return _Claim(kind, entry.task or "", entry.weights or "")
    if name := own_name(path):
        _, task, label = name
        if task == "base":
            return _Claim("base", "", label)
        return _Claim("adapter", task, "") if label == "ADAPTER" else _Claim("merged", task, label)
    header = gguf.read_header(path)
    if gguf_file.is_adapter(header):
        named = gguf_file.task_of(header)
        if named is None:
            raise UsageError(
                f"{path}: is an adapter, and neither its name nor {gguf_file.NAME_KEY} says for which task."
            )
        return _Claim("adapter", named, "")
    identity = identify(path, entry)
    return _Claim("merged" if identity.task else "base", identity.task or "", identity.label)


def _precision(
    served: Mapping[str, Mapping[str, Path]], where: str, label: str | None, tasks: Sequence[str]
) -> tuple[str, list[str]]:
    there = "; ".join(f"{kind} ({', '.join(sorted(served[kind]))})" for kind in sorted(served, key=rank))
    defaults = {row.spec.default_task for row in registry.PUBLISHED}
    if label is not None:
        labels = [kind for kind in served if kind.casefold() == label.casefold()]
        if not labels:
            raise UsageError(f"{where}: has no weights {label!r}. There: {there}.")
    else:
        labels = [kind for kind in served if defaults & served[kind].keys()] if not tasks else list(served)
    fit = [kind for kind in labels or served if set(tasks) <= served[kind].keys()]
    if not fit:
        of = f" in {label}" if label else ""
        raise UsageError(f"{where}: has no file for {', '.join(tasks)}{of}. There: {there}.")
    chosen = min(fit, key=rank)
    if label is not None or len(served) == 1:
        return chosen, []
    return chosen, [f"weights {chosen}: the first choice among those that are there ({there})"]
