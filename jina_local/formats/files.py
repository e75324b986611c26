"""Files on disk, opened with care: regular files only, JSON of bounded size, digests in pieces."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import ModelDamaged

_MAX_JSON = 64 << 20


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading and make sure that it is one: a FIFO or device would hang or never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise ModelDamaged(f"{path}: cannot be opened ({error.strerror}).") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelDamaged(f"{path}: is not a regular file.")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size. Raises ModelDamaged, ModelNotFound is the finder's."""
    with open_regular(path) as file:
        raw = file.read(_MAX_JSON + 1)
    if len(raw) > _MAX_JSON:
        raise ModelDamaged(f"{path}: larger than {_MAX_JSON >> 20} MiB.")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelDamaged(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelDamaged(f"{path}: holds {type(value).__name__}, expected a JSON object.")
    return value


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
