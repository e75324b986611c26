"""The checks of a pass that every engine makes before it runs one."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import EngineError
from ..spec import NO_TASK, TokenBatch


def check(batch: TokenBatch, vocab: int, longest: int) -> None:
    """Raise EngineError for a pass that an engine would answer with an abort, a crash, or foreign memory."""
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
    """Raise EngineError unless the wanted rows are the first token of each text, which a classifier reads."""
    if not np.array_equal(batch.rows, batch.starts[:-1]):
        raise EngineError("a classifier reads the first token of every text; these have to be the wanted rows.")


def check_task(task: str | None, adapters: Collection[str]) -> None:
    """Raise EngineError unless `task` has one of the opened adapters, or is None and there are none.

    NO_TASK asks for the base without an adapter, which every base with adapters can run.
    """
    if task == NO_TASK and adapters:
        return
    if task is None and adapters:
        raise EngineError(f"this model runs its adapters beside one base; name a task: {', '.join(adapters)}.")
    if task is not None and task not in adapters:
        advice = "Its weights are merged; leave the task out."
        if adapters:
            advice = f"It has adapters for: {', '.join(adapters)}."
        raise EngineError(f"no adapter for task {task!r} was opened with this model. {advice}")
