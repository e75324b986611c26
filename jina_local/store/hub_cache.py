"""The Hugging Face cache on disk, read without a socket: which files of a model are there, and are they whole.

Layout (huggingface_hub): models--{owner}--{name}/snapshots/{commit}/{file} is a link to blobs/{etag}; an etag is the
SHA-256 of a large file or the git blob id (SHA-1) of a small one; refs/{branch} holds a commit.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import UsageError
from ..formats.files import open_regular, read_json
from ..model_files import gguf_model
from ..registry import Published
from ..weights import projector

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
NEEDED = ("config.json", "tokenizer.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


@dataclass(frozen=True)
class Held:
    """Published files of one model in the hub cache."""

    kind: str
    files: Mapping[str, Path]  # task -> .gguf file, or the snapshot folder
    label: str | None  # of GGUF files
    commit: str  # of the first task's repository
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Verified:
    """The outcome for one place: how many files were compared, how many have no known digest, what is wrong."""

    path: Path
    checked: int
    unknown: int
    faults: tuple[str, ...]


def cache_folder() -> Path:
    """The folder of the Hugging Face cache (huggingface_hub, constants.py: HF_HUB_CACHE)."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(folder)).expanduser()


def repos(row: Published, kind: str, tasks: Iterable[str]) -> dict[str, str]:
    """task -> the repository that has its files; empty where none are published in the form that an engine reads."""
    name = row.gguf_repo if kind == "llama" else row.repo
    return {task: name.format(task=task) for task in tasks} if name else {}


def all_repos(row: Published) -> list[str]:
    """Every repository that has files of a model."""
    found = [repo for kind in ("mlx", "llama") for repo in repos(row, kind, row.spec.tasks).values()]
    return list(dict.fromkeys(found))


def beside(row: Published) -> tuple[str, ...]:
    """Files that a repository of GGUF files has and without which they are of no use."""
    return (projector.FILE,) if row.spec.scoring == "listwise" else ()


def pinned(row: Published, repo: str) -> str | None:
    """The commit that the registry knows for a repository, if any."""
    return row.revision if repo == row.repo else row.revisions.get(repo)


def cached(repo: str, revision: str | None, files: Iterable[str], preferred: str | None = None) -> Path | None:
    """A snapshot folder in the cache with all of `files`, or None. Opens no socket.

    `revision` (commit, branch or tag) has to match; without one, `preferred` is tried first, then main, then any.
    """
    names = tuple(files)
    return next((s for s in snapshots(repo, revision, preferred) if all((s / n).exists() for n in names)), None)


def snapshots(repo: str, revision: str | None, preferred: str | None = None) -> list[Path]:
    """The snapshot folders of a repository in the cache, best first; see `cached`."""
    root = root_of(repo)
    if revision is not None:
        return [p for p in [root / "snapshots" / _commit(root, revision)] if p.is_dir()]
    others = [p for p in root.glob("snapshots/*") if p.is_dir()]
    first = (preferred, _commit(root, "main"))
    return sorted(others, key=lambda p: (first.index(p.name) if p.name in first else 2, -p.stat().st_mtime, p.name))


def held(
    row: Published, kind: str, *, tasks: Sequence[str], weights: str | None = None, revision: str | None = None
) -> Held | None:
    """What the cache has of a model, if it serves all of `tasks`, or, where `tasks` is empty, any. No socket."""
    if kind == "mlx":
        return _held_checkpoint(row, tasks, revision)
    found: dict[str, dict[str, Path]] = {}  # label -> task -> file
    for task, repo in repos(row, kind, row.spec.tasks).items():
        for snapshot in reversed(snapshots(repo, revision, pinned(row, repo))):
            if not all((snapshot / name).exists() for name in beside(row)):
                continue
            for path in snapshot.glob("*.gguf"):
                name = gguf_model.published_name(path)
                if name and name[:2] == (row, task) and path.exists():
                    found.setdefault(name[2], {})[task] = path
    fit = [label for label, by in found.items() if weights in (None, label) and set(tasks) <= by.keys()]
    if not fit:
        return None
    label = min(fit, key=gguf_model.rank)
    files = {task: found[label][task] for task in row.spec.tasks if task in found[label]}
    first = files[tasks[0]] if tasks else next(iter(files.values()))
    notes = tuple(
        note
        for task, path in files.items()
        if revision is None and (note := _other_commit(row, row.gguf_repo.format(task=task), path.parent.name))
    )
    return Held(kind, files, label, first.parent.name, notes)


