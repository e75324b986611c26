"""The files that belong beside a model's weights: tokenizer.json, and the projector of a listwise reranker."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ModelDamaged
from ..registry import Published
from ..weights import projector


def tokenizer(folder: Path) -> Path | None:
    """tokenizer.json, if it is there; a GGUF file can do without."""
    path = folder / "tokenizer.json"
    return path if os.path.lexists(path) else None


def required_tokenizer(folder: Path) -> Path:
    """tokenizer.json. Raises ModelDamaged."""
    if path := tokenizer(folder):
        return path
    raise ModelDamaged(f"{folder}: has no tokenizer.json. Copy it from where the checkpoint came from.")


def projector_of(row: Published, folder: Path, otherwise: Path | None = None) -> Path | None:
    """Where a listwise reranker's projector lies: beside the weights, else in the checkpoint `otherwise`."""
    if row.spec.scoring != "listwise":
        return None
    path = folder / projector.FILE
    if os.path.lexists(path):
        return path
    if otherwise is None:
        raise ModelDamaged(
            f"{folder}: has no {projector.FILE}, without which {row.spec.name} has no scores. Copy it from where the "
            "weights came from, or convert the published checkpoint, which writes it."
        )
    return otherwise
