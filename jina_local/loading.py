"""`load`: a name or a path -> the model in it, opened: an Embedder or a Reranker."""

from __future__ import annotations

import os
from typing import Literal, overload

from . import registry
from .embedding.embedder import Embedder
from .reranking.reranker import Reranker
from .store.find import find

# For type checkers: the names by which `load` gives a Reranker. The registry decides; a test holds the two together.
RerankerName = Literal[
    "jina-reranker-v3",
    "reranker-v3",
    "jina-reranker-v2-base-multilingual",
    "reranker-v2",
    "jina-reranker-v2",
]


@overload
def load(  # type: ignore[overload-overlap]  # a name that is a str and no literal is taken for an embedding model's
    name_or_path: RerankerName,
    *,
    backend: str = "auto",
    weights: str | None = None,
    task: None = None,
    device: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    show_progress: bool | None = None,
) -> Reranker: ...


@overload
def load(
    name_or_path: str | os.PathLike[str] = registry.DEFAULT_MODEL,
    *,
    backend: str = "auto",
    weights: str | None = None,
    task: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    show_progress: bool | None = None,
) -> Embedder: ...


def load(
    name_or_path: str | os.PathLike[str] = registry.DEFAULT_MODEL,
    *,
    backend: str = "auto",
    weights: str | None = None,
    task: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    show_progress: bool | None = None,
) -> Embedder | Reranker:
    """Open a model: a converted folder, a .gguf file or a folder of them, a published checkpoint, or a name.

    backend: "auto", "mlx" or "llama". weights: a label such as "Q8_0" or "8bit"; None takes the closest to
    lossless that is there. task: opened at once (default: the model's own default); others on first use. A base with
    adapters beside it serves all its tasks at once; so does a published checkpoint where no task is given here, and
    with one that adapter is merged, which costs nothing per token. A word that stands for several of the model's
    tasks ("retrieval" of jina-embeddings-v3) asks for all of them, and merges none.
    device: None, "cpu" or "metal". threads: physical cores by default. revision: a commit of the hub
    repository instead of the pinned one. offline: True never opens a socket; None follows HF_HUB_OFFLINE.
    show_progress: of a download, which the logger "jina_local" announces; None shows bars on a terminal, as
    huggingface_hub does, unless HF_HUB_DISABLE_PROGRESS_BARS is set.
    What was chosen, and why, is in `.spec.origin`. A model that ranks documents comes as a Reranker, which has no
    tasks to choose from. Raises ModelNotFound, ModelDamaged, EngineMissing, UsageError.
    """
    files = find(
        name_or_path,
        backend=backend,
        weights=weights,
        revision=revision,
        offline=offline,
        show_progress=show_progress,
        tasks=None if task is None else [task],
    )
    if files.model.scoring is not None:
        return Reranker(files, device=device, threads=threads)
    return Embedder(files, task=task, device=device, threads=threads)
