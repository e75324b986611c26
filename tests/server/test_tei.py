"""The dialect of Text Embeddings Inference: the vectors and scores are those of the Python API."""

from __future__ import annotations

import numpy as np
import pytest

from jina_local.server.dialects import tei
from jina_local.server.dialects.calls import RankedDocument, Ranking
from jina_local.server.dialects.fields import BadField

TEXTS = ["hello world", "Mars is called the Red Planet.", "Röntgen, 火星, 🚀"]
LONG = "word " * 5000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, {"task": "text-matching"}),
        ({"prompt_name": "query"}, {"task": "retrieval", "prompt_name": "query"}),
        ({"prompt_name": "passage"}, {"task": "retrieval", "prompt_name": "document"}),
        ({"prompt_name": "retrieval.query"}, {"task": "retrieval", "prompt_name": "query"}),
        ({"prompt_name": "clustering", "dimensions": 32}, {"task": "clustering", "truncate_dim": 32}),
        ({"model": "pico:classification"}, {"task": "classification"}),
        ({"normalize": False}, {"task": "text-matching", "normalize": False}),
        ({"truncate": True, "truncation_direction": "Right"}, {"task": "text-matching"}),
    ],
)
def test_the_vectors_are_those_of_the_python_api(server, model, body, words):
    found = server.post("/embed", {"inputs": TEXTS, **body})
    assert np.array_equal(np.array(found, np.float32), model.encode(TEXTS, **words))


def test_one_text_is_a_list_of_one_and_ids_are_their_text(server, model):
    expected = model.encode(TEXTS[:1], task="text-matching")
    for inputs in (TEXTS[0], model.tokenizer.ids(TEXTS[0])):
        assert np.array_equal(np.array(server.post("/embed", {"inputs": inputs}), np.float32), expected)


@pytest.mark.slow
def test_a_text_that_is_too_long_is_refused_or_cut_and_said(server, model):
    status, found, _ = server.ask("POST", "/embed", {"inputs": [LONG]})
    assert (status, found["error_type"]) == (422, "Validation")
    status, found, headers = server.ask("POST", "/embed", {"inputs": ["a", LONG], "truncate": True})
    assert (status, headers["x-truncated"]) == (200, "1")
    expected = model.encode(["a", LONG], task="text-matching", overflow="truncate")
    assert np.array_equal(np.array(found, np.float32), expected)


def test_a_ranking(server, model):
    body = {"model": "pico", "query": "red planet", "texts": TEXTS}
    expected = [{"index": one.index, "score": one.score} for one in model.rerank("red planet", TEXTS)]
    assert server.post("/rerank", body) == expected
    assert server.post("/rerank", {**body, "raw_scores": True}) == expected  # a cosine is its own raw score
    with_texts = server.post("/rerank", {**body, "return_text": True})
    assert with_texts == [{**one, "text": TEXTS[one["index"]]} for one in expected]


@pytest.mark.slow
def test_a_text_of_a_ranking_is_cut_only_if_it_may_be(server):
    body = {"model": "pico", "query": "red planet", "texts": ["a", LONG]}
    status, found, _ = server.ask("POST", "/rerank", body)
    assert status == 422
    assert "documents[1]" in found["error"]
    status, found, _ = server.ask("POST", "/rerank", {**body, "query": LONG, "texts": ["a"]})
    assert (status, found["error"].partition(" ")[0]) == (422, "query")
    body = {"model": "pico", "query": LONG, "texts": ["a", LONG], "truncate": True}
    assert server.ask("POST", "/rerank", body)[2]["x-truncated"] == "query,1"


