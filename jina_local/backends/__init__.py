"""The wall to the engines: one protocol, and the two functions that say which engine there is and open it."""

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

BACKENDS = ("mlx", "llama")
_MODULES = {"mlx": "mlx.core", "llama": "llama_cpp"}


class Backend(Protocol):
    """One set of weights, opened by one engine. Safe to call from several threads.

    `hidden` is the width of a row (a state, or the logits of a classifier), `vocab` the size of the token table;
    `budget` is what one pass should hold and `lanes` how many passes may usefully run at a time; `device`, `dtype`,
    `threads` and `reasons` say what it runs on.
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
        """The states after the last layer and its norm at `batch.rows`: (n_rows, hidden) float32.

        Of a model with a classifier, its raw logits instead; the rows have to be the first token of each text.

        `sharers`: how many passes the caller runs at a time; the engine divides its threads by it. `task`: the
        adapter to run beside the base, one of those opened with; None where the weights are merged. Calls with
        different tasks may run at a time, and none changes what another sees. Rows may come back non-finite; the
        state that later calls see is clean all the same. Raises EngineError for ids outside the table, an empty
        text, a task that is not there (see `passes.check_task`), or a failure of the engine.
        """
        ...

    def close(self) -> None:
        """Free the weights. The backend cannot be used afterwards; closing twice is harmless."""
        ...


def installed(name: str) -> bool:
    """Whether an engine can be imported, without importing it."""
    try:
        return importlib.util.find_spec(_MODULES[name]) is not None
    except ModuleNotFoundError:
        return False


def preferred() -> str:
    """MLX on Apple silicon, llama.cpp elsewhere; whichever is there. Raises EngineMissing if none is."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    for name in ("mlx", "llama") if apple else ("llama", "mlx"):
        if installed(name):
            return name
    raise EngineMissing("no engine is installed. Install one: pip install 'jina_local[llama]' or 'jina_local[mlx]'.")


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
    """Open one set of weights: a .gguf file with llama, a folder with mlx.

    `task` names the adapter to merge at load, where the folder is a published checkpoint (mlx alone). `adapters`
    (task -> file or folder, as ModelFiles.adapters has it) keeps the base as it is and runs them beside it: every
    call of `forward` then names one. Neither: the weights are merged already.

    `isolate`: "process" runs the engine in a process of its own, so that an abort in native code raises
    EngineCrashed; see `remote`. This is also the way to open a file that nothing has checked.
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
    from .mlx import MlxBackend

    return MlxBackend(path, task=task, adapters=adapters, device=device, threads=threads)
