"""The MCP server: the SDK's own client talks to a child process; and the command `mcp`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jina_local import Index, load
from jina_local.errors import IndexNotFound, OutputError
from jina_local.search.lock import held

pytest.importorskip("mcp", reason="pip install 'jina_local[mcp]'")

from mcp import StdioServerParameters
from mcp.client import Client
from mcp.client.stdio import stdio_client

from jina_local.integrations import mcp

from .test_mcp_clients import PLACES, parsed

pytestmark = pytest.mark.llama
ROOT = Path(__file__).resolve().parents[2]
NOTES = {
    "router.md": "# Router\n\n## Reset\n\nHold the button on the back for ten seconds to reset the router.\n",
    "bread.md": "# Bread\n\nFeed the sourdough starter with flour and water every day.\n",
    "code/moon.py": 'def phase(day):\n    """The phase of the moon on a day."""\n    return day % 29.5\n',
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _place(monkeypatch, home):
    monkeypatch.setenv("JINA_LOCAL_HOME", str(home))


@pytest.fixture
def notes(tmp_path):
    for name, text in NOTES.items():
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(text)
    return tmp_path / "notes"


@pytest.fixture(scope="module")
def pico():
    with load("pico", show_progress=False) as model:
        yield model


@pytest.fixture
def index(notes, pico):
    """The path of an index of the notes that nobody has open."""
    path = notes.parent / "index.sqlite"
    with Index.open(path, model=pico) as index:
        index.update(notes)
    return path


def environment(home):
    return {"JINA_LOCAL_HOME": str(home), "PYTHONPATH": str(ROOT), "HOME": str(home), "HF_HUB_OFFLINE": "1"}


def session(steps, home, cwd, *arguments, command=None):
    """What `steps`, which gets a client's `call(tool, **arguments)`, returns; the server is a real child process."""
    command = command or [sys.executable, "-m", "jina_local", "mcp", *arguments]
    started = StdioServerParameters(command=command[0], args=command[1:], env=environment(home), cwd=cwd)

    async def talk():
        async with Client(stdio_client(started)) as client:

            async def call(tool, **words):
                result = await client.call_tool(tool, words)
                assert len(result.content) == 1
                return ("error: " if result.is_error else "") + result.content[0].text

            call.client = client
            return await steps(call)

    return asyncio.run(asyncio.wait_for(talk(), 60))


def test_tools_answer_with_paths_and_lines(index, notes, home):
    async def steps(call):
        tools = (await call.client.list_tools()).tools
        return (
            {tool.name: tool for tool in tools},
            await call("search", query="how do I reset the router"),
            await call("search", query="how do I reset the router", paths=["*.py"]),
            await call("related", path="code/moon.py"),
            await call("get", path="router.md", line=3, count=3),
            await call("index_status"),
        )

    tools, found, python, related, lines, status = session(steps, home, notes, "--index", str(index))
    assert set(tools) == {"search", "get", "related", "index_status"}
    assert all(tool.annotations.read_only_hint and tool.output_schema is None for tool in tools.values())
    first, text = found.split("\n", 1)
    assert first.startswith(("router.md:3-5", "router.md:1-5"))
    assert "Hold the button" in text
    assert python.splitlines()[0].startswith("code/moon.py:1-3")
    assert "router.md" not in python
    assert "code/moon.py" not in related
    assert {"router.md", "bread.md"} <= set(re.findall(r"^\w+\.md", related, re.MULTILINE))
    assert lines == "router.md:3-5\n## Reset\n\nHold the button on the back for ten seconds to reset the router."
    assert "3 files" in status
    assert "pico, 256 dimensions" in status


