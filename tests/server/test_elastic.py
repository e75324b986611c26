"""Elastic's inference API: endpoints are kept, input types are tasks, and the vectors are those of the Python API."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from jina_local.text import word_chunks

from .conftest import serving

TEXTS = ["hello world", "Mars is called the Red Planet.", "Röntgen, 火星, 🚀"]
LONG = " ".join(f"This is sentence number {n} of the text." for n in range(30))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def elastic(home):
    """A server whose endpoints nobody else has."""
    with serving(JINA_LOCAL_HOME=str(home)) as running:
        yield running


@pytest.fixture
def endpoint(elastic):
    """Make an endpoint that is gone after the test."""
    made = []

    def make(task="text_embedding", name="e1", chunking=None, tasks=None, **settings):
        body = {"service": "jinaai", "service_settings": {"model_id": "pico", **settings}, "task_settings": tasks}
        if chunking is not None:
            body["chunking_settings"] = chunking
        status, found, _ = elastic.ask("PUT", f"/_inference/{task}/{name}", body)
        assert status == 200, found
        made.append(name)
        return found

    yield make
    for name in made:
        elastic.ask("DELETE", f"/_inference/{name}")


def embed(elastic, inputs, name="e1", key="text_embedding", **body):
    found = elastic.post(f"/_inference/text_embedding/{name}", {"input": inputs, **body})
    assert list(found) == [key]
    return [one["embedding"] for one in found[key]]


@pytest.mark.parametrize(
    ("input_type", "words"),
    [
        (None, {"task": "text-matching"}),
        ("ingest", {"task": "retrieval", "prompt_name": "document"}),
        ("SEARCH", {"task": "retrieval", "prompt_name": "query"}),
        ("classification", {"task": "classification"}),
        ("clustering", {"task": "clustering"}),
    ],
)
@pytest.mark.sampled
def test_input_types_are_tasks(elastic, model, endpoint, input_type, words):
    endpoint()
    expected = model.encode(TEXTS, **words)
    assert np.array_equal(np.array(embed(elastic, TEXTS, input_type=input_type), np.float32), expected)
    in_settings = embed(elastic, TEXTS, task_settings={"input_type": input_type})
    assert np.array_equal(np.array(in_settings, np.float32), expected)


def test_the_request_overrules_its_settings_and_these_the_endpoints(elastic, model, endpoint):
    endpoint(tasks={"input_type": "search"}, dimensions=64)
    queries, documents = (model.encode(TEXTS, prompt_name=p, truncate_dim=64) for p in ("query", "document"))
    assert np.array_equal(np.array(embed(elastic, TEXTS), np.float32), queries)
    settings = {"task_settings": {"input_type": "ingest"}}
    assert np.array_equal(np.array(embed(elastic, TEXTS, **settings), np.float32), documents)
    assert np.array_equal(np.array(embed(elastic, TEXTS, input_type="search", **settings), np.float32), queries)


@pytest.mark.parametrize(
    ("element", "key", "precision", "dimensions"),
    [
        ("float", "text_embedding", "float32", 256),
        ("byte", "text_embedding_bytes", "int8", 256),
        ("bit", "text_embedding_bits", "binary", 256),
        ("binary", "text_embedding_bits", "binary", 256),
    ],
)
def test_elements_of_a_vector(elastic, model, endpoint, element, key, precision, dimensions):
    made = endpoint(element_type=element)
    assert made["service_settings"]["dimensions"] == dimensions
    expected = model.encode(TEXTS, prompt_name="document", precision=precision)
    assert np.array_equal(np.array(embed(elastic, TEXTS, key=key, input_type="ingest"), expected.dtype), expected)


def test_a_model_with_a_suffix_has_its_task(elastic, model, endpoint):
    endpoint(model_id="pico:query")
    assert np.array_equal(np.array(embed(elastic, TEXTS), np.float32), model.encode(TEXTS, prompt_name="query"))
    status, found, _ = elastic.ask("POST", "/_inference/e1", {"input": "a", "input_type": "ingest"})
    assert status == 400
    assert "give one" in found["error"]["reason"]


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        ({"strategy": "sentence", "max_chunk_size": 50}, lambda text: word_chunks.of_sentences(text, 50, 1)),
        ({"max_chunk_size": 50, "sentence_overlap": 0}, lambda text: word_chunks.of_sentences(text, 50, 0)),
        ({"strategy": "word", "max_chunk_size": 40, "overlap": 10}, lambda text: word_chunks.of_words(text, 40, 10)),
    ],
)
@pytest.mark.sampled
def test_a_long_input_has_a_vector_for_each_of_its_chunks(elastic, model, endpoint, settings, cut):
    assert endpoint(chunking=settings)["chunking_settings"]["max_chunk_size"] == settings["max_chunk_size"]
    short, long = elastic.post("/_inference/e1", {"input": ["short", LONG], "input_type": "ingest"})["text_embedding"]
    spans = cut(LONG)
    assert len(spans) > 3
    assert [(one["start_offset"], one["end_offset"]) for one in long["chunks"]] == spans
    assert list(long) == ["chunks"]
    vectors = np.array([short["embedding"], *(one["embeddings"] for one in long["chunks"])], np.float32)
    expected = model.encode(["short", *(LONG[start:end] for start, end in spans)], prompt_name="document")
    assert np.array_equal(vectors, expected)
    assert len(embed(elastic, LONG, input_type="search")) == 1  # a query is never cut


def test_an_input_that_is_too_long_is_an_error_that_names_it(elastic, endpoint):
    endpoint()
    status, found, _ = elastic.ask("POST", "/_inference/e1", {"input": ["a", "word " * 5000]})
    assert (status, found["status"]) == (422, 422)
    assert "text 1" in found["error"]["reason"]
    endpoint(name="e2", chunking={"strategy": "word", "max_chunk_size": 10, "overlap": 0})
    status, found, _ = elastic.ask("POST", "/_inference/e2", {"input": [LONG, "x" * 50_000]})
    assert status == 422
    assert "text 1" in found["error"]["reason"]


def test_a_ranking(elastic, model, endpoint):
    endpoint("rerank", tasks={"top_n": 2})
    expected = [{"index": one.index, "relevance_score": one.score} for one in model.rerank("red planet", TEXTS)]
    body = {"query": "red planet", "input": TEXTS}
    assert elastic.post("/_inference/rerank/e1", body) == {"rerank": expected[:2]}
    found = elastic.post("/_inference/e1", {**body, "top_n": 1, "return_documents": True})
    assert found == {"rerank": [{**expected[0], "text": TEXTS[expected[0]["index"]]}]}
    status, _, headers = elastic.ask("POST", "/_inference/e1", {"query": "a", "input": ["b", "word " * 3000]})
    assert (status, headers["x-truncated"]) == (200, "1")


def test_endpoints_are_made_listed_and_deleted(elastic, endpoint):
    made = endpoint(name="my-e.5_small", api_key="secret", rate_limit={"requests_per_minute": 9})
    assert made == {
        "inference_id": "my-e.5_small",
        "task_type": "text_embedding",
        "service": "jinaai",
        "service_settings": {
            "model_id": "pico",
            "similarity": "dot_product",
            "element_type": "float",
            "dimensions": 256,
        },
        "task_settings": {},
    }
    rerank = endpoint("rerank", name="r")
    for path in ("/_inference", "/_inference/_all", "/_inference/text_embedding/_all"):
        status, found, headers = elastic.ask("GET", path)
        assert (status, headers["x-elastic-product"]) == (200, "Elasticsearch")
        assert found == {"endpoints": [made] if "text" in path else [made, rerank]}
    assert elastic.ask("GET", "/_inference/my-e.5_small")[1] == {"endpoints": [made]}
    assert elastic.ask("DELETE", "/_inference/r?dry_run=true")[1]["acknowledged"] is False
    assert elastic.ask("GET", "/_inference/rerank/r")[0] == 200
    assert elastic.ask("DELETE", "/_inference/rerank/r")[1] == {"acknowledged": True, "pipelines": []}
    assert elastic.ask("GET", "/_inference/rerank/r")[0] == 404


@pytest.mark.slow
def test_they_outlive_the_server_and_the_key_is_not_kept(home, elastic, endpoint, model):
    made = endpoint(api_key="secret", chunking={"strategy": "word"}, tasks={"input_type": "search"})
    assert b"secret" not in (home / "inference_endpoints.json").read_bytes()
    with serving(JINA_LOCAL_HOME=str(home)) as other:
        assert other.ask("GET", "/_inference/e1")[1] == {"endpoints": [made]}
        found = np.array(embed(other, TEXTS), np.float32)
        assert np.array_equal(found, model.encode(TEXTS, prompt_name="query"))


def test_a_damaged_file_is_said_and_nothing_else_is_harmed(home, elastic, endpoint):
    endpoint()
    file = home / "inference_endpoints.json"
    kept = file.read_bytes()
    try:
        for damage in (kept[:-5], b'{"a": 1}', b"[1]", b'[{"task_type": "rerank"}]', b"\xff"):
            file.write_bytes(damage)
            status, found, _ = elastic.ask("GET", "/_inference")
            assert (status, found["error"]["type"]) == (500, "status_exception")
            body = {"service": "jinaai", "service_settings": {"model_id": "pico"}}
            assert elastic.ask("PUT", "/_inference/text_embedding/e2", body)[0] == 500
            assert file.read_bytes() == damage
    finally:
        file.write_bytes(kept)
    assert elastic.ask("GET", "/_inference/e1")[0] == 200


def test_endpoints_made_at_once_are_all_kept(elastic):
    def make(n):
        body = {"service": "jinaai", "service_settings": {"model_id": "pico"}}
        assert elastic.ask("PUT", f"/_inference/rerank/at-once-{n}", body)[0] == 200

    threads = [threading.Thread(target=make, args=(n,)) for n in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    names = {one["inference_id"] for one in elastic.ask("GET", "/_inference/rerank/_all")[1]["endpoints"]}
    assert names >= {f"at-once-{n}" for n in range(20)}
    for n in range(20):
        assert elastic.ask("DELETE", f"/_inference/at-once-{n}")[0] == 200


PICO = {"model_id": "pico"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("sparse_embedding/x", {"service": "jinaai", "service_settings": PICO}, 400, "Possible: text_emb"),
        ("text_embedding/X", {"service": "jinaai", "service_settings": PICO}, 400, "inference_id: takes a-z"),
        ("text_embedding/x", {"service": "openai", "service_settings": PICO}, 400, "Possible: jinaai, jina_local"),
        ("text_embedding/x", {"service_settings": PICO}, 400, "service: is missing"),
        ("text_embedding/x", {"service": "jinaai"}, 400, "service_settings: is missing"),
        ("text_embedding/x", {"service": "jinaai", "service_settings": {"model_id": "no"}}, 404, "In service: pico"),
        ("text_embedding/x", {"service": "jinaai", "service_settings": {**PICO, "dimensions": 7}}, 400, "7"),
        ("text_embedding/x", {"service": "jinaai", "service_settings": {**PICO, "url": "http://x"}}, 400, "url: is"),
        ("text_embedding/x", {"service": "jinaai", "service_settings": {**PICO, "similarity": "dot"}}, 400, "dot_"),
        *(
            (
                "text_embedding/x",
                {"service": "jinaai", "service_settings": PICO, "chunking_settings": settings},
                400,
                words,
            )
            for settings, words in [
                ({"strategy": "recursive", "separators": ["(a+)+$"]}, "Possible: sentence, word, none"),
                ({"strategy": "sentence", "max_chunk_size": 19}, "from 20"),
                ({"strategy": "word", "max_chunk_size": 9}, "from 10"),
                ({"strategy": "word", "max_chunk_size": 20, "overlap": 11}, "at most 10"),
                ({"sentence_overlap": 2}, "at most 1"),
                ({"strategy": "sentence", "overlap": 5}, "another strategy than sentence"),
            ]
        ),
        (
            "text_embedding/x",
            {"service": "jinaai", "service_settings": PICO, "task_settings": {"input_type": "internal_search"}},
            400,
            "Possible: ingest",
        ),
        ("rerank/x", {"service": "jinaai", "service_settings": PICO, "chunking_settings": {}}, 400, "chunking"),
        (
            "text_embedding/x",
            {"service": "jinaai", "service_settings": PICO, "task_settings": {"late_chunking": True}},
            400,
            "late chunking",
        ),
    ],
)  # fmt: skip
def test_an_endpoint_that_could_not_answer_is_not_made(elastic, path, body, status, words):
    found_status, found, _ = elastic.ask("PUT", f"/_inference/{path}", body)
    assert (found_status, found["status"]) == (status, status)
    assert words in found["error"]["reason"]
    assert found["error"]["root_cause"] == [{"type": found["error"]["type"], "reason": found["error"]["reason"]}]
    assert elastic.ask("GET", f"/_inference/{path}")[0] == 404


def test_without_a_task_in_the_path_the_model_says_it(elastic):
    body = {"service": "jina_local", "service_settings": {"model_id": "pico"}}
    assert elastic.ask("PUT", "/_inference/any", body)[1]["task_type"] == "text_embedding"
    assert elastic.ask("DELETE", "/_inference/any")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "none", {"input": "a"}, 404, "resource_not_found_exception"),
        ("POST", "rerank/e1", {"input": "a", "query": "b"}, 400, "illegal_argument_exception"),
        ("POST", "e1", {"input": "a", "query": "b"}, 400, "illegal_argument_exception"),
        ("POST", "e1", {"input": "a", "input_type": "passage"}, 400, "illegal_argument_exception"),
        ("POST", "e1?timeout=fast", {"input": "a"}, 400, "illegal_argument_exception"),
        ("POST", "e1?timeout=0s", {"input": "a"}, 504, "status_exception"),
        ("POST", "e1?filter_path=a", {"input": "a"}, 400, "illegal_argument_exception"),
        ("POST", "rerank/e1/more", {"input": "a"}, 404, "resource_not_found_exception"),
        ("PATCH", "e1", {}, 405, "status_exception"),
        ("DELETE", "e1?dry_run=maybe", None, 400, "illegal_argument_exception"),
        ("DELETE", "rerank/e1", None, 400, "illegal_argument_exception"),
        (
            "PUT",
            "text_embedding/e1",
            {"service": "jinaai", "service_settings": PICO},
            400,
            "resource_already_exists_exception",
        ),
    ],
)
def test_errors_are_elastics(elastic, endpoint, method, path, body, status, kind):
    endpoint()
    found_status, found, _ = elastic.ask(method, f"/_inference/{path}", body)
    assert (found_status, found["status"], found["error"]["type"]) == (status, status, kind)
    assert elastic.post("/_inference/e1?timeout=30s&pretty=true", {"input": "a"})


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/_inference/e1", {"error", "status"}),
        ("/api/embed", {"error"}),
        ("/embed", {"error", "error_type"}),
        ("/v1/embeddings", {"error", "detail"}),
    ],
)
def test_what_is_refused_at_the_door_is_said_as_its_path_does(server, path, shape):
    status, found, _ = server.ask("POST", path, {"input": "a"}, Origin="http://elsewhere.example")
    assert (status, set(found)) == (403, shape)


def recipe(task):
    """The settings of a cluster's `custom` service in the README."""
    text = (Path(__file__).parents[2] / "jina_local" / "README.md").read_text(encoding="utf-8")
    return json.loads(text.split(f"<!-- custom {task} -->\n```json\n")[1].split("```")[0])["service_settings"]


