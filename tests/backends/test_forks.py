"""After a fork: a model of the parent is an error that says so, and one that is loaded in the child works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import made

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("llama", "mlx", "onnx")]

_START = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
import jina_local
from jina_local.errors import EngineError

path, engine = sys.argv[1:]
options = {"backend": engine, **({"threads": 2} if engine == "llama" else {})}
texts = ["one text", "another text " * 40]
model = jina_local.load(path, **options)
expected = model.encode(texts)

def refused():
    start = time.monotonic()
    try:
        model.encode(texts)
    except EngineError as error:
        assert "opened before the process was forked" in str(error) and "'spawn'" in str(error), error
        assert time.monotonic() - start < 1
        return True

def fresh():
    with jina_local.load(path, **options) as mine:
        return np.array_equal(mine.encode(texts), expected)

def in_child(*steps, end=os._exit):
    child = os.fork()
    if not child:
        signal.alarm(30)
        done = [step() for step in steps]
        end(0 if all(done) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, steps

def encode(texts):
    return model.encode(texts)

def closed():
    model.close()
    return True
"""
_CASES = {
    "a child refuses the parent's model and loads its own": "in_child(refused, fresh, fresh, refused)",
    "a child's child does the same": "in_child(refused, lambda: in_child(refused, fresh) is None, fresh)",
    "a child that closes it and ends as usual harms nobody": "in_child(refused, closed, end=sys.exit)",
    "a child that loads its own ends as usual": "in_child(fresh, end=sys.exit)",
    "a fork from a thread that ran the model": """
failed = []
def work():
    try:
        model.encode(texts)
        in_child(refused, fresh)
    except BaseException as error:
        failed.append(error)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert not failed, failed
""",
    "a pool of forked processes": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        pool.map_async(encode, [texts] * 4).get(30)
    except EngineError as error:
        assert "opened before the process was forked" in str(error)
    else:
        raise AssertionError("the parent's model ran in a child")
    assert pool.apply_async(fresh).get(30)
""",
}


@pytest.mark.sampled
@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_after_a_fork(engine, case):
    path = {
        "mlx": lambda: made.mlx("nano", 8),
        "onnx": lambda: made.onnx("nano", 8),
        "llama": lambda: made.gguf_file("nano", "Q8_0"),
    }[engine]()
    script = f"{_START}\n{_CASES[case]}\nassert np.array_equal(model.encode(texts), expected)\n"
    # Python warns of forks beside threads, tokenizers of its own.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", script, path, engine],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
