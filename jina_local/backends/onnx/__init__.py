"""ONNX Runtime: TokenBatch -> rows, on the CPU.

The graph that runs is always built here, from weights whose names, shapes and types were checked. A graph that lies
in a model's folder is never opened, and no operator library either.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, EngineMissing, UsageError
from ...formats.onnx_file import Graph
from ...spec import Budget, TokenBatch
from ...weights.architecture import Architecture
from ..checks import check, check_classified, check_task
from ..learned_positions import table_rows
from ..machine import physical_cores
from ..padding import Padded, pad
from ..threads import shield
from . import adapters as beside
from . import exact
from .folder import open_folder
from .graph import build, takes_all

_BUDGET = Budget(tokens=1024, texts=256, padded=True, overhead=16, multiple=4)
# From this length on, attention without the matrix of all scores is the faster one.
LONG = 1024
_SILENT = "ORT_DISABLE_TELEMETRY"
_log = logging.getLogger("jina_local")
_HOW = {
    "INT8": "in whole numbers of 8 bits, with a scale for each token",
    "INT4": "as INT8, whose products are faster",
    "INT16": "in whole numbers of 16 bits, with a scale for each token",
}


class OnnxBackend:
    """One task's weights, or a base and adapters that run beside it. See backends.Backend."""

    lanes = 1
    device, dtype = "cpu", "float32"

    def __init__(
        self,
        path: Path,
        *,
        task: str | None = None,
        adapters: Mapping[str, Path] | None = None,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Open a folder. Raises UsageError, ModelDamaged, EngineMissing, EngineError."""
        if device not in (None, "cpu"):
            raise UsageError(f"unknown device {device!r}; ONNX Runtime runs on: cpu.")
        if task is not None and adapters:
            raise UsageError(f"{path}: task {task!r} to merge and adapters to run beside the base: one or the other.")
        self.threads, self._process = threads or physical_cores(), os.getpid()
        self.budget, self._tasks = _BUDGET, tuple(adapters or ())
        self._opened: list[Any] = []
        shield(lambda: self._open(path, task, adapters or {}))
        self.hidden, self.vocab, self._longest = self.arch.width, self.arch.vocab, self.arch.max_positions
        self._rotations = _Rotations(self.arch)

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; `budget` says which size is fast."""
        if os.getpid() != self._process:
            raise EngineError(
                "this model was opened before the process was forked, and the threads of ONNX Runtime do not survive "
                "a fork. Load it again in the new process, or start that with multiprocessing's 'spawn'."
            )
        check_task(task, self._tasks)
        check(batch, self.vocab, self._longest)
        if self.arch.labels:
            check_classified(batch)
        feed = {**self._feed(pad(batch, self.budget.multiple)), **(self._factors[task] if task is not None else {})}
        opened, options = [*self._opened], runtime().RunOptions()
        if not opened:
            raise EngineError("this model is closed.")

        def one_pass() -> NDArray[np.float32]:
            with _engine_errors():
                rows: NDArray[np.float32] = opened[0].run(None, feed, options)[0]
                return rows

        def stop() -> None:
            options.terminate = True

        return shield(one_pass, stop)

    def close(self) -> None:
        """Free the weights after the calls that are under way."""
        if os.getpid() == self._process:
            self._opened.clear()

    def _open(self, path: Path, task: str | None, paths: Mapping[str, Path]) -> None:
        folder = open_folder(path, task)
        try:
            self.arch = folder.arch
            self.reasons: tuple[str, ...] = (f"{folder.stored} weights run {_HOW.get(folder.stored, 'in float32')}",)
            adapted, self._factors = beside.load(paths, folder)
            weights = folder.weights()
            if folder.stored in _HOW:
                weights = exact.for_engine(weights, exact.codes_type(_session))
            self._opened.append(_session(build(self.arch, weights, adapted=adapted), self.threads))
        finally:
            folder.close()

    def _feed(self, padded: Padded) -> dict[str, NDArray[np.generic]]:
        """The inputs of the graph."""
        arch, (texts, length) = self.arch, padded.ids.shape
        places = np.broadcast_to(np.arange(length), padded.ids.shape)
        wanted: NDArray[np.integer[Any]] = places if padded.at is None else padded.at
        flat = (wanted + np.arange(texts)[:, None] * length).reshape(-1).astype(np.int64)
        feed: dict[str, NDArray[np.generic]] = {
            "ids": padded.ids.astype(np.int64),
            "long": np.array([length >= LONG and (arch.causal or padded.full)]),
            "pick": flat[padded.pick] if takes_all(arch) else padded.pick.astype(np.int64),
        }
        if not arch.causal:
            feed["lengths"] = padded.lengths.astype(np.int64)
        if arch.rope_theta:
            feed["cosines"], feed["sines"] = self._rotations.up_to(length)
        else:
            places = np.minimum(table_rows(padded.ids), self._longest + 1)
        feed["places"] = np.ascontiguousarray(places, np.int64)
        if not takes_all(arch):
            feed["at"], feed["flat_at"] = np.ascontiguousarray(wanted, np.int64), flat
        return feed


class _Rotations:
    """cos and sin of the rotary angles, computed in float64, for as many places as were asked for so far."""

    def __init__(self, arch: Architecture) -> None:
        if arch.rope_theta:
            self._steps = arch.rope_theta ** -(np.arange(0, arch.head_dim, 2) / arch.head_dim)
        self._tables: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def up_to(self, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Two of (length, head_dim / 2)."""
        tables = self._tables
        if tables is None or len(tables[0]) < length:
            angles = np.arange(1 << (length - 1).bit_length())[:, None] * self._steps
            tables = self._tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return tables[0][:length], tables[1][:length]


def _session(graph: Graph, threads: int) -> Any:
    ort = runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    weights = graph.weights
    options.add_external_initializers(
        list(weights), [ort.OrtValue.ortvalue_from_numpy(data) for data in weights.values()]
    )
    with _engine_errors():
        model = graph.model(lambda name: ("-", 0, weights[name].nbytes))
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise EngineError(f"ONNX Runtime failed: {error}") from error


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
