"""Jina's text models on one machine, offline: `load(name_or_path)`, then `.encode(texts, task=...)` or `.rerank`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import JinaError

if TYPE_CHECKING:
    from .loading import Embedder, load
    from .reranking.reranker import Ranked, Reranker
    from .text import chunks

__version__ = "0.1.0"
__all__ = ["Embedder", "JinaError", "Ranked", "Reranker", "__version__", "chunks", "load"]


def __getattr__(name: str) -> object:
    # numpy and tokenizers are only paid for by those who load a model.
    if name in ("load", "Embedder"):
        from . import loading

        return getattr(loading, name)
    if name in ("Ranked", "Reranker"):
        from .reranking import reranker

        return getattr(reranker, name)
    if name == "chunks":
        from .text import chunks

        return chunks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
