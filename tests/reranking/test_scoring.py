"""scoring: sigmoid, cosines, the rule for several blocks and the order, against plain arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jina_local.reranking import scoring


def test_sigmoid_is_right_where_exp_overflows_and_keeps_nan():
    x = np.array([0.0, 1.0, -1.0, 1000.0, -1000.0, np.inf, -np.inf, np.nan, -40.0], np.float32)
    found = scoring.sigmoid(x)
    assert found.dtype == np.float64
    expected = [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.e), 1.0, 0.0, 1.0, 0.0, math.nan, math.exp(-40)]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_sigmoid_keeps_close_logits_apart():
    """In float32 both would be 1."""
    a, b = scoring.sigmoid(np.array([17.5, 18.0], np.float32))
    assert a < b < 1


def test_cosines():
    query = np.array([3.0, 4.0], np.float32)
    documents = np.array([[3, 4], [-3, -4], [4, -3], [1, 0], [0, 0], [np.nan, 1], [np.inf, 1]], np.float32)
    found = scoring.cosines(query, documents)
    np.testing.assert_allclose(found[:4], [1, -1, 0, 0.6], atol=1e-12)
    assert np.isnan(found[4:]).all()
    assert np.isnan(scoring.cosines(np.zeros(2, np.float32), documents)).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cosines_of_very_small_and_very_large_vectors(size):
    a = (np.array([[1.0, 2.0, -2.0]]) * size).astype(np.float32)
    b = (np.array([2.0, 1.0, 2.0]) * size).astype(np.float32)
    np.testing.assert_allclose(scoring.cosines(b, a), [0.0], atol=1e-7)
    np.testing.assert_allclose(scoring.unit(a), [[1 / 3, 2 / 3, -2 / 3]], rtol=1e-6)


@given(arrays.arrays(np.float32, (5, 4), elements=st.floats(-100, 100, width=32)))
def test_no_cosine_leaves_its_range(rows):
    found = scoring.cosines(rows[0], rows[1:])
    assert (np.isnan(found) | (np.abs(found) <= 1)).all()


def test_one_block_keeps_its_own_cosines():
    rng = np.random.default_rng(0)
    query, documents = rng.normal(size=(1, 8)).astype(np.float32), rng.normal(size=(5, 8)).astype(np.float32)
    np.testing.assert_allclose(scoring.listwise(query, [documents]), scoring.cosines(query[0], documents), atol=1e-12)


def test_several_blocks_by_hand():
    """Best cosines 0.6 and 0: weights 0.8 and 0.5; the queries keep their lengths of 2 and 1 in the mean."""
    queries = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    first, second = np.array([[3.0, 4.0], [-1.0, 0.0]], np.float32), np.array([[5.0, 0.0]], np.float32)
    qx, qy = 0.8 * 2 / 1.3, 0.5 * 1 / 1.3
    length = math.hypot(qx, qy)
    expected = [(0.6 * qx + 0.8 * qy) / length, -qx / length, qx / length]
    np.testing.assert_allclose(scoring.listwise(queries, [first, second]), expected, rtol=1e-12)


def test_blocks_that_are_all_opposite_weigh_the_same():
    queries = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    found = scoring.listwise(queries, [np.array([[-1.0, 0.0]], np.float32), np.array([[0.0, -2.0]], np.float32)])
    np.testing.assert_allclose(found, [-math.sqrt(0.5)] * 2)


def test_a_block_without_a_query_fails_alone():
    queries = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0]], np.float32)
    block = np.array([[1.0, 1.0], [0.0, 0.0]], np.float32)
    found = scoring.listwise(queries, [block, block, block])
    np.testing.assert_allclose(found[0], math.sqrt(0.5))
    assert np.isnan(found[1:]).all()
    assert np.isnan(scoring.listwise(queries[1:], [block, block])).all()


def test_the_best_window_counts_and_one_without_a_score_spoils_its_document():
    scores = np.array([0.1, 0.9, 0.2, 0.5, np.nan])
    found = scoring.best(scores, np.array([0, 0, 0, 1, 1], np.int32), 2)
    assert found[0] == 0.9
    assert np.isnan(found[1])


def test_order_is_stable_and_leaves_out_what_has_no_score():
    assert scoring.order(np.array([0.5, np.nan, 0.9, 0.5, -0.1, 0.9])) == [2, 5, 0, 3, 4]
    many = np.arange(100) % 3 / 2.0
    assert scoring.order(many) == [*range(2, 100, 3), *range(1, 100, 3), *range(0, 100, 3)]
