"""The local store: the folder in which converted models are found by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import ModelDamaged
from ..formats import manifest
from ..formats.manifest import Manifest
from ..model_files.request import how_to_convert
from ..registry import Published


def root() -> Path:
    """JINA_LOCAL_HOME, else the platform's data folder."""
    if os.environ.get("JINA_LOCAL_HOME"):
        return Path(os.environ["JINA_LOCAL_HOME"]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "jina_local"
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "jina_local"


def indexes() -> Path:
    """The folder of the search indexes that have a name."""
    return root() / "indexes"


def vector_cache() -> Path:
    """The file of the vectors that were computed before."""
    return root() / "cache" / "vectors.sqlite"


def converted() -> tuple[dict[Path, Manifest], list[str]]:
    """(folder -> manifest of every conversion up to two levels down, by path; the faults of unreadable ones)."""
    found: dict[Path, Manifest] = {}
    faults: dict[Path, str] = {}
    for marker in (*sorted(root().glob(f"*/{manifest.NAME}")), *sorted(root().glob(f"*/*/{manifest.NAME}"))):
        folder = marker.parent
        if folder.name.startswith(".") or any(parent in found or parent in faults for parent in folder.parents):
            continue
        try:
            found[folder] = manifest.read(folder)
        except ModelDamaged as error:
            faults[folder] = str(error)
    return dict(sorted(found.items())), list(faults.values())


def how_to_make(row: Published, label: str | None = None) -> str:
    """How to run a model with llama.cpp if no GGUF files of it are published."""
    out, tasks = f'"{root() / row.spec.name}"', " --task all" if len(row.spec.tasks) > 1 else ""
    return (
        "no GGUF files are published. Convert the checkpoint, to where it will be found by its name: "
        f"`{how_to_convert(label, row.spec.name, out, tasks)}` (it fetches what is not here; "
        "pip install 'jina_local[convert]' brings what it needs). MLX runs the checkpoint as it is."
    )
