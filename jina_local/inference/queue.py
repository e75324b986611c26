"""Passes that callers share: texts that wait at the same time go through an engine together, by token budget.

There is no thread of its own. A caller that finds a lane of the engine free leads: it runs a round with its own texts
and others that wait, then lets one of the callers that still wait lead. So a lone caller pays for no hand-over, no
lane waits for another one's round, and texts gather while rounds run. A round has the whole engine if nothing waits.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..backends import Backend
from ..errors import CallEnded, EngineCrashed, Overloaded
from ..spec import Budget, TokenBatch
from . import batching

_RECENT = 0.2  # the weight of the last round in the tokens per second that a wait is estimated from
_call: ContextVar[Call | None] = ContextVar("_call", default=None)


class Call:
    """One caller's request: how long its answer is of use, and whether anybody still waits for it."""

    def __init__(self, seconds: float | None = None) -> None:
        """seconds: from now until nobody waits any more; None: for ever."""
        self.deadline = math.inf if seconds is None else time.monotonic() + seconds
        self.alone = False  # its texts share passes with no other caller's: they get the bits that a lone caller gets
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether its texts need not be run any more."""
        return self._ended or time.monotonic() > self.deadline

    def error(self) -> CallEnded:
        """Why its texts are not run, once it is over."""
        late = "the time for it was over before it was answered. Try again later, or ask for less."
        return CallEnded("nobody waits for the answer any more." if self._ended else late)

    def end(self) -> None:
        """Nobody waits any more: what has not begun is dropped."""
        self._ended = True


@dataclass(frozen=True)
class Counts:
    """What a queue has done so far, and what it holds now."""

    passes: int
    texts: int
    tokens: int  # that went through the engine
    seconds: float  # in which it did
    admitted: int  # tokens of the calls that are under way
    rate: float  # tokens per second, lately; 0 if nothing has run yet


@dataclass(eq=False)
class _Job:
    """The texts of one `forward`, and what has become of them."""

    queued: _Queued
    batch: TokenBatch
    task: str | None
    call: Call | None
    rows: NDArray[np.float32] | None = None
    error: BaseException | None = None
    woken: threading.Event = field(default_factory=threading.Event)  # it is done, or has to lead

    @property
    def done(self) -> bool:
        return self.rows is not None or self.error is not None

    @property
    def tokens(self) -> int:
        return len(self.batch.ids)

    @property
    def texts(self) -> int:
        return len(self.batch.starts) - 1


class PassQueue:
    """The queue of one model, in front of all its backends. Safe to use from any number of threads."""

    def __init__(
        self,
        *,
        max_batch_tokens: int | None = None,
        max_wait: float = 0.0,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
    ) -> None:
        """max_batch_tokens: of a pass, at most the engine's own budget, which is the default.

        max_wait: seconds that a text may wait for company while the engine is idle.
        max_tokens: of the calls that are under way. max_seconds: that they take at the pace of late. See `admit`.
            None: without bound.
        """
        self._most, self._max_wait = max_batch_tokens, max_wait
        self._max_tokens, self._max_seconds = max_tokens, max_seconds
        self._lock = threading.Condition()
        self._waiting: deque[_Job] = deque()  # the longest waiting first
        self._leaders: set[_Job] = set()  # each runs a round, at most one for each lane of the engine
        self._alone: _Job | None = None  # a leader beside which no other may begin
        self._admitted = 0
        self._passes = self._texts = self._tokens = 0
        self._seconds = self._rate = 0.0

    def wrap(self, engine: Backend) -> Backend:
        """A backend whose passes go through this queue."""
        return _Queued(self, engine, self._most)

    def lend(self, backend: Backend) -> Backend:
        """The backend for the call of this thread: a wrapped one, or its engine if the call wants no company."""
        call = _call.get()
        if isinstance(backend, _Queued) and call is not None and call.alone:
            return _Alone(self, backend.engine, call)
        return backend

    @contextmanager
    def admit(self, call: Call, tokens: int) -> Iterator[None]:
        """Let a call of so many tokens in; its passes, in this thread, are dropped once the call is over.

        Raises Overloaded if the calls under way have no room for it, unless it is the only one; and CallEnded if it
        is over.
        """
        if call.over:
            raise call.error()
        with self._lock:
            self._check_room(tokens)
            self._admitted += tokens
        token = _call.set(call)
        try:
            yield
        finally:
            _call.reset(token)
            with self._lock:
                self._admitted -= tokens

    def _check_room(self, tokens: int) -> None:
        if not self._admitted:
            return
        seconds = self._admitted / self._rate if self._rate else 0.0
        over = self._max_tokens is not None and self._admitted + tokens > self._max_tokens
        if over or (self._max_seconds is not None and seconds > self._max_seconds):
            raise Overloaded(
                f"{self._admitted} tokens are under way, about {seconds:.1f} seconds of work, and there is no room "
                f"for {tokens} more. Try again in {max(1, math.ceil(seconds))} seconds.",
                retry_after=seconds,
            )

    def counts(self) -> Counts:
        """What has been done, and what is under way."""
        with self._lock:
            return Counts(self._passes, self._texts, self._tokens, self._seconds, self._admitted, self._rate)

    def run(self, queued: _Queued, batch: TokenBatch, task: str | None) -> NDArray[np.float32]:
        """The rows of a batch, which is run in company. Raises what the engine raises, and CallEnded."""
        job = _Job(queued, batch, task, _call.get())
        with self._lock:
            self._waiting.append(job)
            self._appoint()
            self._lock.notify()  # a leader that waits for company
        try:
            job.woken.wait()
            if not job.done:
                self._lead(job)
        finally:
            self._hand_over(job)
        if job.error is not None:
            raise job.error
        if job.rows is None:
            raise AssertionError("a job is done and has neither rows nor an error")
        return job.rows

    def _appoint(self) -> None:
        """Let the longest waiting lead, until every lane has a leader or one has the engine for itself."""
        for job in self._waiting:
            if self._alone is not None or len(self._leaders) >= job.queued.engine.lanes:
                return
            if job not in self._leaders:
                self._leaders.add(job)
                self._alone = job  # until it has chosen its round, so that others join it
                job.woken.set()

    def _lead(self, job: _Job) -> None:
        """Run a round that holds `job`."""
        jobs, shared = self._next_round(job)
        if not jobs:
            return
        began = time.monotonic()
        try:
            of_round = _Round(jobs, shared=shared)
            of_round.run()
        except BaseException:  # of this thread, as Ctrl-C is: the others' texts are run by the next leader
            with self._lock:
                self._waiting.extendleft(other for other in reversed(jobs) if other is not job)
            raise
        texts, tokens = sum(job.texts for job in jobs), sum(job.tokens for job in jobs)
        self.count(len(of_round.passes), texts, tokens, time.monotonic() - began, sharers=len(self._leaders))
        for other in jobs:
            if other is not job:
                other.woken.set()

    def _hand_over(self, job: _Job) -> None:
        """If `job` leads, let one that waits lead in its place."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
            if job in self._leaders:
                self._leaders.remove(job)
                if self._alone is job:
                    self._alone = None
                self._appoint()

    def _next_round(self, leader: _Job) -> tuple[list[_Job], bool]:
        """The jobs that run next, and whether other rounds may run beside them, each on a lane.

        They are the leader's and others of its weights: as many as fill all lanes if that is all there is, else as
        many as fill a pass.
        """
        with self._lock:
            if self._max_wait and self._leaders == {leader}:
                self._gather()
            self._drop_ended(leader)
            if leader not in self._waiting:
                return [], False
            taken = self._fitting(leader, leader.queued.budget)
            shared = len(self._leaders) > 1 or len(taken) < len(self._waiting)
            if shared:
                taken = self._fitting(leader, leader.queued.of_pass)
            for job in taken:
                self._waiting.remove(job)
            if shared:
                self._alone = None
                self._appoint()
            return taken, shared

    def _fitting(self, leader: _Job, budget: Budget) -> list[_Job]:
        taken, tokens, texts = [leader], leader.tokens, leader.texts
        for job in self._waiting:
            if job in self._leaders or job.queued is not leader.queued or job.task != leader.task:
                continue
            if tokens + job.tokens <= budget.tokens and texts + job.texts <= budget.texts:
                taken.append(job)
                tokens += job.tokens
                texts += job.texts
        return taken

    def _gather(self) -> None:
        """Wait for company, as long as there is room for some."""
        until = time.monotonic() + self._max_wait
        while (left := until - time.monotonic()) > 0:
            if sum(job.tokens for job in self._waiting) >= self._waiting[0].queued.budget.tokens:
                return
            self._lock.wait(left)

    def _drop_ended(self, leader: _Job) -> None:
        for job, call in [(one, one.call) for one in self._waiting if one.call is not None and one.call.over]:
            self._waiting.remove(job)
            job.error = call.error()
            if job is not leader:
                job.woken.set()

    def count(self, passes: int, texts: int, tokens: int, seconds: float, sharers: int = 1) -> None:
        """Count what was run. sharers: passes that ran side by side meanwhile."""
        with self._lock:
            self._passes += passes
            self._texts += texts
            self._tokens += tokens
            self._seconds += seconds
            rate = sharers * tokens / max(seconds, 1e-6)
            self._rate = rate if not self._rate else (1 - _RECENT) * self._rate + _RECENT * rate


