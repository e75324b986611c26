"""Jina's text models on one machine, offline: `load(name_or_path).encode(texts, task=...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import JinaError

if TYPE_CHECKING:
    from .model import Embedder, load

__version__ = "0.1.0"
__all__ = ["Embedder", "JinaError", "__version__", "load"]


def __getattr__(name: str) -> object:
    # numpy and tokenizers are only paid for by those who load a model.
    if name in ("load", "Embedder"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
