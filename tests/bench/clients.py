"""Clients of a server, in one cheap process of their own: sockets that are kept, requests that are made beforehand.

    python tests/bench/clients.py PORT CLIENTS FILE

FILE has one JSON body a line. Each client sends the next body as soon as it has its answer. Standard output gets one
line of JSON: seconds for all, CPU seconds of this process, tokens by the answers' usage, the latency of each request
in ms, and the answers that were no 200.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"total_tokens": *(\d+)')


def request(port: int, body: bytes, path: str = "/v1/embeddings") -> bytes:
    """The bytes of one POST."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """One connection, which has at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self._parts: list[bytes] = []
        self._left: int | None = None  # bytes of the answer that are still to come

    def send(self, raw: bytes) -> None:
        """Begin one request."""
        self._parts, self._left = [], None
        self.began = time.perf_counter()
        self.socket.sendall(raw)

    def read(self) -> bytes | None:
        """What has come of the answer: all of it, or None if there is more to come."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the server has closed a connection with a request under way")
        self._parts.append(part)
        if self._left is None:
            head, end, rest = b"".join(self._parts).partition(b"\r\n\r\n")
            if not end:
                return None
            found = _LENGTH.search(head)
            if found is None:
                raise ValueError("an answer without a length")
            self._left = int(found[1]) - len(rest)
        else:
            self._left -= len(part)
        return None if self._left else b"".join(self._parts)


def run(port: int, count: int, bodies: Sequence[bytes]) -> dict[str, object]:
    """Send all bodies by so many clients; what the module's first lines say."""
    waiting = [request(port, body) for body in reversed(bodies)]
    latencies: list[float] = []
    failed: list[str] = []
    tokens = 0
    began, cpu = time.perf_counter(), time.process_time()
    with selectors.DefaultSelector() as selector:
        for _ in range(min(count, len(bodies))):
            client = Client(port)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(waiting.pop())
        while len(latencies) < len(bodies):
            for key, _ in selector.select():
                answer = key.data.read()
                if answer is None:
                    continue
                latencies.append(1000 * (time.perf_counter() - key.data.began))
                if answer.startswith(b"HTTP/1.1 200"):
                    tokens += int(_TOKENS.search(answer)[1])  # type: ignore[index]
                else:
                    failed.append(answer[:300].decode("latin-1"))
                if waiting:
                    key.data.send(waiting.pop())
                else:
                    selector.unregister(key.data.socket)
                    key.data.socket.close()
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "tokens": tokens,
        "latencies": latencies,
        "failed": failed,
    }


if __name__ == "__main__":
    with open(sys.argv[3], "rb") as file:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), file.read().splitlines())))
