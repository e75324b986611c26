"""A hub on loopback: the routes that huggingface_hub calls to fetch a model, and the faults that a network has.

Asked of it by huggingface_hub 2.4 (seen by running it): GET /api/models/{repo}/revision/{revision}?blobs=true for
the list of files; for each file HEAD then GET /{repo}/resolve/{commit}/{name}, the GET with Range after a cut.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".gguf", ".safetensors")  # kept as LFS: named by SHA-256; the rest by git blob id


@dataclass
class Hub:
    """What is served, and what goes wrong. Tests change it while it runs."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # repo -> commit -> name -> content
    heads: dict[str, str] = field(default_factory=dict)  # repo -> commit of main
    gated: set[str] = field(default_factory=set)
    cut_once: dict[str, int] = field(default_factory=dict)  # name -> bytes sent before the connection is closed
    swapped: set[str] = field(default_factory=set)  # names whose bytes are not those announced
    vanished: set[str] = field(default_factory=set)  # listed, and 404 when asked for
    down: int | None = None  # a status for every request
    seen: list[str] = field(default_factory=list)  # "METHOD path [range]"
    agents: set[str] = field(default_factory=set)
    pace: float = 0.0  # seconds before every piece of a file
    piece: int = 1 << 16  # bytes
    silent: threading.Event | None = None  # every request waits for it before it is answered
    on_file: Callable[[str], object] = lambda name: None  # called before a file's bytes are sent
    on_listing: Callable[[Any], Any] = lambda body: body  # gives what is sent in the place of a listing
    url: str = ""

    def add(self, repo: str, commit: str, files: Mapping[str, bytes | Path]) -> None:
        """Publish a commit as the head of a repository."""
        read = {name: f.read_bytes() if isinstance(f, Path) else f for name, f in files.items()}
        self.repos.setdefault(repo, {})[commit] = read
        self.heads[repo] = commit

    def add_folder(self, repo: str, commit: str, folder: Path) -> None:
        """Publish a folder."""
        self.add(repo, commit, {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()})


def digest(name: str, content: bytes) -> str:
    """The etag of a file."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub until the block ends; `.url` is what HF_ENDPOINT has to be."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Metadata of a file."""
        self._answer()

    def do_GET(self) -> None:
        """A listing, or a file."""
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        self.hub.agents.add(self.headers.get("User-Agent", ""))
        if self.hub.silent:
            self.hub.silent.wait()
        if self.hub.down:
            self._send(self.hub.down, b"busy")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._send(404, b"no such route")

    def _find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
            return None
        if repo not in self.hub.repos:
            self._refuse(401, "RepoNotFound")  # as the real one answers without a token
            return None
        commit = self.hub.heads[repo] if revision == "main" else revision
        if commit not in self.hub.repos[repo]:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, self.hub.repos[repo][commit]

    def _listing(self, repo: str, revision: str) -> None:
        if not (found := self._find(repo, revision)):
            return
        commit, files = found
        siblings = []
        for name, content in files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git}
            if name.endswith(LARGE):
                one["lfs"] = {"sha256": digest(name, content), "size": len(content), "pointerSize": 130}
            siblings.append(one)
        body = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False,
                "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        body = self.hub.on_listing(body)
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: str, revision: str, name: str) -> None:
        if not (found := self._find(repo, revision)):
            return
        commit, files = found
        if name not in files or name in self.hub.vanished:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        content = files[name]
        etag = digest(name, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if name in self.hub.swapped:
            content = bytes(b ^ 0xFF for b in content[:64]) + content[64:]
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET":
            self.hub.on_file(name)
        cut = self.hub.cut_once.pop(name, None) if self.command == "GET" else None
        self._send(status, content[start:], headers, cut)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = body[:cut] if cut is not None else body
        with suppress(ConnectionError):  # the other side may break off
            for at in range(0, len(body), self.hub.piece):
                time.sleep(self.hub.pace)
                self.wfile.write(body[at : at + self.hub.piece])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
