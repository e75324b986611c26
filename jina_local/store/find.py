"""Find the files of one model: a name or a path -> ModelFiles, or an error that names every place it looked in.

A path is read by `model_files`. A name is looked for in the places of this machine, and is then fetched unless
offline. Every choice that was made for the caller is a sentence in ModelFiles.reasons.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .. import backends, registry
from ..errors import ModelDamaged, ModelNotFound, UsageError
from ..model_files import folder, ggufs, labels, published
from ..model_files.request import Request, how_to_convert, made_here, require_reader
from ..registry import Published
from ..spec import ModelFiles, engine_of, readings
from . import default_weights, hub, hub_cache, local_store, package, places
from .places import CACHE, PACKAGE, STORE, Fit, Place, first_fit

_PATH = re.compile(r"[./~\\].*|.*[\\].*|.*/.*/.*|.*/|[A-Za-z]:.*|.*\.(gguf|safetensors|json|bin|pt|pth|onnx)")


def find(
    name_or_path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    weights: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    show_progress: bool | None = None,
    tasks: Sequence[str] | None = None,
    source: bool = False,
) -> ModelFiles:
    """The files of a model, not yet opened by an engine.

    name_or_path: a folder, a .gguf file, or a name: "v5-nano", "owner/name", "owner/name:Q4_K_M".
    weights: a label in any case.
    revision: for names, a commit of the hub instead of the pinned one.
    offline: None follows JINA_LOCAL_OFFLINE and HF_HUB_OFFLINE.
    show_progress: of a download; None shows bars on a terminal.
    tasks: all have to be served, and of a word that stands for several tasks each. None takes the tasks that are
        there, and fetches the default task.
    source: only the published checkpoint with its adapters will do, no conversion.
    Raises ModelNotFound, ModelDamaged, UsageError, EngineMissing, OutputError.
    """
    wanted = os.fspath(name_or_path)
    if not wanted.strip():
        raise UsageError(f"no model was given. Known names: {', '.join(registry.names())}; or a path.")
    path = Path(wanted).expanduser()
    if os.path.lexists(path):
        if revision is not None:
            raise UsageError(
                f"revision {revision!r} was given with a path, {wanted}; it belongs to a name on the hub."
            )
        if (snapshot := hub_cache.snapshot_of(path)) and (fault := hub_cache.link_outside(snapshot)):
            raise ModelDamaged(fault)
        label = labels.ALL.get(weights.casefold(), weights) if weights else None
        return _completed(folder.read(path, Request(engines_for(backend, label), label, tuple(tasks or ()))))
    if isinstance(name_or_path, Path):
        raise _no_such_path(wanted)
    row, request = _named(wanted, backend, weights, tasks or (), source)
    if row.bundled and revision is not None:
        raise UsageError(f"{row.spec.name} comes with the package and has no revisions; got {revision!r}.")
    there = [place for place in places.of(row, revision) if not source or place.where != STORE]
    may_fetch = not hub.offline(offline)
    if fit := _fit(row, there, request, any_task=not may_fetch, source=source):
        return _open(row, fit, request, revision)
    # Weights named by their bits come from our converter alone.
    engines = [] if made_here(request.label) else to_fetch(row, request.engines)
    if not engines or not may_fetch:
        raise _not_found(row, request, there, revision, ", and it may not be fetched (offline)")
    own = request.tasks or None
    files = hub.pull(
        row, engines[0], tasks=own, weights=request.label, revision=revision, show_progress=show_progress
    )
    request = replace(request, engines=(engines[0],))
    found = _open_cached(
        row, files, request, [f"fetched from {hub.endpoint()}, commit {_commit(files)}", *_unusable()]
    )
    if found.form != "gguf" or request.label is not None:
        return found
    return replace(found, reasons=(*found.reasons, default_weights.reason(row.spec, found.label)))


def row_of(name: str) -> Published:
    """`registry.lookup` for commands that take names. A path that does not exist is a ModelNotFound."""
    if _PATH.fullmatch(name):
        raise _no_such_path(name)
    return registry.lookup(name)


def _no_such_path(wanted: str) -> ModelNotFound:
    return ModelNotFound(
        f"{wanted}: no such file or folder. Give a folder or a .gguf file that exists, or one of the names "
        f"{', '.join(registry.names())}."
    )


def engines_for(backend: str, label: str | None) -> tuple[str, ...]:
    """The engines that may run a model's files, preferred first. A label that several read means GGUF."""
    if backend not in ("auto", *backends.BACKENDS):
        raise UsageError(f"unknown backend {backend!r}. Possible: auto, {', '.join(backends.BACKENDS)}.")
    if backend != "auto":
        return (backend,)
    if label is not None:
        return tuple(sorted(("llama", "mlx", "onnx"), key=lambda engine: label not in labels.READ_BY[engine]))
    # A path is read without an engine. Opening its files raises EngineMissing.
    return tuple(sorted(backends.by_preference(), key=lambda engine: not backends.installed(engine)))


