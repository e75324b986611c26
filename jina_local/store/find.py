"""Find the files of one model: a name or a path -> ModelFiles, checked, or an error that says what was looked for.

A path is read by `layouts`. A name is looked for in the local store, then in the hub cache, and is then fetched
unless offline. Every choice that was made for the caller is a sentence in ModelFiles.reasons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import backends, registry
from ..errors import ModelDamaged, ModelNotFound, UsageError
from ..model_files import gguf_model
from ..model_files.folder import (
    MLX_ORDER,
    Asked,
    engines_for,
    how_to_convert,
    of_ggufs,
    of_published,
    open_path,
    refuse_other,
)
from ..registry import Published
from ..spec import ModelFiles
from . import hub, hub_cache, package
from .hub_cache import Held

_FORMS = {"llama": ("gguf",), "mlx": ("mlx", "checkpoint")}
_LABELS = {label.casefold(): label for label in (*gguf_model.ORDER, *MLX_ORDER)}
_PATH = re.compile(r"[./~\\].*|.*[\\].*|.*/.*/.*|.*/|[A-Za-z]:.*|.*\.(gguf|safetensors|json|bin|pt|pth|onnx)")


def find(
    name_or_path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    weights: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: bool = False,
    tasks: Sequence[str] | None = None,
    source: bool = False,
) -> ModelFiles:
    """The files of a model, not yet opened by an engine.

    name_or_path: a folder, a .gguf file, or a name: "v5-nano", "owner/name", "owner/name:Q4_K_M". weights: a label
    in any case. revision: for names, a commit of the hub instead of the pinned one. offline: None follows
    JINA_LOCAL_OFFLINE and HF_HUB_OFFLINE. tasks: all have to be served, and of a word that stands for several each;
    without, what is there is taken, and the default task is fetched. source: only the published checkpoint with its
    adapters will do, no conversion.
    Raises ModelNotFound, ModelDamaged, UsageError, EngineMissing, OutputError.
    """
    wanted = os.fspath(name_or_path)
    registry.check_tasks(tasks or ())
    if backend not in ("auto", *backends.BACKENDS):
        raise UsageError(f"unknown backend {backend!r}. Possible: auto, {', '.join(backends.BACKENDS)}.")
    if not wanted.strip():
        raise UsageError(f"no model was given. Known names: {', '.join(registry.names())}; or a path.")
    asked = Asked(backend, _LABELS.get(weights.casefold(), weights) if weights else None, tuple(tasks or ()))
    path = Path(wanted).expanduser()
    if os.path.lexists(path):
        if revision is not None:
            raise UsageError(
                f"revision {revision!r} was given with a path, {wanted}; it belongs to a name on the hub."
            )
        return open_path(path, asked)
    if isinstance(name_or_path, Path) or _PATH.fullmatch(wanted):
        raise ModelNotFound(
            f"{wanted}: no such file or folder. Give a folder or a .gguf file that exists, or one of the names "
            f"{', '.join(registry.names())}."
        )
    return _by_name(wanted, asked, revision, hub.offline(offline), progress, source)


def _by_name(
    wanted: str, asked: Asked, revision: str | None, offline: bool, progress: bool, source: bool
) -> ModelFiles:
    row, asked = _lookup(wanted, asked)
    asked = replace(asked, tasks=registry.expand_tasks(row, asked.tasks))
    if unknown := [task for task in asked.tasks if task not in row.spec.tasks]:
        raise UsageError(f"unknown task {unknown[0]!r}. {row.spec.name} has: {', '.join(row.spec.tasks)}.")
    kinds = ("mlx",) if source else engines_for(asked.label, asked.backend)
    if row.bundled and (carried := _bundled(row, asked, kinds, revision)):
        return carried
    # A model without a default task has none to insist on.
    default = row.spec.tasks if source else (row.spec.default_task,) if row.spec.default_task else ()
    tries = [asked.tasks or default, *([()] if offline and default and not asked.tasks else [])]
    # Weights named by their bits come from our converter alone, and so do all others of a model that the package
    # carries: no hub has them. Of some models the hub has no GGUF files.
    ours = row.bundled or (asked.label is not None and asked.label.endswith("bit"))
    on_hub = [kind for kind in kinds if hub_cache.repos(row, kind, row.spec.tasks) and not ours]
    broken = [f"not usable: {one.fault}" for one in hub.stored() if one.fault]
    for tasks in tries:
        for kind in () if source else kinds:
            if stored := _in_store(row, replace(asked, backend=kind, tasks=tuple(tasks)), revision):
                return stored
        for kind in on_hub:
            if held := hub_cache.held(row, kind, tasks=tasks, weights=asked.label, revision=revision):
                return _of_held(row, held, asked, [f"found in the hub cache, commit {held.commit}", *broken])
    if not on_hub or offline:
        raise ModelNotFound(" ".join([_absent(row, kinds, asked, revision), *broken]))
    held = hub.pull(
        row, on_hub[0], tasks=asked.tasks or None, weights=asked.label, revision=revision, progress=progress
    )
    return _of_held(row, held, asked, [f"fetched from {hub.endpoint()}, commit {held.commit}", *broken])


def _bundled(row: Published, asked: Asked, kinds: Sequence[str], revision: str | None) -> ModelFiles | None:
    """What the package carries of a model, for the first engine that has the precision asked for."""
    if revision is not None:
        raise UsageError(f"{row.spec.name} comes with the package and has no revisions; got {revision!r}.")
    for kind in kinds:
        if asked.label in (None, package.LABELS[kind]):
            why = "it comes with the package"
            return open_path(package.folder(row, kind), replace(asked, backend=kind, reasons=(*asked.reasons, why)))
    return None


def _lookup(wanted: str, asked: Asked) -> tuple[Published, Asked]:
    """The row of `name`, `owner/name` or the repository of one task's GGUF files, each with an optional `:LABEL`."""
    name, _, label = wanted.partition(":")
    if label and asked.label and label.casefold() != asked.label.casefold():
        raise UsageError(f"{wanted} asks for {label}, and weights={asked.label!r} for another precision. Give one.")
    chosen = label or asked.label
    if chosen and chosen.casefold() not in _LABELS:
        possible = f"For llama: {', '.join(gguf_model.ORDER)}; for mlx: {', '.join(MLX_ORDER)}."
        raise UsageError(f"unknown weights {chosen!r}. {possible}")
    asked = replace(asked, label=_LABELS[chosen.casefold()] if chosen else None)
    for row in registry.PUBLISHED:
        for task, repo in hub_cache.repos(row, "llama", row.spec.tasks).items():
            if name.casefold() == repo.casefold():
                refuse_other(asked, "llama", f"{name} has GGUF files")
                return row, replace(asked, backend="llama", tasks=asked.tasks or (task,))
    try:
        return registry.lookup(name), asked
    except UsageError as error:
        raise UsageError(f"{error} There is no file or folder {wanted!r} either.") from error


