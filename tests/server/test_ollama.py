"""The dialect of Ollama: the vectors are those of the Python API, and no option changes one in silence."""

from __future__ import annotations

import numpy as np
import pytest

TEXTS = ["hello world", "Mars is called the Red Planet.", "Röntgen, 火星, 🚀"]
LONG = "word " * 5000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, {"task": "text-matching"}),
        ({"model": "pico:latest"}, {"task": "text-matching"}),
        ({"model": "pico:query"}, {"task": "retrieval", "prompt_name": "query"}),
        ({"model": "pico:document"}, {"task": "retrieval", "prompt_name": "document"}),
        ({"model": "jinaai/pico:clustering:latest"}, {"task": "clustering"}),
        ({"dimensions": 64}, {"task": "text-matching", "truncate_dim": 64}),
        ({"options": {"temperature": 0.5, "num_gpu": 9}, "keep_alive": "5m"}, {"task": "text-matching"}),
        ({"options": {"num_ctx": 5}, "keep_alive": -1}, {"task": "text-matching", "max_length": 5}),
        ({"options": {"num_ctx": 32768}}, {"task": "text-matching"}),
    ],
)
def test_the_vectors_are_those_of_the_python_api(server, model, body, words):
    body = {"model": "pico", "input": TEXTS, **body}
    found = server.post("/api/embed", body)
    assert np.array_equal(np.array(found["embeddings"], np.float32), model.encode(TEXTS, **words))
    assert found["model"] == body["model"]
    assert found["total_duration"] > 0
    assert found["load_duration"] == 0


def test_the_older_path_gives_a_vector_as_the_model_does(server, model):
    found = server.post("/api/embeddings", {"model": "pico:query", "prompt": TEXTS[1]})
    expected = model.encode(TEXTS[1], prompt_name="query", normalize=False)
    assert np.array_equal(np.array(found["embedding"], np.float32), expected)
    assert np.linalg.norm(expected) > 2


def test_one_text_is_a_list_of_one(server, model):
    found = server.post("/api/embed", {"model": "pico", "input": TEXTS[0]})
    assert np.array_equal(np.array(found["embeddings"], np.float32), model.encode(TEXTS[:1], task="text-matching"))
    assert found["prompt_eval_count"] == len(model.tokenizer.ids(TEXTS[0]))


@pytest.mark.slow
def test_a_text_that_is_too_long_is_cut_and_said_unless_the_request_says_otherwise(server, model):
    body = {"model": "pico:clustering", "input": ["short", LONG]}
    status, found, headers = server.ask("POST", "/api/embed", body)
    assert (status, found["truncated"], headers["x-truncated"]) == (200, [1], "1")
    expected = model.encode(["short", LONG], task="clustering", overflow="truncate")
    assert np.array_equal(np.array(found["embeddings"], np.float32), expected)
    status, found, _ = server.ask("POST", "/api/embed", {**body, "truncate": False})
    assert status == 422
    assert "text 1" in found["error"]
    status, found, headers = server.ask("POST", "/api/embeddings", {"model": "pico", "prompt": LONG})
    assert (status, found["truncated"], headers["x-truncated"]) == (200, [0], "0")


def test_every_name_in_the_list_can_be_asked_for(server):
    listed = server.ask("GET", "/api/tags")[1]["models"]
    assert [one["name"] for one in listed] == [
        f"pico:{tag}" for tag in ("latest", "query", "document", "text-matching", "clustering", "classification")
    ]
    for one in listed:
        server.post("/api/embed", {"model": one["name"], "input": "a"})
        assert one["size"] > 1_000_000
        assert len(one["digest"]) == 64
        assert one["details"]["quantization_level"] == "F16"


def test_show(server):
    found = server.post("/api/show", {"model": "pico:latest", "verbose": True})
    assert found["model_info"]["eurobert.embedding_length"] == 256
    assert found["model_info"]["eurobert.context_length"] == 2048
    assert found["capabilities"] == ["embedding"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/embed", {"input": "a"}, 400, "model: is missing"),
        ("/api/embed", {"model": "llama3", "input": "a"}, 404, "In service: pico"),
        ("/api/embed", {"model": "pico:7b", "input": "a"}, 404, "after its colon"),
        ("/api/embed", {"model": "pico"}, 400, "input: is missing"),
        ("/api/embed", {"model": "pico", "input": [1, 2]}, 400, "is a number"),
        ("/api/embed", {"model": "pico", "input": "a", "dimensions": 1024}, 400, "1024"),
        ("/api/embed", {"model": "pico", "input": "a", "options": {"rope_freq_base": 1}}, 400, "is not known"),
        ("/api/embed", {"model": "pico", "input": "a", "options": {"num_ctx": 0}}, 400, "num_ctx"),
        ("/api/embed", {"model": "pico", "input": "a", "options": []}, 400, "options: is a list; expected an object"),
        ("/api/embed", {"model": "pico", "input": "a", "keep_alive": {}}, 400, "keep_alive"),
        ("/api/embeddings", {"model": "pico", "input": "a"}, 400, "prompt: is missing"),
        ("/api/show", {"model": "none"}, 404, "In service: pico"),
        ("/api/pull", {"model": "pico"}, 404, "nothing at this path"),
        ("/api/tags", {}, 405, "POST is not possible"),
        ("/api/embed", b"{", 400, "not JSON"),
    ],
)
def test_errors_are_one_sentence(server, path, body, status, words):
    found_status, found, _ = server.ask("POST", path, body)
    assert (found_status, list(found)) == (status, ["error"])
    assert words in found["error"]
