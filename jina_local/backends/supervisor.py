"""The thread that keeps an engine's process: it starts, feeds and watches it, and tells callers what came of it.

All traffic is this thread's. A caller waits for its own job alone, so that an interrupt in a caller leaves no half
message behind: the answer to a job that nobody waits for is dropped by its sequence number.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineCrashed, EngineError
from ..spec import TokenBatch
from .frames import Frame, FrameError, Kind, pack
from .jobs import ADVICE, Deaths, Died, Facts, Job, Limits, Opening, read_error, read_facts
from .process import WORKER, EngineProcess, identity

_log = logging.getLogger("jina_local")
_TICK = 0.25  # seconds between looks at a process that works
_FRAMES = 64  # taken at a time; one that sends without end is watched all the same
_RATE_MARGIN = 20  # a pass may take so many times as long for each token as the slowest one before it
_TELLING_TOKENS = 64  # shorter passes say nothing of the pace
_supervisors: weakref.WeakSet[Supervisor] = weakref.WeakSet()


class Supervisor:
    """Runs jobs in a process that is started when one is waiting, and started again after it died."""

    def __init__(self, opening: Opening, limits: Limits, worker: str = WORKER) -> None:
        self._opening, self._limits, self._worker = opening, limits, worker
        self.facts: Facts | None = None
        self._files = identity([opening.path, *opening.adapters.values()])
        self._process: EngineProcess | None = None
        self._opened = False  # whether the process has answered that it is open
        self._open_deaths = 0  # before it was open for the first time
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._sequences = itertools.count(1)
        self._deaths = Deaths(limits)
        self._clock = 0.0  # seconds in which this thread could look; a stopped parent makes no process late
        self._looked = time.monotonic()
        self._started = 0.0
        self._heard = math.inf  # when the process last gave a sign of life; infinity before its first one
        self._slowest = 0.0  # seconds a token, of the passes so far
        self._closing = False
        self._ended = False
        self._adding = threading.Lock()
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)
        _watch_forks()
        _supervisors.add(self)
        self._thread = threading.Thread(target=self._work, name="jina_local-supervisor", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The number of the process that there is now."""
        process = self._process
        return None if process is None else process.pid

    def open(self) -> Facts:
        """Wait until the engine is open. Raises what it raised, EngineCrashed."""
        self._wait_for(Job(None, (), 0, alone=False))
        if self.facts is None:
            raise AssertionError("an engine is open and has said nothing of itself")
        return self.facts

    def run(self, batch: TokenBatch, sharers: int, task: str | None, *, alone: bool = False) -> NDArray[np.float32]:
        """The rows of a pass. `alone`: with no other beside it, before those that wait.

        Raises Died if the process died while it ran the pass, EngineCrashed if none can be started, and what the
        engine raised.
        """
        sequence = next(self._sequences)
        arrays = {"ids": batch.ids, "starts": batch.starts, "rows": batch.rows, "owner": batch.owner}
        try:
            pieces = pack(Frame(Kind.RUN, sequence, {"sharers": int(sharers), "task": task}, arrays))
        except FrameError as error:
            raise EngineError(f"the pass cannot be sent to the engine's process: {error}") from error
        job = Job(batch, pieces, sequence, alone=alone)
        self._wait_for(job)
        if job.rows is None:
            raise AssertionError("a pass is done and has neither rows nor an error")
        return job.rows

    def close(self) -> None:
        """End the process after the jobs that somebody waits for; further ones are refused."""
        self._closing = True
        self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def forget(self) -> None:
        """In a fork of the parent: let go of descriptors. The thread has stayed behind."""
        self._bell.close()
        self._ringer.close()
        if self._process is not None:
            self._process.abandon()

    def _wait_for(self, job: Job) -> None:
        try:
            with self._adding:
                if self._closing or self._ended:
                    raise EngineError("this model is closed.")
                (self._waiting.appendleft if job.alone else self._waiting.append)(job)
            self._ring()
            job.done.wait()
        except BaseException:
            job.abandoned = True
            self._ring()
            raise
        if job.error is not None:
            raise job.error

    def _ring(self) -> None:
        try:
            self._ringer.send(b"\0")
        except BlockingIOError:  # it rings already
            return
        except OSError:  # the thread has ended
            if not self._ended:
                raise

    # All below is the thread's own.

    def _work(self) -> None:
        try:
            while self._goes_on():
                self._step()
        except BaseException as error:
            why = f"the engine's process cannot be watched any more ({error!r})."
            self._fail_all(lambda: EngineError(why))
            raise
        finally:
            with self._adding:
                self._ended = True
            if self._process is not None:
                self._process.end(None if self._opened and not self._running else "it was closed")
                self._process = None
            self._fail_all(lambda: EngineError("this model is closed."))
            self._bell.close()
            self._ringer.close()

    def _goes_on(self) -> bool:
        """Send what can be sent; False if there is nothing more to do."""
        self._dispatch()
        if not self._closing:
            return True
        with self._adding:
            jobs = [*self._waiting, *self._running.values()]
        return any(not job.abandoned for job in jobs)

    def _step(self) -> None:
        """Wait for the next event, and see to all that are there."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        process = self._process
        if process is not None:
            poll.register(process.connection, select.POLLIN | (select.POLLOUT if process.unsent else 0))
            if process.speaks:
                poll.register(process.standard_error, select.POLLIN)
        works = process is not None and (self._running or not self._opened)
        events = dict(poll.poll(1000 * _TICK if works else None))
        now = time.monotonic()
        self._clock += min(now - self._looked, 2 * _TICK)
        self._looked = now
        if self._bell.fileno() in events:
            self._bell.recv(4096)
        if process is None:
            return
        if process.connection.fileno() in events:
            process.flush()
            self._read(process)
        if self._process is process and process.standard_error in events:
            process.listen()
        if self._process is process and works:
            self._look_at(process)

    def _dispatch(self) -> None:
        while job := self._next():
            if self._process is None:
                self._start()
                return
            if not self._opened:
                return
            with self._adding:
                self._waiting.remove(job)
            if job.batch is None:
                job.finish()
                continue
            if not self._running:
                self._heard = self._clock
            pace = _RATE_MARGIN * self._slowest or self._limits.token_seconds
            job.sent = time.monotonic()
            job.deadline = self._clock + self._limits.pass_seconds + pace * job.tokens
            self._running[job.sequence] = job
            self._process.send(job.pieces)

    def _next(self) -> Job | None:
        """The first job that somebody waits for, if it may begin now."""
        with self._adding:
            while self._waiting and self._waiting[0].abandoned:
                self._waiting.popleft()
            job = self._waiting[0] if self._waiting else None
        if job is None or not self._running or job.batch is None:
            return job
        alone = job.alone or any(other.alone for other in self._running.values())
        full = self.facts is not None and len(self._running) >= self.facts.lanes
        return None if alone or full else job

    def _start(self) -> None:
        opening = self._opening
        if refusal := self._deaths.refusal():
            self._fail_all(lambda: EngineCrashed(str(refusal), refusal.cause, refusal.words))
            return
        if self.facts is not None and identity([opening.path, *opening.adapters.values()]) != self._files:
            self._fail_all(lambda: self._changed("its files were changed after they were opened"))
            return
        try:
            self._process = EngineProcess(self._worker, self._limit)
        except EngineError as error:
            text = str(error)
            self._fail_all(lambda: EngineError(text))
            return
        self._opened, self._started, self._heard = False, self._clock, math.inf
        words = {
            "name": opening.name,
            "path": str(opening.path),
            "task": opening.task,
            "adapters": {task: str(path) for task, path in opening.adapters.items()},
            "device": opening.device,
            "threads": opening.threads,
            "beat": self._limits.beat_seconds,
        }
        self._process.send(pack(Frame(Kind.OPEN, 0, words)))

    def _limit(self, kind: int, sequence: int) -> int:
        """See frames.Reader: rows may have the size that was asked for, and nothing else has arrays."""
        if kind == Kind.ROWS and sequence in self._running and self.facts is not None:
            batch = self._running[sequence].batch
            return 4 * len(batch.rows) * self.facts.hidden if batch is not None else 0
        if kind in (Kind.OPENED, Kind.FAILED, Kind.BEAT):
            return 0
        raise FrameError(f"an answer of kind {kind} to question {sequence}, which was not asked.")

    def _read(self, process: EngineProcess) -> None:
        try:
            for _ in range(_FRAMES):
                frame = process.receive()
                if frame is None:
                    return
                self._heard = self._clock
                self._take(frame)
                if self._process is not process:
                    return
        except (EOFError, ConnectionError):
            self._died(None)
        except FrameError as error:
            self._died(f"it sent {error}")

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.BEAT:
            return
        if frame.kind == Kind.OPENED:
            self._take_facts(read_facts(frame.words))
            return
        if frame.kind == Kind.FAILED and frame.sequence == 0 and not self._opened:
            words = frame.words
            self._end_process()
            self._fail_all(lambda: read_error(words))
            return
        job = self._running.get(frame.sequence)
        if job is None or job.batch is None or self.facts is None:
            raise FrameError(f"an answer to question {frame.sequence}, which was not asked.")
        if frame.kind == Kind.FAILED:
            del self._running[frame.sequence]
            job.finish(error=read_error(frame.words))
            return
        rows = frame.arrays.get("rows")
        if rows is None or rows.dtype != np.float32 or rows.shape != (len(job.batch.rows), self.facts.hidden):
            raise FrameError("rows of another shape or type than were asked for.")
        del self._running[frame.sequence]
        self._deaths.worked()
        if job.tokens >= _TELLING_TOKENS:
            self._slowest = max(self._slowest, (time.monotonic() - job.sent) / job.tokens)
        job.finish(rows)  # type: ignore[arg-type]  # float32, as was just seen

    def _take_facts(self, facts: Facts) -> None:
        if self.facts is not None and facts.model != self.facts.model:
            self._end_process()
            self._fail_all(lambda: self._changed("another one found a different model there"))
            return
        self.facts, self._opened = facts, True

    def _look_at(self, process: EngineProcess) -> None:
        """End a process that takes too long, and notice a death that its connection does not tell of."""
        limits = self._limits
        if process.has_ended():
            self._read(process)  # an answer may have come since
            if self._process is process:
                self._died(None)
        elif self._clock - self._heard > limits.silent_seconds:
            self._died(f"it gave no sign of life for {limits.silent_seconds:.0f} seconds and was ended")
        elif not self._opened and self._clock - self._started > limits.open_seconds:
            self._died(f"it had not loaded the model after {limits.open_seconds:.0f} seconds and was ended")
        else:
            late = next((job for job in self._running.values() if self._clock > job.deadline), None)
            if late is not None:
                seconds = time.monotonic() - late.sent
                self._died(f"it did not answer a pass of {late.tokens} tokens in {seconds:.0f} seconds and was ended")

    def _died(self, why: str | None) -> None:
        if self._process is None:
            return
        death, self._process = self._process.end(why), None
        self._deaths.died(death)
        running, self._running = list(self._running.values()), {}
        for job in running:
            job.finish(error=Died(death))
        if self._opened:
            if not running:
                _log.warning("the engine's process died while it was idle (%s)", death.cause)
            return
        if self.facts is not None:
            return  # these files have been opened before: another try, until `Deaths` refuses
        self._open_deaths += 1
        if death.from_outside and self._open_deaths < 2:
            return
        what = f"{self._opening.path}: the engine's process died while it loaded the model: {death.cause}."
        self._fail_all(lambda: EngineCrashed(f"{what} {ADVICE}", death.cause, death.words))

    def _changed(self, how: str) -> EngineCrashed:
        last = self._deaths.last
        cause, words = (last.cause, last.words) if last else ("", "")
        died = f"{self._opening.path}: the engine's process died ({cause}), and {how}."
        return EngineCrashed(f"{died} Load the model again.", cause, words)

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        """Give every job an error of its own: they are raised in different threads."""
        with self._adding:
            jobs = [*self._waiting, *self._running.values()]
            self._waiting.clear()
            self._running.clear()
        for job in jobs:
            job.finish(error=error())


@functools.cache
def _watch_forks() -> None:
    # A fork that held the parent's end of a connection would keep the process alive after the parent's death.
    os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for supervisor in list(_supervisors):
        supervisor.forget()
    _supervisors.clear()
