"""What is on this machine: every model's places, listed, verified and deleted. Opens no socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import registry
from ..errors import ModelNotFound, OutputError, UsageError
from ..formats import manifest
from ..registry import Published
from . import hub, package
from .hub import Stored
from .hub_cache import (
    Verified,
    all_repos,
    cache_folder,
    commit_of,
    contents,
    pinned,
    root_of,
    size_on_disk,
    snapshots,
    verify_snapshot,
)


@dataclass(frozen=True)
class Place:
    """One place that holds files of a model."""

    where: str  # "package" | "hub cache" | "local store"
    path: Path  # what can be given to `load`
    holds: tuple[str, ...]  # "retrieval Q8_0", ...
    size: int  # bytes on disk


@dataclass(frozen=True)
class Listed:
    """One model of the registry, and what of it is on this machine."""

    name: str
    aliases: tuple[str, ...]
    license: str
    tasks: tuple[str, ...]
    dims: tuple[int, ...]  # of vectors; of a listwise reranker, of those that it compares
    max_tokens: int
    scoring: str | None  # of a reranker: "listwise" | "pairwise"
    late_chunking: bool
    places: tuple[Place, ...]


def listing() -> list[Listed]:
    """Every model of the registry with what is on this machine. Opens no socket."""
    folders = hub.stored()
    return [
        Listed(
            name=row.spec.name,
            aliases=row.aliases,
            license=row.spec.license,
            tasks=row.spec.tasks,
            dims=row.spec.dims,
            max_tokens=row.spec.max_tokens,
            scoring=row.spec.scoring,
            late_chunking=row.spec.late_chunking,
            places=tuple(_places(row, folders)),
        )
        for row in registry.PUBLISHED
    ]


def path(name: str, kind: str | None = None) -> Path:
    """The first place that has files of a model: the package, the local store, the hub cache. Raises ModelNotFound.

    kind: of a model that the package carries, the files of this engine, "llama" or "mlx".
    """
    row = registry.lookup(name)
    if row.bundled:
        return package.folder(row, kind or "llama")
    for place in _places(row, hub.stored()):
        return place.path
    raise ModelNotFound(f"{row.spec.name}: nothing of it is on this machine. {hub.ways_out(row.spec.name)}")


def verify(name: str | Path) -> list[Verified]:
    """Compare the files of a model, by name, or of one folder, with their digests. Opens no socket.

    Raises ModelNotFound where there is nothing, or nothing that digests are known of.
    """
    folder = Path(name).expanduser()
    if str(name) and folder.is_dir():
        return [_verified(folder)]
    row = registry.lookup(str(name))
    carried = [_carried(row)] if row.bundled else []
    folders = [one.path for one in hub.stored() if one.manifest and one.manifest.model == row.spec.name]
    folders += [s for repo in all_repos(row) for s in snapshots(repo, None)]
    if not folders and not carried:
        raise ModelNotFound(f"{row.spec.name}: nothing of it is on this machine. {hub.ways_out(row.spec.name)}")
    return carried + [_verified(one) for one in folders]


def remove(name: str) -> list[Place]:
    """Delete a model from the hub cache and the local store; what was deleted. Raises ModelNotFound, OutputError."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    row = registry.lookup(name)
    places = [place for place in _places(row, hub.stored()) if place.where != "package"]
    ids = all_repos(row)
    roots = [root_of(repo) for repo in ids if root_of(repo).exists()]
    if not places and row.bundled:
        raise UsageError(f"{row.spec.name} is part of the package and goes with it; nothing else of it is here.")
    if not places and not roots:
        raise ModelNotFound(f"{row.spec.name}: nothing of it is on this machine.")
    try:
        if roots:
            # The library knows which blobs are shared. It goes by commit alone, and copies of a repository have
            # the same commits: it is shown ours only.
            info = scan_cache_dir(cache_folder())
            info = replace(info, repos=frozenset(repo for repo in info.repos if repo.repo_id in ids))
            info.delete_revisions(*(r.commit_hash for repo in info.repos for r in repo.revisions)).execute()
        for root in (*roots, *(p.path for p in places if p.where == "local store")):
            if root.exists():
                shutil.rmtree(root)
    except (OSError, CacheNotFound) as error:
        raise OutputError(f"{row.spec.name}: cannot be deleted ({error}).") from error
    return places


def _carried(row: Published) -> Verified:
    root, count, wrong = package.faults(row)
    return Verified(root, count, 0, tuple(wrong))


def _verified(folder: Path) -> Verified:
    if (folder / manifest.NAME).exists():
        return Verified(folder, len(hub.read_manifest(folder).files), 0, tuple(manifest.verify(folder)))
    if commit_of(folder):
        return verify_snapshot(folder)
    raise ModelNotFound(f"{folder}: no digests are known for it, as it has no {manifest.NAME}.")


def _places(row: Published, folders: Sequence[Stored]) -> Iterator[Place]:
    if row.bundled:
        tasks = ", ".join(row.spec.tasks)
        for kind, label in package.LABELS.items():
            yield Place("package", package.folder(row, kind), (f"{tasks} {label}",), package.size(row, kind))
    for one in folders:
        if one.manifest and one.manifest.model == row.spec.name:
            entries = one.manifest.files.values()
            # A base that tasks share comes before its adapters.
            named = [(e.task or "", e.weights or "") for e in entries if e.task or e.weights]
            holds = tuple(f"{task or 'base'} {label or 'adapter'}" for task, label in sorted(named))
            yield Place("local store", one.path, holds, sum(e.bytes for e in entries))
    for repo in all_repos(row):
        for best in snapshots(repo, None, pinned(row, repo))[:1]:
            yield Place("hub cache", best, contents(row, best), size_on_disk(repo))
