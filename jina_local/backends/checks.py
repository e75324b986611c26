"""What every engine asks of a pass before it runs one."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import EngineError
from ..spec import NO_TASK, TokenBatch


def check(batch: TokenBatch, vocab: int, longest: int) -> None:
    """Raise EngineError for what an engine answers with an abort, a crash, or the memory beside its table."""
    lengths = np.diff(batch.starts)
    if len(lengths) == 0 or (lengths < 1).any() or batch.starts[0] != 0 or batch.starts[-1] != len(batch.ids):
        raise EngineError("a pass needs at least one token in every text.")
    low, high = int(batch.ids.min()), int(batch.ids.max())
    if low < 0 or high >= vocab:
        raise EngineError(f"token id {low if low < 0 else high} is outside the model's table of {vocab} rows.")
    if int(lengths.max()) > longest:
        raise EngineError(f"a text of {int(lengths.max())} tokens; the model has positions for {longest}.")
    rows = batch.rows
    if len(rows) == 0 or rows[0] < 0 or rows[-1] >= len(batch.ids) or (np.diff(rows) <= 0).any():
        raise EngineError("the wanted rows have to be ascending positions within the pass.")
    if not np.array_equal(np.searchsorted(batch.starts, rows, "right") - 1, batch.owner):
        raise EngineError("a wanted row lies outside the text that it is said to belong to.")


def check_classified(batch: TokenBatch) -> None:
    """Raise EngineError unless the wanted rows are the ones that a classifier reads: the first of each text."""
    if not np.array_equal(batch.rows, batch.starts[:-1]):
        raise EngineError("a classifier reads the first token of every text; the wanted rows have to be those.")


def check_task(task: str | None, held: Collection[str]) -> None:
    """Raise EngineError unless `task` is one of the adapters `held`, or None where there are none.

    NO_TASK asks by name for the base alone, and every base has that.
    """
    if task == NO_TASK and held:
        return
    if task is None and held:
        raise EngineError(f"this model runs its adapters beside one base; name a task: {', '.join(held)}.")
    if task is not None and task not in held:
        there = f"It has adapters for: {', '.join(held)}." if held else "Its weights are merged; leave the task out."
        raise EngineError(f"no adapter for task {task!r} was opened with this model. {there}")
