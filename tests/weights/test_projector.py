"""projector: both namings, from a file or from the checkpoint, its arithmetic, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import safetensors
from jina_local.weights import projector
from tests import made

FIRST, SECOND = np.full((4, 8), 0.5, np.float32), np.eye(6, 4, dtype=np.float32)
GGUF, MLX = projector.NAMINGS


def write(path, tensors, dtype="F32"):
    held = {n: safetensors.to_bf16(d) if dtype == "BF16" else d.astype("<i4" if dtype == "I32" else np.float32)
            for n, d in tensors.items()}  # fmt: skip
    safetensors.write(path, {n: (dtype, d.shape) for n, d in held.items()}, held.items(), {"format": "pt"})
    return path


@pytest.mark.parametrize("names", projector.NAMINGS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_both_namings_and_types(names, dtype, tmp_path):
    found = projector.read(write(tmp_path / projector.FILE, dict(zip(names, (FIRST, SECOND), strict=True)), dtype), 8)
    np.testing.assert_array_equal(found.first, FIRST)
    np.testing.assert_array_equal(found.second, SECOND)
    assert found.first.dtype == found.second.dtype == np.float32


def test_the_published_checkpoint_holds_it_itself():
    found = projector.read(made.checkpoint("reranker-v3"), 256)
    assert (found.first.shape, found.second.shape) == ((128, 256), (512, 128))


def test_linear_relu_linear_without_bias():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((5, 8)), rng.standard_normal((3, 5))
    states = rng.standard_normal((7, 8)).astype(np.float32)
    found = projector.Projector(first.astype(np.float32), second.astype(np.float32))(states)
    by_hand = [[sum(b * max(0.0, float(a @ row)) for a, b in zip(first, out, strict=True)) for out in second]
               for row in states]  # fmt: skip
    assert (found.shape, found.dtype) == ((7, 3), np.float32)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(projector.Projector(first, second)(np.zeros((1, 8), np.float32)), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has no projector: .* found none. Without it the reranker has no scores"),
        ({GGUF[0]: FIRST}, "has no projector"),
        ({GGUF[0]: FIRST, MLX[1]: SECOND}, "found linear2.weight, projector.0.weight"),
        ({GGUF[0]: FIRST, GGUF[1]: SECOND, "projector.0.bias": np.ones(4, np.float32)}, "projector.0.bias"),
        ({GGUF[0]: FIRST.T.copy(), GGUF[1]: SECOND}, r"\(8, 4\) and \(6, 4\) does not follow a model of width 8"),
        ({GGUF[0]: FIRST, GGUF[1]: SECOND.T.copy()}, "does not follow a model of width 8"),
        ({GGUF[0]: FIRST[0], GGUF[1]: SECOND}, "does not follow"),
        ({GGUF[0]: FIRST * np.inf, GGUF[1]: SECOND}, "projector.0.weight: .* NaN or infinite"),
    ],
)
def test_refusals(tensors, message, tmp_path):
    path = write(tmp_path / projector.FILE, tensors)
    with pytest.raises(ModelDamaged, match=message):
        projector.read(path, 8)


def test_whole_numbers_are_refused(tmp_path):
    path = write(tmp_path / projector.FILE, {GGUF[0]: FIRST, GGUF[1]: SECOND}, "I32")
    with pytest.raises(ModelDamaged, match="stored as I32; expected F16 or BF16 or F32"):
        projector.read(path, 8)


def test_a_checkpoint_without_one_says_so():
    with pytest.raises(ModelDamaged, match=re.escape(str(made.checkpoint("small"))) + ": has no projector"):
        projector.read(made.checkpoint("small"), 256)