def _in_store(row: Published, asked: Asked, revision: str | None) -> ModelFiles | None:
    """The best of the converted folders that have what was asked for; where any task will do, one that has most."""
    fit: list[tuple[int, int, Path, str]] = []
    for one in hub.stored():
        held = one.manifest
        if held is None or held.model != row.spec.name or held.form not in _FORMS[asked.backend]:
            continue
        if revision not in (None, held.source.revision):
            continue
        for label, tasks in held.serves.items():
            served = registry.tasks_served(row, tasks) if held.adapters else tasks
            if asked.label in (None, label) and set(asked.tasks) <= set(served):
                order = gguf_model.ORDER if held.form == "gguf" else MLX_ORDER
                place = order.index(label) if label in order else len(order)
                fit.append((0 if asked.tasks else -len(served), place, one.path, label))
    if not fit:
        return None
    *_, path, label = min(fit)
    why = (
        f"{label} in {path}: the first choice of {len(fit)} in the local store"
        if len(fit) > 1
        else f"in the local store, {path}"
    )
    return open_path(path, replace(asked, label=label, reasons=(why,)))


def _of_held(row: Published, held: Held, asked: Asked, reasons: Sequence[str]) -> ModelFiles:
    asked = replace(asked, backend=held.kind, reasons=(*reasons, *held.notes))
    paths = dict.fromkeys(held.files.values())
    first = next(iter(paths))
    if held.kind == "llama":
        found = of_ggufs(dict.fromkeys(paths), first.parent, replace(asked, label=held.label, tasks=()))
    else:
        found = of_published(first, asked)
    if found.model.name != row.spec.name:
        raise ModelDamaged(f"{first}: holds {found.model.name}, and was published as {row.spec.name}.")
    return replace(found, revision=held.commit)


def _absent(row: Published, kinds: Sequence[str], asked: Asked, revision: str | None) -> str:
    tasks = asked.tasks or (row.spec.default_task or row.spec.tasks[0],)
    label = asked.label or hub.GGUF_DEFAULT
    store = f"in the local store {hub.local_store()}"
    if row.bundled or label.endswith("bit"):
        return (
            f"{row.spec.name}: no {label} weights {store}, and none are published. "
            f"{how_to_convert(label, row.spec.name)}"
        )
    served = f" for {', '.join(asked.tasks)}" if asked.tasks else ""
    if kinds == ("llama",) and not row.gguf_repo:
        return (
            f"{row.spec.name}: no {asked.label or 'GGUF'} weights{served} {store}, and {hub.unpublished(row)} Or "
            f"fetch the checkpoint first: `python -m jina_local models pull {row.spec.name}`."
        )
    adapters = ", adapters/" if row.adapter_folders else ""
    wanted = {
        "llama": ", ".join(dict.fromkeys(row.gguf_file.format(task=task, type=label) for task in tasks)),
        "mlx": f"{row.repo} (config.json, model.safetensors, tokenizer.json{adapters})",
    }
    at = f" at revision {revision}" if revision else ""
    return (
        f"{row.spec.name}: not on this machine, and it may not be fetched (offline). Looked for "
        f"{' or '.join(wanted[kind] for kind in kinds)}{at} {store} and in the hub cache "
        f"{hub_cache.cache_folder()}. {hub.ways_out(row.spec.name)}"
    )
