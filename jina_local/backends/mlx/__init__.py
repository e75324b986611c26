"""MLX: TokenBatch -> rows. One thread owns the model; only numpy crosses.

Metal computes in float16 and keeps quantised weights as they are. The CPU is for being right, on any machine:
float32, quantised weights widened once at load, because its low-precision products accumulate in low precision.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, EngineMissing, UsageError
from ...spec import NO_TASK, Budget, TokenBatch
from ..checks import check, check_classified, check_task
from .padding import Padded, pad

T = TypeVar("T")

# overhead: what a pass costs beside its tokens, counted in tokens. On the CPU it is the building of the graph; on
# Metal it follows from published single-query times. Lengths are rounded so that freed buffers fit again.
_CPU_BUDGET = Budget(tokens=2048, texts=256, padded=True, overhead=16, multiple=8)
_METAL_BUDGET = Budget(tokens=8192, texts=256, padded=True, overhead=128, multiple=8)
# Freed Metal buffers are kept for tensors of the same size; without a limit varying lengths fill the memory.
_METAL_CACHE = 512 << 20


class MlxBackend:
    """One task's weights, or a base and adapters that run beside it. See backends.Backend.

    Beside: y = x W^T + (alpha / r) (x A^T) B^T in every layer that the adapter of the call has factors for. The
    base is read by all and written by none, so that no order of tasks and no company changes a vector. v3's embedding
    tables have factors too: row i of one is W[i] + (alpha / r) B[i] A. NO_TASK is the base alone.
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
        """`path`: a folder; `task`: the adapter to merge, None where there is none. `device`: None, "cpu", "metal".

        `adapters`: task -> adapters/<task>.safetensors, converted with the base in `path`; or adapters/<task>, where
        `path` is a published checkpoint. Raises UsageError, ModelDamaged, EngineMissing, EngineError.
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
        self._closing = threading.Lock()
        self._closed = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="jina_local-mlx")
        try:
            self._on_worker(lambda: self._open(path, task, adapters or {}, device))
        except BaseException:
            self._worker.shutdown()
            raise

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; budget says what is fast."""
        check_task(task, self._tasks)
        check(batch, self.vocab, self._longest)
        if self.arch.labels:
            check_classified(batch)
        padded = pad(batch, self.budget.multiple)
        return self._on_worker(lambda: self._run(padded, task))

    def close(self) -> None:
        """Free the weights; calls that are under way end first."""
        if os.getpid() != self._process:
            return  # the worker stayed behind in the parent
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._worker.submit(self._free).result()
            self._worker.shutdown()

    def _on_worker(self, job: Callable[[], T]) -> T:
        """Streams belong to threads: load, build and evaluate on one and the same."""
        if os.getpid() != self._process:
            raise EngineError(
                "this model was opened before the process was forked, and MLX does not survive a fork. Open it in "
                "the new process, or start that with multiprocessing's 'spawn'."
            )
        with self._closing:
            if self._closed:
                raise EngineError("this model is closed.")
            future = self._worker.submit(job)
        return future.result()

    def _open(self, path: Path, task: str | None, adapters: Mapping[str, Path], device: str | None) -> None:
        mx = _import()
        from . import adapters as beside
        from .folder import open_folder
        from .transformer import Transformer
        from .xlm_roberta import XlmRoberta

        self.device = _device(mx, device)
        metal = self.device == "metal"
        self.budget = _METAL_BUDGET if metal else _CPU_BUDGET
        self._mx, self._unit = mx, mx.gpu if metal else mx.cpu
        if metal:
            mx.set_cache_limit(_METAL_CACHE)
        folder = open_folder(path, task)
        try:
            self.arch = folder.arch
            self.hidden, self.vocab, self._longest = folder.arch.width, folder.arch.vocab, folder.arch.max_positions
            self.dtype = "float16" if metal and not folder.exact else "float32"
            self.reasons: tuple[str, ...] = (_why(self.device, self.dtype, folder.stored),)
            with mx.stream(self._unit), _engine_errors():
                dtype = getattr(mx, self.dtype)
                self._tasks = tuple(adapters)
                self._adapters = beside.load(adapters, folder, dtype)
                weights = dict(folder.weights(dtype, keep_packed=metal))
                model = XlmRoberta if folder.arch.xlm_roberta else Transformer
                self._model = model(folder.arch, weights, fused=metal)
        finally:
            folder.close()

    def _run(self, padded: Padded, task: str | None) -> NDArray[np.float32]:
        with self._mx.stream(self._unit), _engine_errors():
            rows = self._model(padded, None if task in (None, NO_TASK) else self._adapters[task])
            self._mx.eval(rows)
            return np.array(rows)

    def _free(self) -> None:
        del self._model, self._adapters
        self._mx.clear_cache()


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
    # CUDA), which is a thousand times coarser than what the caller of a 32-bit model asked for.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
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
    return f"{stored} weights run in float32 on the CPU{widened}: MLX is exact there, not fast; llama.cpp is"
