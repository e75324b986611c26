"""Where indexes lie: a name or a folder that was indexed -> the file of the index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import JinaError, UsageError
from ..registry import near_match
from ..store import local_store
from .database import Database

SUFFIX = ".sqlite"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# File systems whose locks may be granted to everybody, by the names that Linux has for them.
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.rclone", "glusterfs")
_SYNCED = ("Dropbox", "OneDrive", "iCloud Drive", "Mobile Documents", "CloudStorage", "Google Drive", "Nextcloud")


def named(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of an index, which need not be there. A str without a separator and without the suffix is a name.

    A folder stands for the index that covers it. Raises UsageError if there is none.
    """
    given = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or os.sep in given or given.endswith(SUFFIX):
        path = Path(given).expanduser().absolute()
        covering = of_folder(path) if path.is_dir() else path
        if covering is None:
            raise UsageError(f"{given}: is a folder that no index covers. Give the index a name, and it the folder.")
        return covering
    if not _NAME.fullmatch(given):
        raise UsageError(
            f"{given!r} is no name for an index: it takes letters, digits, dot, underscore and hyphen, 64 at most."
        )
    return local_store.indexes() / f"{given}{SUFFIX}"


def name_of(path: Path) -> str:
    """What a user calls an index: its name, or the path if it lies elsewhere."""
    return path.stem if path.parent == local_store.indexes() else str(path)


def every() -> list[Path]:
    """All indexes that have a name."""
    return sorted(local_store.indexes().glob(f"*{SUFFIX}"), key=lambda path: path.stem)


def known(name_or_folder: str) -> Path:
    """An index that is there: its name, its path, or a folder that it covers. Raises UsageError."""
    if _NAME.fullmatch(name_or_folder) and named(name_or_folder).exists():
        return named(name_or_folder)
    if name_or_folder.endswith(SUFFIX):
        return named(name_or_folder)
    covering = of_folder(name_or_folder) if os.path.isdir(os.path.expanduser(name_or_folder)) else None
    if covering is not None:
        return covering
    names = [name_of(path) for path in every()]
    raise UsageError(
        f"there is no index {name_or_folder!r}{near_match(name_or_folder, names)}. "
        + (f"Indexes: {', '.join(names)}." if names else "Make one: `index FOLDER`.")
    )


def asked_for(name_or_folder: str | None) -> Path:
    """The index that is named, else that of this folder, else the only one. Raises UsageError."""
    if name_or_folder is not None:
        return known(name_or_folder)
    here, there = of_folder(os.curdir), every()
    if here is None and len(there) != 1:
        names = ", ".join(name_of(path) for path in there)
        raise UsageError(
            f"which index? This folder is in none; there are: {names}. Name one of them."
            if there
            else "there is no index yet. Make one: `jina-local index FOLDER`."
        )
    return here or there[0]


def of_folder(folder: str | os.PathLike[str]) -> Path | None:
    """The index that covers a folder: of several, the one whose own folder is the nearest."""
    wanted = absolute(folder)
    found = [
        (len(root), path)
        for path, roots in _folders()
        for root in roots
        if wanted == root or wanted.startswith(root.rstrip(b"/") + b"/")
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def for_folders(folders: Sequence[bytes]) -> Path:
    """The file of the index of folders for which no name was given: the one that has the first, else a new one."""
    for path, roots in _folders():
        if roots[:1] == list(folders[:1]):
            return path
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(folders[0]).decode("ascii", "replace")).strip(".-_")[:48]
    taken = {path.stem for path in every()}
    names = [stem or "index", *(f"{stem or 'index'}-{n}" for n in range(2, len(taken) + 3))]
    return named(next(name for name in names if name not in taken))


def absolute(folder: str | bytes | os.PathLike[str]) -> bytes:
    """A folder as it is stored: absolute, links followed."""
    return os.path.realpath(os.path.expanduser(os.fsencode(folder)))


def folders_of(header: Mapping[str, str]) -> list[bytes]:
    """The folders of an index."""
    return [os.fsencode(folder) for folder in json.loads(header.get("folders", "[]"))]


def unreliable(path: Path) -> str | None:
    """Why locks or files may fail at a place: a network file system, or a folder that is synchronised; else None."""
    synced = next((part for part in path.parts if part.startswith(_SYNCED)), None)
    if synced is not None:
        return f"{synced} may copy the file while it is written"
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return None  # not Linux
    real = os.path.realpath(path)
    inside = [(len(at), kind) for at, kind in mounts if real.startswith(at.rstrip("/") + "/")]
    kind = max(inside, default=(0, ""))[1]
    return f"its file system is {kind}, whose locks may not hold" if kind in _REMOTE else None


def _folders() -> Iterator[tuple[Path, list[bytes]]]:
    """(index, its folders) of those that can be read."""
    for path in every():
        try:
            with Database(path) as database, database.reader() as reader:
                yield path, folders_of(reader.header())
        except JinaError:
            continue  # `index --list` shows what is wrong with it