@pytest.mark.parametrize(("scoring", "possible"), [("pairwise", False), ("listwise", True), ("cosine", True)])
def test_raw_scores_are_given_where_there_are_any(scoring, possible):
    call, raw = tei.read_rerank({"query": "a", "texts": ["b", "c"], "raw_scores": True})
    ranking = Ranking("m", [RankedDocument(1, 0.75, "c"), RankedDocument(0, 0.5, "b")], 9, [], False, [], scoring)
    plain = [{"index": 1, "score": 0.75}, {"index": 0, "score": 0.5}]
    assert tei.write_rerank(call, False, ranking) == plain
    if possible:
        assert tei.write_rerank(call, raw, ranking) == plain
    else:
        with pytest.raises(BadField, match="logits"):
            tei.write_rerank(call, raw, ranking)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (None, {"task": "text-matching"}),
        ({"prompt_name": "clustering", "truncate": True}, {"task": "clustering"}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
    ],
)
def test_similarity(server, model, parameters, words):
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = server.post("/similarity", {"inputs": inputs, "parameters": parameters})
    vectors = model.encode(TEXTS, **words)
    assert found == pytest.approx(model.similarity(vectors[:1], vectors)[0].tolist(), abs=1e-6)
    assert found[0] == pytest.approx(1, abs=1e-6)


def test_tokens_are_those_that_the_model_reads(server, model):
    found = server.post("/tokenize", {"inputs": TEXTS})
    assert [[one["id"] for one in tokens] for tokens in found] == [model.tokenizer.ids(text) for text in TEXTS]
    for text, tokens in zip(TEXTS, found, strict=True):
        raw = text.encode()
        own = [one for one in tokens if not one["special"]]
        assert all(raw[one["start"] : one["stop"]].decode() == one["text"] for one in own)
        # Tokens of parts of a character have the place of the whole character.
        assert {at for one in own for at in range(one["start"], one["stop"])} == set(range(len(raw)))
        assert [one["special"] for one in tokens] == [False] * (len(tokens) - 1) + [True]
    (bare,) = server.post("/tokenize", {"inputs": TEXTS[0], "add_special_tokens": False})
    assert [one["id"] for one in bare] == model.tokenizer.plain(TEXTS[:1])[0]
    for asked in ({"prompt_name": "query"}, {"model": "pico:query"}, {"prompt_name": "retrieval.query"}):
        (tokens,) = server.post("/tokenize", {"inputs": TEXTS[0], **asked})
        expected = model.tokenize(TEXTS[:1], prompt_name="query")[0]
        assert [one["id"] for one in tokens] == expected.tolist()


def test_info(server):
    found = server.ask("GET", "/info")[1]
    assert (found["model_id"], found["max_input_length"]) == ("pico", 2048)
    assert found["model_type"] == {"embedding": {"pooling": "last_token"}}
    assert found["auto_truncate"] is False


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/embed", {"inputs": "a", "prompt_name": "foo"}, 400, "Possible: retrieval"),
        ("/embed", {"inputs": "a", "prompt_name": "retrieval"}, 400, "retrieval.query and retrieval.passage"),
        ("/embed", {"inputs": "a", "prompt_name": "query", "model": "pico:query"}, 400, "give one"),
        ("/embed", {"input": "a"}, 400, "inputs: is missing"),
        ("/embed", {"inputs": []}, 400, "is empty"),
        ("/embed", {"inputs": [104, 101, 220, 220]}, 400, "not surely those of pico's tokenizer"),
        ("/embed", {"inputs": "a", "truncate": True, "truncation_direction": "Left"}, 400, "cut at their end"),
        ("/embed", {"inputs": "a", "dimensions": 7}, 400, "7"),
        ("/rerank", {"query": "a", "texts": ["b"]}, 404, "no reranker"),
        ("/rerank", {"model": "pico", "query": "a"}, 400, "texts: is missing"),
        ("/similarity", {"inputs": "a"}, 400, "inputs: is a string; expected an object"),
        ("/similarity", {"inputs": {"source_sentence": "a"}}, 400, "sentences: is missing"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"x": 1}}, 400, "x: "),
        ("/tokenize", {"inputs": "a" * 200_000}, 422, "characters"),
        ("/tokenize", {"inputs": ["a\ud800"]}, 400, "surrogate"),
        ("/info", {}, 405, "POST is not possible"),
        ("/embed", b"{", 400, "not JSON"),
    ],
)  # fmt: skip
def test_errors_have_a_kind(server, path, body, status, words):
    found_status, found, _ = server.ask("POST", path, body)
    assert (found_status, found["error_type"]) == (status, "Validation")
    assert words in found["error"]
    assert "bundled_models" not in found["error"]
