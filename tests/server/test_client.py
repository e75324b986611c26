"""`embed`, `rerank` and `search` with --server: byte for byte the output without it; and servers that fail."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from jina_local import console, load
from jina_local.cli import main
from jina_local.errors import (
    CallEnded,
    EngineError,
    IndexNotFound,
    JinaError,
    ModelNotFound,
    NonFiniteError,
    Overloaded,
    ServerUnavailable,
    TextError,
    TextTooLong,
    UsageError,
)
from jina_local.server import client
from jina_local.server.client import Server

from ..made import reranker
from .conftest import serving
from .notes import indexed

pytestmark = [pytest.mark.llama, pytest.mark.usefixtures("plain_environment")]
LINES = [f"{n} {'Mars looks red. ' * (n % 7)}Röntgen 火星 {n * 37}" for n in range(150)] + ["word " * 4000]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    indexed(home)
    (home / "keys").write_text("# for tests\nfirst\nsecond\n")
    (home / "lines.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def asked(home):
    """A server with pico, a reranker, an index and a key."""
    options = ["--index", "notes", "--api-key-file", str(home / "keys")]
    path = str(reranker("reranker-v2", "F32"))
    with serving("--model", "pico", "--rerank-model", path, *options, JINA_LOCAL_HOME=str(home / "data")) as one:
        yield one


@pytest.fixture
def both(here, asked, capfdbinary, monkeypatch):
    """What a command writes to stdout and stderr, and its exit code, without a server and with it."""

    def run(*words):
        found = []
        for server in ([], ["--server", asked.url, "--api-key-file", "keys"]):
            code = console.guarded(lambda words=[*words, *server]: main.main(words))
            out = capfdbinary.readouterr()
            found.append((code, out.out, out.err))
        return found

    return run


@pytest.mark.sampled
@pytest.mark.parametrize(
    "options",
    [
        ["--format", "jsonl"],
        ["--format", "json", "--prompt-name", "query"],
        ["--format", "csv", "--truncate-dim", "64", "--no-normalize"],
        ["--format", "table"],
        ["--format", "npy", "--task", "clustering"],
        ["--format", "safetensors", "--precision", "int8"],
        ["--format", "npy", "--precision", "ubinary", "--max-length", "9"],
        ["--format", "jsonl", "--precision", "binary", "--shard", "2/3"],
        ["--format", "jsonl", "--overflow", "error"],
        ["--format", "jsonl", "--overflow", "error", "--errors", "skip"],
        ["--format", "jsonl", "--truncate-dim", "77"],
        ["--format", "jsonl", "--max-length", "99999"],
    ],
)
def test_vectors_are_the_same_in_every_format(both, options):
    alone, asked = both("embed", "--model", "pico", "--input", "lines.txt", *options)
    assert asked == alone
    assert alone[0] in (0, 1, 2)


@pytest.mark.slow
def test_parquet_ids_caches_and_resume_are_the_same(both, here):
    pytest.importorskip("pyarrow")
    records = [json.dumps({"id": n, "text": line}) for n, line in enumerate(LINES[:20])]
    (here / "records.jsonl").write_text("\n".join(records))
    common = ["embed", "--model", "pico", "--input", "records.jsonl", "--id", "id", "--keep", "text"]
    alone, asked = both(*common, "--format", "parquet")
    assert asked == alone
    for option in ("--cache", "--resume"):
        for format_ in ("parquet", "jsonl"):
            (alone, asked) = both(*common, option, "--output", "made.parquet", "--format", format_)
            assert (alone[0], asked[0]) == (0, 0)


def test_the_cache_has_one_space_for_both(both, here):
    """What a model that is loaded here has computed is not computed again by a server's."""
    from jina_local.bulk.cache import VectorCache
    from jina_local.store import local_store

    def kept():
        with VectorCache(local_store.vector_cache()) as cache:
            return cache.info().vectors

    before = kept()
    alone, asked = both("embed", "--model", "pico", "--cache", "a text of its own", "and another")
    assert asked == alone
    assert kept() == before + 2


@pytest.mark.sampled
@pytest.mark.parametrize("format_", ["table", "json", "jsonl"])
@pytest.mark.parametrize(
    "model", [["--model", "pico", "--truncate-dim", "64"], ["--model", "reranker-v2", "--max-length", "64",
              "--max-query-length", "32"]]
)  # fmt: skip
def test_rankings_are_the_same(both, format_, model, monkeypatch, home):
    if model[1] == "pico":
        alone, asked = both(
            "rerank", "red planet", "--input", "lines.txt", "--top-n", "20", "--format", format_, *model
        )
        assert asked == alone
        return
    path = str(reranker("reranker-v2", "F32"))
    words = ["rerank", "red planet", "--input", "lines.txt", "--top-n", "20", "--format", format_, *model[2:]]
    (_, alone, _), _ = both(*words, "--model", path)
    _, (code, asked, _) = both(*words, "--model", "reranker-v2")
    assert (code, asked) == (0, alone)


