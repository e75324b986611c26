"""What callers and their supervisor hand each other: what is opened, jobs, deaths, and what an engine says."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import errors
from ..errors import EngineCrashed, EngineError, JinaError
from ..spec import Budget, TokenBatch
from .frames import FrameError
from .process import Death

ADVICE = "Check the files with `python -m jina_local models verify`, or use another backend."


@dataclass(frozen=True)
class Limits:
    """How long an engine's process may take, and how often it may die.

    `pass_seconds` and `token_seconds` allow a pass its time; once passes have ended, their pace stands in for the
    latter. No sign of life for `silent_seconds` ends the process while it works; it gives one each `beat_seconds`.
    No process is started after `deaths_in_a_row` deaths without a good pass between them, or `deaths` deaths in all,
    within `within_seconds`.
    """

    open_seconds: float = 600.0
    pass_seconds: float = 60.0
    token_seconds: float = 1.0
    silent_seconds: float = 60.0
    beat_seconds: float = 1.0
    deaths_in_a_row: int = 4
    deaths: int = 10
    within_seconds: float = 90.0


@dataclass(frozen=True)
class Opening:
    """What the engine is opened with: the words of open_backend."""

    name: str
    path: Path
    task: str | None
    adapters: Mapping[str, Path]
    device: str | None
    threads: int | None


@dataclass(frozen=True)
class Facts:
    """What an open engine says of itself; see backends.Backend."""

    hidden: int
    vocab: int
    budget: Budget
    lanes: int
    device: str
    dtype: str
    threads: int
    reasons: tuple[str, ...]

    @property
    def model(self) -> tuple[object, ...]:
        """What is the same whenever the same files are opened in the same way."""
        return self.hidden, self.vocab, self.budget, self.device, self.dtype


class Died(Exception):
    """The process died while it ran a job. Another try is the caller's to decide."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.cause)
        self.death = death


class Job:
    """A pass, or, without one, the wish that the engine be open."""

    def __init__(self, batch: TokenBatch | None, pieces: Sequence[memoryview], sequence: int, *, alone: bool) -> None:
        self.batch, self.pieces, self.sequence, self.alone = batch, pieces, sequence, alone
        self.done = threading.Event()
        self.abandoned = False
        self.rows: NDArray[np.float32] | None = None
        self.error: Exception | None = None
        self.sent = self.deadline = 0.0

    @property
    def tokens(self) -> int:
        """What a padded engine computes at most."""
        if self.batch is None:
            return 0
        return int(np.diff(self.batch.starts).max(initial=0)) * (len(self.batch.starts) - 1)

    def finish(self, rows: NDArray[np.float32] | None = None, error: Exception | None = None) -> None:
        self.rows, self.error = rows, error
        self.done.set()


class Deaths:
    """When processes died, and whether one more may be started."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._times: deque[float] = deque()
        self._in_a_row = 0
        self.last: Death | None = None

    def died(self, death: Death) -> None:
        self._times.append(time.monotonic())
        self._in_a_row += 1
        self.last = death

    def worked(self) -> None:
        self._in_a_row = 0

    def refusal(self) -> EngineCrashed | None:
        """The reason against one more process, if there is one."""
        limits, now = self._limits, time.monotonic()
        while self._times and now - self._times[0] > limits.within_seconds:
            self._times.popleft()
        self._in_a_row = min(self._in_a_row, len(self._times))
        if self.last is None or (self._in_a_row < limits.deaths_in_a_row and len(self._times) < limits.deaths):
            return None
        wait = limits.within_seconds - (now - self._times[-1])
        return EngineCrashed(
            f"the engine's process died {len(self._times)} times within {limits.within_seconds:.0f} seconds, the "
            f"last time of {self.last.cause}. No other is started for the next {wait:.0f} seconds. If memory is "
            f"short, lower max_length. {ADVICE}",
            self.last.cause,
            self.last.words,
        )


def read_facts(words: Mapping[str, object]) -> Facts:
    """What a process said of its engine. Raises FrameError."""
    numbers = ("hidden", "vocab", "lanes", "threads")
    budget, reasons = words.get("budget"), words.get("reasons")
    if (
        any(type(words.get(name)) is not int or int(str(words[name])) < 1 for name in numbers)
        or not isinstance(budget, dict)
        or budget.keys() != Budget.__dataclass_fields__.keys()
        or any(type(value) not in (int, bool) for value in budget.values())
        or not isinstance(reasons, list)
    ):
        raise FrameError("a description of the engine that cannot be.")
    hidden, vocab, lanes, threads = (int(str(words[name])) for name in numbers)
    return Facts(
        hidden=hidden,
        vocab=vocab,
        budget=Budget(**budget),
        lanes=lanes,
        device=str(words.get("device")),
        dtype=str(words.get("dtype")),
        threads=threads,
        reasons=tuple(str(reason) for reason in reasons),
    )


def read_error(words: Mapping[str, object]) -> JinaError:
    """What the engine raised in its process, of the same class; JinaError's that take a text alone are possible."""
    kind = getattr(errors, str(words.get("error")), EngineError)
    known = isinstance(kind, type) and issubclass(kind, JinaError)
    plain = known and not any("__init__" in vars(base) for base in kind.__mro__ if issubclass(base, JinaError))
    return (kind if plain else EngineError)(str(words.get("text")))
