"""Questions to indexes over HTTP: the answers are those of the command line, by the models in service."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from jina_local import load
from jina_local.cli import main
from jina_local.errors import IndexNotFound, ModelNotFound, UsageError
from jina_local.inference.queue import Call
from jina_local.search import places
from jina_local.search.index import Index
from jina_local.server.dialects.calls import SearchCall
from jina_local.server.indexes import Indexes
from jina_local.server.served import Served
from jina_local.server.settings import Settings

from ..made import reranker
from .conftest import serving
from .notes import indexed

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    indexed(home)
    return home


@pytest.fixture(scope="module")
def asked(home):
    """A server with the index."""
    with serving("--model", "pico", "--index", "notes", JINA_LOCAL_HOME=str(home / "data")) as running:
        yield running


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, []),
        ({"index": "notes", "k": 2, "mode": "vector"}, ["-k", "2", "--mode", "vector"]),
        ({"mode": "lexical", "lang": "md"}, ["--mode", "lexical", "--lang", "md"]),
        (
            {"path": ["router.md", "*.txt"], "since": "7d"},
            ["--path", "router.md", "--path", "*.txt", "--since", "7d"],
        ),
        ({"min_score": 0.5}, ["--min-score", "0.5"]),
        ({"context": 2, "path": "router.md"}, ["--context", "2", "--path", "router.md"]),
        ({"max_tokens": 12}, ["--max-tokens", "12"]),
    ],
)
def test_hits_are_those_of_the_command_line(asked, here, capfd, fields, options):
    assert main.main(["search", "how do I reset the router", "--format", "json", *options]) == 0
    expected = json.loads(capfd.readouterr().out)
    found = asked.post("/v1/search", {"query": "how do I reset the router", **fields})
    assert (found["index"], found["mode"], found["missing"]) == ("notes", expected["mode"], expected["missing"])
    assert [{key: hit[key] for key in one} for hit, one in zip(found["hits"], expected["hits"], strict=True)] == [
        *expected["hits"]
    ]
    for hit in found["hits"]:
        assert set(hit) - {"path_base64"} == {*expected["hits"][0], "passage"}
        assert hit["start_line"] <= hit["passage"]["start_line"] <= hit["passage"]["end_line"]


def test_indexes_are_listed(asked):
    (listed,) = asked.ask("GET", "/v1/indexes")[1]["data"]
    assert listed == {
        "id": "notes", "object": "index", "files": 4, "passages": 5, "vectors": 5, "model": "pico", "dimensions": 256
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({}, 400, "query", "is missing"),
        ({"query": " "}, 400, None, "is empty"),
        ({"query": "x", "index": "note"}, 404, "index", "did you mean 'notes'"),
        ({"query": "x", "index": "/etc/passwd"}, 404, "index", "In service: notes"),
        ({"query": "x", "index": "./notes"}, 404, "index", "In service: notes"),
        ({"query": "x", "k": 0}, 400, "k", "from 1"),
        ({"query": "x", "k": 5000}, 422, "k", "2048 are allowed"),
        ({"query": "x", "mode": "fuzzy"}, 400, "mode", "Possible: hybrid"),
        ({"query": "x", "lang": ["pyhton"]}, 400, None, "lang pyhton: unknown (did you mean 'python'?)"),
        ({"query": "x", "lang": [1]}, 400, "lang", "list of strings"),
        ({"query": "x", "since": "soon"}, 400, None, "since soon: expected a date"),
        ({"query": "x", "min_score": "1"}, 400, "min_score", "a number"),
        ({"query": "x", "max_tokens": 0}, 400, "max_tokens", "from 1"),
        ({"query": "x", "rerank": "reranker-v3"}, 404, "model", "no reranker"),
        ({"query": "x", "rerank": True}, 404, "model", "no reranker"),
        ({"query": "x", "rerank": 1}, 400, "rerank", "expected true"),
        ({"query": "x" * 65_537}, 422, "query", "more than 65536 characters"),
        ({"query": "x", "model": "pico"}, 400, "model", "is not known here"),
    ],
)
def test_what_is_not_understood_is_refused(asked, body, status, param, words):
    found_status, found, _ = asked.ask("POST", "/v1/search", body)
    assert (found_status, found["error"]["param"]) == (status, param), found
    assert words in found["error"]["message"]


def test_a_question_that_is_cut_is_said(asked):
    status, found, headers = asked.ask("POST", "/v1/search", {"query": "router " * 5000})
    assert (status, headers["x-truncated"]) == (200, "0")
    assert found["missing"] == ["The question was cut; its end was not read."]
    assert asked.post("/v1/search", {"query": "router " * 9362, "mode": "lexical"})["hits"]


def test_no_index_is_said(server):
    assert server.ask("GET", "/v1/indexes")[1]["data"] == []
    status, found, _ = server.ask("POST", "/v1/search", {"query": "x"})
    assert (status, found["error"]["type"]) == (404, "index_not_found")
    assert "serve --index" in found["error"]["message"]


# --- which model answers


class Opened:
    """What `load` was asked for."""

    def __init__(self, patch):
        self.names = []

        def counted(**words):
            self.names.append(words["name_or_path"])
            return load(**words)

        patch.setattr("jina_local.server.service.load", counted)


def served(names, *models):
    made = Served(Settings(), [places.known(name) for name in names])
    made.open([{"name_or_path": model, "offline": True} for model in models])
    return made


def test_the_model_in_service_answers_and_shares_its_queue(here, monkeypatch):
    opened = Opened(monkeypatch)
    one = served(["notes"], "pico")
    try:
        before = one.services[0].queue.counts()
        answer = one.search(SearchCall("reset the router"), Call(10))
        after = one.services[0].queue.counts()
        assert answer.mode == "hybrid"
        assert (after.texts - before.texts, after.admitted) == (1, 0)
        assert opened.names == ["pico"]
    finally:
        one.close()


@pytest.mark.slow
def test_a_model_that_is_not_in_service_is_opened_once(home, tmp_path, monkeypatch):
    where = indexed(tmp_path, "--truncate-dim", "64")
    indexed(tmp_path, "--name", "again")
    for name, value in where.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(tmp_path / "notes", tmp_path / "others")
    assert main.main(["index", str(tmp_path / "others"), "--name", "others", "--model", "pico"]) == 0
    opened = Opened(monkeypatch)
    one = served(["notes", "again", "others"])
    try:
        assert opened.names == ["pico"]
        assert [info.dim for info in one.indexes.infos()] == [64, 256, 256]
        for name in ("notes", "again", "others"):
            with Index.open(name) as own:
                expected = own.search("reset the router", 3)
            answer = one.search(SearchCall("reset the router", name, 3), Call(10))
            assert [hit.record["score"] for hit in answer.hits] == [hit.score for hit in expected.hits]
        with pytest.raises(UsageError, match="no index is named. In service: notes, again, others"):
            one.search(SearchCall("x"), Call(10))
    finally:
        one.close()


def test_an_index_whose_model_is_gone_answers_by_words(here, monkeypatch):
    indexes = Indexes(Settings(), [places.known("notes")])

    def load_nothing(**words):
        raise ModelNotFound("it is gone")

    monkeypatch.setattr("jina_local.server.service.load", load_nothing)
    indexes.open([], {})
    answer = indexes.search(SearchCall("reset the router"), Call(10), None)
    assert answer.mode == "lexical"
    assert answer.missing == ["The model cannot be opened, so words alone answered: it is gone"]
    indexes.close()


@pytest.mark.slow
def test_an_index_that_is_made_anew_is_opened_anew(tmp_path, monkeypatch):
    for name, value in indexed(tmp_path).items():
        monkeypatch.setenv(name, value)
    one = served(["notes"], "pico")
    try:
        assert one.search(SearchCall("sourdough"), Call(10)).hits[0].path.endswith(b"bread.md")
        (tmp_path / "notes" / "bread.md").write_text("# Soup\n\nPumpkin and ginger.\n")
        with Index.open("notes") as index:
            index.remove()
        with pytest.raises(IndexNotFound, match="the index notes is gone"):
            one.search(SearchCall("soup"), Call(10))
        assert main.main(["index", str(tmp_path / "notes"), "--model", "pico", "--truncate-dim", "32"]) == 0
        answer = one.search(SearchCall("pumpkin soup"), Call(10))
        assert answer.hits[0].record["text"].startswith("# Soup")
        assert answer.mode == "hybrid"
    finally:
        one.close()


def test_two_indexes_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="two indexes have the same name"):
        Indexes(Settings(), [tmp_path / "a" / "x.sqlite", tmp_path / "b" / "x.sqlite"])


def test_a_reranker_in_service_reads_the_best_again(here):
    path = reranker("reranker-v2", "F32")
    one = served(["notes"], "pico", str(path))
    try:
        with load(str(path)) as own, Index.open("notes") as index:
            expected = index.search("reset the router", 3, reranker=own)
        answer = one.search(SearchCall("reset the router", k=3, rerank=True), Call(30))
        assert [hit.record["score"] for hit in answer.hits] == pytest.approx([hit.score for hit in expected.hits])
        assert [hit.path for hit in answer.hits] == [hit.document.path for hit in expected.hits]
        with pytest.raises(UsageError, match="pico"):
            one.search(SearchCall("x", rerank="pico"), Call(10))
    finally:
        one.close()


def test_an_index_that_is_not_there_is_refused_at_the_start(here, tmp_path, capfd):
    with pytest.raises(UsageError, match="there is no index 'nothing'"):
        main.main(["serve", "--model", "pico", "--index", "nothing"])
    assert Path(os.environ["JINA_LOCAL_HOME"]).exists()