@pytest.mark.parametrize("format_", ["table", "json", "jsonl", "paths"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-k", "2", "--mode", "lexical", "--lang", "md"],
        ["--context", "3"],
        ["--max-tokens", "20"],
        ["--min-score", "99"],
        ["--index", "notes", "--path", "*.txt", "--since", "9d"],
    ],
)
@pytest.mark.sampled
def test_answers_of_search_are_the_same(both, format_, options):
    alone, asked = both("search", "when does the cafe open", "--format", format_, *options)
    assert asked == alone
    assert alone[0] in (0, 1)


def test_the_server_and_its_key_come_from_the_environment(here, asked, capfd, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_SERVER", asked.url)
    monkeypatch.setenv("JINA_LOCAL_API_KEY", "second")
    monkeypatch.setattr("jina_local.loading.load", None)
    assert main.main(["embed", "--model", "pico", "hi"]) == 0
    assert main.main(["rerank", "--model", "pico", "hi", "ho"]) == 0
    assert main.main(["search", "hi"]) == 0


@pytest.mark.slow
def test_callers_side_by_side_get_the_bits_of_a_lone_one(asked):
    with load("pico") as model:
        expected = model.encode(LINES[:64], task="clustering")
    hits = Server(asked.url, "first").search("when does the cafe open").passages
    faults = []

    def call():
        for _ in range(3):
            server = Server(asked.url, "first")
            found = server.model("pico").embed(LINES[:64], task="clustering")
            if not np.array_equal(found.vectors, expected):
                faults.append(found)
            if server.search("when does the cafe open").passages != hits:
                faults.append("hits")

    def disturb():
        body = {"model": "pico", "input": LINES[:40], "task": "clustering", "truncate": True}
        asked.post("/v1/embeddings", body, Authorization="Bearer first")

    threads = [threading.Thread(target=one) for one in (call, call, disturb, disturb)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_unix_socket_answers_too(here, capfdbinary):
    assert main.main(["embed", "--model", "pico", "hi"]) == 0
    alone = capfdbinary.readouterr().out
    path = f"/tmp/jl-{os.getpid()}.sock"
    with serving("--model", "pico", "--uds", path):
        assert main.main(["embed", "--model", "pico", "hi", "--server", f"unix:{path}"]) == 0
        assert capfdbinary.readouterr().out == alone
    with pytest.raises(ServerUnavailable, match="no server answers at unix:"):
        main.main(["embed", "--model", "pico", "hi", "--server", f"unix:{path}"])


@pytest.mark.slow
def test_a_call_of_many_texts_goes_in_parts_if_it_has_to(here, tmp_path):
    texts = [*LINES[:60], LINES[-1]]
    with serving("--model", "pico", "--max-inputs", "20") as one, load("pico") as model:
        remote = Server(one.url).model("pico")
        found = remote.embed(texts, task="clustering", prompt_name="document")
        own = model.embed(texts, task="clustering", prompt_name="document")
        assert np.allclose(found.vectors, own.vectors, atol=0.02)
        assert found.token_counts.tolist() == own.token_counts.tolist()
        assert found.truncated.tolist() == own.truncated.tolist()
        assert (found.failed, found.spec) == (own.failed, own.spec)
        assert remote._most == 15
        with pytest.raises(TextTooLong) as told:
            remote.embed(texts, task="clustering", overflow="error")
        assert told.value.index == 60
        nothing = remote.embed([], precision="ubinary")
        assert (nothing.vectors.shape, nothing.vectors.dtype) == ((0, 32), np.uint8)
        assert remote.space(prompt_name="query", truncate_dim=64) == model.space(prompt_name="query", truncate_dim=64)
        with pytest.raises(UsageError, match="deterministic"):
            remote.embed(["a"], deterministic=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["embed", "hi"], 3, "'jina-embeddings-v5-text-nano' is not in service here. In service: pico"),
        (["embed", "hi", "--model", "reranker-v2"], 2, "ranks documents and has no vectors"),
        (
            ["embed", "hi", "--model", "pico:Q8_0"],
            2,
            "--model pico:Q8_0: the server at .* runs pico with weights F16",
        ),
        (["embed", "hi", "--model", "./pico"], 2, "is a path, and a server knows its models by their names"),
        (["embed", "hi", "--model", "pico", "--weights", "Q8_0"], 2, "--weights is for a model that is loaded here"),
        (["embed", "hi", "--model", "pico", "--backend", "llama"], 2, "--backend is for a model"),
        (["embed", "hi", "--model", "pico", "--device", "cpu"], 2, "--device is for a model"),
        (["embed", "hi", "--model", "pico", "--threads", "1"], 2, "--threads is for a model"),
        (["embed", "hi", "--model", "pico", "--offline"], 2, "--offline is for a model"),
        (["embed", "hi", "--model", "pico", "--deterministic"], 2, "--deterministic is for a model"),
        (["rerank", "a", "b", "--model", "pico", "--weights", "Q8_0"], 2, "--weights is for a model"),
        (["rerank", "a", "b"], 3, "'jina-reranker-v3' is not in service here.* In service: pico"),
        (["search", "a", "--device", "cpu"], 2, "--device is for a model that is loaded here"),
        (["search", "a", "--threads", "2"], 2, "--threads is for a model that is loaded here"),
        (["search", "a", "--index", "nope"], 3, "the index 'nope' is not in service here"),
        (["search", "a", "--rerank", "reranker-v3"], 3, "'reranker-v3' is not in service here"),
        (["search", "a", "--rerank", "pico"], 3, "'pico' is not in service here"),
    ],
)
def test_what_a_server_cannot_do_is_refused(here, asked, capfd, words, code, said):
    assert console.guarded(lambda: main.main([*words, "--server", asked.url, "--api-key-file", "keys"])) == code
    assert re.search(said, capfd.readouterr().err)