def sent(settings, **values):
    """What a cluster sends: the template with the values as JSON."""
    body = settings["request"]
    for name, value in values.items():
        body = body.replace(f"${{{name}}}", json.dumps(value))
    return {**json.loads(body), "model": "pico"}


def at(path, value):
    """The values at a path such as $.data[*].embedding[*]."""
    for name in re.findall(r"\.(\w+)", path):
        value = [one[name] for one in value] if isinstance(value, list) else value[name]
    return value


@pytest.mark.slow
def test_the_recipe_for_a_cluster(server, model):
    settings = recipe("text_embedding")
    words = settings["input_type"]["translation"]
    path = urlsplit(settings["url"]).path
    for kind, prompt in (("ingest", "document"), ("search", "query")):
        found = server.post(path, sent(settings, input=TEXTS, input_type=words[kind]))
        vectors = at(settings["response"]["json_parser"]["text_embeddings"], found)
        assert np.array_equal(np.array(vectors, np.float32), model.encode(TEXTS, prompt_name=prompt))
    for word in words.values():
        server.post(path, sent(settings, input=TEXTS, input_type=word))
    settings = recipe("rerank")
    found = server.post(urlsplit(settings["url"]).path, sent(settings, query="red planet", input=TEXTS))
    expected = model.rerank("red planet", TEXTS)
    parser = settings["response"]["json_parser"]
    assert at(parser["reranked_index"], found) == [one.index for one in expected]
    assert at(parser["relevance_score"], found) == pytest.approx([one.score for one in expected], abs=1e-8)