def test_an_answer_keeps_its_budget_and_the_next_hits_can_be_asked_for(notes, opened, monkeypatch):
    monkeypatch.chdir(notes)
    for n in range(30):
        (notes / f"letter-{n:02}.txt").write_text(f"Letter {n} about the harbour. " + "The sea is grey today. " * 12)
    opened.update()
    tools = mcp.Tools(lambda: opened)
    seen, offset = [], 0
    while len(seen) < 30:
        page = tools.search("letter about the harbour", 250, offset)
        assert len(page.encode()) < 4 * 250 + 30
        named = re.findall(r"^letter-\d\d\.txt", page, re.MULTILINE)
        assert len(named) > 1
        seen += named
        offset = int(re.search(r"offset=(\d+)", page)[1])
    assert len(set(seen)) == len(seen) == offset == 30
    least = tools.search("letter about the harbour", 1)
    assert least.splitlines()[1] == "Lett"
    assert len(least) < 80
    assert "no hits after the first 99" in tools.search("letter", offset=99)
    tools.close()


def test_what_changes_is_found_at_once(index, notes, home):
    async def steps(call):
        await call("search", query="anything")
        (notes / "tides.txt").write_text("The spring tide comes after the full moon.\n")
        (notes / "bread.md").unlink()
        return await call("search", query="spring tide"), await call("search", query="sourdough starter")

    tide, bread = session(steps, home, notes, "--index", str(index))
    assert tide.startswith("tides.txt:1")
    assert "no vector" not in tide
    assert "bread.md" not in bread


