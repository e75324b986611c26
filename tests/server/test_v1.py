"""Jina's and OpenAI's API: the vectors are those of the Python API, and what is not understood is refused."""

from __future__ import annotations

import base64
import random
from types import SimpleNamespace

import numpy as np
import pytest

from jina_local.server.dialects.fields import BadField
from jina_local.server.served import _as_text
from jina_local.text.tokenizer import Tokenizer
from tests import tiny

TEXTS = ["hello world", "Mars is called the Red Planet.", "Röntgen, 火星, 🚀"]


def embed(server, **body):
    return server.post("/v1/embeddings", {"model": "pico", "input": TEXTS, **body})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, {"task": "text-matching"}),
        ({"task": "retrieval.passage"}, {"task": "retrieval", "prompt_name": "document"}),
        ({"task": "retrieval.query"}, {"task": "retrieval", "prompt_name": "query"}),
        ({"task": "clustering", "dimensions": 64}, {"task": "clustering", "truncate_dim": 64}),
        ({"model": "pico:query"}, {"task": "retrieval", "prompt_name": "query"}),
        ({"model": "jinaai/pico:clustering"}, {"task": "clustering"}),
        ({"task": "retrieval", "prompt_name": "query"}, {"task": "retrieval", "prompt_name": "query"}),
        ({"task": "retrieval.query", "normalized": False}, {"task": "retrieval.query", "normalize": False}),
    ],
)
def test_the_vectors_are_those_of_the_python_api(server, model, body, words):
    found = embed(server, **body)
    expected = model.encode(TEXTS, **words)
    vectors = np.array([one["embedding"] for one in found["data"]], np.float32)
    assert np.array_equal(vectors, expected)
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    assert found["truncated"] == []
    assert found["task"] == words["task"].partition(".")[0]


def test_forms_of_a_vector(server, model):
    expected = model.encode(TEXTS, task="clustering")
    raw = [
        base64.b64decode(one["embedding"])
        for one in embed(server, task="clustering", encoding_format="base64")["data"]
    ]
    assert np.array_equal(np.frombuffer(b"".join(raw), "<f4").reshape(3, -1), expected)
    for form in ("binary", "ubinary"):
        found = embed(server, task="clustering", embedding_type=form)["data"]
        assert [one["embedding"] for one in found] == model.encode(TEXTS, task="clustering", precision=form).tolist()


def test_usage_counts_the_text_and_not_the_prompt(server, model):
    counts = [len(model.tokenizer.ids(text)) for text in TEXTS]
    assert embed(server, task="retrieval.query")["usage"] == {
        "prompt_tokens": sum(counts),
        "total_tokens": sum(counts),
    }


def test_ids_of_the_models_own_tokenizer_are_the_text(server, model):
    ids = [model.tokenizer.ids(text) for text in TEXTS]
    expected = embed(server, task="clustering")["data"]
    assert embed(server, task="clustering", input=ids)["data"] == expected
    (alone,) = embed(server, task="clustering", input=ids[0])["data"]
    np.testing.assert_allclose(alone["embedding"], expected[0]["embedding"], atol=1e-6)  # in other company


@pytest.mark.parametrize("ids", [[9906, 1917, 99999999], [-1], [104, 101, 108, 108, 111, 220, 220], [9906]])
def test_ids_of_another_tokenizer_are_refused(server, ids):
    status, found, _ = server.ask("POST", "/v1/embeddings", {"model": "pico", "input": ids})
    assert status == 400
    assert found["error"]["param"] == "input[0]"
    assert "check_embedding_ctx_length=False" in found["error"]["message"]


def test_ids_without_the_models_special_tokens_may_be_of_another_tokenizer(server, model):
    """Of ids drawn at random, most single ones and many short runs are ids of some text."""
    rng = random.Random(0)
    for length in (1, 1, 1, 2, 2, 3, 5, 8):
        ids = [rng.randrange(16_000) for _ in range(length)]
        assert server.ask("POST", "/v1/embeddings", {"model": "pico", "input": ids})[0] == 400
    plain = model.tokenizer.plain(TEXTS)
    assert server.ask("POST", "/v1/embeddings", {"model": "pico", "input": plain})[0] == 400


def test_a_model_without_special_tokens_takes_no_ids():
    tokenizer = Tokenizer(tiny.tokenizer("small").to_str(), "here")
    assert (tokenizer.opening, tokenizer.closing) == ([], [])
    model = SimpleNamespace(tokenizer=tokenizer, spec=SimpleNamespace(name="small"))
    with pytest.raises(BadField, match="no special tokens to know them by"):
        _as_text(model, 0, tokenizer.ids("hello world"))


LONG = "word " * 5000


