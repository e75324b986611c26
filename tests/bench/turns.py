"""Several ways to the same result within one process, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def seconds(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The seconds of every way in each round; a first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                found[name].append(time.perf_counter() - start)
    return found
