"""A server without models, in a process of its own, with limits that a test can wait for; and requests as bytes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CODE = """
import json, sys
from jina_local.cli import serve
from jina_local.server import listen
from jina_local.server.settings import Settings
serve._log_to_stderr()
exec(sys.argv[2])
words = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[1]).items()}
listen.run(Settings(**words), [], lambda served, addresses: print(*addresses, flush=True))
"""

Answer = tuple[int, dict[str, str], Any]


@dataclass
class Door:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def say(self, raw: bytes) -> Answer:
        """Status, headers in lower case, and body of the answer to these bytes, on a connection of their own."""
        with self.connect() as one:
            one.sendall(raw)
            return answer(one)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """The same of a request; Host and Content-Length are right unless they are given."""
        return self.say(request(self.port, method, path, body, **headers))


def request(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """The bytes of a request. In names of headers - stands as _."""
    given = {"host": f"127.0.0.1:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body is not None:
        given = {"content-type": "application/json", "content-length": str(len(body)), **given}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b"")


def answer(one: socket.socket) -> Answer:
    """Read one answer. Raises ConnectionError if there is none, or not all of it."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += _more(one)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        body += _more(one)
    body = body[:length]
    kind = headers.get("content-type", "")
    return int(first.split()[1]), headers, json.loads(body) if kind.startswith("application/json") else body.decode()


def children(pid: int) -> list[int]:
    """The processes that a process has started: those of a server are its engines'."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def is_closed(one: socket.socket) -> bool:
    """Whether the other side closes the connection within the socket's time."""
    try:
        return one.recv(1 << 16) == b""
    except ConnectionResetError:
        return True


def _more(one: socket.socket) -> bytes:
    part = one.recv(1 << 16)
    if not part:
        raise ConnectionError("closed in front of an answer's end")
    return part


@contextmanager
def door(before: str = "", **settings: Any) -> Iterator[Door]:
    """Start a server. `before`: Python that is run in it first."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps({"port": 0, **settings}), before],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ,
            )  # fmt: skip
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            found = re.search(r":(\d+)$", said.strip())
            assert said, log.read_text()
            yield Door(process, int(found[1]) if found else 0, log)
        finally:
            process.terminate()
            process.wait(40)
            process.stdout.close()