def test_errors_are_sentences_and_the_session_goes_on(index, notes, home, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")

    async def steps(call):
        said = [
            await call("get", path=str(tmp_path / "secret.txt")),
            await call("get", path="router.md", line=99),
            await call("get", path="router.md", line=0),
            await call("search", query="  "),
            await call("search", query="x", max_tokens=0),
            await call("search", query="x", offset=-1),
            await call("search", query="x", max_tokens="many"),
        ]
        return said, await call("search", query="router")

    said, after = session(steps, home, notes, "--index", str(index))
    for text, words in zip(
        said, ("is not in the index", "99 was asked for", "count from 1", "is empty", "whole number from 1",
               "whole number from 0", "valid integer"), strict=True,
    ):  # fmt: skip
        assert text.startswith("error: ")
        assert words in text
    assert after.startswith("router.md")


def test_the_folder_it_is_started_in_decides_and_an_index_may_come_later(notes, home, tmp_path):
    own = tmp_path / "own"

    async def steps(call):
        before = await call("search", query="router")
        command = [sys.executable, "-m", "jina_local", "index", str(notes), "--model", "pico"]
        made = await asyncio.create_subprocess_exec(*command, env=environment(own), stderr=asyncio.subprocess.DEVNULL)
        assert await made.wait() == 0
        return before, await call("search", query="reset the router")

    before, after = session(steps, own, notes / "code")
    assert before.startswith("error: ")
    assert "there is no index yet" in before
    assert after.startswith(f"{notes}/router.md:"), "outside of the working directory a path is whole"


def test_an_index_that_is_made_anew_is_opened_anew(index, notes, pico):
    tools = mcp.Tools(lambda: Index.open(index, model=pico))
    tools.search("router")
    with Index.open(index) as old:
        old.remove()
    with pytest.raises(IndexNotFound, match="there is no index here"):
        tools.search("router")
    with Index.open(index, model=pico) as new:
        new.update(notes / "code")
    assert "1 files" in tools.index_status()
    tools.close()


NOISY = """
import ctypes, os, sys
from jina_local import Index, console
from jina_local.integrations import mcp

NETWORK = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"}
sys.addaudithook(lambda event, arguments: event in NETWORK and sys.stderr.write(f"{event} {arguments}"))

def opened():
    os.write(1, b"noise of a descriptor")
    print("noise of Python")
    ctypes.CDLL(None).puts(b"noise of C")
    return Index.open(sys.argv[1], offline=True)

def main():
    mcp.serve(opened)
    return 0

console.run(main)
"""


def lines(*requests):
    hello = {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
    }  # fmt: skip
    wanted = [("initialize", hello), *requests]
    messages = [{"jsonrpc": "2.0", "id": n, "method": m, "params": p} for n, (m, p) in enumerate(wanted)]
    messages.insert(1, {"jsonrpc": "2.0", "method": "notifications/initialized"})
    return "".join(json.dumps(message) + "\n" for message in messages)


def test_nothing_but_the_protocol_is_on_stdout_and_no_socket_is_used(index, notes, home):
    ask = ("tools/call", {"name": "search", "arguments": {"query": "router"}})
    with subprocess.Popen(
        [sys.executable, "-c", NOISY, str(index)], env=environment(home), cwd=notes, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdin.write(lines(ask))
        child.stdin.flush()
        answers = [json.loads(child.stdout.readline()) for _ in range(2)]
        rest, said = child.communicate(timeout=30)
    assert child.returncode == 0
    assert [answer["id"] for answer in answers] == [0, 1]
    assert "router.md" in answers[1]["result"]["content"][0]["text"]
    assert rest == ""
    assert sorted(re.findall("noise of [A-Za-z ]+?(?=noise|\n|$)", said)) == [
        "noise of C", "noise of Python", "noise of a descriptor",
    ]  # fmt: skip
    assert "socket" not in said


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("end", "code", "words"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, ""), (None, 0, "")],
    ids=["Ctrl-C", "SIGTERM", "closed"],
)
def test_it_ends_quietly_and_soon(index, notes, home, end, code, words):
    command = [sys.executable, "-m", "jina_local", "mcp", "--index", str(index)]
    with subprocess.Popen(
        command, env=environment(home), cwd=notes, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdin.write(lines(("tools/call", {"name": "search", "arguments": {"query": "router"}})))
        child.stdin.flush()
        for _ in range(2):
            child.stdout.readline()
        if end is not None:
            child.send_signal(end)
        else:
            child.stdin.close()
        began = time.monotonic()
        assert child.wait(30) == code
        assert time.monotonic() - began < 10
        assert child.stdout.read() == ""
        assert child.stderr.read() == words


def test_a_client_that_is_gone_is_no_fault(index, notes, home):
    read, write = os.pipe()
    command = [sys.executable, "-m", "jina_local", "mcp", "--index", str(index)]
    with subprocess.Popen(
        command, env=environment(home), cwd=notes, text=True,
        stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        os.close(write)
        os.close(read)
        assert child.communicate(lines(), timeout=30) == (None, "")
    assert child.returncode == 0


@pytest.mark.sampled
@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_streams_are_told(index, home, closed):
    command = f'exec "{sys.executable}" -m jina_local mcp {closed}'
    done = subprocess.run(
        ["sh", "-c", command], env=environment(home), capture_output=True, text=True, check=False, input="",
    )  # fmt: skip
    assert done.returncode == 2
    assert "standard input or output is closed" in done.stderr


class _Slow:
    """An index whose update takes as long as the test wants."""

    def __init__(self, index, path):
        self.path, self._index, self.free = path, index, threading.Event()
        self.batches = 0

    def update(self, *, command, progress):
        while not self.free.wait(0.05):
            self.batches += 1
            progress(None)

    def __getattr__(self, name):
        return getattr(self._index, name)


@pytest.fixture
def opened(index, pico):
    with Index.open(index, model=pico) as opened:
        yield opened


@pytest.mark.slow
def test_an_answer_does_not_wait_long_for_the_refresh(index, opened):
    slow = _Slow(opened, index)
    tools, refresh = mcp.Tools(lambda: slow), mcp._Refresh(slow)
    began = time.monotonic()
    assert "is being brought up to date" in refresh.wait()
    assert 0.9 < time.monotonic() - began < 2
    began = time.monotonic()
    assert "is being brought up to date" in refresh.wait()
    assert time.monotonic() - began < 0.5, "this run has had its wait"
    slow.free.set()
    time.sleep(0.2)
    assert refresh.wait() is None
    slow.free.clear()
    found = tools.search("router")
    assert "router.md" in found
    assert "is being brought up to date" in found
    tools.close()
    before = slow.batches
    time.sleep(0.2)
    assert slow.batches == before, "the end stops it"


def test_a_refresh_has_a_limit(index, opened, monkeypatch):
    monkeypatch.setattr(mcp, "_MOST", 0.2)
    slow = _Slow(opened, index)
    tools = mcp.Tools(lambda: slow)
    assert "up to date" not in tools.search("router"), "it was stopped, and the next one goes on"
    assert 0 < slow.batches < 10
    tools.close()


def test_another_writer_is_named_and_old_words_answer(index, opened):
    with held(index, "index elsewhere"):
        tools = mcp.Tools(lambda: opened)
        assert "Another process is bringing the index up to date" in tools.search("router")
    assert "up to date" not in tools.search("router")
    tools.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_refresh_that_fails_is_told(index, opened, monkeypatch):
    tools = mcp.Tools(lambda: opened)
    for error, words in ((OutputError("the disk is full."), "the disk is full"), (KeyError("bug"), "a traceback")):
        monkeypatch.setattr(opened, "update", _raising(error))
        assert f"The index could not be brought up to date: {words}" in tools.search("router").replace(
            "standard error has ", ""
        )
    tools.close()


def _raising(error):
    def update(**_):
        raise error

    return update


def test_long_lines_are_cut(notes, opened, monkeypatch):
    monkeypatch.chdir(notes)
    (notes / "long.txt").write_text("x" * 5000 + "\n" + "second\n" * 4)
    opened.update()
    tools = mcp.Tools(lambda: opened)
    assert tools.get("long.txt", max_tokens=10) == f"long.txt:1\n{'x' * 40}\n(Lines follow to 5: get it with line=2.)"
    assert tools.get("long.txt", 2, max_tokens=4).splitlines() == [
        "long.txt:2-3", "second", "second", "(Lines follow to 5: get it with line=4.)",
    ]  # fmt: skip
    tools.close()


# --- mcp install


def install(*arguments, home, **more):
    done = subprocess.run(
        [sys.executable, "-m", "jina_local", "mcp", "install", *arguments],
        capture_output=True, text=True, check=False, env={**environment(home), **more},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_prints_or_writes_and_says_so(index, notes, home, tmp_path):
    user = tmp_path / "user"
    path = user / PLACES["claude-code"]
    code, out, said = install("claude-code", "--index", str(index), "--print", home=home, HOME=str(user))
    assert code == 0
    assert not path.exists()
    assert str(path) in said
    code, nothing, said = install("claude-code", "--index", str(index), home=home, HOME=str(user))
    assert (code, nothing) == (0, "")
    assert f"{path}: added the server jina-local" in said
    assert f"'--index', '{index}'" in said
    assert parsed(path) == json.loads(out)
    server = parsed(path)["mcpServers"]["jina-local"]
    assert server["env"] == {"JINA_LOCAL_HOME": str(home)}
    command = [server["command"], *server["args"]]
    found = session(lambda call: call("search", query="router"), home, notes, command=command)
    assert found.startswith("router.md")
    code, _, said = install("claude-code", "--index", str(index), home=home, HOME=str(user))
    assert "nothing was changed" in said
    code, _, said = install("claude-code", "--index", "nosuch", home=home, HOME=str(user))
    assert code == 2
    assert "there is no index 'nosuch'" in said


def test_wrong_words_are_refused(home):
    for arguments, words in (
        (["install"], "Possible: claude-code, codex, cursor, vscode"),
        (["install", "claude"], "did you mean"),
        (["serve"], "invalid choice"),
        (["--print"], "--print goes with"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "jina_local", "mcp", *arguments],
            capture_output=True, text=True, check=False, env=environment(home), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr


def test_without_the_package_the_command_says_what_to_install(home, tmp_path):
    (tmp_path / "mcp.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "jina_local", "mcp"], capture_output=True, text=True, check=False,
        env={**environment(home), "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 69
    assert "pip install 'jina_local[mcp]'" in done.stderr