class _Alone:
    """The engine for one call, whose passes are run as the library plans them; see `Call.alone`."""

    def __init__(self, queue: PassQueue, engine: Backend, call: Call) -> None:
        self._queue, self._engine, self._call = queue, engine, call
        self.hidden, self.vocab, self.budget, self.lanes = engine.hidden, engine.vocab, engine.budget, engine.lanes
        self.device, self.dtype, self.threads = engine.device, engine.dtype, engine.threads
        self.reasons: tuple[str, ...] = engine.reasons

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. Raises CallEnded."""
        if self._call.over:
            raise self._call.error()
        began = time.monotonic()
        rows = self._engine.forward(batch, sharers, task)
        self._queue.count(1, len(batch.starts) - 1, len(batch.ids), time.monotonic() - began, sharers)
        return rows

    def close(self) -> None:
        """Nothing: the engine is the queue's."""


class _Queued:
    """A Backend whose passes go through a queue. A call may fill a round, which is spread over the engine's lanes."""

    def __init__(self, queue: PassQueue, engine: Backend, max_batch_tokens: int | None) -> None:
        self._queue, self.engine = queue, engine
        self.hidden, self.vocab = engine.hidden, engine.vocab
        most = engine.budget.tokens if max_batch_tokens is None else min(max_batch_tokens, engine.budget.tokens)
        self.of_pass = replace(engine.budget, tokens=most)
        self.budget = replace(self.of_pass, tokens=most * engine.lanes, texts=self.of_pass.texts * engine.lanes)
        self.lanes = 1
        self.device, self.dtype, self.threads = engine.device, engine.dtype, engine.threads
        self.reasons: tuple[str, ...] = engine.reasons

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The queue decides how the engine's threads are shared."""
        return self._queue.run(self, batch, task)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()


