"""The model that the package carries: where its files are, and whether they are as they were built."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ModelDamaged
from ..formats.files import sha256
from ..registry import Published

_ROOT = Path(__file__).parents[1] / "bundled_models"
DIGESTS = "digests.json"  # {path: sha256} of every other file
LABELS = {"llama": "Q8_0", "mlx": "F16"}  # the engine -> the type of the weights that are there for it
FORMS = {"llama": "gguf", "mlx": "checkpoint"}


def root(row: Published) -> Path:
    """The folder of everything that the package carries of a model."""
    return _ROOT / row.spec.name


def folder(row: Published, engine: str) -> Path:
    """The folder that one engine opens: GGUF files, or the checkpoint in the published layout."""
    path = root(row) / FORMS[engine]
    if not path.is_dir():
        raise ModelDamaged(f"{path}: is missing from the installation. Install the package again.")
    return path


def verify(root: Path) -> tuple[int, tuple[str, ...]]:
    """(number of files, what is wrong with them), from the digests beside them."""
    digests: dict[str, str] = json.loads((root / DIGESTS).read_text(encoding="utf-8"))
    wrong = tuple(
        f"{root / name}: {'its content is not what was shipped' if (root / name).is_file() else 'is missing'}"
        for name, digest in digests.items()
        if not (root / name).is_file() or sha256(root / name) != digest
    )
    return len(digests), wrong
