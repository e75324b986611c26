"""Many threads on one model, tasks mixed, models closed in the middle and opened again: no vector is another's."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from jina_local import Embedder, load
from jina_local.errors import EngineError

from . import made

THREADS = 32
TEXTS = [f"text {i} of many: {'word ' * (i % 7)}" for i in range(THREADS)]
TASKS = ("retrieval", "text-matching", "clustering", "classification")


def models():
    """What is opened: run-time adapters on both engines, and the bundled model."""
    llama, mlx = pytest.param("llama", marks=pytest.mark.llama), pytest.param("mlx", marks=pytest.mark.mlx)
    return pytest.mark.parametrize("backend", [llama, mlx])


def path(backend, name):
    if name == "pico":
        return "pico"
    return made.gguf_separate(name, "F32") if backend == "llama" else made.checkpoint(name)


@pytest.mark.sampled
@models()
@pytest.mark.parametrize(("name", "rounds"), [("nano", 1), ("nano", 3), ("pico", 3)])
def test_threads_that_mix_tasks_get_their_own_vectors_until_the_model_is_closed(backend, name, rounds):
    where, threads_of_engine = path(backend, name), 2 if backend == "llama" else None
    with load(where, backend=backend, threads=threads_of_engine) as model:
        assert isinstance(model, Embedder)
        alone = {(i, task): model.encode(TEXTS[i], task=task, deterministic=True) for i in range(8) for task in TASKS}
    outcomes: Counter[str] = Counter()
    for _ in range(rounds):
        model = load(where, backend=backend, threads=threads_of_engine)
        assert isinstance(model, Embedder)
        begun = threading.Barrier(THREADS + 1)
        half = threading.Semaphore(0)

        def work(number, model=model, begun=begun, half=half):
            begun.wait()
            for step in range(4):
                i, task = (number + step) % 8, TASKS[(number + step) % 4]
                try:
                    vector = model.encode(TEXTS[i], task=task, deterministic=True)
                except EngineError as error:
                    outcomes["closed" if "closed" in str(error) else f"wrong error: {error}"] += 1
                else:
                    right = np.array_equal(vector, alone[i, task])
                    outcomes["right" if right else "wrong"] += 1
                half.release()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        begun.wait()
        for _ in range(2 * THREADS):
            half.acquire()
        model.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert outcomes.keys() == {"right", "closed"}, outcomes
    assert sum(outcomes.values()) == rounds * 4 * THREADS
