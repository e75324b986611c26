"""`load`: a name or a path -> the model in it, opened: an Embedder or a Reranker."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

from . import registry, self_check
from .embedding.embedder import Embedder
from .errors import UsageError
from .formats import manifest
from .inference.queue import PassQueue
from .reranking.reranker import Reranker
from .spec import ModelFiles
from .store.find import find

# For type checkers: the names by which `load` gives a Reranker. The registry decides; a test holds the two together.
RerankerName = Literal[
    "jina-reranker-v3",
    "reranker-v3",
    "jina-reranker-v2-base-multilingual",
    "reranker-v2",
    "jina-reranker-v2",
]


Isolate = Literal["process", "auto"]


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
    isolate: Isolate | None = None,
    queue: PassQueue | None = None,
    verify: bool = False,
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
    isolate: Isolate | None = None,
    queue: PassQueue | None = None,
    verify: bool = False,
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
    isolate: Isolate | None = None,
    queue: PassQueue | None = None,
    verify: bool = False,
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
    isolate: "process" runs the engine in a process of its own, with the same bits. An abort in native code ends that
    process; the pass is run once more in a new one, and then EngineCrashed is raised. "auto" does so if the origin of
    the files is not known, see `origin_is_known`. None runs the engine in this process.
    queue: an `inference.queue.PassQueue`, through which the texts of all threads share passes, as a server needs it.
    If it is None, each call has passes of its own.
    verify: compare the vectors of three fixed texts with the numbers that the converter wrote into the manifest, for
    `task`, or for every task if none is given; other vectors raise ModelDamaged, and files of which none are known
    UsageError.
    What was chosen, and why, is in `.spec.origin`. A model that ranks documents comes as a Reranker, which has no
    tasks to choose from. Raises ModelNotFound, ModelDamaged, EngineMissing, UsageError.
    """
    if isolate not in (None, "process", "auto"):
        raise UsageError(f"isolate {isolate!r} is unknown. Possible: 'process', 'auto', None.")
    files = find(
        name_or_path,
        backend=backend,
        weights=weights,
        revision=revision,
        offline=offline,
        show_progress=show_progress,
        tasks=None if task is None else [task],
    )
    apart: Literal["process"] | None = "process" if isolate == "process" else None
    if isolate == "auto":
        known = origin_is_known(name_or_path, files)
        why = (
            "the origin of the files is known" if known else f"{name_or_path} has no {manifest.NAME} of our converter"
        )
        files = replace(files, reasons=(*files.reasons, f"isolate: {why}"))
        apart = None if known else "process"
    model: Embedder | Reranker
    if files.model.scoring is not None:
        model = Reranker(files, device=device, threads=threads, isolate=apart, queue=queue)
    else:
        model = Embedder(files, task=task, device=device, threads=threads, isolate=apart, queue=queue)
    if verify:
        try:
            own = None if task is None else registry.expand_tasks(registry.lookup(files.model.name), [task])
            self_check.require(model, files, own)
        except BaseException:
            model.close()
            raise
    return model


def origin_is_known(name_or_path: str | os.PathLike[str], files: ModelFiles) -> bool:
    """Whether it is known who made the files; those of others run in a process of their own where the rule applies.

    A name stands for the package, the local store or a repository that the registry knows. A path is known by the
    manifest that our converter leaves beside the files, or one folder above, where each task has a folder.
    """
    if not os.path.lexists(Path(name_or_path).expanduser()):
        return True
    homes = {Path(path) if Path(path).is_dir() else Path(path).parent for path in files.files.values()}
    return all(
        any(os.path.lexists(folder / manifest.NAME) for folder in (home, home.absolute().parent)) for home in homes
    )
