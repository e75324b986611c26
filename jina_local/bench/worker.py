"""A contender's own process: opens it, and runs the texts that come in, a line of JSON for each question and answer.

In a process of its own a contender has its own threads and its own peak of memory, and its crash is its own.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import console
from ..backends.machine import peak_memory
from ..errors import JinaError
from . import facts, ours, rivals
from .ours import Opened

_OPEN: dict[str, Callable[..., Opened]] = {
    "jina_local": ours.open_model,
    "llama": rivals.llama,
    "onnxruntime": rivals.onnxruntime,
    "transformers": rivals.transformers,
}


def main() -> None:
    """Answer the questions on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, whose pipe then closes
    with console.quiet_stdout() as stdout:
        for answer in _or_error(_answers()):
            stdout.write(json.dumps(answer).encode() + b"\n")
            stdout.flush()


def _or_error(answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The answers; an exception, of whatever library, is the last one."""
    try:
        yield from answers
    except JinaError as error:
        yield {"error": str(error)}
    except Exception as error:
        yield {"error": f"{type(error).__name__}: {error}"}


def _answers() -> Iterator[dict[str, Any]]:
    asked = json.loads(sys.stdin.readline())
    opened = _OPEN[asked["kind"]](**asked["settings"])
    yield {"about": opened.about, "versions": facts.versions(), "peak": peak_memory()}
    for line in sys.stdin:
        question = json.loads(line)
        seconds, result = _timed(opened.run, question["texts"], question["least"])
        given = np.asarray(result, np.float64).tolist() if question["results"] else None
        yield {"seconds": seconds, "results": given, "peak": peak_memory()}


def _timed(run: Callable[[list[str]], Any], texts: list[str], least: float) -> tuple[list[float], Any]:
    """(seconds of each run over the texts, the last result): again and again for `least` seconds, at least once."""
    seconds: list[float] = []
    while not seconds or sum(seconds) < least:
        start = time.perf_counter()
        result = run(texts)
        seconds.append(time.perf_counter() - start)
    return seconds, result


if __name__ == "__main__":
    main()
