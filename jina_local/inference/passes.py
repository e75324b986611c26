"""All passes of one call: texts planned into groups, groups run side by side, progress shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ..backends import Backend
from ..errors import EngineCrashed
from . import batching

_BAR_AFTER = 2.0  # seconds before a progress bar appears


def run(
    engine: Backend,
    lengths: Sequence[int],
    one_pass: Callable[[list[int], int], object],
    *,
    deterministic: bool = False,
    show_progress: bool | None = None,
) -> None:
    """Call `one_pass(group, sharers)` for groups that hold every text once, in several threads if that is faster.

    lengths: tokens of each text.
    deterministic: every text is a group of its own.
    show_progress: None shows a bar of tokens for long work on a terminal.
    If the texts of some groups end the engine's own process, the other groups
    are run all the same. Raises EngineCrashed if all groups do.
    """
    if not lengths:
        return
    groups = [[i] for i in range(len(lengths))] if deterministic else batching.plan(lengths, engine.budget)
    loads = [batching.cost(group, lengths, engine.budget) for group in groups]
    lanes = batching.lanes_for(loads, engine.lanes)
    crashes: list[EngineCrashed] = []

    def counted(group: list[int]) -> int:
        try:
            one_pass(group, lanes)
        except EngineCrashed as error:
            if not error.by_text:
                raise
            crashes.append(error)
        return sum(lengths[i] for i in group)

    with bar(sum(lengths), show_progress) as advance:
        if lanes == 1:
            for group in groups:
                advance(counted(group))
        else:
            pool = ThreadPoolExecutor(lanes, thread_name_prefix="jina_local")
            try:
                for done in pool.map(counted, groups):
                    advance(done)
            finally:
                pool.shutdown(cancel_futures=True)
    if len(crashes) == len(groups):
        raise crashes[0]


def run_alone(one_pass: Callable[[list[int], int], object], texts: Iterable[int]) -> None:
    """Call `one_pass` for each text by itself. A text that ends the engine's own process is passed over."""
    for text in texts:
        try:
            one_pass([int(text)], 1)
        except EngineCrashed as error:
            if not error.by_text:
                raise


@contextmanager
def bar(total: int, show: bool | None) -> Iterator[Callable[[int], object]]:
    """Show a bar of `total` tokens and yield the function that advances it. See `run` for `show`."""
    if show is False:
        yield lambda done: None
        return
    from tqdm import tqdm

    delay = 0.0 if show else _BAR_AFTER
    off = None if show is None else False  # None: off unless stderr is a terminal
    with tqdm(total=total, unit="tok", unit_scale=True, disable=off, delay=delay) as shown:
        yield shown.update
