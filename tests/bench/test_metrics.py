"""The measures of tests/bench against values worked out by hand; nothing here needs ../shared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import tiny
from tests.bench import datasets, measure, metrics, probes, quality, rivals


def similarities(*rows):
    return np.array(rows, np.float32)


def relevance(*rows):
    return np.array(rows, np.bool_)


def test_ndcg_of_one_relevant_document_is_the_discount_of_its_rank():
    ordered = similarities([0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.9, 0.8, 0.7])
    found = metrics.ndcg(ordered, relevance([1, 0, 0], [0, 1, 0], [0, 0, 1]), 2)
    assert found.tolist() == pytest.approx([1, 1 / math.log2(3), 0])


def test_ndcg_divides_by_the_best_that_the_first_k_can_hold():
    # Ranks 1 and 3 of the relevant {0, 2}: 1 + 1/2 over 1 + 1/log2(3).
    found = metrics.ndcg(similarities([3, 2, 1, 0]), relevance([1, 0, 1, 0]), 10)
    assert found[0] == pytest.approx(1.5 / (1 + 1 / math.log2(3)))
    # Three relevant, k = 2, both places taken: perfect.
    assert metrics.ndcg(similarities([3, 2, 1, 0]), relevance([1, 1, 1, 0]), 2)[0] == pytest.approx(1)


def test_recall_counts_all_relevant_documents():
    found = metrics.recall(similarities([4, 3, 2, 1], [1, 2, 3, 4]), relevance([1, 0, 1, 1], [1, 0, 0, 0]), 2)
    assert found.tolist() == pytest.approx([1 / 3, 0])


def test_a_tie_keeps_the_order_of_the_documents():
    assert metrics.ndcg(similarities([0, 0]), relevance([0, 1]))[0] == pytest.approx(1 / math.log2(3))


def test_a_query_without_a_relevant_document_is_an_error():
    with pytest.raises(ValueError, match="query 1 has no relevant document"):
        metrics.recall(similarities([1, 2], [1, 2]), relevance([1, 0], [0, 0]))


def test_ranks_share_among_equals():
    assert metrics.ranks(np.array([10, 20, 10, 30])).tolist() == [0.5, 2, 0.5, 3]


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        ([1, 4, 9, 16, 25], 1.0),  # any rising function
        ([5, 4, 3, 2, 1], -1.0),
        ([2, 1, 4, 3, 5], 1 - 6 * 4 / (5 * 24)),  # 1 - 6 sum d^2 / (n (n^2 - 1))
        ([7, 7, 7, 7, 7], 0.0),
    ],
)
def test_spearman(b, expected):
    assert metrics.spearman(np.array([1, 2, 3, 4, 5]), np.array(b)).value == pytest.approx(expected)


def test_spearman_with_ties_is_pearsons_of_the_shared_ranks():
    # Ranks 0.5 0.5 2 and 0 1.5 1.5: covariance 0.75 of variances 1.5 and 1.5.
    assert metrics.spearman(np.array([1, 1, 2]), np.array([1, 2, 2])).value == pytest.approx(0.5)


def test_v_measure():
    truth = np.array([0, 0, 1, 1])
    assert metrics.v_measure(truth, np.array([5, 5, 2, 2])) == pytest.approx(1)  # names do not matter
    assert metrics.v_measure(truth, np.array([0, 0, 0, 0])) == 0  # complete, nothing told apart
    assert metrics.v_measure(truth, np.array([0, 1, 0, 1])) == pytest.approx(0)
    # Every text alone: pure, and ln 2 of ln 4 complete.
    assert metrics.v_measure(truth, np.array([0, 1, 2, 3])) == pytest.approx(2 * 0.5 / 1.5)


def test_clusterings_take_the_mean_of_their_runs():
    truth = np.array([0, 0, 1, 1] * 5)
    score = metrics.clusterings(truth, [truth, np.zeros_like(truth)])
    assert score.value == pytest.approx(0.5)
    assert score.error > 0.3  # one run of two drawn again: 0, a half or 1


def test_the_error_of_a_mean_is_that_of_theory():
    units = np.array([0, 1] * 200)
    score = metrics.mean(units)
    assert score.value == 0.5
    assert score.error == pytest.approx(0.5 / math.sqrt(400), rel=0.1)


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    units = rng.random(300)
    gap = metrics.mean(units + 0.01).minus(metrics.mean(units))
    assert gap.value == pytest.approx(0.01)
    assert gap.error < 1e-12 < metrics.mean(units).error


def clouds(per_class, seed, spread=0.1):
    """Unit vectors around three corners, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    x = np.eye(3, 8)[labels] + spread * rng.standard_normal((3 * per_class, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("fit", [probes.linear_probe, probes.neighbours])
def test_classes_that_lie_apart_are_told_apart(fit):
    (x, labels), (y, wanted) = clouds(20, 1), clouds(30, 2)
    assert (fit(x, labels, y) == wanted).all()


def test_the_probe_is_linear_and_the_neighbours_are_not():
    # An exclusive or: no line divides it.
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]]) / np.sqrt(2)
    x = np.repeat(corners, 20, axis=0).astype(np.float32)
    labels = np.repeat([0, 0, 1, 1], 20)
    assert (probes.neighbours(x, labels, x) == labels).all()
    assert (probes.linear_probe(x, labels, x) == labels).mean() <= 0.75


def test_the_probe_stands_where_the_gradient_of_its_loss_is_zero():
    """Points at -1 and 1, one of each class, weights -w and w: mean loss ln(1 + exp(-2 w)), penalty decay w^2."""
    x = np.array([[-1.0], [1.0]], np.float32)
    (low, high), intercept = probes.softmax_regression(x, np.array([0, 1]), decay=0.1)
    assert high == pytest.approx(-low)
    assert 0.1 * high == pytest.approx(1 / (1 + math.exp(2 * high)), rel=1e-3)
    assert intercept == pytest.approx([0, 0], abs=1e-9)


