"""MLX: TokenBatch -> rows. One thread owns the model; only numpy crosses.

Metal computes in float16 and keeps quantised weights as they are. The CPU is for being right, on any machine:
float32, quantised weights widened once at load, because its low-precision products accumulate in low precision.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, EngineMissing, UsageError
from ...spec import NO_TASK, Budget, TokenBatch
from ..checks import check, check_classified, check_task
from ..padding import Padded, pad
from ..threads import EngineThread, borrow, give_back, shield
from . import blas

# overhead: the fixed cost of a pass, counted in tokens. On the CPU it is the building of the graph; on Metal it
# follows from published single-query times. Lengths are rounded so that freed buffers fit again.
_CPU_BUDGET = Budget(tokens=2048, texts=256, padded=True, overhead=16, multiple=8)
_METAL_BUDGET = Budget(tokens=8192, texts=256, padded=True, overhead=128, multiple=8)
# Freed Metal buffers are kept for tensors of the same size; without a limit varying lengths fill the memory.
_METAL_CACHE = 512 << 20
# A pass on the CPU with so many tokens, pads included, takes long enough to be stopped between two blocks.
_STOPPABLE = 512

_first_process: int | None = None  # the process in which MLX was used first


class MlxBackend:
    """One task's weights, or a base and adapters that run beside it. See backends.Backend.

    Beside: y = x W^T + (alpha / r) (x A^T) B^T in every layer that the adapter of the call has factors for. All calls
    read the base and none writes to it, so no order of tasks and no company changes a vector. v3's embedding tables
    have factors too: row i of a table is W[i] + (alpha / r) B[i] A. NO_TASK is the base alone.
    """

    lanes = 1

    def __init__(
        self,
        path: Path,
        *,
        task: str | None = None,
        adapters: Mapping[str, Path] | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open a folder. Raises UsageError, ModelDamaged, EngineMissing, EngineError.

        task: the adapter to merge, or None.
        adapters: task -> adapters/<task>.safetensors, converted with the base in `path`; or adapters/<task>, if
            `path` is a published checkpoint.
        device: None, "cpu" or "metal".
        threads: None or 1, because MLX computes with one thread on the CPU.
        """
        if task is not None and adapters:
            raise UsageError(f"{path}: task {task!r} to merge and adapters to run beside the base: one or the other.")
        if threads not in (None, 1):
            raise UsageError(
                f"threads {threads} cannot be honoured: MLX computes with one thread on the CPU, and with the "
                "whole GPU on Metal. Leave it out, or use the llama backend."
            )
        self.threads = 1
        self._process = os.getpid()
        shield(lambda: self._open(path, task, adapters or {}, device))

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; `budget` says which size is fast."""
        if os.getpid() != self._process:
            raise EngineError(
                "this model was opened before the process was forked, and MLX does not survive a fork. Load it again "
                "in the new process, or start that with multiprocessing's 'spawn'."
            )
        check_task(task, self._tasks)
        check(batch, self.vocab, self._longest)
        if self.arch.labels:
            check_classified(batch)
        padded, opened, stop = pad(batch, self.budget.multiple), self._opened, threading.Event()

        def one_pass() -> NDArray[np.float32]:
            if not opened:
                raise EngineError("this model is closed.")
            return opened[0].run(padded, task, stop)

        return self._thread.run(one_pass, stop.set)

    def close(self) -> None:
        """Free the weights after the calls that are under way."""
        if os.getpid() == self._process:
            shield(self._free_and_wait)

    def _free_and_wait(self) -> None:
        self._free()
        self._thread.run(lambda: None)

    def _open(self, path: Path, task: str | None, adapters: Mapping[str, Path], device: str | None) -> None:
        thread = borrow()
        try:
            model = thread.run(lambda: _Model(path, task, adapters, device))
        except BaseException:
            give_back(thread)
            raise
        self._thread, self._opened = thread, [model]
        # At exit nothing has to be freed, and MLX itself may be gone.
        self._free = weakref.finalize(self, _free, thread, self._opened)
        self._free.atexit = False
        self.arch, self.budget, self.device, self.dtype = model.arch, model.budget, model.device, model.dtype
        self.hidden, self.vocab, self._longest = model.arch.width, model.arch.vocab, model.arch.max_positions
        self.reasons: tuple[str, ...] = (model.reason,)
        self._tasks = model.tasks


class _Model:
    """The weights and everything else that lives on the thread: streams belong to threads, so load, build and
    evaluate all happen there.
    """

    def __init__(self, path: Path, task: str | None, adapters: Mapping[str, Path], device: str | None) -> None:
        mx = _import()
        from . import adapters as beside
        from .folder import open_folder
        from .transformer import Transformer
        from .xlm_roberta import XlmRoberta

        self.device = _device(mx, device)
        self._metal = self.device == "metal"
        _check_fork(self._metal)
        self.budget = _METAL_BUDGET if self._metal else _CPU_BUDGET
        self._mx, self._unit = mx, mx.gpu if self._metal else mx.cpu
        if self._metal:
            mx.set_cache_limit(_METAL_CACHE)
        folder = open_folder(path, task)
        try:
            self.arch = folder.arch
            self.dtype = "float16" if self._metal and not folder.exact else "float32"
            self.reason = _why(self.device, self.dtype, folder.stored)
            self.tasks = tuple(adapters)
            with mx.stream(self._unit), _engine_errors():
                dtype = getattr(mx, self.dtype)
                self._adapters = beside.load(adapters, folder, dtype)
                weights = dict(folder.weights(dtype, keep_packed=self._metal))
                kind = XlmRoberta if folder.arch.xlm_roberta else Transformer
                self._pass = kind(folder.arch, weights, fused=self._metal)
        finally:
            folder.close()

    def run(self, padded: Padded, task: str | None, stop: threading.Event) -> NDArray[np.float32]:
        """Run one pass: (n_rows, width) float32. Raises EngineError if `stop` is set and the pass is a long one."""
        after_block = None if self._metal or padded.ids.size < _STOPPABLE else self._stopping(stop)
        with self._mx.stream(self._unit), _engine_errors():
            rows = self._pass(padded, None if task in (None, NO_TASK) else self._adapters[task], after_block)
            self._mx.eval(rows)
            return np.array(rows)

    def _stopping(self, stop: threading.Event) -> Callable[[Any], None]:
        """Evaluate block by block, so that a long pass can end in between. The numbers are the same."""

        def after_block(states: Any) -> None:
            self._mx.eval(states)
            if stop.is_set():
                raise EngineError("a pass was stopped before its end.")

        return after_block


def _free(thread: EngineThread, opened: list[_Model]) -> None:
    """Drop the model on its thread, after the calls that are under way. A forked child leaves it to its parent."""
    if thread.process != os.getpid():
        return

    def free() -> None:
        opened.clear()
        if _first_process == os.getpid():  # in a forked child MLX would wait for the parent's threads
            _import().clear_cache()
        give_back(thread)

    thread.post(free)


def _check_fork(metal: bool) -> None:
    """Remember the first process that uses MLX. Raises EngineError if this one was forked from it and wants Metal."""
    global _first_process
    _first_process = _first_process or os.getpid()
    if metal and _first_process != os.getpid():
        raise EngineError(
            "this process was forked from one that used MLX, and Metal does not survive a fork. Start it with "
            "multiprocessing's 'spawn', or give device='cpu'."
        )


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise EngineError(
            f"MLX failed: {error}. If memory is short, lower max_length or use smaller weights."
        ) from error


def _import() -> Any:
    # Read by MLX before its first product. By default matrix units may round float32 to 10 bits (M5 and later,
    # CUDA), which is a thousand times coarser than the 32 bits that the caller asked for.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    blas.put_in_front()
    try:
        import mlx.core as mx
    except ImportError as error:
        raise EngineMissing(
            f"MLX cannot be imported ({error}). On Linux it needs glibc 2.35 and pip install 'jina_local[mlx]': "
            "the plain mlx package comes without an engine there."
        ) from error
    return mx


def _device(mx: Any, asked: str | None) -> str:
    if asked not in (None, "cpu", "metal", "gpu"):
        raise UsageError(f"unknown device {asked!r}; possible: cpu, metal.")
    available = bool(mx.metal.is_available())
    if asked in ("metal", "gpu") and not available:
        raise UsageError(f"device {asked!r}: MLX finds no Metal here; possible: cpu.")
    return "metal" if available and asked != "cpu" else "cpu"


def _why(device: str, dtype: str, stored: str) -> str:
    if device == "metal":
        return f"{stored} weights run in {dtype} on Metal"
    widened = ", widened once at load" if "bit" in stored else ""
    by = f" with {library}" if (library := blas.library()) else ""
    return f"{stored} weights run in float32 on the CPU{widened}{by}: MLX is exact there, not fast; llama.cpp is"
