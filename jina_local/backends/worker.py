"""The engine's own process: `python -m` this module, a socket's descriptor and the parent's id. See `process`.

It opens one set of weights, runs passes, and ends when its parent does. What it prints goes to the parent, which
shows the last lines of it if this process dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

import numpy as np

from ..errors import EngineError, JinaError
from ..spec import TokenBatch
from . import Backend, open_backend
from .frames import Frame, FrameError, Kind, Reader, pack

_MOST_PASS = 1 << 30  # bytes of ids and positions
_TEXT = 20_000  # characters of an error
_STACK = 16 << 20  # macOS gives secondary threads 512 KiB, which is little for native code
_ARRAYS = ("ids", "starts", "rows", "owner")


def main() -> None:
    """Serve the parent that started this process, until it closes the connection or dies."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    attach(parent)
    serve(socket.socket(fileno=descriptor), open_backend)


def attach(parent: int) -> None:
    """Let this process end with its parent, ignore Ctrl-C, and leave no core file behind.

    Linux ends it even if native code keeps Python from running; elsewhere the end of the connection does. Linux goes
    by the parent's *thread* that started this process, so that has to be one that lives as long as the connection.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG (sys/prctl.h)
        with contextlib.suppress(OSError):  # some containers forbid it; then the system chooses by size alone
            Path("/proc/self/oom_score_adj").write_text("500")  # if memory is short, this process before its parent
    if os.getppid() != parent:
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(connection: socket.socket, open_engine: Callable[..., Backend]) -> NoReturn:
    """Answer frames until the connection ends, and end the process with it, whatever it is doing."""
    threading.stack_size(_STACK)
    _Work(connection, open_engine).listen()


class _Work:
    """One thread listens, and hands each frame to the thread that was idle last.

    An engine's own threads belong to the thread that calls it, and stay awake for a while after a pass. Calls from
    several threads in turn would meet the awake threads of the last one: a short text took twice as long.
    """

    def __init__(self, connection: socket.socket, open_engine: Callable[..., Backend]) -> None:
        self._connection, self._open_engine = connection, open_engine
        self._reader = Reader(_limit)
        self._sending, self._counting = threading.Lock(), threading.Lock()
        self._idle: list[SimpleQueue[Frame]] = []  # a queue for each thread; the last one was idle last
        self._engine: Backend | None = None
        self._unfinished = 0
        self._beat = 1.0  # seconds between signs of life

    def listen(self) -> NoReturn:
        """Take frames, and give signs of life while there is work."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        with _ending_the_process():
            while True:
                if not poll.poll(1000 * self._beat):
                    if self._unfinished:
                        self._send(Frame(Kind.BEAT, 0))
                elif frame := self._reader.receive(self._connection):
                    self._hand_on(frame)
        raise AssertionError("the process has ended")

    def _hand_on(self, frame: Frame) -> None:
        with self._counting:
            self._unfinished += 1
            if self._idle:
                self._idle.pop().put(frame)
                return
        # The parent sends no more frames at a time than the engine has lanes.
        queue: SimpleQueue[Frame] = SimpleQueue()
        queue.put(frame)
        threading.Thread(target=self._take_part, args=(queue,), daemon=True).start()

    def _take_part(self, queue: SimpleQueue[Frame]) -> None:
        with _ending_the_process():
            while True:
                answer = self._answer(queue.get())
                with self._counting:
                    self._unfinished -= 1
                    self._idle.append(queue)
                self._send(answer)

    def _send(self, frame: Frame) -> None:
        pieces = pack(frame)
        with self._sending:
            for piece in pieces:
                self._connection.sendall(piece)

    def _answer(self, frame: Frame) -> Frame:
        try:
            return self._open(frame) if frame.kind == Kind.OPEN else self._run(frame)
        except JinaError as error:
            return Frame(Kind.FAILED, frame.sequence, {"error": type(error).__name__, "text": str(error)[:_TEXT]})
        except Exception as error:  # the parent has to hear of it: nobody else does
            traceback.print_exc()
            text = f"the engine's process could not do it ({type(error).__name__}: {error})."[:_TEXT]
            return Frame(Kind.FAILED, frame.sequence, {"error": EngineError.__name__, "text": text})

    def _open(self, frame: Frame) -> Frame:
        words = dict(frame.words)
        self._beat = float(words.pop("beat"))  # type: ignore[arg-type]  # the parent is this package
        adapters = words.pop("adapters")
        engine = self._open_engine(
            words.pop("name"),
            Path(words.pop("path")),  # type: ignore[arg-type]
            adapters={task: Path(path) for task, path in adapters.items()} or None,  # type: ignore[attr-defined]
            **words,
        )
        self._engine = engine
        facts = {
            "hidden": engine.hidden,
            "vocab": engine.vocab,
            "budget": vars(engine.budget),
            "lanes": engine.lanes,
            "device": engine.device,
            "dtype": engine.dtype,
            "threads": engine.threads,
            "reasons": list(engine.reasons),
        }
        return Frame(Kind.OPENED, frame.sequence, facts)

    def _run(self, frame: Frame) -> Frame:
        if self._engine is None or frame.kind != Kind.RUN or frame.arrays.keys() != set(_ARRAYS):
            raise EngineError(f"the engine's process was sent a frame of kind {frame.kind} that it cannot answer.")
        batch = TokenBatch(*(frame.arrays[name] for name in _ARRAYS))  # type: ignore[arg-type]  # checked by the engine
        sharers, task = frame.words["sharers"], frame.words["task"]
        rows = self._engine.forward(batch, sharers, task)  # type: ignore[arg-type]
        return Frame(Kind.ROWS, frame.sequence, {}, {"rows": np.asarray(rows, np.float32)})


@contextlib.contextmanager
def _ending_the_process() -> Iterator[None]:
    """End the process with whatever ends the block: without this thread, the parent would wait for nothing."""
    try:
        yield
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _limit(kind: int, _sequence: int) -> int:
    if kind not in (Kind.OPEN, Kind.RUN):
        raise FrameError(f"a frame of kind {kind}, which is no question.")
    return _MOST_PASS if kind == Kind.RUN else 0


if __name__ == "__main__":
    main()
