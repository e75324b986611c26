"""OpenBLAS in front of the reference BLAS of MLX's wheel: found if it is installed, with the same vectors."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys

import numpy as np
import pytest

from jina_local.backends.mlx import blas
from tests import made

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="MLX uses Accelerate elsewhere")
RUN = """
import json, sys
if sys.argv[2] == "without":
    import mlx.core
from jina_local import load
from jina_local.backends.mlx import blas
with load(sys.argv[1], backend="mlx") as model:
    vectors = model.encode(["the lighthouse", "a longer text about the sea, the ships and the wind"])
    print(json.dumps([vectors.tolist(), blas.library(), list(model.spec.origin.reasons)]))
"""


def run(how):
    folder = str(made.mlx("nano", 32))
    done = subprocess.run([sys.executable, "-c", RUN, folder, how], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def installed():
    try:
        ctypes.CDLL(blas._NAME)
    except OSError:
        return False
    return True


@pytest.mark.mlx
def test_an_installed_openblas_is_used_and_gives_the_same_vectors():
    if not installed():
        pytest.skip("libopenblas.so.0 is not installed: apt install libopenblas0")
    vectors, library, reasons = run("with")
    assert "openblas" in library
    assert library in " ".join(reasons)
    plain, none, _ = run("without")
    assert none is None
    assert np.abs(np.array(vectors) - plain).max() < 1e-5


@pytest.mark.parametrize("fault", ["absent", "loaded"])
def test_nothing_is_loaded_if_there_is_none_or_mlx_came_first(fault, monkeypatch):
    opened = []

    def absent(path, *mode):
        opened.append(path)
        raise OSError(path)

    monkeypatch.setattr(blas, "library", lambda: None)
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    if fault == "loaded":
        monkeypatch.setitem(sys.modules, "mlx.core", sys)
    monkeypatch.setattr(blas.ctypes, "CDLL", absent)
    blas.put_in_front()
    assert bool(opened) == (fault == "absent")
    assert all(path.endswith("libopenblas.so.0") for path in opened)


def test_the_library_that_comes_first_is_named():
    """A process without a BLAS of that name has none; one that has loaded a library for all names its file."""
    code = "from jina_local.backends.mlx import blas; print(blas.library())"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == "None" or "blas" in alone.stdout
