"""MCP over HTTP: the SDK's own client gets the answers of the tools, through the same guard as everybody."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import serving
from .notes import indexed

pytest.importorskip("mcp", reason="pip install 'jina_local[mcp]'")

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

pytestmark = pytest.mark.llama
KEY = "a-key"
TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = "application/json, text/event-stream"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def asked(home):
    """A server with two indexes and a key."""
    where = indexed(home)
    indexed(home, "--name", "again")
    (home / "keys").write_text(f"{KEY}\n")
    with serving(
        "--model", "pico", "--index", "notes", "--index", "again", "--api-key-file", str(home / "keys"), **where
    ) as running:
        yield running


def session(url, steps, key=KEY):
    """What `steps`, which gets a client's `call(tool, **arguments)`, returns."""

    async def talk():
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):

            async def call(tool, **words):
                result = await client.call_tool(tool, words)
                return ("error: " if result.is_error else "") + result.content[0].text

            call.client = client
            return await steps(call)

    return asyncio.run(asyncio.wait_for(talk(), 60))


@pytest.mark.parametrize("path", ["/mcp", "/mcp/notes", "/mcp/again"])
@pytest.mark.sampled
def test_the_sdks_client_gets_the_tools_answers(asked, home, path):
    async def steps(call):
        return (
            {tool.name for tool in (await call.client.list_tools()).tools},
            await call("search", query="how do I reset the router"),
            await call("get", path=str(home / "notes" / "router.md"), line=5, count=3),
            await call("get", path="/etc/passwd"),
            await call("related", path="code/moon.py"),
            await call("index_status"),
        )

    tools, found, lines, refused, related, status = session(asked.url + path, steps)
    assert tools == {"search", "get", "related", "index_status"}
    router = str(home / "notes" / "router.md")
    assert found.startswith(f"{router}:")
    assert "Hold the button" in found
    assert lines == f"{router}:5-7\n## Reset\n\nHold the button on the back for ten seconds."
    assert refused.startswith("error: ")
    assert "is not in the index" in refused
    assert router in related
    assert status.splitlines()[0].startswith("again: " if path.endswith("again") else "notes: ")


def test_answers_are_brought_up_to_date_and_come_side_by_side(asked, home):
    (home / "notes" / "kettle.md").write_text("# Kettle\n\nDescale it with vinegar.\n")

    async def steps(call):
        questions = ["descale the kettle", "reset the router", "feed the starter"] * 8
        first = await call("search", query=questions[0])
        return first, await asyncio.gather(*(call("search", query=one) for one in questions))

    first, answers = session(asked.url + "/mcp", steps)
    assert "Descale it" in first
    for n, word in enumerate(["kettle.md", "router.md", "bread.md"] * 8):
        assert re.search(rf"/{re.escape(word)}:", answers[n].splitlines()[0]), answers[n]


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({}, 401, "unauthorized"),
        ({"Authorization": "Bearer wrong"}, 401, "unauthorized"),
        ({"Authorization": f"Bearer {KEY}", "Host": "evil.example:80"}, 403, "forbidden_host"),
        ({"Authorization": f"Bearer {KEY}", "Origin": "https://evil.example"}, 403, "forbidden_origin"),
        ({"Authorization": f"Bearer {KEY}", "Content-Type": "text/plain"}, 415, "media_type"),
    ],
)
def test_the_guard_stands_before_it(asked, headers, status, kind):
    found = asked.ask("POST", "/mcp", TOOLS, Accept=ACCEPT, **headers)
    assert (found[0], found[1]["error"]["data"]["type"]) == (status, kind)


def test_other_methods_and_paths(asked):
    key = {"Authorization": f"Bearer {KEY}"}
    assert asked.ask("POST", "/mcp", TOOLS, Accept=ACCEPT, **key)[0] == 200
    status, found, _ = asked.ask("GET", "/mcp", **key)
    assert (status, found["error"]["data"]["type"]) == (405, "method")
    assert "/mcp, /mcp/notes, /mcp/again" in found["error"]["message"]
    assert asked.ask("POST", "/mcp/nope", TOOLS, Accept=ACCEPT, **key)[0] == 404
    assert asked.ask("DELETE", "/mcp", **key)[0] == 405
    assert 'route="/mcp",status="200"' in asked.ask("GET", "/metrics", **key)[1]


def test_without_an_index_it_says_so(server):
    status, found, _ = server.ask("POST", "/mcp", TOOLS, Accept=ACCEPT)
    assert (status, found["error"]["data"]["type"]) == (404, "index_not_found")


@pytest.mark.slow
def test_without_the_package_it_says_so(home, asked):
    hide = "import sys; sys.modules['mcp'] = None; from jina_local.__main__ import run; run()"
    started = [sys.executable, "-c", hide]
    where = {"JINA_LOCAL_HOME": str(home / "data")}
    with serving("--model", "pico", "--index", "notes", started=started, **where) as running:
        status, found, _ = running.ask("POST", "/mcp", TOOLS, Accept=ACCEPT)
        assert (status, found["error"]["data"]["type"]) == (501, "not_installed")
        assert "pip install 'jina_local[mcp]'" in found["error"]["message"]
        assert running.post("/v1/search", {"query": "router"})["hits"]


def call_of(tool, **words):
    """The message that calls a tool."""
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": words}}


def test_a_question_that_is_too_late_or_too_long_is_a_tool_error(asked):
    headers = {"Authorization": f"Bearer {KEY}", "Accept": ACCEPT}
    question = call_of("search", query="how do I reset the router")
    assert not asked.ask("POST", "/mcp", question, **headers)[1]["result"]["isError"]
    status, found, _ = asked.ask("POST", "/mcp", question, **headers, X_Timeout="0.0001")
    assert (status, found["id"], found["result"]["isError"]) == (200, 7, True)
    assert found["result"]["content"][0]["text"].endswith(
        "was over before it was answered. Try again later, or ask for less."
    )
    found = asked.ask("POST", "/mcp", call_of("search", query="x" * 65_537), **headers)[1]["result"]
    assert found["isError"]
    assert "more than 65536 characters" in found["content"][0]["text"]
    status, found, _ = asked.ask("POST", "/mcp", question, **headers, X_Timeout="0")
    assert (status, found["error"]["code"]) == (400, -32600)


@pytest.mark.slow
def test_a_question_without_room_in_the_queue_is_a_tool_error(home):
    many = {"input": [f"the {n}th planet is far away from its star" for n in range(900)]}
    question = call_of("search", query="how do I reset the router")
    where = {"JINA_LOCAL_HOME": str(home / "data"), "XDG_CACHE_HOME": str(home / "cache")}
    with serving("--index", "notes", "--queue-tokens", "10", **where) as server, ThreadPoolExecutor(1) as pool:
        assert not server.post("/mcp", question, Accept=ACCEPT)["result"]["isError"]
        full = pool.submit(server.post, "/v1/embeddings", many)
        while 'queued_tokens{model="pico"} 0' in server.ask("GET", "/metrics")[1]:
            time.sleep(0.001)
        refused = server.post("/mcp", question, Accept=ACCEPT)["result"]
        assert refused["isError"]
        assert re.search(r"no room for \d+ more. Try again in \d+ seconds\.$", refused["content"][0]["text"])
        assert len(full.result()["data"]) == len(many["input"])
        assert not server.post("/mcp", question, Accept=ACCEPT)["result"]["isError"]
