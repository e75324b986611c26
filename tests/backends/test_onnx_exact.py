"""Products of whole numbers that saturate on some processors: this is noticed, and other weights are multiplied."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jina_local.backends.onnx import exact
from jina_local.errors import EngineError
from jina_local.weights.int8 import Int8, Int8Rows
from tests import tiny

pytestmark = pytest.mark.onnx

QEMU = shutil.which("qemu-x86_64")
# Runs with a model folder, a file for the rows, and the types of codes to ask about ("" for the engine's own answer).
ROWS = """
import sys
from pathlib import Path
import numpy as np
from jina_local.backends.onnx import OnnxBackend, exact
from jina_local.spec import TokenBatch
if sys.argv[3]:
    exact.codes_type = lambda _: np.dtype(sys.argv[3]).type
backend = OnnxBackend(Path(sys.argv[1]), threads=1)
starts = np.array([0, 5, 14, 47], np.int32)
ids = np.random.default_rng(0).integers(3, backend.vocab, 47).astype(np.int32)
np.save(sys.argv[2], backend.forward(TokenBatch(ids, starts, starts[1:] - 1, np.arange(3, dtype=np.int32))))
"""


def sums(states, codes):
    """The exact product of states around 128 by codes: s8, or u8 around 128."""
    zero = 128 if codes.dtype == np.uint8 else 0
    return ((states.astype(np.int64) - 128) @ (codes.astype(np.int64) - zero)).astype(np.float32)


def in_16_bits(states, codes):
    """The product as AVX2 computes it: pairs of u8 x s8 are added in 16 bits, which saturate."""
    if codes.dtype == np.uint8:
        return sums(states, codes)
    a, b = states.astype(np.int32), codes.astype(np.int32)
    odd = len(b) % 2
    a, b = np.pad(a, ((0, 0), (0, odd))), np.pad(b, ((0, odd), (0, 0)))
    pairs = a[:, 0::2, None] * b[None, 0::2] + a[:, 1::2, None] * b[None, 1::2]
    return (np.clip(pairs, -(2**15), 2**15 - 1).sum(1) - 128 * b.sum(0)).astype(np.float32)


def test_signed_weights_are_used_where_they_are_exact():
    assert exact.exact_type(sums) is np.int8


def test_unsigned_weights_are_used_where_signed_ones_saturate():
    assert exact.exact_type(in_16_bits) is np.uint8


@pytest.mark.parametrize("rows", [1, 35])
def test_one_kernel_that_saturates_is_enough(rows):
    def some(states, codes):
        return (in_16_bits if len(states) == rows else sums)(states, codes)

    assert exact.exact_type(some) is np.uint8


def test_a_processor_without_exact_products_is_refused():
    with pytest.raises(EngineError, match=r"wrong on this processor, so its vectors would be. Use F32 weights"):
        exact.exact_type(lambda states, codes: sums(states, codes) + np.float32(1))


def test_unsigned_codes_stand_for_the_same_weights():
    codes = np.array([[-127, 0], [1, 127]], np.int8)
    table = Int8Rows(codes, np.ones((2, 1), np.float32))
    given = {"a": Int8(codes, np.ones(2, np.float32)), "table": table, "norm": np.ones(2, np.float32)}
    fitted = exact.for_engine(given, np.uint8)
    assert fitted["a"].codes.tolist() == [[1, 128], [129, 255]]
    assert fitted["a"].codes.dtype == np.uint8
    assert fitted["table"] is table
    assert exact.for_engine(given, np.int8) == given


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_rows_do_not_depend_on_the_type_of_the_codes(dtype, model, rows, monkeypatch):
    from jina_local.backends import onnx

    if exact.codes_type(onnx._session) is not np.int8:
        pytest.skip("this processor's own products of s8 saturate")
    np.testing.assert_array_equal(run(model, dtype.__name__), rows)


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed: apt-get install qemu-user")
def test_a_processor_that_saturates_gives_the_same_rows(model, rows):
    haswell = (str(QEMU), "-cpu", "Haswell")
    # Its float kernels are others too, and a difference in the last bit of a state can become a step of its code.
    np.testing.assert_allclose(run(model, "", *haswell), rows, rtol=0, atol=0.01)
    wrong = run(model, "int8", *haswell)  # the control: without the question, its rows are others
    assert np.abs(wrong - rows).max() > 0.1


@pytest.fixture(scope="module", params=[8, 16])
def model(request, tmp_path_factory) -> Path:
    from convert.onnx.folders import to_onnx

    folder = tmp_path_factory.mktemp("onnx")
    source = tiny.write(folder / "source", "nano", tasks=("retrieval",))
    to_onnx(source, folder / "whole", tasks=["retrieval"], bits=request.param)
    return folder / "whole"


@pytest.fixture(scope="module")
def rows(model) -> np.ndarray:
    return run(model, "")


def run(model: Path, codes: str, *emulator: str) -> np.ndarray:
    out = model.parent / "rows.npy"
    command = [*emulator, sys.executable, "-c", ROWS, str(model), str(out), codes]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return np.load(out)
