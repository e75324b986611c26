"""A graph as Jina publishes it -> rows. It is judged before the engine sees it, and proves itself before it is used.

The engine gets the bytes that were judged, and weights that were read for it. It opens no file by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, ModelDamaged, UsageError
from ...spec import Budget, TokenBatch
from ...weights import onnx_graph
from ...weights.onnx_graph import IDS, MASK, STATES, VECTOR
from ..checks import check, check_task
from ..machine import physical_cores
from ..padding import pad
from ..threads import shield
from .session import Session

# A graph of others keeps the matrix of all scores of a pass: passes stay small.
_BUDGET = Budget(tokens=1024, texts=256, padded=True, overhead=16, multiple=1)
# Of two unit vectors, or of states by their length: what 16-bit arithmetic may differ by, and company may not.
_TOLERANCE = 5e-3
_LENGTHS = (11, 4, 1)  # tokens of the texts of the trial


class PublishedBackend:
    """One task's graph. See backends.Backend."""

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
        """Open a folder with model.onnx. Raises UsageError, ModelDamaged, EngineMissing, EngineError."""
        if device not in (None, "cpu"):
            raise UsageError(f"unknown device {device!r}; ONNX Runtime runs on: cpu.")
        if task is not None or adapters:
            raise UsageError(f"{path}: a graph that was published for one task takes no adapter.")
        self.threads, self.budget = threads or physical_cores(), _BUDGET
        graph = onnx_graph.read(path)
        self.reasons: tuple[str, ...] = (f"{graph.label} weights run in the published graph",)
        self.hidden, self.vocab, self._longest = graph.arch.hidden, graph.arch.vocab, graph.arch.max_positions
        self._opened = shield(lambda: Session(graph.file.raw, graph.file.outside(), self.threads, optimise=True))
        try:
            self._try_out(graph.file.path)
        except BaseException:
            self.close()
            raise

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend."""
        check_task(task, ())
        check(batch, self.vocab, self._longest)
        padded = pad(batch, self.budget.multiple)
        length = padded.ids.shape[1]
        mask = np.arange(length) < padded.lengths[:, None]
        (states,) = self._opened.run([STATES], _feed(padded.ids, mask))
        if states.shape != (*padded.ids.shape, self.hidden) or states.dtype != np.float32:
            raise EngineError(f"the graph gave states {states.shape} for ids {padded.ids.shape}.")
        rows: NDArray[np.float32] = states[batch.owner, batch.rows - batch.starts[batch.owner]]
        return rows

    def close(self) -> None:
        """Free the weights after the calls that are under way."""
        self._opened.close()

    def _try_out(self, path: Path) -> None:
        """Raise ModelDamaged if the two outputs disagree, or if padding or company change a text's vector."""
        shape = len(_LENGTHS), max(_LENGTHS)
        # Made-up ids from all over the table. Padding has other ids in the second pass, and is absent from the third.
        ids = np.random.default_rng(0).integers(0, self.vocab, (2, *shape))
        mask = np.arange(shape[1]) < np.array(_LENGTHS)[:, None]
        vectors = self._judged(path, ids[0], mask)
        ids[1][mask] = ids[0][mask]
        again = self._judged(path, ids[1], mask)
        alone = [
            self._judged(path, ids[0, n : n + 1, :length], mask[n : n + 1, :length])
            for n, length in enumerate(_LENGTHS)
        ]
        if max(_apart(vectors, again), _apart(vectors, np.concatenate(alone))) > _TOLERANCE:
            raise ModelDamaged(f"{path}: the vector of a text depends on its padding or its company.")

    def _judged(self, path: Path, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The vectors of one pass: the last token's states, normalised, as the graph has them too."""
        states, vectors = self._opened.run([STATES, VECTOR], _feed(ids, mask))
        if states.shape != (*ids.shape, self.hidden) or vectors.shape != (len(ids), self.hidden):
            raise ModelDamaged(f"{path}: gives {states.shape} and {vectors.shape} for ids {ids.shape}.")
        rows: NDArray[np.float32] = states[np.arange(len(ids)), mask.sum(axis=1) - 1]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise ModelDamaged(f"{path}: states of texts are not finite, or zero.")
        if not _apart(rows / lengths, vectors) <= _TOLERANCE:
            raise ModelDamaged(f"{path}: {VECTOR} is not the normalised state of the last token.")
        return vectors


def _feed(ids: NDArray[np.integer], mask: NDArray[np.bool_]) -> dict[str, NDArray[np.generic]]:
    return {IDS: np.ascontiguousarray(ids, np.int64), MASK: mask.astype(np.int64)}


def _apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """How far two lists of unit vectors are apart at most."""
    return float(np.linalg.norm(a - b, axis=1).max())
