"""Jina's text models on one machine, offline: `load(name_or_path)`, then `.encode(texts, task=...)` or `.rerank`."""

from __future__ import annotations

from .errors import JinaError

TYPE_CHECKING = False  # `typing` is not imported: until this file is done, Ctrl-C is Python's own traceback
if TYPE_CHECKING:
    from .embedding.embedder import Embedder
    from .loading import load
    from .reranking.reranker import Reranker
    from .search.index import Index
    from .spec import Embedded, Ranked, Reranking
    from .text import chunks

__version__ = "0.1.0"
__all__ = [
    "Embedded",
    "Embedder",
    "Index",
    "JinaError",
    "Ranked",
    "Reranker",
    "Reranking",
    "__version__",
    "chunks",
    "load",
]

# Public names -> their modules, imported on first use: only who loads a model pays for numpy and tokenizers.
_HOMES = {
    "Embedded": "spec",
    "Embedder": "embedding.embedder",
    "Index": "search.index",
    "Ranked": "spec",
    "Reranker": "reranking.reranker",
    "Reranking": "spec",
    "chunks": "text.chunks",
    "load": "loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = import_module(f".{_HOMES[name]}", __name__)
    return home if _HOMES[name].endswith(f".{name}") else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
