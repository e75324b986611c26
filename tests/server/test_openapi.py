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
