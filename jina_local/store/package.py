"""The model that the package carries: its folders, and whether their files are unchanged."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ModelDamaged
from ..formats.files import sha256
from ..registry import Published

_ROOT = Path(__file__).parents[1] / "bundled_models"
DIGESTS = "digests.json"  # {path: sha256} of every other file
PROBES = "probes.json"  # {task: numbers of self_check.py} of the checkpoint
LABELS = {"gguf": "Q8_0", "checkpoint": "F16"}  # the form -> the type of its weights


def root(row: Published) -> Path:
    """The folder of all files of a model that the package carries."""
    return _ROOT / row.spec.name


def folder(row: Published, form: str) -> Path:
    """The folder of one form: GGUF files, or a checkpoint in the published layout."""
    path = root(row) / form
    if not path.is_dir():
        raise ModelDamaged(f"{path}: is missing from the installation. Install the package again.")
    return path


def probes(row: Published, form: str) -> dict[str, list[list[float]]]:
    """Task -> the numbers of `self_check` for a form without a manifest; empty if its manifest has them."""
    if form != "checkpoint":
        return {}
    known: dict[str, list[list[float]]] = json.loads((root(row) / PROBES).read_text(encoding="utf-8"))
    return known


def verify(root: Path) -> tuple[int, tuple[str, ...]]:
    """(number of files, faults), by the digests in the same folder."""
    digests: dict[str, str] = json.loads((root / DIGESTS).read_text(encoding="utf-8"))
    wrong = tuple(
        f"{root / name}: {'its content is not what was shipped' if (root / name).is_file() else 'is missing'}"
        for name, digest in digests.items()
        if not (root / name).is_file() or sha256(root / name) != digest
    )
    return len(digests), wrong
