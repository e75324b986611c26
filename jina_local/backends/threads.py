"""Threads of our own for the engines, so that a Ctrl-C never interrupts one.

Python raises KeyboardInterrupt in the main thread alone, between any two of its steps. In a callback that an engine
calls it would be swallowed, and in our own bookkeeping it would lose a context or leave a lock taken. So the main
thread only waits here, while a thread of ours does the work. An interrupted wait leaves the work to end by itself,
and its result is dropped.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar, cast

from ..errors import EngineError

T = TypeVar("T")


class EngineThread:
    """One thread that does jobs in the order in which they come, until it is stopped."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._jobs: SimpleQueue[_Job[object] | None] = SimpleQueue()
        self._latest: _Job[object] | None = None
        # A daemon, because an idle thread must not keep the process alive; a busy one is waited for, see _end.
        thread = threading.Thread(target=_work, args=(self._jobs,), name="jina_local-engine", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise EngineError(
                f"no thread can be started for the engine ({error}); lower the number of them."
            ) from error
        except BaseException:
            self.stop()  # it may have started, and nobody knows it
            raise

    @property
    def busy(self) -> bool:
        """Whether its latest job has not ended yet."""
        return self._latest is not None and not self._latest.ended

    def run(self, work: Callable[[], T], cancel: Callable[[], object] | None = None) -> T:
        """Let the thread do `work`, and wait for its result or error.

        cancel: called if the wait is interrupted. The work goes on until it ends or takes notice of it.
        """
        if _ending:
            raise EngineError("the process is ending; no model can be run any more.")
        job = _Job(work)
        # Only calls that a signal handler cannot cut in two: an interrupted threading.Condition can keep its lock.
        try:
            self._latest = cast("_Job[object]", job)
            self._jobs.put(self._latest)
            job.wait()
        except BaseException:
            if cancel is not None:
                cancel()
            raise
        return job.outcome()

    def post(self, work: Callable[[], object]) -> None:
        """Let the thread do `work` after its other jobs, and do not wait."""
        self._jobs.put(_Job(work))

    def stop(self) -> None:
        """End the thread after its last job."""
        self._jobs.put(None)


class _Job(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._result: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()
        self.ended = False

    def do(self) -> None:
        """Called by the thread."""
        work, self._work = self._work, None
        try:
            self._result = cast("Callable[[], T]", work)()
        except BaseException as error:  # raised again in the thread that waits
            self._error = error
        self.ended = True
        self._done.release()

    def wait(self) -> None:
        self._done.acquire()

    def outcome(self) -> T:
        error, self._error = self._error, None
        if error is None:
            return cast(T, self._result)
        try:
            raise error
        finally:
            del error  # else the traceback would hold this frame, and this frame the traceback


_idle: list[EngineThread] = []


def borrow() -> EngineThread:
    """A thread for a model that one thread has to own: one that a closed model gave back, else a new one.

    MLX starts a thread of its own for every thread that it is called from, and never ends it. So threads are kept.
    """
    while _idle:
        with suppress(IndexError):  # another caller may have taken the last one
            thread = _idle.pop()
            if thread.process == os.getpid():
                return thread
    return EngineThread()


def give_back(thread: EngineThread) -> None:
    """Keep a thread for the next model."""
    _idle.append(thread)


_alive: dict[SimpleQueue[_Job[object] | None], threading.Thread] = {}
_ending = False
_shield: EngineThread | None = None


def shield(work: Callable[[], T], cancel: Callable[[], object] | None = None) -> T:
    """Do `work` out of the reach of KeyboardInterrupt: for the main thread in another one, else right here.

    It also helps after a fork, which leaves the main thread of the child with an OpenMP pool whose threads are gone:
    a thread that is started in the child gets a pool of its own. See `EngineThread.run` for `cancel`.
    """
    global _shield
    if _ending or threading.current_thread() is not threading.main_thread():
        return work()
    thread = _shield
    if thread is None or thread.process != os.getpid() or thread.busy:
        _shield = EngineThread()
        if thread is not None and thread.process == os.getpid():
            thread.stop()
        thread = _shield
    return thread.run(work, cancel)


def _work(jobs: SimpleQueue[_Job[object] | None]) -> None:
    _alive[jobs] = threading.current_thread()
    while (job := jobs.get()) is not None:
        job.do()
        del job  # else its result would live until the next job
    del _alive[jobs]


def _end() -> None:
    """Wait for the work that still runs: native code must not outlive the interpreter that it returns to."""
    global _ending
    _ending = True
    for jobs, thread in tuple(_alive.items()):
        jobs.put(None)
        thread.join()


atexit.register(_end)
