"""A process that is interrupted while it works: `python -m tests.backends.interrupted PATH ENGINE COUNT WHAT`.

It prints "ready SECONDS" and works until a KeyboardInterrupt comes. Then it checks that the model still gives the
same bits, and prints "same". After COUNT interrupts it closes the model and ends. WHAT is "run" for calls of one open
model, or "load" for opening, calling and closing one. Used by test_interrupts.py.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import jina_local

# One batch of passes that share contexts, and one text that is a pass alone.
TEXTS = [f"number {n} " * (1 + n % 7) for n in range(12)] + ["a long text " * 20]


def answer(model: jina_local.Embedder | jina_local.Reranker) -> np.ndarray:
    """Some numbers from the model, which are the same every time."""
    if isinstance(model, jina_local.Reranker):
        return np.array([(found.index, found.score) for found in model.rerank("number 3", TEXTS[:5])])
    task = model.spec.default_task or model.spec.tasks[0]
    return np.concatenate([model.encode(TEXTS, task=task), model.encode(TEXTS[-1:], task=task)])


def main(path: str, engine: str, count: int, what: str) -> None:
    """See the module."""
    lost: list[str] = []
    sys.unraisablehook = lambda found: lost.append(repr(found))

    def once() -> np.ndarray:
        if what == "run":
            return answer(model)
        with jina_local.load(path, backend=engine) as fresh:
            return answer(fresh)

    with jina_local.load(path, backend=engine) as model:
        expected = answer(model)
        start = time.perf_counter()
        once()
        seconds = time.perf_counter() - start
        for _ in range(count):
            try:
                print("ready", seconds, flush=True)
                while True:
                    once()
            except KeyboardInterrupt:
                pass
            if lost or not np.array_equal(answer(model), expected):
                raise SystemExit(f"other numbers, or a lost error: {lost}")
            print("same", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