def test_a_text_that_is_too_long_is_refused_or_cut_and_said(server, model):
    body = {"model": "pico", "input": ["short", LONG], "task": "clustering"}
    status, found, _ = server.ask("POST", "/v1/embeddings", body)
    assert (status, found["error"]["type"], found["error"]["param"]) == (422, "input_too_long", "input[1]")
    status, found, headers = server.ask("POST", "/v1/embeddings", {**body, "truncate": True})
    assert (status, found["truncated"], headers["x-truncated"]) == (200, [1], "1")
    expected = model.encode(["short", LONG], task="clustering", overflow="truncate")
    assert np.array_equal(np.array([one["embedding"] for one in found["data"]], np.float32), expected)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"input": "a", "foo": 1}, 400, "foo", "is not known here"),
        ({"input": "a", "dimension": 64}, 400, "dimension", "did you mean 'dimensions'"),
        ({"input": "a", "dimensions": 77}, 400, None, "77"),
        ({"input": "a", "dimensions": "64"}, 400, "dimensions", "expected a whole number"),
        ({"input": []}, 400, "input", "is empty"),
        ({"input": [["a"]]}, 400, "input[0]", "is a list"),
        ({"input": ["a", None]}, 400, "input[1]", "is null"),
        ({"input": "a\ud800"}, 400, "input[0]", "surrogate"),
        ({}, 400, "input", "is missing"),
        ({"input": "a", "task": "retrieval"}, 400, "task", "retrieval.query and retrieval.passage"),
        ({"input": "a", "task": "classificaton"}, 400, "task", "did you mean 'classification'"),
        ({"input": "a", "model": "pico:foo"}, 404, "model", "after its colon"),
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "model", "In service: pico"),
        ({"input": "a", "model": "pico:query", "task": "clustering"}, 400, "model", "give one"),
        ({"input": "a", "embedding_type": ["float"]}, 400, "embedding_type", "Possible: float"),
        ({"input": "a", "truncate": 1}, 400, "truncate", "expected true or false"),
        ({"input": "a", "late_chunking": True}, 400, None, "late"),
        ({"input": ["a"] * 3000}, 422, "input", "2048 are allowed"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_field(server, body, status, param, words):
    found_status, found, headers = server.ask("POST", "/v1/embeddings", {"model": "pico", **body})
    assert found_status == status, found
    assert found["error"]["param"] == param
    assert words in found["error"]["message"]
    assert found["detail"] == found["error"]["message"]
    assert found["error"]["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not JSON"),
        (b'{"input": NaN}', "NaN"),
        (b'{"input": "a", "input": "b"}', "twice"),
        (b'{"input": "\xff"}', "UTF-8"),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"input": ' + b"[" * 17 + b"]" * 17 + b"}", "deep"),
        (b'{"input": [' + b"1" * 30 + b"]}", "30 digits"),
        (b"[]", "a list"),
        (b'"' + b'\\"' * 100_000, "not JSON"),
    ],
)
def test_json_is_strict(server, raw, words):
    status, found, _ = server.ask("POST", "/v1/embeddings", raw)
    assert status == 400
    assert words in found["error"]["message"]


def test_a_ranking_by_an_embedding_model_is_its_cosine(server, model):
    found = server.post("/v1/rerank", {"model": "pico", "query": "red planet", "documents": TEXTS, "top_n": 2})
    expected = model.rerank("red planet", TEXTS, top_n=2)
    assert [one["index"] for one in found["results"]] == [one.index for one in expected]
    assert [one["relevance_score"] for one in found["results"]] == pytest.approx(
        [one.score for one in expected], abs=1e-8
    )
    assert [one["document"]["text"] for one in found["results"]] == [one.document for one in expected]
    assert found["scoring"] == "cosine"


def test_no_reranker_is_said(server):
    status, found, _ = server.ask("POST", "/v1/rerank", {"query": "a", "documents": ["b"]})
    assert (status, found["error"]["type"]) == (404, "model_not_found")
    assert "no reranker" in found["error"]["message"]


def test_labels(server):
    body = {"model": "pico", "input": ["Mars is a planet.", "Bread needs yeast."], "labels": ["astronomy", "baking"]}
    found = server.post("/v1/classify", body)
    assert [one["prediction"] for one in found["data"]] == ["astronomy", "baking"]
    for one in found["data"]:
        assert sum(label["score"] for label in one["predictions"]) == pytest.approx(1)
        assert one["score"] == max(label["score"] for label in one["predictions"])


def test_models(server):
    (listed,) = server.ask("GET", "/v1/models")[1]["data"]
    assert (listed["id"], listed["dimensions"], listed["pooling"], listed["weights"]) == (
        "pico",
        [32, 64, 128, 256],
        "last",
        "F16",
    )
    assert server.ask("GET", "/v1/models/jinaai/pico")[1] == listed
    assert server.ask("GET", "/v1/models/none")[0] == 404


def test_paths_and_methods(server):
    assert server.ask("GET", "/health")[1]["status"] == "ok"
    assert server.ask("GET", "/ready")[1]["ready"] is True
    assert server.ask("GET", "/nope")[1]["error"]["type"] == "not_found"
    assert server.ask("GET", "/v1/embeddings")[0] == 405
    assert 'jina_local_requests_total{route="/v1/models",status="200"}' in server.ask("GET", "/metrics")[1]
