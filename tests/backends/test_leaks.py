"""Opening and closing a model again and again takes no more threads, descriptors and memory than doing it once.

JINA_LOCAL_TEST_CYCLES=1000 asks for so many cycles. Without it there are 30.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import made

CYCLES = int(os.environ.get("JINA_LOCAL_TEST_CYCLES") or 30)
ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("llama", "mlx", "onnx")]


@pytest.mark.sampled
@pytest.mark.skipif(sys.platform != "linux", reason="threads and descriptors are counted in /proc")
@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("engine", ENGINES)
def test_opening_and_closing_leaves_nothing_behind(engine, how):
    path = {
        "mlx": lambda: made.mlx("nano", 8),
        "onnx": lambda: made.onnx("nano", 8),
        "llama": lambda: made.gguf_file("nano", "Q8_0"),
    }[engine]()
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.reopened", path, engine, str(CYCLES), how],
        capture_output=True,
        text=True,
        timeout=60 + 2 * CYCLES,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last = map(json.loads, done.stdout.splitlines())
    assert last["descriptors"] == first["descriptors"]
    # A model that is dropped gives its thread back a moment later; the next one may have taken another by then.
    assert last["threads"] - first["threads"] <= (4 if how == "drop" else 0)
    assert last["memory"] - first["memory"] < 10, "MB"