def to_fetch(row: Published, engines: Sequence[str]) -> list[str]:
    """Of the engines those for which files are published, the first to fetch first."""
    published_as = {"gguf": row.gguf_repo, "checkpoint": row.repo}
    return [engine for engine, form in readings(engines) if published_as.get(form)]


def path(name: str, *, backend: str = "auto", weights: str | None = None, tasks: Sequence[str] = ()) -> Path:
    """What `find` opens offline for the same words, without opening it: a path itself, or the folder of the files."""
    if name.strip() and os.path.lexists(given := Path(name).expanduser()):
        return given
    row, request = _named(name, backend, weights, tasks, False)
    there = places.of(row)
    if fit := _fit(row, there, request, any_task=True):
        task = next(task for task in (*request.tasks, row.spec.default_task or "", *fit.files) if task in fit.files)
        return fit.files[task].parent if fit.files[task].is_file() else fit.files[task]
    raise _not_found(row, request, there)


def _fit(
    row: Published, there: Sequence[Place], request: Request, *, any_task: bool, source: bool = False
) -> Fit | None:
    """The files for the tasks of the request, else for the model's default task, else, if `any_task`, for any.

    A model without a default task takes any. source: all of the model's tasks are its default.
    """
    default = row.spec.tasks if source else (row.spec.default_task,) if row.spec.default_task else ()
    fit = first_fit(there, request, request.tasks or default)
    return first_fit(there, request, ()) if fit is None and any_task and not request.tasks else fit


def _named(
    wanted: str, backend: str, weights: str | None, tasks: Sequence[str], source: bool
) -> tuple[Published, Request]:
    """(row, request) of `name`, `owner/name` or a repository of GGUF files, each with an optional `:LABEL`."""
    if _PATH.fullmatch(wanted):
        raise _no_such_path(wanted)
    name, _, label = wanted.partition(":")
    if label and weights and label.casefold() != weights.casefold():
        raise UsageError(f"{wanted} asks for {label}, and weights={weights!r} for another precision. Give one.")
    chosen = label or weights
    if chosen and chosen.casefold() not in labels.ALL:
        meant = registry.near_match(chosen, labels.ALL.values())
        meant = registry.near_match(chosen, labels.ALL.values())
        possible = "; ".join(f"for {engine}: {', '.join(some)}" for engine, some in labels.READ_BY.items())
        raise UsageError(f"unknown weights {chosen!r}{meant}. Possible {possible}.")
    chosen = labels.ALL[chosen.casefold()] if chosen else None
    for row in registry.PUBLISHED:
        for task, repo in row.repos("llama", row.spec.tasks).items():
            if name.casefold() == repo.casefold():
                require_reader(Request(engines_for(backend, chosen)), "gguf", f"{name} has GGUF files")
                return row, Request(("llama",), chosen, registry.tasks_for(row, tasks or (task,)))
    try:
        row = registry.lookup(name)
    except UsageError as error:
        raise UsageError(f"{error} There is no file or folder {wanted!r} either.") from error
    own = registry.tasks_for(row, tasks)
    return row, Request(("mlx",) if source else _engines_of_name(backend, chosen), chosen, own)


def _engines_of_name(backend: str, label: str | None) -> tuple[str, ...]:
    """The engines for a model that is given by its name: the engine that a label means, else those installed."""
    engines = engines_for(backend, label)
    if label is not None and label not in labels.READ_BY[engines[0]]:
        possible = ", ".join(labels.READ_BY[backend])
        raise UsageError(f"weights {label!r} are not for {backend}, which has {possible}.")
    if label is not None or backend != "auto":
        return engines[:1]
    return tuple(engine for engine in engines if backends.installed(engine)) or (backends.preferred(),)


def _open(row: Published, fit: Fit, request: Request, revision: str | None) -> ModelFiles:
    path = fit.place.path
    if fit.place.where == CACHE:
        repos = row.repos(fit.engine, fit.files)
        commits = {repos[task]: hub_cache.commit_of(file) for task, file in fit.files.items()}
        notes = [
            f"the cache has commit {commit} of {repo}, not the pinned {row.pinned(repo)}; used as it is here"
            for repo, commit in commits.items()
            if revision is None and row.pinned(repo) not in (None, commit)
        ]
        why = f"found in the hub cache, commit {_commit(fit.files)}"
        return _open_cached(row, fit.files, replace(request, engines=(fit.engine,)), [why, *_unusable(), *notes])
    why = "it comes with the package" if fit.place.where == PACKAGE else f"in the local store, {path}"
    if fit.place.where == STORE and fit.rivals:
        why = f"{fit.label} in {path}: the first choice of {fit.rivals + 1} in the local store"
    request = replace(request, engines=(fit.engine,), label=fit.label, reasons=(why,))
    files = _completed(folder.read(path, request))
    known = package.probes(row, fit.place.form) if fit.place.where == PACKAGE else {}
    return replace(files, probes=known) if known else files


