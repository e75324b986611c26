"""One graph, open in ONNX Runtime on the CPU: from arrays to arrays, its errors translated."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, EngineMissing
from ..threads import shield

_SILENT = "ORT_DISABLE_TELEMETRY"
_log = logging.getLogger("jina_local")


class Session:
    """Safe to call from several threads. Every file that belongs to the graph is read before, by the caller."""

    def __init__(
        self, model: bytes, weights: Mapping[str, NDArray[np.generic]], threads: int, *, optimise: bool = False
    ) -> None:
        """model: the graph. weights: the data of every tensor that the graph says is outside, by name.

        optimise: let the engine rewrite the graph, for graphs that were not built for it. Raises EngineError.
        """
        ort = self._ort = runtime()
        self._process = os.getpid()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        values = [ort.OrtValue.ortvalue_from_numpy(data) for data in weights.values()]
        if values:
            options.add_external_initializers(list(weights), values)
        with _engine_errors():
            self._opened = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])]

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """One pass: the outputs by name, None for all. A Ctrl-C ends it. Raises EngineError."""
        if os.getpid() != self._process:
            raise EngineError(
                "this model was opened before the process was forked, and the threads of ONNX Runtime do not survive "
                "a fork. Load it again in the new process, or start that with multiprocessing's 'spawn'."
            )
        opened, options = [*self._opened], self._ort.RunOptions()
        options.log_severity_level = 4
        if not opened:
            raise EngineError("this model is closed.")

        def one_pass() -> list[NDArray[Any]]:
            with _engine_errors():
                found: list[NDArray[Any]] = opened[0].run(outputs, dict(feed), options)
                return found

        def stop() -> None:
            options.terminate = True

        return shield(one_pass, stop)

    def close(self) -> None:
        """Free the weights after the calls that are under way."""
        if os.getpid() == self._process:
            self._opened.clear()


def runtime() -> Any:
    """The module of ONNX Runtime, which sends nothing to anybody. Raises EngineMissing.

    From 1.29 on its published builds tell Microsoft of each process and model, and keep an identifier in the home
    folder, unless this variable is set before the first import.
    Source: https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
    """
    if os.environ.get(_SILENT) != "1" and "onnxruntime" in sys.modules:
        _log.warning("onnxruntime was imported before jina_local, without %s=1: it may send telemetry.", _SILENT)
    os.environ[_SILENT] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(f"ONNX Runtime cannot be imported ({error}): pip install 'jina_local[onnx]'.") from error
    return onnxruntime


@cache
def _kinds() -> tuple[type[Exception], ...]:
    """The classes of its errors, which have no base in common but Exception. They are looked for once."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, MemoryError)


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except _kinds() as error:
        raise EngineError(f"ONNX Runtime failed: {error}") from error
