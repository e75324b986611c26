"""The places of a model on this machine (package, local store, hub cache), in one list for all who look for files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import registry
from ..errors import ModelDamaged
from ..model_files import labels
from ..model_files.request import Request, made_here
from ..registry import Published
from ..spec import engine_of, readings
from . import hub_cache, local_store, package

PACKAGE, STORE, CACHE = "package", "local store", "hub cache"
ORDER = (PACKAGE, STORE, CACHE)
AS_PUBLISHED = ""  # stands for the type of a published checkpoint, which is known once it is opened


@dataclass(frozen=True)
class Place:
    """A folder with files of one model."""

    where: str  # one of ORDER
    path: Path  # a folder that can be given to `load`
    form: str  # "gguf" | "mlx" | "onnx" | "checkpoint"; "part" if a broken download left it
    holds: tuple[str, ...]  # "retrieval Q8_0", "clustering adapter", ..., to be read by people
    size: int  # bytes on disk; a file that two places share is counted in the first
    # Type of weights -> task -> the file or folder that serves it. Empty if the files are not complete.
    files: Mapping[str, Mapping[str, Path]]


@dataclass(frozen=True)
class Fit:
    """Files that serve a request."""

    place: Place
    engine: str  # that opens them
    label: str
    files: Mapping[str, Path]  # task -> file or folder
    rivals: int = 0  # how many others in the same kind of place, for the same engine, serve it too


def of(row: Published, revision: str | None = None) -> list[Place]:
    """Every place of a model, in the order in which they are searched. Opens no socket.

    revision: only files of this commit, branch or tag. Raises UsageError if it cannot be one.
    """
    hub_cache.checked(revision)
    return [
        *(_in_package(row) if revision is None else ()),
        *_in_local_store(row, revision),
        *_in_hub_cache(row, revision),
    ]


def first_fit(there: Sequence[Place], request: Request, tasks: Sequence[str]) -> Fit | None:
    """The files that serve all of `tasks`: from the first kind of place that has them, there for the first engine.

    Among these the preferred type of weights decides, and before it, if `tasks` is empty, the number of tasks served.
    """

    order = readings(request.engines)

    def preference(fit: Fit) -> tuple[int, ...]:
        turn = request.engines.index(fit.engine)
        if fit.place.where != PACKAGE:  # whose checkpoint is small, and fastest in the first engine
            turn = order.index((fit.engine, fit.place.form))
        kind = ORDER.index(fit.place.where), turn
        return *kind, 0 if tasks else -len(fit.files), labels.rank(fit.label, fit.engine)

    fits = [
        Fit(place, engine, label, files)
        for place in there
        for label in place.files
        if (engine := engine_of(place.form, request.engines)) and _is_label(request.label, label)
        if set(tasks) <= (files := _together(there, place, label)).keys()
    ]
    if not fits:
        return None
    best = min(fits, key=preference)
    return replace(best, rivals=sum(preference(fit)[:2] == preference(best)[:2] for fit in fits) - 1)


def _is_label(wanted: str | None, label: str) -> bool:
    # A published checkpoint has no name by bits. Any other name is compared with its files when they are opened.
    return wanted in (None, label) or (label == AS_PUBLISHED and not made_here(wanted))


def _together(there: Sequence[Place], place: Place, label: str) -> Mapping[str, Path]:
    """The files that are opened with a place: of GGUF in the hub cache all, because each task has a repository."""
    if (place.where, place.form) != (CACHE, "gguf"):
        return place.files[label]
    files: dict[str, Path] = {}
    for other in there:
        if (other.where, other.form) == (CACHE, "gguf"):
            files |= {task: path for task, path in other.files.get(label, {}).items() if task not in files}
    return files


def size_text(count: float) -> str:
    """A number of bytes, to be read by people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.{int(count < 1e8)}f} MB"


def _in_package(row: Published) -> Iterator[Place]:
    for form, label in package.LABELS.items() if row.bundled else ():
        path = package.folder(row, form)
        holds = (f"{', '.join(row.spec.tasks)} {label}",)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        yield Place(PACKAGE, path, form, holds, size, {label: dict.fromkeys(row.spec.tasks, path)})


def _in_local_store(row: Published, revision: str | None) -> Iterator[Place]:
    for path, record in local_store.converted()[0].items():
        if record.model != row.spec.name or revision not in (None, record.source.revision):
            continue
        # A base that tasks share comes before its adapters.
        parts = sorted((e.task or "", e.weights or "") for e in record.files.values() if e.task or e.weights)
        holds = tuple(f"{task or 'base'} {label or 'adapter'}" for task, label in parts)
        size = sum(entry.bytes for entry in record.files.values())
        files = {
            label: dict.fromkeys(registry.tasks_served(row, tasks) if record.adapters else sorted(tasks), path)
            for label, tasks in record.serves.items()
        }
        yield Place(STORE, path, record.form, holds, size, files)


def _in_hub_cache(row: Published, revision: str | None) -> Iterator[Place]:
    for repo in row.all_repos:
        counted: set[Path] = set()
        form, read = ("checkpoint", _checkpoint) if repo == row.repo else ("gguf", _ggufs)
        for path in hub_cache.snapshots(repo, revision, row.pinned(repo)):
            if fault := hub_cache.link_outside(path):
                yield Place(CACHE, path, form, (f"damaged: {fault}",), 0, {})
                continue
            blobs = {file.resolve() for file in path.rglob("*") if file.is_file()} - counted
            counted |= blobs
            holds, files = read(row, path)
            size = sum(blob.stat().st_size for blob in blobs)
            yield Place(CACHE, path, form, holds, size, files)
        if revision is None and (parts := hub_cache.unfinished(repo)):
            size = sum(part.stat().st_size for part in parts)
            holds = ("a part of a file: fetch it again to go on",)
            yield Place(CACHE, parts[0].parent, "part", holds, size, {})


def _ggufs(row: Published, path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, Path]]]:
    files: dict[str, dict[str, Path]] = {}
    for file in sorted(path.glob("*.gguf")):
        name = labels.published_name(file)
        if name and name[0] is row and file.exists():
            files.setdefault(name[2], {})[name[1]] = file
    holds = sorted(f"{task} {label}" for label, by_task in files.items() for task in by_task)
    missing = [name for name in row.beside_gguf if files and not (path / name).exists()]
    return (*holds, *(f"without {name}" for name in missing)), {} if missing else files


def _checkpoint(row: Published, path: Path) -> tuple[tuple[str, ...], dict[str, dict[str, Path]]]:
    try:
        missing = [name for name in hub_cache.checkpoint_files(path) if not (path / name).exists()]
    except ModelDamaged as error:
        return (f"damaged: {error}",), {}
    tasks = [
        task
        for task in row.spec.tasks
        if not row.adapter_folders or all((path / "adapters" / task / n).exists() for n in hub_cache.ADAPTER)
    ]
    holds = [f"{task} adapter" for task in tasks] if row.adapter_folders else []
    if not missing:
        holds = holds or ["checkpoint"]
    holds += [f"without {name}" for name in missing]
    return tuple(holds), {} if missing or not tasks else {AS_PUBLISHED: dict.fromkeys(tasks, path)}
