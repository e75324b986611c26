"""A Ctrl-C at any moment is KeyboardInterrupt and nothing else, and the model gives the same bits afterwards.

JINA_LOCAL_TEST_INTERRUPTS=200 asks for so many interrupts of every kind. Without it there are about ten an engine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jina_local.formats import safetensors
from tests import made

ROOT = Path(__file__).parents[2]
COUNT = int(os.environ.get("JINA_LOCAL_TEST_INTERRUPTS") or 0)
PATIENCE = 60  # seconds to load a model, or from an interrupt to the answer, on a machine that may be busy
# The files for llama.cpp, those for MLX, and those for ONNX Runtime.
KINDS = {
    "nano": (lambda: made.gguf_file("nano", "F32"), lambda: made.mlx("nano", 16), lambda: made.onnx("nano", 8)),
    "small": (lambda: made.gguf_file("small", "Q8_0"), lambda: made.mlx("small", 8), lambda: made.onnx("small", 32)),
    "adapters": (lambda: made.gguf_separate("nano", "F32", "Q8_0"), *[lambda: made.checkpoint("nano")] * 2),
    "v3": (lambda: made.v3("v3", "F16"), lambda: made.v3("v3", 16), lambda: made.checkpoint("v3")),
    "reranker-v3": (
        lambda: made.reranker("reranker-v3", "F16"),
        lambda: made.reranker("reranker-v3", 16),
        lambda: made.onnx("reranker-v3", 8),
    ),
    "reranker-v2": (
        lambda: made.reranker("reranker-v2", "F32"),
        lambda: made.reranker("reranker-v2", 32),
        lambda: made.onnx("reranker-v2", 8),
    ),
}
ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("llama", "mlx", "onnx")]


# kind, what is interrupted, how often
ALL = [(kind, what, COUNT) for kind in KINDS for what in ("run", "load")]
QUICK = [*((kind, "run", 1) for kind in KINDS), ("nano", "load", 2), ("reranker-v2", "load", 2)]


@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "what", "count"), ALL if COUNT else QUICK)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_at_any_moment_is_keyboard_interrupt_and_the_model_goes_on(engine, kind, what, count):
    path = KINDS[kind][("llama", "mlx", "onnx").index(engine)]()
    command = [sys.executable, "-m", "tests.backends.interrupted", path, engine, str(count), what]
    moments = random.Random(f"{engine} {kind} {what} {count}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as child:
        watchdog = threading.Timer(PATIENCE + count * PATIENCE / 10, child.kill)
        watchdog.start()
        try:
            for done in range(count):
                said = child.stdout.readline()
                if said.startswith("ready"):
                    time.sleep(moments.uniform(0, 1.5 * float(said.split()[1])))
                    child.send_signal(signal.SIGINT)
                    said = child.stdout.readline()
                assert said == "same\n", f"after {done} interrupts: {said}{child.stdout.read()}"
            assert (child.stdout.read(), child.wait()) == ("", 0)
        finally:
            watchdog.cancel()
            child.kill()


def test_an_interrupt_while_weights_are_read_is_keyboard_interrupt(tmp_path):
    """By a timer of the reading process, which comes closer than a signal of another process does."""
    path, shape = tmp_path / "x.safetensors", (500, 500)
    safetensors.write(path, {"a": ("F32", shape)}, [("a", np.ones(shape, np.float32))], {})
    # In a process of its own, because an interrupt within coverage's own code leaves its lock taken.
    subprocess.run([sys.executable, "-c", READ_INTERRUPTED, path], cwd=ROOT, check=True, timeout=PATIENCE)


READ_INTERRUPTED = """
import random, signal, sys
from jina_local.formats.safetensors import SafetensorsFile

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
moments = random.Random(1)
for _ in range(600):
    try:
        with SafetensorsFile(sys.argv[1]) as file:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-5, 1e-3))
            while True:
                assert file.read("a").sum() == 250_000
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("not interrupted")
"""
