"""vectors: the fixed order pool, cut, normalise, quantise; and comparisons in every precision."""

from __future__ import annotations

import numpy as np
import pytest

from jina_local import registry
from jina_local.embedding import vectors
from jina_local.embedding.request import resolve
from jina_local.errors import UsageError

MODEL = registry.lookup("v5-nano").spec


def spec(**options):
    return resolve(MODEL, **options)


def random(n=5, width=768, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32) * 7


def test_cut_comes_before_normalising():
    pooled = random()
    out = vectors.finish(pooled, spec(truncate_dim=64))
    assert out.shape == (5, 64)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(out, pooled[:, :64] / np.linalg.norm(pooled[:, :64], axis=1, keepdims=True), atol=1e-6)


def test_normalize_false_leaves_the_rows_as_they_are():
    pooled = random()
    np.testing.assert_array_equal(vectors.finish(pooled, spec(normalize=False)), pooled)


def test_ubinary_packs_the_first_dimension_into_the_top_bit():
    pooled = np.full((1, 768), -1.0, np.float32)
    pooled[0, 0] = 1
    pooled[0, 15] = 1
    out = vectors.finish(pooled, spec(precision="ubinary"))
    assert out.dtype == np.uint8
    assert out.shape == (1, 96)
    assert out[0, :3].tolist() == [0b10000000, 0b00000001, 0]


def test_zero_is_not_above_zero_in_binary():
    out = vectors.finish(
        np.zeros((1, 768), np.float32) - 0.0 + np.eye(1, 768, dtype=np.float32), spec(precision="ubinary")
    )
    assert out[0, 0] == 128
    assert not out[0, 1:].any()


def test_binary_is_ubinary_minus_128():
    pooled = random()
    ubinary = vectors.finish(pooled, spec(precision="ubinary"))
    binary = vectors.finish(pooled, spec(precision="binary"))
    assert binary.dtype == np.int8
    np.testing.assert_array_equal(binary.astype(int), ubinary.astype(int) - 128)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("dim", [32, 768])
def test_codes_do_not_depend_on_company(precision, dim):
    pooled = random(20)
    pooled[7] *= 1000
    request = spec(precision=precision, truncate_dim=dim)
    together = vectors.finish(pooled, request)
    for i in range(20):
        np.testing.assert_array_equal(vectors.finish(pooled[i : i + 1], request)[0], together[i])


@pytest.mark.parametrize(("precision", "least"), [("int8", 0.9997), ("uint8", 0.9997), ("ubinary", 0.7)])
def test_similarity_agrees_with_float(precision, least):
    pooled = random(30)
    floats = vectors.finish(pooled, spec())
    codes = vectors.finish(pooled, spec(precision=precision))
    exact = vectors.similarity(floats, floats, "float32")
    close = vectors.similarity(codes, codes, precision)
    assert np.corrcoef(exact.ravel(), close.ravel())[0, 1] > least
    np.testing.assert_allclose(np.diag(close), 1, atol=1e-5)


def test_similarity_of_binary_and_ubinary_is_the_same():
    pooled = random(6)
    a, b = (vectors.finish(pooled, spec(precision=p)) for p in ("binary", "ubinary"))
    np.testing.assert_array_equal(vectors.similarity(a, a, "binary"), vectors.similarity(b, b, "ubinary"))


def test_vectors_of_different_width_are_not_compared():
    with pytest.raises(UsageError, match="64 x float32 cannot be compared with 32 x float32"):
        vectors.similarity(random(2, 64), random(2, 32), "float32")


def test_unusable_rows_are_named_and_come_out_as_zeros():
    pooled = random(4)
    pooled[1, 700] = np.nan
    pooled[2] = 0
    pooled[3, 0] = np.inf
    assert vectors.unusable(pooled, 768).tolist() == [False, True, True, True]
    assert vectors.unusable(pooled, 512).tolist() == [False, False, True, True]
    out = vectors.finish(pooled, spec())
    assert np.isfinite(out).all()
    assert not out[1:].any()


def test_large_components_do_not_overflow_the_norm():
    pooled = np.full((1, 768), 1e30, np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors.finish(pooled, spec())), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_pool(pooling):
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    owner = np.array([0, 0, 1, 1, 1, 1], np.int32)
    if pooling == "mean":
        out = vectors.pool(rows, owner, 2, pooling)
        np.testing.assert_array_equal(out, [[1, 2], [7, 8]])
    else:
        out = vectors.pool(rows[:2], np.array([1, 0], np.int32), 2, pooling)
        np.testing.assert_array_equal(out, [[2, 3], [0, 1]])


def test_a_mean_over_thousands_of_rows_is_exact_to_the_last_digits():
    rng = np.random.default_rng(1)
    # Rows that share a large part, as the states of real models do: there a running float32 sum is at its worst.
    rows = (rng.standard_normal((8192 + 3 + 900, 64)) + 8 * rng.standard_normal(64)).astype(np.float32)
    lengths = [8192, 3, 900]
    out = vectors.pool(rows, np.repeat(np.arange(3, dtype=np.int32), lengths), 3, "mean")
    ends = np.cumsum(lengths)
    exact = np.array([rows[e - n : e].astype(np.float64).mean(axis=0) for e, n in zip(ends, lengths, strict=True)])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, rtol=1e-6)


def test_sums_are_taken_over_spans_that_may_overlap():
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    out = vectors.sums(rows, np.array([0, 1, 5]), np.array([6, 3, 6]))
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, [[30, 36], [6, 8], [10, 11]])


@pytest.mark.parametrize("other", [np.float16, np.float64])
def test_floats_of_any_width_are_compared(other):
    a = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    mixed = vectors.similarity(a, a.astype(other), "float32")
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(np.diag(mixed), 1, atol=1e-3)
    with pytest.raises(UsageError, match="8 x float32 cannot be compared with 8 x int8"):
        vectors.similarity(a, a.astype(np.int8), "float32")
