"""The model that the package carries: where its files are, and whether they are as they were built."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ModelDamaged
from ..formats.files import sha256
from ..registry import Published

_ROOT = Path(__file__).parents[1] / "bundled_models"
_DIGESTS = "digests.json"  # {path: sha256} of every other file
LABELS = {"llama": "Q8_0", "mlx": "F16"}  # the engine -> the precision that is there for it
_FORMS = {"llama": "gguf", "mlx": "checkpoint"}


def folder(row: Published, kind: str) -> Path:
    """The folder that one engine opens: GGUF files, or the checkpoint in the published layout."""
    found = _ROOT / row.spec.name / _FORMS[kind]
    if not found.is_dir():
        raise ModelDamaged(f"{found}: is missing from the installation. Install the package again.")
    return found


def faults(row: Published) -> tuple[Path, int, list[str]]:
    """(root of the model's files, number of files, what is wrong with them)."""
    root = _ROOT / row.spec.name
    digests: dict[str, str] = json.loads((root / _DIGESTS).read_text(encoding="utf-8"))
    wrong = [
        f"{root / name}: {'its content is not what was shipped' if (root / name).is_file() else 'is missing'}"
        for name, digest in digests.items()
        if not (root / name).is_file() or sha256(root / name) != digest
    ]
    return root, len(digests), wrong


def size(row: Published, kind: str) -> int:
    """Bytes of the files of one engine."""
    return sum(path.stat().st_size for path in folder(row, kind).rglob("*") if path.is_file())