def _held_checkpoint(row: Published, tasks: Sequence[str], revision: str | None) -> Held | None:
    for folder in snapshots(row.repo, revision, row.revision):
        there = row.spec.tasks
        if row.adapter_folders:
            there = tuple(t for t in there if all((folder / "adapters" / t / n).exists() for n in ADAPTER))
        weights = weight_files(folder)
        complete = weights and all((folder / name).exists() for name in (*NEEDED, *weights))
        if complete and there and set(tasks) <= set(there):
            note = _other_commit(row, row.repo, folder.name) if revision is None else None
            return Held("mlx", dict.fromkeys(there, folder), None, folder.name, (note,) if note else ())
    return None


def weight_files(folder: Path) -> list[str]:
    """The weight files that a checkpoint's index names, or the single one."""
    if not (folder / INDEX).exists():
        return ["model.safetensors"]
    weight_map = read_json(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    return names if names and all(SHARD.fullmatch(name) for name in names) else []


def _other_commit(row: Published, repo: str, commit: str) -> str | None:
    known = pinned(row, repo)
    if known and commit != known:
        return f"the cache has commit {commit} of {repo}, not the pinned {known}; used as it is here"
    return None


def root_of(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def checked(revision: str | None) -> str | None:
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"revision {revision!r} is not a commit, branch or tag.")
    return revision


def _commit(root: Path, revision: str) -> str:
    ref = root / "refs" / str(checked(revision))
    return ref.read_text().strip() if ref.is_file() else revision


def commit_of(path: Path) -> str | None:
    """The commit of a snapshot folder, or of a file in it, in a cache of the hub's layout."""
    parts = path.absolute().parts
    for n, part in enumerate(parts[1:-1], 1):
        if part == "snapshots" and parts[n - 1].startswith("models--"):
            return parts[n + 1]
    return None


def blob_name(path: Path) -> str | None:
    """The digest in the name of the blob that a cached file links to; None where files are copies."""
    name = PurePath(os.readlink(path)).name if path.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def fault_of(path: Path, size: int | None, digest: str) -> str | None:
    """What is wrong with a file, compared with its size and its SHA-256 (64 digits) or git blob id (40)."""
    with open_regular(path) as file:
        found = os.fstat(file.fileno()).st_size
        if size is not None and found != size:
            return f"{path}: has {found} bytes, expected {size}"
        # A name for content here, as git has it; nothing is secured by it.
        hasher = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % found, usedforsecurity=False)
        while piece := file.read(1 << 20):
            hasher.update(piece)
    if hasher.hexdigest() == digest:
        return None
    kind = "SHA-256" if len(digest) == 64 else "git blob id"
    return f"{path}: has the {kind} {hasher.hexdigest()}, expected {digest}"


def discard(path: Path) -> None:
    """Remove a cached file with the blob behind it, so that the next fetch gets it anew."""
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    # A blob may itself be a link, to the store that the repositories of a cache share.
    for each in {path, blob, blob.resolve()}:
        each.unlink(missing_ok=True)


def contents(row: Published, snapshot: Path) -> tuple[str, ...]:
    """What a snapshot folder has that can be opened: "retrieval Q8_0", "clustering adapter", "checkpoint"."""
    names = [n for p in snapshot.glob("*.gguf") if (n := gguf_model.published_name(p)) and p.exists()]
    adapters = [p.parent.name for p in snapshot.glob(f"adapters/*/{ADAPTER[1]}") if p.exists()]
    whole = ["checkpoint"] if not row.adapter_folders and (snapshot / "config.json").exists() else []
    lacks = [f"without {name}" for name in beside(row) if names and not (snapshot / name).exists()]
    held = [*(f"{task} {label}" for _, task, label in names), *(f"{task} adapter" for task in adapters)]
    return (*sorted(held), *whole, *lacks)


def size_on_disk(repo: str) -> int:
    """Bytes of a repository in the cache; what is linked to several times counts once."""
    blobs = {p.resolve() for p in root_of(repo).rglob("*") if p.is_file()}
    return sum(p.stat().st_size for p in blobs)


def verify_snapshot(folder: Path) -> Verified:
    """Compare every file of a snapshot folder with the digest in its blob's name."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_symlink() or p.is_file()]
    known = [(p, digest) for p in files if (digest := blob_name(p))]
    faults = tuple(fault for p, digest in known if (fault := fault_of(p, None, digest)))
    return Verified(folder, len(known), len(files) - len(known), faults)
