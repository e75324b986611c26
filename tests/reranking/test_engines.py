"""The Reranker over the real engines, at test size: company, repetition, threads, and one against the other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from jina_local import load as load_model
from jina_local.reranking.reranker import Ranked, Reranker
from tests import made
from tests.reranking.test_reranker import DOCUMENTS, KINDS, QUERY

MARKS = {"checkpoint": [pytest.mark.mlx, pytest.mark.slow], 32: pytest.mark.mlx, "F32": pytest.mark.llama}
FORMS = [
    pytest.param(kind, form, marks=marks, id=f"{kind}-{form}")
    for kind in KINDS.values()
    for form, marks in MARKS.items()
]
# llama.cpp looks its GELU up in a table of half-precision numbers; Qwen3 has none.
CLOSE = {"reranker-v3": 1e-4, "reranker-v2": 1e-3}


def load(kind: str, form: str | int) -> Reranker:
    """A tiny reranker through the finder."""
    model = load_model(made.reranker(kind, form))
    assert isinstance(model, Reranker)
    return model


def by_index(ranked: list[Ranked]) -> NDArray[np.float64]:
    return np.array([one.score for one in sorted(ranked, key=lambda one: one.index)])


@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_document_alone_and_in_company(kind, form):
    with load(kind, form) as model:
        scores = by_index(model.rerank(QUERY, DOCUMENTS))
        assert len(set(scores.round(9))) == len(DOCUMENTS)
        order = np.random.default_rng(0).permutation(len(DOCUMENTS))
        shuffled = by_index(model.rerank(QUERY, [DOCUMENTS[i] for i in order]))
        alone = [model.rerank(QUERY, [document])[0].score for document in DOCUMENTS[:4]]
        if kind == "reranker-v2":
            # A last bit may move a value to the next entry of llama.cpp's GELU table: 5e-5 was seen with AMX.
            np.testing.assert_allclose(shuffled, scores[order], atol=1e-4)
            np.testing.assert_allclose(alone, scores[:4], atol=1e-4)
        else:
            assert np.abs(alone - scores[:4]).max() > 1e-3  # read together, and meant to be


@pytest.mark.sampled
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_the_same_call_has_the_same_bits(kind, form):
    with load(kind, form) as model:
        first = model.rerank(QUERY, DOCUMENTS[:4], deterministic=True)
        got: list[list[Ranked]] = []
        threads = [
            threading.Thread(target=lambda: got.append(model.rerank(QUERY, DOCUMENTS[:4], deterministic=True)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [first] * 3


@pytest.mark.sampled
@pytest.mark.mlx
@pytest.mark.llama
@pytest.mark.parametrize("kind", list(KINDS.values()))
@pytest.mark.parametrize("words", [{}, {"blocks": 3}])
def test_both_engines_agree(kind, words):
    listwise, many = kind == "reranker-v3", "blocks" in words
    options = ({"block_size": 3} if listwise else {"max_length": 40, "max_query_length": 20}) if many else {}
    with load(kind, 32) as a, load(kind, "F32") as b:
        one, other = a.rerank(QUERY, DOCUMENTS, **options), b.rerank(QUERY, DOCUMENTS, **options)
    np.testing.assert_allclose(by_index(one), by_index(other), atol=CLOSE[kind])
    scores = by_index(one)
    apart = [i for i in range(len(one) - 1) if one[i].score - one[i + 1].score > 2 * CLOSE[kind]]
    assert len(apart) >= 5
    for i in apart:
        above, below = ({r.index for r in part} for part in (other[: i + 1], other[i + 1 :]))
        assert min(scores[list(above)]) > max(scores[list(below)])
