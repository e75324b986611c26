"""The Hugging Face cache on disk, read without a socket: its snapshots, and whether their files are whole.

Layout (huggingface_hub): models--{owner}--{name}/snapshots/{commit}/{file} is a link to blobs/{etag}; an etag is the
SHA-256 of a large file or the git blob id (SHA-1) of a small one; refs/{branch} holds a commit.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..errors import ModelDamaged, UsageError
from ..formats.files import open_regular, read_json, within

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
NEEDED = ("config.json", "tokenizer.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


@dataclass(frozen=True)
class Verified:
    """The outcome for one folder: files compared, faults found, files without a known digest."""

    path: Path
    checked: int
    faults: tuple[str, ...]
    unknown: int = 0


def cache_folder() -> Path:
    """The folder of the Hugging Face cache (huggingface_hub, constants.py: HF_HUB_CACHE)."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(folder)).expanduser()


def snapshots(repo: str, revision: str | None, preferred: str | None = None) -> list[Path]:
    """The snapshot folders of a repository in the cache, best first.

    revision: a commit, branch or tag that has to match. None: `preferred` comes first, then main, then the newest.
    """
    root = root_of(repo)
    if revision is not None:
        return [p for p in [root / "snapshots" / _commit(root, revision)] if p.is_dir()]
    others = [p for p in root.glob("snapshots/*") if p.is_dir()]
    first = (preferred, _commit(root, "main"))
    return sorted(others, key=lambda p: (first.index(p.name) if p.name in first else 2, -p.stat().st_mtime, p.name))


def unfinished(repo: str) -> list[Path]:
    """The parts of files that a broken download of a repository left, to go on from."""
    return sorted(root_of(repo).glob("blobs/*.incomplete"))


def checkpoint_files(folder: Path) -> list[str]:
    """The files that a checkpoint needs beside its adapters; weights as its index names them, or the single file.

    Raises ModelDamaged if the index names none.
    """
    if not (folder / INDEX).exists():
        return [*NEEDED, "model.safetensors"]
    weight_map = read_json(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(SHARD.fullmatch(name) for name in names):
        raise ModelDamaged(f"{folder / INDEX}: names no weight files.")
    return [*NEEDED, *names]


def root_of(repo: str) -> Path:
    """The folder that the cache keeps a repository in."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def checked(revision: str | None) -> str | None:
    """The revision. Raises UsageError if it is no commit, branch or tag, because it becomes a part of paths."""
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"revision {revision!r} is not a commit, branch or tag.")
    return revision


def _commit(root: Path, revision: str) -> str:
    ref = root / "refs" / str(checked(revision))
    return ref.read_text().strip() if ref.is_file() else revision


def commit_of(path: Path) -> str | None:
    """The commit of a snapshot folder, or of a file in it, in a cache of the hub's layout."""
    folder = snapshot_of(path)
    return folder.name if folder else None


def snapshot_of(path: Path) -> Path | None:
    """The snapshot folder that a path is or lies in, in a cache of the hub's layout; None if it lies in none."""
    path = path.absolute()
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder
    return None


def blob_name(path: Path) -> str | None:
    """The digest in the name of the blob that a cached file links to; None if files are copies."""
    name = PurePath(os.readlink(path)).name if path.is_symlink() else ""
    return name if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def fault_of(path: Path, size: int | None, digest: str) -> str | None:
    """The difference of a file from its size and its SHA-256 (64 digits) or git blob id (40); None: there is none."""
    with open_regular(path) as file:
        found = os.fstat(file.fileno()).st_size
        if size is not None and found != size:
            return f"{path}: has {found} bytes, expected {size}"
        # SHA-1 is git's name for the content here, not a safeguard.
        hasher = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % found, usedforsecurity=False)
        while piece := file.read(1 << 20):
            hasher.update(piece)
    if hasher.hexdigest() == digest:
        return None
    kind = "SHA-256" if len(digest) == 64 else "git blob id"
    return f"{path}: has the {kind} {hasher.hexdigest()}, expected {digest}"


def link_outside(folder: Path) -> str | None:
    """What is wrong with a snapshot folder that has a link out of the cache; None if it has none."""
    root = folder.parent.parent
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() and path.exists():
                within(path, root, root.parent)
    except ModelDamaged as error:
        return str(error)
    return None


def discard(path: Path) -> None:
    """Remove a cached file and the blob behind it, so that the next fetch downloads it again."""
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    # A blob may itself be a link, to the store that the repositories of a cache share.
    for each in {path, blob, blob.resolve()}:
        each.unlink(missing_ok=True)


def verify_snapshot(folder: Path) -> Verified:
    """Compare every file of a snapshot folder with the digest in its blob's name."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_symlink() or p.is_file()]
    known = [(p, digest) for p in files if (digest := blob_name(p))]
    faults = tuple(fault for p, digest in known if (fault := fault_of(p, None, digest)))
    return Verified(folder, len(known), faults, len(files) - len(known))
