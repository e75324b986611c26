"""A contender in a process of its own, seen from the bench: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..children import command, same_modules
from ..errors import EngineError
from .contenders import Contender

_MODULE = "jina_local.bench.worker"


class Process:
    """A contender that is open. Raises EngineError if it fails or its process ends."""

    def __init__(self, contender: Contender) -> None:
        """Start it, and wait until it is ready."""
        self.contender = contender
        began = time.perf_counter()
        self._child = subprocess.Popen(
            command(_MODULE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **same_modules(), "TOKENIZERS_PARALLELISM": "true"},
        )
        try:
            ready = self._ask({"kind": contender.kind, "settings": contender.settings})
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - began  # from the start of its program on
        self.about: dict[str, str | int] = ready["about"]
        self.versions: dict[str, str] = ready["versions"]

    def timed(self, texts: list[str], least: float) -> list[float]:
        """Seconds of each run over the texts, of as many as `least` seconds have room for."""
        return list(self._ask({"texts": texts, "least": least, "results": False})["seconds"])

    def results(self, texts: list[str]) -> NDArray[np.float64]:
        """The texts' vectors, (n, dim), or scores, (n,)."""
        return np.asarray(self._ask({"texts": texts, "least": 0, "results": True})["results"], np.float64)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._child.kill()
        self._child.communicate()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._child.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise EngineError(f"its process {how}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        self.peak = int(answer["peak"])
        return answer