def test_variables_that_ask_for_other_weights_are_refused(here, asked, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_API_KEY", "first")
    words = ["embed", "hi", "--model", "pico", "--server", asked.url]
    monkeypatch.setenv("JINA_LOCAL_WEIGHTS", "f16")
    assert main.main(words) == 0
    monkeypatch.setenv("JINA_LOCAL_WEIGHTS", "BF16")
    with pytest.raises(UsageError, match="JINA_LOCAL_WEIGHTS=BF16: the server at .* runs pico with weights F16"):
        main.main(words)


@pytest.mark.parametrize("key", [[], ["--api-key-file", "wrong"]])
def test_a_wrong_key_is_said(here, asked, key):
    (here / "wrong").write_text("third\n")
    for words in (["embed", "--model", "pico", "a"], ["rerank", "--model", "pico", "a", "b"], ["search", "a"]):
        with pytest.raises(
            UsageError, match=r"a valid key is needed.* --api-key-file FILE, or in JINA_LOCAL_API_KEY"
        ):
            main.main([*words, "--server", asked.url, *key])


def test_a_key_without_a_server_is_refused(here):
    with pytest.raises(UsageError, match="--api-key-file is for a server"):
        main.main(["embed", "a", "--api-key-file", "keys"])


@pytest.mark.parametrize(
    "address", ["localhost:8765", "ftp://x", "http://", "http://a:b@c", "http://a/b", "http://a:x"]
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="is no address of a server"):
        Server(address)


def test_an_absent_server_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for words in (["embed", "--model", "pico", "a"], ["rerank", "--model", "pico", "a", "b"], ["search", "a"]):
        with pytest.raises(ServerUnavailable, match=f"no server answers at {address}: Connection refused") as told:
            main.main([*words, "--server", address])
        assert console.exit_code(told.value) == 69


def test_a_server_that_goes_in_the_middle_ends_the_command(here, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(f"{n} {LINES[n % 150]}" for n in range(4000)))
    with serving("--model", "pico") as one:
        words = ["embed", "--model", "pico", "--input", "many.txt", "--output", "made.npy", "--server", one.url]
        started = [sys.executable, "-m", "jina_local", *words]
        process = subprocess.Popen(started, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while one.ask("GET", "/metrics")[1].count('route="/library/embed",status="200"') == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        one.process.kill()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 69
    assert f"{one.url}" in said
    assert not (tmp_path / "made.npy").exists()


# --- answers that a healthy server seldom gives


@contextmanager
def answering(*answers):
    """A server that gives these answers, (status, body, headers) each, and the last one from then on."""
    left, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer()

        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.answer()

        def answer(self):
            status, body, headers = left.pop(0) if len(left) > 1 else left[0]
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            if status:
                self.send_response(status)
                for name, value in {"content-length": str(len(raw)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fault(status, kind, message="it is so", param=None, **headers):
    return status, {"error": {"type": kind, "message": message, "param": param}}, headers


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (fault(404, "model_not_found"), ModelNotFound, "it is so"),
        (fault(404, "index_not_found"), IndexNotFound, "it is so"),
        (fault(404, "not_found"), UsageError, "it is so"),
        (fault(400, "invalid_request", "text 3: has no words", "input[3]"), TextError, "has no words"),
        (fault(422, "input_too_long", "text 3: is long", "input[3]"), TextTooLong, "is long"),
        (fault(500, "nonfinite_output"), NonFiniteError, "^it is so$"),
        (fault(500, "engine"), EngineError, "it is so"),
        (fault(500, "internal"), EngineError, "it is so"),
        (fault(504, "deadline"), CallEnded, "it is so"),
        (fault(503, "draining"), Overloaded, "it is so"),
        ((200, b"<html>", {}), UsageError, "no server of this version of jina_local: it answered 200"),
        (
            (200, {}, {}),
            UsageError,
            "no server of this version of jina_local: an answer cannot be read .KeyError..hits",
        ),
        ((502, b"bad gateway", {}), UsageError, "it answered 502"),
        ((0, b"", {}), ServerUnavailable, "went away before it had answered"),
        ((200, b"{}", {"content-length": "99"}), ServerUnavailable, "went away before it had answered"),
    ],
)
@pytest.mark.sampled
def test_an_error_of_the_server_is_ours(answer, kind, said):
    with answering(answer) as (address, _), pytest.raises(kind, match=said) as told:
        Server(address).search("a")
    assert isinstance(told.value, JinaError)


def test_vectors_that_cannot_be_read_are_refused():
    facts = {"id": "pico", "tasks": ["clustering"], "dimensions": [4], "max_tokens": 9,
             "backend": "llama", "weights": "Q8_0", "device": "cpu"}  # fmt: skip
    short = {"dtype": "<f4", "shape": [1, 4], "base64": "AAAA"}
    answer = {"vectors": short, "token_counts": [3], "truncated": [], "failed": []}
    with answering((200, facts, {}), (200, answer, {}), (200, {}, {})) as (address, _):
        model = Server(address).model("pico")
        for _ in range(2):
            with pytest.raises(UsageError, match="an answer cannot be read"):
                model.embed(["a"], task="clustering")


def test_a_busy_server_is_asked_again(monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    found = {"hits": [], "mode": "lexical", "missing": ["a"]}
    busy = fault(429, "overloaded", **{"retry-after": "3"})
    with answering(busy, fault(503, "loading"), (200, found, {})) as (address, asked):
        assert Server(address).search("a", k=3, index=None).notes == ["a"]
    assert asked == [{"query": "a", "alone": True, "k": 3}] * 3
    assert [one for one in waited if one >= 1] == [3, 1]
    monkeypatch.setattr(client, "_PATIENCE", 0.0)
    with answering(busy) as (address, _), pytest.raises(Overloaded) as told:
        Server(address).search("a")
    assert console.exit_code(told.value) == 75


def test_commands_that_use_no_server_do_not_read_its_variable(here, monkeypatch, capfd):
    monkeypatch.setenv("JINA_LOCAL_SERVER", "http://127.0.0.1:1")
    assert main.main(["get", str(Path("notes") / "router.md:1")]) == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"model": "reranker-v2", "query": "a", "documents": ["b", "x " * 600_000]}),
        ("/library/rerank", {"model": "reranker-v2", "query": "x " * 600_000, "documents": ["b"]}),
        ("/v1/embeddings", {"model": "pico", "input": ["x " * 600_000], "late_chunking": True}),
        ("/library/embed", {"model": "pico", "texts": ["x " * 600_000], "late_chunking": True}),
    ],
)
def test_texts_that_are_read_whole_are_bounded_before_they_are_tokenised(asked, path, body):
    status, found, _ = asked.ask("POST", path, body, Authorization="Bearer first")
    assert (status, found["error"]["type"]) == (422, "too_many_tokens"), found
    assert "more than 1048576 characters" in found["error"]["message"]


def test_a_text_that_is_to_be_cut_may_be_of_any_length(asked):
    body = {"model": "pico", "input": "x " * 2_000_000, "truncate": True}
    status, found, _ = asked.ask("POST", "/v1/embeddings", body, Authorization="Bearer first")
    assert (status, found["truncated"]) == (200, [0])
