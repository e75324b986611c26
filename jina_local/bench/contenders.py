"""Who takes part: the weight types of a model that are here, on each engine, and other programs beside them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import backends
from ..embedding.request import resolve
from ..errors import EngineMissing, ModelNotFound, UsageError
from ..model_files import labels
from ..spec import ModelFiles
from ..store.find import engines_for, find

_GRAPH = "onnx/model.onnx"  # where published repositories have it
_GRAPH_TYPES = {"fp16": "F16", "int8": "int8", "uint8": "int8", "quantized": "int8", "q4": "q4"}  # model_fp16.onnx
_MODULES = {"llama": "llama_cpp", "onnxruntime": "onnxruntime", "transformers": "torch transformers"}
_WEIGHTS = (".gguf", ".safetensors", ".onnx", ".onnx_data", ".data")


@dataclass(frozen=True)
class Request:
    """What a caller wants measured."""

    model: str  # a name or a path
    weights: Sequence[str] = ()  # empty: all that are here
    backend: str = "auto"  # every engine that is installed
    task: str | None = None  # None: the model's own default
    device: str | None = None
    threads: int | None = None
    beside: Sequence[str] = ()  # of bench.BESIDE
    checkpoint: Path | None = None  # a published checkpoint folder, for `beside`
    graphs: Sequence[Path] = ()  # ONNX graphs, for `beside`; empty: that of the checkpoint's folder


@dataclass(frozen=True)
class Contender:
    """One program with one set of weights."""

    name: str
    kind: str  # how bench.worker opens it
    settings: dict[str, Any] = field(repr=False)
    weights: str
    file_mb: float
    ours: bool


def ours(request: Request) -> tuple[ModelFiles, list[ModelFiles]]:
    """(the files that `load` would open, all files that are measured, those first). Opens no socket.

    Raises ModelNotFound, UsageError, EngineMissing, ModelDamaged.
    """
    installed = [name for name in engines_for(request.backend, None) if backends.installed(name)]
    if not installed:
        raise EngineMissing("no engine is installed. Install one: pip install 'jina_local[llama]'.")
    if request.weights:
        found = [one for label in request.weights for one in _with_label(request, installed, label)]
    else:
        found = list(_all(request, installed))
    first = min(found, key=lambda files: (installed.index(files.backend), labels.rank(files.label, files.backend)))
    return first, sorted(found, key=lambda files: files is not first)


def _with_label(request: Request, installed: Sequence[str], label: str) -> list[ModelFiles]:
    found = []
    refused: ModelNotFound | UsageError | None = None
    for engine in installed:
        try:
            found.append(_found(request, engine, label))
        except (ModelNotFound, UsageError) as error:
            refused = refused or error
    if not found and refused is not None:
        _found(request, request.backend, label)  # says it of the engine that reads these files
        raise refused
    return found


def _all(request: Request, installed: Sequence[str]) -> Iterator[ModelFiles]:
    """Every weight type of every engine. Raises what the first engine says if there are none."""
    first = _with_label(request, installed, "")
    for files in first:
        yield files
        for label in labels.READ_BY[files.backend]:
            if label.casefold() != files.label.casefold():
                with suppress(ModelNotFound, UsageError):  # it is not here
                    yield _found(request, files.backend, label)


def _found(request: Request, engine: str, label: str) -> ModelFiles:
    tasks = [request.task] if request.task else None
    return find(request.model, backend=engine, weights=label or None, offline=True, tasks=tasks)


def task_of(files: ModelFiles, asked: str | None) -> str:
    """The task that is measured: as asked, else the default, else that of documents. Raises UsageError."""
    if files.model.scoring is not None:
        return files.model.tasks[0]
    if asked is None and files.model.default_task is None:
        return resolve(files.model, prompt_name="document").task
    return resolve(files.model, task=asked).task


def contenders(request: Request, found: Sequence[ModelFiles], query: str | None) -> list[Contender]:
    """All that take part, ours first. query: of a reranker."""
    task = task_of(found[0], request.task)
    listed = [_our_own(request, files, task, query) for files in found]
    for name in dict.fromkeys(request.beside):
        package = name.partition("-")[0]
        if absent := [one for one in _MODULES[package].split() if importlib.util.find_spec(one) is None]:
            raise UsageError(f"--beside {name} needs {', '.join(absent)}: pip install {' '.join(absent)}")
        listed += _beside(name, request, found, task, query)
    return listed


def _our_own(request: Request, files: ModelFiles, task: str, query: str | None) -> Contender:
    settings = {
        "query": query,
        "name_or_path": request.model,
        "backend": files.backend,
        "weights": files.label,
        "task": None if query is not None else task,
        "device": request.device,
        "threads": request.threads,
    }
    size = _megabytes([files.files[task], *([files.adapters[task]] if task in files.adapters else [])])
    return Contender(f"{files.backend} {files.label}", "jina_local", settings, files.label, size, True)


def _beside(
    name: str, request: Request, found: Sequence[ModelFiles], task: str, query: str | None
) -> Iterator[Contender]:
    first = found[0]
    prefix = "" if query is not None else resolve(first.model, task=task).prefix
    if query is not None and name in ("llama", "onnxruntime"):
        raise UsageError(f"--beside {name} ranks nothing: it cannot be given a pair of texts, or marks to read.")
    if name == "llama":
        ggufs = [files for files in found if files.form == "gguf" and not files.adapters]
        if not ggufs:
            raise UsageError("--beside llama runs merged GGUF files, and no such files of this model are measured.")
        for files in ggufs:
            path = files.files[task]
            settings = {"path": str(path), "weights": files.label, "prefix": prefix, "threads": request.threads}
            yield Contender(f"Llama.embed {files.label}", "llama", settings, files.label, _megabytes([path]), False)
        return
    folder = _checkpoint(name, request, first.model.name)
    common = {"prefix": prefix, "pooling": first.model.pooling, "threads": request.threads}
    if name == "onnxruntime":
        for graph in request.graphs or [folder / _GRAPH]:
            if not graph.is_file():
                raise UsageError(
                    f"{graph}: no such file. --beside onnxruntime runs the graph that is published there."
                )
            weights = _GRAPH_TYPES.get(graph.stem.rpartition("_")[2], "F32")
            settings = {**common, "path": str(graph), "tokenizer": str(folder / "tokenizer.json")}
            yield Contender(f"ONNX Runtime {weights}", name, settings, weights, _megabytes(_parts(graph)), False)
        return
    dtype = "bfloat16" if name == "transformers-bf16" else "float32"
    own = task if (folder / "adapters").is_dir() else None
    settings = {**common, "folder": str(folder), "task": own, "dtype": dtype, "query": query}
    label = "BF16" if name == "transformers-bf16" else "F32"
    yield Contender(f"transformers {dtype}", "transformers", settings, label, _megabytes([folder]), False)


def _checkpoint(name: str, request: Request, model: str) -> Path:
    """The published checkpoint: as given, else as it is on this machine. Raises UsageError."""
    if request.checkpoint is not None:
        if not (request.checkpoint / "config.json").is_file():
            raise UsageError(f"--checkpoint {request.checkpoint}: has no config.json; give a published checkpoint.")
        return request.checkpoint
    for wanted in (request.model, model):
        with suppress(ModelNotFound, UsageError):
            files = find(wanted, backend="mlx", offline=True, source=True)
            if files.form == "checkpoint":
                return next(iter(files.files.values()))
    raise UsageError(
        f"--beside {name} runs the published checkpoint, which is not here: --checkpoint FOLDER says where it is "
        f"(config.json, model.safetensors, tokenizer.json, adapters). `jina-local models pull {model} "
        "--backend mlx` fetches it."
    )


def _parts(graph: Path) -> list[Path]:
    """A graph and the files of its tensors, which have its name and more."""
    return [file for file in graph.parent.iterdir() if file.name.startswith(graph.name)]


def _megabytes(paths: Sequence[Path]) -> float:
    files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
    return round(sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS) / 1e6, 1)
