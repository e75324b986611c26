"""Verify and delete a model in all its places. Opens no socket."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from ..errors import ModelNotFound, OutputError, UsageError
from ..formats import manifest
from ..registry import Published
from . import find, package, places
from .hub_cache import Verified, cache_folder, commit_of, root_of, verify_snapshot
from .places import PACKAGE, STORE, Place


def verify(name: str | Path) -> list[Verified]:
    """Compare the files of a model, by name, or of one folder, with their digests.

    Raises ModelNotFound if there are no files, or none with known digests.
    """
    folder = Path(name).expanduser()
    if str(name) and folder.is_dir():
        return [_compare(folder)]
    row = find.row_of(str(name))
    there = whole(row)
    if not there:
        raise ModelNotFound(f"{row.spec.name}: nothing of it is on this machine. {find.how_to_fetch(row)}")
    folders = [package.root(row) if place.where == PACKAGE else place.path for place in there]
    return [_compare(folder) for folder in dict.fromkeys(folders)]


def whole(row: Published) -> list[Place]:
    """The places of a model, without those that have parts of files only."""
    return [place for place in places.of(row) if place.form != "part"]


def remove(name: str) -> list[Place]:
    """Delete a model from the hub cache and the local store, and return the places that were deleted.

    Raises ModelNotFound, OutputError, and UsageError for a model that is only in the package.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    row = find.row_of(name)
    there = [place for place in places.of(row) if place.where != PACKAGE]
    roots = [root_of(repo) for repo in row.all_repos if root_of(repo).exists()]
    if not there and row.bundled:
        raise UsageError(f"{row.spec.name} is part of the package and goes with it; nothing else of it is here.")
    if not there and not roots:
        raise ModelNotFound(f"{row.spec.name}: nothing of it is on this machine.")
    try:
        if roots:
            # The library knows which blobs are shared. It deletes by commit alone, and copies of a repository have
            # the same commits, so it is given the model's own repositories only.
            info = scan_cache_dir(cache_folder())
            info = replace(info, repos=frozenset(repo for repo in info.repos if repo.repo_id in row.all_repos))
            info.delete_revisions(*(r.commit_hash for repo in info.repos for r in repo.revisions)).execute()
        for root in (*roots, *(place.path for place in there if place.where == STORE)):
            if root.exists():
                shutil.rmtree(root)
    except (OSError, CacheNotFound) as error:
        raise OutputError(f"{row.spec.name}: cannot be deleted ({error}).") from error
    return there


def _compare(folder: Path) -> Verified:
    if (folder / package.DIGESTS).exists():
        return Verified(folder, *package.verify(folder))
    if (folder / manifest.NAME).exists():
        return Verified(folder, len(manifest.read(folder).files), tuple(manifest.verify(folder)))
    if commit_of(folder):
        return verify_snapshot(folder)
    raise ModelNotFound(f"{folder}: no digests are known for it, because it has no {manifest.NAME}.")