def _commit(files: Mapping[str, Path]) -> str | None:
    return hub_cache.commit_of(next(iter(files.values())))


def _open_cached(row: Published, files: Mapping[str, Path], request: Request, reasons: Sequence[str]) -> ModelFiles:
    """Open files of the hub cache: GGUF files, or the folder of a checkpoint."""
    paths = list(dict.fromkeys(files.values()))
    request = replace(request, reasons=tuple(reasons))
    if paths[0].suffix == ".gguf":
        request = replace(request, label=None, tasks=())
        model_files = ggufs.read(dict.fromkeys(paths), paths[0].parent, request)
    else:
        model_files = published.read(paths[0], request)
    if model_files.model.name != row.spec.name:
        raise ModelDamaged(f"{paths[0]}: holds {model_files.model.name}, and was published as {row.spec.name}.")
    return _completed(model_files)


def _completed(files: ModelFiles) -> ModelFiles:
    """Add the facts that only the hub cache knows: the commit, and a tokenizer if none is beside the files."""
    files = replace(files, revision=files.revision or _commit(files.files))
    if files.tokenizer is not None:
        return files
    row = registry.lookup(files.model.name)
    cached = (folder / "tokenizer.json" for folder in hub_cache.snapshots(row.repo, None, row.revision))
    tokenizer = next((path for path in cached if path.exists() and not hub_cache.link_outside(path.parent)), None)
    why = "tokenizer rebuilt from the file's own vocabulary, because there is no tokenizer.json"
    if tokenizer:
        why = f"tokenizer.json of {row.repo} from the hub cache"
    return replace(files, tokenizer=tokenizer, reasons=(*files.reasons, why))


def _unusable() -> list[str]:
    return [f"not usable: {fault}" for fault in local_store.converted()[1]]


def _not_found(
    row: Published, request: Request, there: Sequence[Place], revision: str | None = None, why: str = ""
) -> ModelNotFound:
    """The error that says which files were looked for, which are here instead, and how to get the first."""
    label, store = request.label or default_weights.of(row.spec).label, f"in the local store {local_store.root()}"
    if row.bundled or made_here(label):
        command = how_to_convert(label, row.spec.name)
        text = f"no {label} weights {store}, and none are published. Make them: `{command}`."
    elif request.engines == ("llama",) and not row.gguf_repo:
        served = f" for {', '.join(request.tasks)}" if request.tasks else ""
        text = (
            f"no {request.label or 'GGUF'} weights{served} {store}, and "
            f"{local_store.how_to_make(row, request.label)} Or fetch the checkpoint first: "
            f"`python -m jina_local models pull {row.spec.name}`."
        )
    else:
        tasks = request.tasks or (row.spec.default_task or row.spec.tasks[0],)
        adapters = ", adapters/" if row.adapter_folders else ""
        wanted = {
            "gguf": ", ".join(dict.fromkeys(row.gguf_file.format(task=task, type=label) for task in tasks)),
            "checkpoint": f"{row.repo} (config.json, model.safetensors, tokenizer.json{adapters})",
        }
        text = (
            f"not on this machine{why}. Looked for "
            f"{' or '.join(files for form, files in wanted.items() if engine_of(form, request.engines))}"
            f"{f' at revision {revision}' if revision else ''} {store} and in the hub cache "
            f"{hub_cache.cache_folder()}. {how_to_fetch(row, request)}"
        )
    if here := "; ".join(f"{place.where}, {place.path} ({', '.join(place.holds)})" for place in there):
        text += f" Here, and not what was asked for: {here}."
    return ModelNotFound(" ".join([f"{row.spec.name}: {text}", *_unusable()]))


def how_to_fetch(row: Published, request: Request | None = None) -> str:
    """The ways to a model that is not here: the command, with size and licence; a path; the package's own model."""
    request = request or Request(engines_for("auto", None))
    engine = next(iter(to_fetch(row, request.engines)), "mlx")
    default = default_weights.of(row.spec).label
    plain = request.label in (None, default)
    options = "".join(f" --task {task}" for task in request.tasks)
    options += f" --weights {request.label}" if not plain and engine == "llama" else ""
    usual = to_fetch(row, engines_for("auto", None))
    options += f" --backend {engine}" if row.gguf_repo and engine != usual[0] else ""
    facts = row.about("checkpoint" if engine != "llama" else request.label or default)
    pico = "; or take the small model that comes with the package: --model pico" if row.spec.scoring is None else ""
    more = "" if row.gguf_repo else f" For llama.cpp, {local_store.how_to_make(row, request.label)}"
    return (
        f"Fetch it with `python -m jina_local models pull {row.spec.name}{options}` ({facts}), or give the path of a "
        f"folder or a .gguf file{pico}.{more}"
    )
