"""Publish a folder all at once: built beside its target, synced, manifest last, then one rename.

Killed at any moment, the target is what it was before or the complete new folder. What a dead run leaves is
a hidden folder `.<name>.tmp-*` beside the target; the next run to the same target removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from jina_local.errors import JinaError, Locked, OutputError
from jina_local.formats import gguf, manifest
from jina_local.formats.files import sha256
from jina_local.formats.manifest import Entry, Manifest, Probes, Source
from jina_local.formats.safetensors import SafetensorsFile

_SPARE = 1.1  # what is asked for beyond the estimate: file systems need room of their own


@contextmanager
def staging(target: Path, *, force: bool, needs: int) -> Iterator[Path]:
    """Yield a new folder that becomes `target` when the block ends well, and vanishes when it does not.

    `needs`: bytes that will be written, checked against the free space first. An existing target is refused
    without `force`; with it, the old one stays in place until the new one is on disk. Raises OutputError,
    or Locked where another process builds the same target.
    """
    target = target.absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} exists and is not a folder. Give another OUT.")
    if target.exists() and any(target.iterdir()):
        if not force:
            raise OutputError(f"{target} exists. Give --force to replace it, or another OUT.")
        if not (target / manifest.NAME).exists():
            raise OutputError(f"{target} was not written by this program; --force does not replace it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise OutputError(f"{target.parent}: cannot be written ({error.strerror}).") from error
    if free < needs * _SPARE:
        raise OutputError(
            f"{target.parent}: about {needs * _SPARE / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free."
        )
    with _lock(target):
        for litter in target.parent.glob(f".{target.name}.tmp-*"):
            shutil.rmtree(litter, ignore_errors=True)
        folder = target.parent / f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
            yield folder
            if not (folder / manifest.NAME).exists():
                raise AssertionError("a folder is published only with its manifest")
            _sync(folder)
            _swap(folder, target)
        except JinaError:
            raise
        except OSError as error:
            # numpy reports a short write without a number.
            if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OutputError(
                    f"{target.parent}: the disk is full; about {needs * _SPARE / 1e6:,.0f} MB are needed. "
                    "Nothing was left behind and what stood there before is untouched."
                ) from error
            raise OutputError(f"{target}: {error.strerror or error}.") from error
        finally:
            _remove(folder)


def write_manifest(
    folder: Path,
    *,
    form: str,
    model: str,
    source: Source,
    tokenizer: str,
    weights: Mapping[str, tuple[str | None, str | None]],
    probes: Probes | None = None,
) -> None:
    """Digest every file of `folder` and write its manifest. `weights`: path -> (task, label), see manifest.py."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / manifest.NAME):
        name = path.relative_to(folder).as_posix()
        task, label = weights.get(name, (None, None))
        header = _header_size(path) if task or label else None
        digest = None if header is None else sha256(path, header)
        files[name] = Entry(path.stat().st_size, sha256(path), task, label, header, digest)
    body = Manifest(form, model, source, tokenizer, files, probes or {}).dump()
    (folder / manifest.NAME).write_text(body, encoding="utf-8")


def _header_size(path: Path) -> int | None:
    """The bytes before the first tensor; None for a file of no format that has tensors."""
    if path.suffix == ".gguf":
        return min((tensor.start for tensor in gguf.read_header(path).tensors.values()), default=None)
    if path.suffix == ".safetensors":
        with SafetensorsFile(path) as file:
            return min((tensor.start for tensor in file.tensors.values()), default=None)
    return None


def _remove(folder: Path) -> None:
    """Delete a folder, also if the one interrupt that a command lets through comes meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: unique temp names still keep every result whole
        yield
        return
    path = target.parent / f".{target.name}.lock"
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(f"{target.parent}: cannot be written ({error.strerror}).") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise Locked(f"another process is writing {target}; wait for it, or give another OUT.") from error
        try:
            same = os.stat(path).st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(descriptor)  # the holder before us removed the name while we waited to open it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _sync(folder: Path) -> None:
    for path in [*sorted(folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(folder: Path, target: Path) -> None:
    """Put `folder` in the place of `target` in one step; what was there is removed afterwards."""
    if target.exists():
        if not _exchange(folder, target):
            # No exchange on this system: for a moment neither stands there, and the old one is kept aside.
            aside = folder.with_name(folder.name + "-old")
            target.rename(aside)
            folder.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
    else:
        folder.rename(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names atomically: renameat2 with RENAME_EXCHANGE (Linux), renamex_np with RENAME_SWAP (macOS)."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(a), os.fsencode(b)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        at_cwd, exchange = -100, 2
        return bool(libc.renameat2(at_cwd, first, at_cwd, second, exchange) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(first, second, 2) == 0)
    return False
