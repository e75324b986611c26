"""The description of the API: its fields are those that are read and written, and answers are as it says."""

from __future__ import annotations

import pytest

from .conftest import serving

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install 'jina_local[dev]'")

CALLS = [
    ("/v1/embeddings", {"input": ["a", {"text": "b"}], "task": "retrieval.query"}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("/v1/embeddings", {"input": [9906, 1917], "embedding_type": "binary"}),
    ("/v1/embeddings", {"input": "a", "dimensions": 64, "normalized": False, "truncate": None}),
    ("/v1/rerank", {"model": "pico", "query": "a", "documents": ["b", "c"]}),
    ("/v1/rerank", {"model": "pico", "query": "a", "documents": ["b"], "return_documents": False, "top_n": 1}),
    ("/v1/classify", {"input": ["a"], "labels": ["b", "c"]}),
    ("/v1/embeddings", {"input": []}),
    ("/v1/embeddings", {}),
    ("/v1/embeddings", {"input": "a", "dimensions": 0}),
    ("/v1/embeddings", {"input": "a", "foo": 1}),
    ("/v1/classify", {"input": ["a"], "labels": ["b"], "truncate": "yes"}),
    ("/api/embed", {"model": "pico", "input": "a", "options": {"num_ctx": 9, "seed": 1}, "keep_alive": "5m"}),
    ("/api/embed", {"model": "pico", "input": "a", "options": {"num_ctx": 9, "mouse": 1}}),
    ("/api/embed", {"input": "a"}),
    ("/api/embeddings", {"model": "pico", "prompt": "a"}),
    ("/api/embeddings", {"model": "pico", "prompt": ["a"]}),
    ("/api/show", {"model": "pico"}),
    ("/api/show", {"name": "pico", "verbose": None}),
    ("/api/show", {}),
    ("/embed", {"inputs": ["a"], "truncation_direction": "Right"}),
    ("/embed", {"inputs": ["a"], "truncation_direction": "up"}),
    ("/rerank", {"model": "pico", "query": "a", "texts": ["b"], "raw_scores": True}),
    ("/rerank", {"model": "pico", "query": "a", "documents": ["b"]}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": None}),
    ("/similarity", {"inputs": {"source_sentence": "a"}}),
    ("/similarity", {"inputs": ["a"]}),
    ("/tokenize", {"inputs": "a", "add_special_tokens": False}),
    ("/tokenize", {"inputs": "a", "add_special_tokens": 1}),
    ("/library/embed", {"texts": [], "precision": "int8", "truncate_dim": 32}),
    ("/library/embed", {"texts": "a"}),
    ("/library/embed", {"texts": ["a"], "normalize": "yes"}),
    ("/library/space", {"task": "retrieval", "prompt_name": "query"}),
    ("/library/space", {"texts": []}),
    ("/library/rerank", {"model": "pico", "query": "a", "documents": ["b"], "top_n": 1}),
    ("/library/rerank", {"model": "pico", "query": "a", "documents": ["b"], "window": 1}),
]
SEARCHES = [
    ({"query": "a", "lang": "en", "path": ["*.md"], "min_score": 0, "rerank": None, "mode": "lexical"}, True),
    ({"query": "a", "rerank": "pico", "min_score": -0.5}, True),
    ({"query": "a", "mode": "both"}, False),
    ({"query": "a", "lang": [1]}, False),
    ({"query": "a", "rerank": 1}, False),
    ({"query": "a", "min_score": "0"}, False),
    ({"query": "a", "index": 1}, False),
    ({"k": 3}, False),
]
ENDPOINT = {"service": "jina_local", "service_settings": {"model_id": "pico"}}
ENDPOINTS = [
    (ENDPOINT, 200),
    (ENDPOINT | {"chunking_settings": {"strategy": "word", "overlap": 5}, "task_settings": None}, 200),
    (ENDPOINT | {"chunking_settings": {"strategy": "sentence", "sentence_overlap": 0}}, 200),
    (ENDPOINT | {"service_settings": {"model_id": "pico", "element_type": "bit", "api_key": "a"}}, 200),
    (ENDPOINT | {"chunking_settings": {"strategy": "recursive"}}, 400),
    (ENDPOINT | {"service_settings": {"model_id": "pico", "similarity": "dot"}}, 400),
    (ENDPOINT | {"task_settings": {"top_k": 3}}, 400),
    (ENDPOINT | {"service": None}, 400),
    ({"service": "jina_local"}, 400),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a home of its own, because made-up requests make inference endpoints."""
    with serving(JINA_LOCAL_HOME=str(tmp_path_factory.mktemp("home"))) as running:
        yield running


@pytest.fixture(scope="module")
def document(server):
    status, found, _ = server.ask("GET", "/openapi.json")
    assert (status, found["openapi"]) == (200, "3.1.0")
    return found


def test_all_paths_are_there(document):
    assert {"/v1/embeddings", "/v1/rerank", "/v1/models/{model_id}", "/health", "/metrics"} <= set(document["paths"])


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_what_is_sent_and_answered_is_as_described(server, document, path, body):
    operation = document["paths"][path]["post"]
    status, found, _ = server.ask("POST", path, body)
    answer = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    jsonschema.validate(found, answer)
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    fits = jsonschema.Draft202012Validator(schema).is_valid(body)
    assert fits == (status == 200) or (path == "/v1/embeddings" and "embedding_type" in body)


def body_of(document, path, method="post"):
    """What a body of a path may be."""
    content = document["paths"][path][method]["requestBody"]["content"]
    return jsonschema.Draft202012Validator(content["application/json"]["schema"])


@pytest.mark.parametrize(("body", "fits"), SEARCHES)
def test_a_question_is_as_described(server, document, body, fits):
    status, found, _ = server.ask("POST", "/v1/search", body)
    assert body_of(document, "/v1/search").is_valid(body) == fits
    assert status == (404 if fits else 400), found  # there is no index, nor a reranker, to be found


@pytest.mark.parametrize(("body", "status"), ENDPOINTS)
def test_an_inference_endpoint_is_as_described(server, document, body, status):
    found = server.ask("PUT", "/_inference/text_embedding/made", body)
    server.ask("DELETE", "/_inference/made")
    assert found[0] == status, found
    assert body_of(document, "/_inference/{task_type}/{inference_id}", "put").is_valid(body) == (status == 200)


@pytest.mark.parametrize(
    ("task", "body", "status"),
    [
        ("text_embedding", {"input": ["a"], "input_type": "search"}, 200),
        ("text_embedding", {"input": ["a"], "task_settings": {"late_chunking": 1}}, 400),
        ("rerank", {"input": ["a"], "query": "b", "return_documents": True, "task_settings": {"top_n": 1}}, 200),
        ("rerank", {"input": ["a"], "query": "b", "top_n": 0}, 400),
    ],
)
def test_a_call_on_an_inference_endpoint_is_as_described(server, document, task, body, status):
    server.ask("PUT", f"/_inference/{task}/asked", ENDPOINT)
    found = server.ask("POST", "/_inference/asked", body)
    server.ask("DELETE", "/_inference/asked")
    assert found[0] == status, found
    assert body_of(document, "/_inference/{inference_id}").is_valid(body) == (status == 200)


def test_no_body_is_described_as_anything(document):
    bodies = [
        (path, method, one["requestBody"]["content"]["application/json"]["schema"])
        for path, methods in document["paths"].items()
        for method, one in methods.items()
        if "requestBody" in one
    ]
    assert len(bodies) > 15
    for path, method, schema in bodies:
        for one in schema.get("anyOf", [schema]):
            assert one.get("properties") or schema.get("properties"), (path, method)


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready"])
def test_what_is_got_is_as_described(server, document, path):
    status, found, _ = server.ask("GET", path)
    answer = document["paths"][path]["get"]["responses"][str(status)]["content"]["application/json"]["schema"]
    jsonschema.validate(found, answer)


def test_names_of_one_field_have_one_schema(document):
    content = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    assert schema["required"] == ["input"]
    assert schema["additionalProperties"] is False
    fields = schema["properties"]
    assert fields["dimensions"] == fields["truncate_dim"] == {"type": ["integer", "null"], "minimum": 1}
    assert fields["encoding_format"] == {"enum": ["float", "base64", "binary", "ubinary", None]}


@pytest.mark.sampled
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
@pytest.mark.parametrize("examples", [12, pytest.param(700, marks=pytest.mark.slow)])
def test_no_made_up_request_is_a_server_error(server, examples, mode):
    """Requests that fit the description, and such that do not: each is answered, and as described."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
              checks.response_schema_conformance, checks.response_headers_conformance]  # fmt: skip
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
        def check(case):
            nonlocal count
            count += 1
            case.headers.pop("X-Timeout", None)  # a short one is a 504, rightly
            case.call_and_validate(checks=wanted)

        if mode == "POSITIVE" or operation.body:  # others cannot be wrong
            check()
    assert count > 30
