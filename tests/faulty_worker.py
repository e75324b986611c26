"""A worker whose engine has no weights and every fault: an id in a pass says which. Started as backends.worker is.

`path` is a JSON file: "open" names a fault that opening has, "always" one that every pass has until there is a file
`cured` beside it, "also" further ids that have one. "hidden", "vocab", "lanes" and "adapters" are those of
FakeBackend. The reasons of the engine are its environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jina_local.backends import worker
from jina_local.errors import EngineError, ModelDamaged
from jina_local.spec import TokenBatch
from tests.fakes import FakeBackend

_connection: socket.socket


def _abort() -> None:
    print("/home/builder/src/ggml.c:3093: GGML_ASSERT(n_tokens > 0) failed", file=sys.stderr, flush=True)
    os.abort()


def _signal(number: int) -> Callable[[], None]:
    def send() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    return send


def _spin() -> None:
    while True:
        time.sleep(0.05)


def _shout() -> None:
    while True:
        os.write(2, b"again and again\n" * 1000)


def _hold() -> None:
    """Keep every other thread of Python from running."""
    import ctypes

    ctypes.PyDLL(None).sleep(60)


def _garbage() -> None:
    _connection.sendall(b"what is this, and who asked for it?")
    time.sleep(60)


def _other_rows() -> None:
    from jina_local.backends.frames import Frame, Kind, pack

    for piece in pack(Frame(Kind.ROWS, 10**6, {}, {"rows": np.zeros((1, 32), np.float32)})):
        _connection.sendall(piece)
    time.sleep(60)


def _eat() -> None:
    np.empty(1 << 45, np.uint8)


def _refuse() -> None:
    raise EngineError("the engine refuses this pass")


def _bug() -> None:
    raise TypeError("somebody gave a str for an int")


def _damaged() -> None:
    raise ModelDamaged("the file is cut")


FAULTS: dict[str, tuple[int, Callable[[], None]]] = {
    "abort": (900, _abort),
    "segfault": (901, _signal(signal.SIGSEGV)),
    "bus error": (902, _signal(signal.SIGBUS)),
    "spin": (903, _spin),
    "stop": (904, _signal(signal.SIGSTOP)),
    "garbage": (905, _garbage),
    "exit": (906, lambda: os._exit(3)),
    "refuse": (907, _refuse),
    "bug": (908, _bug),
    "eat": (909, _eat),
    "kill": (910, _signal(signal.SIGKILL)),
    "other rows": (911, _other_rows),
    "hold": (912, _hold),
    "damaged": (913, _damaged),
    "shout": (914, _shout),
}
SLOW, SLOWER = 950, 952  # ids that take one second, and two more
ONCE = 951  # an id that kills the process if no file `once` lies beside the settings, and writes one


class FaultyBackend(FakeBackend):
    """A FakeBackend with FAULTS."""

    def __init__(self, settings: Path) -> None:
        self._settings = settings
        body: dict[str, Any] = json.loads(settings.read_text())
        if "open" in body:
            FAULTS[body["open"]][1]()
        self._always = FAULTS[body["always"]][1] if "always" in body else None
        self._also = {int(number): FAULTS[name][1] for number, name in body.get("also", {}).items()}
        super().__init__(
            body.get("hidden", 32),
            body.get("vocab", 1000),
            lanes=body.get("lanes", 1),
            adapters=body.get("adapters", ()),
        )
        self.reasons = (" ".join(f"{name}={value}" for name, value in os.environ.items()),)

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> np.ndarray:
        """As FakeBackend.forward, after the faults that the ids ask for."""
        if self._always and not self._settings.with_name("cured").exists():
            self._always()
        ids = set(batch.ids.tolist())
        for number, fault in (*FAULTS.values(), *self._also.items()):
            if number in ids:
                fault()
        if SLOW in ids:
            time.sleep(1)
        if SLOWER in ids:
            time.sleep(2)
        if ONCE in ids and not (once := self._settings.with_name("once")).exists():
            once.touch()
            _abort()
        return super().forward(batch, sharers, task)


def main() -> None:
    """As worker.main."""
    global _connection
    _connection = socket.socket(fileno=int(sys.argv[1]))
    worker.attach(int(sys.argv[2]))
    worker.serve(_connection, lambda name, path, **words: FaultyBackend(path))


if __name__ == "__main__":
    main()