def test_one_neighbour_decides_alone_and_ten_vote():
    x = np.array([[1, 0], [0.8, 0.6], [0.8, 0.6]], np.float32)
    labels, asked = np.array([0, 1, 1]), np.array([[1, 0]], np.float32)
    assert probes.neighbours(x, labels, asked, k=1).tolist() == [0]
    assert probes.neighbours(x, labels, asked, k=3).tolist() == [1]  # 0.8 + 0.8 > 1


def test_k_means_finds_the_clouds_and_repeats_itself():
    x, labels = clouds(20, 3, spread=0.03)
    found = probes.k_means(x, 3, seed=4)
    assert metrics.v_measure(labels, found) == pytest.approx(1)
    assert np.array_equal(found, probes.k_means(x, 3, seed=4))


def test_k_means_takes_more_clusters_than_different_points():
    x = np.repeat(np.eye(2, dtype=np.float32), 3, axis=0)
    assert metrics.v_measure(np.repeat([0, 1], 3), probes.k_means(x, 4, seed=0)) == pytest.approx(1)


def test_bm25_by_hand():
    data = datasets.Retrieval(["red planet", "no"], ["red red", "planet of dust"], relevance([1, 0], [0, 1]))
    idf = math.log(1 + 1.5 / 1.5)
    # Lengths 2 and 3, mean 2.5; k1 0.9, b 0.4.
    first = 2 * 1.9 / (2 + 0.9 * (0.6 + 0.4 * 2 / 2.5)) * idf
    second = 1 * 1.9 / (1 + 0.9 * (0.6 + 0.4 * 3 / 2.5)) * idf
    assert rivals.bm25(data) == pytest.approx(np.array([[first, second], [0, 0]]), rel=1e-5)


def test_words_of_scripts_without_spaces_are_pairs_of_characters():
    assert rivals.words("Die Größe: 3,5 m") == ["die", "größe", "3", "5", "m"]
    assert rivals.words("黑豹队3分") == ["黑豹", "豹队", "3", "分"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("xquad-de", "retrieval"), ("xquad-de-zh", "retrieval"), ("cranfield", "retrieval"), ("sts", "text-matching"),
     ("banking77", "classification"), ("xquad-articles", "clustering")],
)  # fmt: skip
def test_every_set_has_a_task(name, kind):
    assert datasets.kind_of(name) == kind


def test_an_unknown_set_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown set 'xquad-fr'\. Known: xquad-en, .*cranfield"):
        datasets.kind_of("xquad-fr")


def test_data_that_is_not_there_says_how_to_point_at_it(monkeypatch, tmp_path):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "none"))
    missing = r"missing in .*none: retrieval/xquad/corpus\.en\.jsonl\.gz, .* Set BENCH_DATA"
    with pytest.raises(FileNotFoundError, match=missing):
        datasets.retrieval("xquad-en")


@pytest.mark.parametrize(
    ("mine", "said"),
    [(0.9, "best, by +0.100 ± 0.000 over clustering"), (0.7, "BEHIND clustering: -0.100 ± 0.000")],
)
def test_the_verdict_on_an_adapter_without_noise(mine, said):
    draws = np.zeros(metrics.DRAWS)
    key = ("sts", "Spearman")
    scores = {task: {key: metrics.Score(value, draws + value)}
              for task, value in (("text-matching", mine), ("clustering", 0.8), ("retrieval", 0.1))}  # fmt: skip
    assert quality.verdict("sts", "Spearman", scores) == said


def test_the_verdict_allows_two_standard_errors():
    noise = np.random.default_rng(0).standard_normal(metrics.DRAWS) * 0.06
    key = ("sts", "Spearman")
    scores = {"text-matching": {key: metrics.Score(0.7, 0.7 + noise)},
              "clustering": {key: metrics.Score(0.8, np.full(metrics.DRAWS, 0.8))}}  # fmt: skip
    assert quality.verdict("sts", "Spearman", scores).startswith("within noise of clustering: -0.100 ± 0.05")


@pytest.mark.mlx
def test_without_prompts_means_no_prompt_at_all(tmp_path):
    from jina_local import load

    with load(tiny.write(tmp_path / "nano", "nano"), backend="mlx", task="retrieval") as model:
        plain = {name: model.tokenize("Mars", prompt_name=name)[0].tolist() for name in ("query", "document")}
        encode = measure.Vectors(model).encoder("retrieval", "none")
        bare = model.tokenize("Mars", prompt_name="none")[0].tolist()
        assert len(bare) < len(plain["query"])
        assert plain["query"][-len(bare) + 1 :] != bare  # no trailing space of a prompt joined to the word
        assert (encode(["Query: Mars"], "document")[0] == model.encode("Mars", prompt_name="query")).all()
        assert np.allclose(encode(["Mars"], "query"), encode(["Mars"], "document"))


@pytest.mark.mlx
def test_a_text_is_encoded_once_a_prompt_and_comes_back_in_order(tmp_path):
    from jina_local import load

    with load(tiny.write(tmp_path / "nano", "nano"), backend="mlx", task="retrieval") as model:
        held = measure.Vectors(model)
        found = held(["a b", "c", "a b"], "retrieval", "query")
        assert (found[0] == found[2]).all()
        alone = model.encode(["c"], prompt_name="query")[0]
        assert found[1] @ alone == pytest.approx(1, abs=1e-6)
        # Not asked of the model again: it is closed.
        model.close()
        assert (held(["c", "a b"], "retrieval", "query") == found[[1, 0]]).all()
