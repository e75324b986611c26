"""One process that an engine runs in: started, talked to, ended, and how it died."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..children import command, same_modules
from ..errors import EngineError
from .frames import Frame, Reader

WORKER = "jina_local.backends.worker"
_WORDS = 64 << 10  # bytes of standard error that are kept
_PIECES = 16  # reads at a time
_LINES = 20  # of them in an error's `words`
_BUFFER = 1 << 20  # bytes that a socket may hold; systems may grant less
_GRACE = 2.0  # seconds for an idle process to end by itself
_CAUSE = 600  # characters of a cause
# Lines of standard error that say why a process ends: llama.cpp, C, C++, MLX on Metal, the C library, Python.
_TELLING = re.compile(
    r"GGML_ASSERT|GGML_ABORT|[Aa]ssert|terminat|what\(\):|uncaught|libc\+\+abi|METAL|[Ff]atal|abort|stack smashing"
    r"|free\(\)|malloc|corrupt|bad_alloc|^\w*Error\b"
)
_FOLDERS = re.compile(r"(?:/[^\s/:]+)+/(?=[^\s/:]+:\d+)")  # of a source file, where somebody built the library
_HINTS = {
    "SIGKILL": "the system may have been short of memory",
    "SIGBUS": "a file may have been cut or replaced while it was in use",
}
# Variables that an engine has no use for.
_PRIVATE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|_PROXY$", re.IGNORECASE)


@dataclass(frozen=True)
class Death:
    """How a process ended."""

    cause: str  # "SIGABRT: GGML_ASSERT(...) failed"
    words: str  # the last lines of its standard error
    from_outside: bool  # by a signal that nobody in the process sends; a second try may go well


class EngineProcess:
    """A started process and the connection to it. Nothing here blocks, `end` for a moment excepted.

    The thread that makes one has to live as long as it, because Linux ends the process with that thread.
    """

    def __init__(self, module: str, limit: Callable[[int, int], int]) -> None:
        """Start `python -m module`. Raises EngineError. `limit`: see frames.Reader."""
        program = command(module)
        ours, theirs = socket.socketpair()
        words, written = os.pipe()
        try:
            for end in (ours, theirs):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    with contextlib.suppress(OSError):  # a smaller one is only slower
                        end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            # Neither Ctrl-C nor the end of the terminal is its business: a session of its own.
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            os.close(words)
            raise EngineError(f"no process could be started for the engine ({error}).") from error
        finally:
            theirs.close()
            os.close(written)
        ours.setblocking(False)
        os.set_blocking(words, False)
        if sys.platform == "darwin":
            ours.setsockopt(socket.SOL_SOCKET, 0x1022, 1)  # SO_NOSIGPIPE (sys/socket.h)
        self.connection, self.standard_error = ours, words
        self._reader = Reader(limit)
        self._outgoing: deque[memoryview] = deque()
        self._words = bytearray()
        self.speaks = True  # until the end of its standard error

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the connection to take them."""
        return bool(self._outgoing)

    def send(self, pieces: Sequence[memoryview]) -> None:
        """Send a packed frame, now as far as possible, the rest by `flush`."""
        self._outgoing.extend(pieces)
        self.flush()

    def flush(self) -> None:
        """Send more of what waits."""
        flags = getattr(socket, "MSG_NOSIGNAL", 0)
        while self._outgoing:
            try:
                count = self.connection.sendmsg(list(self._outgoing)[:16], [], flags)
            except BlockingIOError:
                return
            except ConnectionError:  # it is dead, which is seen where it is listened to
                self._outgoing.clear()
                return
            while self._outgoing and count >= len(self._outgoing[0]):
                count -= len(self._outgoing.popleft())
            if count:
                self._outgoing[0] = self._outgoing[0][count:]

    def receive(self) -> Frame | None:
        """The next frame, or None if it is not there yet. Raises EOFError, ConnectionError, FrameError."""
        while True:
            try:
                frame = self._reader.receive(self.connection)
            except BlockingIOError:
                return None
            if frame is not None:
                return frame

    def listen(self) -> None:
        """Keep the last of what it wrote to standard error. One that writes without end is not heard out."""
        for _ in range(_PIECES):
            try:
                piece = os.read(self.standard_error, _WORDS)
            except BlockingIOError:
                return
            self._words += piece
            del self._words[:-_WORDS]
            self.speaks = bool(piece)
            if not piece:
                return

    def has_ended(self) -> bool:
        """Whether the process is gone, whoever still holds its end of the connection."""
        return self._process.poll() is not None

    def end(self, why: str | None = None) -> Death:
        """Make sure that it is gone, and say how it ended. `why`: it is killed at once, and this is the cause.

        Otherwise the connection is ended, at which an idle process ends by itself; a crash has done so already.
        """
        self.connection.close()
        try:
            self._process.wait(_GRACE if why is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.listen()
        os.close(self.standard_error)
        return _death(self._process.returncode, bytes(self._words), why)

    def abandon(self) -> None:
        """In a fork of the parent: let go of what belongs to the parent, and leave the process alone."""
        self.connection.close()
        os.close(self.standard_error)
        self._process.returncode = 0  # nothing is to be waited for here


def identity(paths: Sequence[Path]) -> tuple[tuple[str, int, int, int, int], ...]:
    """What the files in `paths`, and in the folders among them, are now; another answer means that one was replaced.

    What is not there, or may not be looked at, is left out: the engine says so when it opens it.
    """
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            for file in [path, *(sorted(path.iterdir()) if path.is_dir() else [])]:
                status = file.stat()
                found.append((str(file), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _environment() -> dict[str, str]:
    """The parent's, without secrets and proxies."""
    kept = {name: value for name, value in os.environ.items() if not _PRIVATE.search(name)}
    return {
        **kept,
        **same_modules(),
        "GGML_NO_BACKTRACE": "1",  # a debugger at every failed assertion would delay its end by half a second
    }


def _death(code: int, written: bytes, why: str | None) -> Death:
    # Words of other programs: nothing in them may steer a terminal.
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in written.decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_LINES:]
    name = _signal_name(-code) if code < 0 else ""
    cause = why or name or (f"it ended with code {code}" if code else "it ended by itself")
    told = [_FOLDERS.sub("", line) for line in [line for line in lines if _TELLING.search(line)][-3:] or lines[-2:]]
    if told:
        cause += f": {' '.join(told)}"
    elif why is None and name in _HINTS:
        cause += f": {_HINTS[name]}"
    outside = why is None and name in ("SIGKILL", "SIGTERM", "SIGHUP")
    return Death(cause[:_CAUSE], "\n".join(lines), outside)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
