"""ONNX Runtime: TokenBatch -> rows, on the CPU.

The graph that runs is built here, from weights whose names, shapes and types were checked. A graph beside them is not
opened. A graph that Jina publishes without them is run by published.py. No operator library is ever opened.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ...formats.onnx_file import Graph
from ...spec import Budget, TokenBatch
from ...weights import architecture
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
from .session import Session
from .session import runtime as runtime  # for the doctor

# Tokens a second of nano in INT8 on the mix (2 cores of an Intel Xeon, two lanes of a thread each): 5,509 in passes
# of 512, 5,403 in passes of 256, 4,843 in passes of 2,048.
_BUDGET = Budget(tokens=512, texts=256, padded=True, overhead=16, multiple=4)
# Several passes at a time with a thread each are faster than one with all threads: 5,509 tokens a second against
# 4,522, as above. A lone text wants all of them: 22.8 ms against 33.9 for 64 tokens. Both take the matrices twice, as
# the engine packs them for each session, so models whose matrices are larger than this have one session and no lanes.
_TWICE = 256 << 20
# From this length on, attention without the matrix of all scores is the faster one.
LONG = 1024
_HOW = {
    "INT8": "in whole numbers of 8 bits, with a scale for each token",
    "INT4": "as INT8, whose products are faster",
    "INT16": "in whole numbers of 16 bits, with a scale for each token",
}


class OnnxBackend:
    """One task's weights, or a base and adapters that run beside it. See backends.Backend."""

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
        self.threads = threads or physical_cores()
        self.budget, self._tasks = _BUDGET, tuple(adapters or ())
        self._narrow: Session | None = None
        self._again: Callable[[], Session] | None = None
        self._lock = threading.Lock()
        shield(lambda: self._open(path, task, adapters or {}))
        self.hidden, self.vocab, self._longest = self.arch.width, self.arch.vocab, self.arch.max_positions
        self._rotations = _Rotations(self.arch)

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; `budget` says which size is fast."""
        check_task(task, self._tasks)
        check(batch, self.vocab, self._longest)
        if self.arch.labels:
            check_classified(batch)
        feed = {**self._feed(pad(batch, self.budget.multiple)), **(self._factors[task] if task is not None else {})}
        session = self._lane() if sharers > 1 and self.lanes > 1 else self._opened
        rows: NDArray[np.float32] = session.run(None, feed)[0]
        return rows

    def close(self) -> None:
        """Free the weights after the calls that are under way."""
        self._again = None
        for session in (self._opened, self._narrow):
            if session is not None:
                session.close()

    def _lane(self) -> Session:
        """The session of one thread, which all lanes share; opened at its first use."""
        with self._lock:
            if self._narrow is None and self._again is not None:
                self._narrow, self._again = self._again(), None
            return self._narrow or self._opened  # a closed one says so itself

    def _open(self, path: Path, task: str | None, paths: Mapping[str, Path]) -> None:
        folder = open_folder(path, task)
        try:
            self.arch = folder.arch
            self.reasons: tuple[str, ...] = (f"{folder.stored} weights run {_HOW.get(folder.stored, 'in float32')}",)
            adapted, self._factors = beside.load(paths, folder)
            weights = folder.weights()
            if folder.stored in _HOW:
                weights = exact.for_engine(weights, exact.codes_type(_session))
            graph = build(self.arch, weights, adapted=adapted)
            self._opened = _session(graph, self.threads)
            matrices = sum(graph.weights[name].nbytes for name in architecture.projections(self.arch))
            self.lanes = self.threads if matrices <= _TWICE else 1
            self._again = partial(_session, graph, 1) if self.lanes > 1 else None
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


def _session(graph: Graph, threads: int) -> Session:
    weights = graph.weights
    return Session(graph.model(lambda name: ("-", 0, weights[name].nbytes)), weights, threads)
