"""A server on a free port of this machine, in a process of its own, with the bundled model."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jina_local import Embedder, load


@dataclass
class Running:
    """A server that answers."""

    process: subprocess.Popen[str]
    port: int  # 0: it listens at a Unix socket

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body as JSON (or text) and headers, in lower case, of one request. Bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, raw, {**sent, **{k.replace("_", "-"): v for k, v in headers.items()}})
            answer = connection.getresponse()
            text = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            kind = found.get("content-type", "")
            return answer.status, json.loads(text) if kind.startswith("application/json") else text.decode(), found
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """The body of an answer that has to be 200."""
        status, found, _ = self.ask("POST", path, body, **headers)
        assert status == 200, found
        return found


@contextmanager
def serving(*options: str, started: Sequence[str] = (), **environment: str) -> Iterator[Running]:
    """Start `serve`, wait until it takes requests, and end it. started: what starts the command line instead."""
    arguments = options if "--model" in options else ("--model", "pico", *options)
    where = () if "--uds" in arguments else ("--port", "0")
    process = subprocess.Popen(
        [*(started or (sys.executable, "-m", "jina_local")), "serve", *where, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield Running(process, _port(process))
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    said, deadline = [], time.monotonic() + 60
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"listening at (?:http://[^ ]*:(\d+)|unix:)", line):
            return int(found[1] or 0)
        assert time.monotonic() < deadline
    raise AssertionError("".join(said))


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One server for all tests that do it no harm."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def model() -> Iterator[Embedder]:
    """The bundled model in this process, whose vectors a server's have to be."""
    with load("pico") as one:
        assert isinstance(one, Embedder)
        yield one


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module's `home`, with indexes in it, as working folder and place of all that is kept."""
    monkeypatch.setenv("JINA_LOCAL_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.chdir(home)
    return home