@dataclass
class _Text:
    """One text of a round: whose it is, and where its rows belong."""

    job: _Job
    ids: NDArray[np.int32]
    wanted: NDArray[np.int32]  # positions in `ids`
    rows: slice  # of the job's rows


class _Round:
    """The passes over the texts of some jobs, which have the same weights."""

    def __init__(self, jobs: Sequence[_Job], *, shared: bool) -> None:
        """shared: the passes run one by one on a lane, because other rounds run beside it."""
        self._jobs, self._queued, self._task = jobs, jobs[0].queued, jobs[0].task
        texts = [text for job in jobs for text in _texts(job)]
        lengths = [len(text.ids) for text in texts]
        groups = batching.plan(lengths, self._queued.of_pass)
        loads = [batching.cost(group, lengths, self._queued.of_pass) for group in groups]
        self._lanes = 1 if shared else batching.lanes_for(loads, self._queued.engine.lanes)
        self._sharers = self._queued.engine.lanes if shared else self._lanes
        self.passes = [[texts[i] for i in group] for group in groups]
        self._rows = {job: np.full((len(job.batch.rows), self._queued.hidden), np.nan, np.float32) for job in jobs}
        self._crashes: dict[_Job, EngineCrashed] = {}

    def run(self) -> None:
        """Run all passes. Every job has its rows afterwards, or an error of its own."""
        if self._lanes == 1:
            for group in self.passes:
                self._guarded(group)
        else:
            with ThreadPoolExecutor(self._lanes, thread_name_prefix="jina_local") as pool:
                list(pool.map(self._guarded, self.passes))
        for job in self._jobs:
            if job.error is None and job in self._crashes and np.isnan(self._rows[job]).all():
                job.error = self._crashes[job]
            elif job.error is None:
                job.rows = self._rows[job]

    def _guarded(self, group: Sequence[_Text]) -> None:
        owners = list(dict.fromkeys(text.job for text in group))
        try:
            self._pass(group)
        except Exception as error:
            if isinstance(error, EngineCrashed) and error.by_text:
                self._crashes.update({job: copy.copy(error) for job in owners})
            elif len(owners) == 1:
                owners[0].error = error
            else:  # without company it shows whose fault it is
                for job in owners:
                    self._guarded([text for text in group if text.job is job])

    def _pass(self, group: Sequence[_Text]) -> None:
        batch = batching.lay_out([text.ids for text in group], [text.wanted for text in group])
        out = self._queued.engine.forward(batch, self._sharers, self._task)
        ends = np.cumsum([len(text.wanted) for text in group])
        for text, end in zip(group, ends, strict=True):
            self._rows[text.job][text.rows] = out[end - len(text.wanted) : end]


def _texts(job: _Job) -> Iterator[_Text]:
    batch = job.batch
    places = np.searchsorted(batch.owner, np.arange(job.texts + 1))
    for i in range(job.texts):
        start, end = batch.starts[i : i + 2]
        own = slice(int(places[i]), int(places[i + 1]))
        yield _Text(job, batch.ids[start:end], batch.rows[own] - start, own)
