"""The wall to the engines: one protocol, which engines are installed, and the function that opens one."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from ..errors import EngineMissing, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..spec import Budget, TokenBatch

BACKENDS = ("mlx", "llama", "onnx")
_MODULES = {"mlx": "mlx.core", "llama": "llama_cpp", "onnx": "onnxruntime"}


class Backend(Protocol):
    """One set of weights, opened by one engine. Safe to call from several threads.

    hidden: the width of a row (a state, or the logits of a classifier).
    vocab: the rows of the token table.
    budget: the size of a pass that is fast.
    lanes: how many passes may usefully run at a time.
    device, dtype, threads, reasons: what it runs on, and why.

    A Ctrl-C in the main thread is KeyboardInterrupt, and the backend can be used afterwards. After a fork, the child
    gets EngineError from a backend of its parent, and can open its own.
    """

    hidden: int
    vocab: int
    budget: Budget
    lanes: int
    device: str
    dtype: str
    threads: int
    reasons: tuple[str, ...]

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """Run one pass: (n_rows, hidden) float32, the states after the last layer and its norm at `batch.rows`.

        A model with a classifier gives its raw logits instead, and the rows have to be the first token of each text.

        sharers: how many passes the caller runs at a time. The engine divides its threads by it.
        task: the opened adapter to run beside the base; None if the weights are merged.

        Calls with different tasks may run at a time without changing each other's result. Rows may be non-finite,
        which does not affect later calls. Raises EngineError for ids outside the table, an empty text, a task without
        an adapter (see `checks.check_task`), or a failure of the engine.
        """
        ...

    def close(self) -> None:
        """Free the weights. The backend cannot be used afterwards. Closing it twice is harmless."""
        ...


def installed(name: str) -> bool:
    """Whether an engine can be imported, without importing it."""
    try:
        return importlib.util.find_spec(_MODULES[name]) is not None
    except ModuleNotFoundError:
        return False


def by_preference() -> tuple[str, ...]:
    """All engines, the best for this machine first, installed or not.

    Apple silicon: MLX, the only one that runs on Metal without a build of one's own. Elsewhere ONNX Runtime:
    pico in float32 took 0.39 of the CPU time of its Q8_0 GGUF in llama.cpp on texts of the mix, 0.2 on one of three
    words and 0.12 on one of 1,000 (2 cores of an Intel Xeon with AMX, busy, both in turns in one process). MLX's CPU
    wheel for Linux comes last.
    """
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return ("mlx", "llama", "onnx") if apple else ("onnx", "llama", "mlx")


def preferred() -> str:
    """The best engine that is installed. Raises EngineMissing."""
    for name in by_preference():
        if installed(name):
            return name
    extras = " or ".join(f"pip install 'jina_local[{name}]'" for name in by_preference()[:2])
    raise EngineMissing(f"no engine is installed. Install one: {extras}.")


def open_backend(
    name: str,
    path: Path,
    *,
    task: str | None = None,
    adapters: Mapping[str, Path] | None = None,
    device: str | None = None,
    threads: int | None = None,
    isolate: Literal["process"] | None = None,
) -> Backend:
    """Open one set of weights: a .gguf file with llama, a folder with mlx or onnx.

    task: the adapter to merge at load, if the folder is a published checkpoint (mlx and onnx).
    adapters: task -> file or folder. They run beside the unchanged base, and every call of `forward` names one.

    Without both, the weights are merged already.
    isolate: "process" runs the engine in a process of its own, so that an abort in native code raises EngineCrashed;
    see `remote`. This is also the way to open a file that nothing has checked.
    """
    if isolate not in (None, "process"):
        raise UsageError(
            f"isolate {isolate!r} is unknown. Possible: 'process', or None for the caller's own process."
        )
    if task is not None and (adapters or name == "llama"):
        raise UsageError(
            f"{path}: task {task!r} cannot be merged at load: "
            f"{'its adapters run beside the base' if adapters else 'llama.cpp takes merged files, or adapters'}."
        )
    if not installed(name):
        raise EngineMissing(
            f"{path} needs the engine {name!r}, which is not installed: pip install 'jina_local[{name}]'."
        )
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 512):
        raise UsageError(f"threads {threads!r} is out of range; give a whole number from 1 to 512, or leave it out.")
    if isolate is not None:
        from .remote import RemoteBackend

        return RemoteBackend(name, path, task=task, adapters=adapters, device=device, threads=threads)
    if name == "llama":
        from .llama.backend import LlamaBackend

        return LlamaBackend(path, adapters=adapters, device=device, threads=threads)
    if name == "onnx":
        from ..weights import onnx_graph
        from .onnx import OnnxBackend
        from .onnx.published import PublishedBackend

        kind = PublishedBackend if onnx_graph.folder_of(path) == path else OnnxBackend
        return kind(path, task=task, adapters=adapters, device=device, threads=threads)
    from .mlx import MlxBackend

    return MlxBackend(path, task=task, adapters=adapters, device=device, threads=threads)
