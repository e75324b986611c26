"""A running server in place of a loaded model: the same methods, the same records, the same bits.

It needs the standard library's HTTP alone, and opens a connection for each call.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..embedding import vectors
from ..embedding.request import resolve
from ..errors import (
    CallEnded,
    EngineError,
    IndexNotFound,
    JinaError,
    ModelNotFound,
    NonFiniteError,
    Overloaded,
    SearchIndexError,
    ServerUnavailable,
    TextError,
    TextTooLong,
    UsageError,
)
from ..search import passages
from ..spec import Embedded, EmbeddingSpec, ModelSpec, Ranked, Reranking

_CONNECT = 5.0  # seconds
_ANSWER = 600.0  # seconds; a server has a limit of its own, which is shorter
_PATIENCE = 60.0  # seconds in which a server that is busy, or loads its models, is asked again
_TEXTS = 2048  # of a request; a server that takes fewer says so
_TOO_LARGE = ("too_large", "too_many_inputs", "too_many_tokens", "deadline")


class Refusal(JinaError):
    """What a server answered in place of a result; `as_ours` makes one of our errors of it."""

    def __init__(self, address: str, status: int, fault: Mapping[str, Any]) -> None:
        super().__init__(str(fault.get("message") or f"{status}, without a reason"))
        self.address, self.status = address, status
        self.kind, self.param = str(fault.get("type")), str(fault.get("param"))

    def as_ours(self, offset: int = 0) -> JinaError:
        """The error that the library would have raised. offset: the place of the request's first text in the call."""
        text, status = str(self), self.status
        if status == 401:
            return UsageError(f"{self.address}: {text} Give it with --api-key-file FILE, or in JINA_LOCAL_API_KEY.")
        if at := re.fullmatch(r"input\[(\d+)\]", self.param):
            reason = re.sub(r"^text \d+: ", "", text)
            kind = TextTooLong if self.kind == "input_too_long" else TextError
            return kind(offset + int(at[1]), reason)
        if self.kind == "nonfinite_output":
            error = NonFiniteError((), 0)
            error.args = (text,)
            return error
        if status in (429, 503):
            return Overloaded(f"{self.address}: {text}", retry_after=1.0)
        kinds: Mapping[str, type[JinaError]] = {
            "model_not_found": ModelNotFound,
            "index_not_found": IndexNotFound,
            "index": SearchIndexError,
            "deadline": CallEnded,
        }
        otherwise = EngineError if status >= 500 else UsageError
        return kinds.get(self.kind, otherwise)(f"{self.address}: {text}")


class Server:
    """A running server. It is not asked before the first call."""

    def __init__(self, address: str, key: str | None = None) -> None:
        """address: http://HOST:PORT, https:// for one behind a proxy, or unix:PATH. Raises UsageError."""
        self.address, self._key = address, key
        self._connect = _connection(address)

    def model(self, name: str) -> RemoteModel:
        """A model in service. Raises ModelNotFound, ServerUnavailable, UsageError."""
        with self.reading():
            facts = self.ask("GET", f"/v1/models/{quote(name, safe='')}")
            row = registry.lookup(facts["id"]).spec
            spec = replace(
                row, tasks=tuple(facts["tasks"]), dims=tuple(facts["dimensions"]), max_tokens=facts["max_tokens"]
            )
            return RemoteModel(self, spec, {key: facts[key] for key in ("backend", "weights", "device")})

    def search(self, query: str, **fields: Any) -> passages.Found:
        """The passages of an index in service that answer a question. fields: of POST /v1/search."""
        given = {name: value for name, value in fields.items() if value is not None}
        with self.reading():
            answer = self.ask("POST", "/v1/search", {"query": query, "alone": True, **given})
            return passages.Found([_passage(hit) for hit in answer["hits"]], answer["mode"], answer["missing"])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise errors of ours for a refusal, and for an answer that is none of this version's."""
        try:
            yield
        except Refusal as refusal:
            raise refusal.as_ours() from None
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, JinaError):
                raise
            raise self._strange(f"an answer cannot be read ({error!r:.100})") from error

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to one request; a server that is busy is asked again for a while.

        Raises Refusal, ServerUnavailable, and UsageError if it is another kind of server.
        """
        raw = None if body is None else json.dumps(body).encode()
        until = time.monotonic() + _PATIENCE
        while True:
            status, header, text = self._once(method, path, raw)
            answer = self._read(status, text)
            if status == 200:
                return answer
            refusal = Refusal(self.address, status, answer["error"])
            if status not in (429, 503) or refusal.kind == "draining" or time.monotonic() > until:
                raise refusal
            time.sleep(min(int(header), 5) if header is not None and header.isdecimal() else 1)

    def _once(self, method: str, path: str, raw: bytes | None) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and body of one answer."""
        headers = {"Content-Type": "application/json"} if raw is not None else {}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connect()
        try:
            try:
                connection.connect()
            except OSError as error:
                raise ServerUnavailable(
                    f"no server answers at {self.address}: {error.strerror or error}. Start one with `jina-local "
                    "serve`, or leave --server and JINA_LOCAL_SERVER out."
                ) from error
            connection.sock.settimeout(_ANSWER)
            try:
                connection.request(method, path, raw, headers)
                answer = connection.getresponse()
                return answer.status, answer.getheader("retry-after"), answer.read()
            except (OSError, http.client.HTTPException) as error:
                why = str(error) or type(error).__name__
                raise ServerUnavailable(
                    f"the server at {self.address} went away before it had answered ({why})."
                ) from error
        finally:
            connection.close()

    def _read(self, status: int, text: bytes) -> Any:
        """The body of an answer, which has to be one that this kind of server gives."""
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and (status == 200 or isinstance(answer.get("error"), dict)):
            return answer
        raise self._strange(f"it answered {status}, and not as `jina-local serve` does")

    def _strange(self, why: str) -> UsageError:
        return UsageError(f"{self.address}: is no server of this version of jina_local: {why}.")


class RemoteModel:
    """A model of a server, with the methods of Embedder and Reranker that commands use."""

    def __init__(self, server: Server, spec: ModelSpec, runs_as: Mapping[str, str]) -> None:
        """runs_as: the backend, weights and device that the server has chosen."""
        self._server, self.spec, self.runs_as = server, spec, runs_as
        self._most = _TEXTS  # of a request

    def embed(
        self,
        texts: Iterable[str],
        *,
        show_progress: bool | None = None,
        deterministic: bool = False,
        **words: Any,
    ) -> Embedded:
        """See `Embedder.embed`; a progress bar is never shown. More texts than a server takes are sent in parts."""
        del show_progress
        _refuse_deterministic(deterministic)
        spec, given = resolve(self.spec, **words), list(texts)
        parts = self._embed(given, dict(words), 0) if given else []
        if not parts:
            none = vectors.finish(np.zeros((0, self.spec.dims[-1]), np.float32), spec)
            return Embedded(none, np.zeros(0, np.int32), np.zeros(0, np.bool_), (), spec)
        with self._server.reading():
            return _joined(parts, spec)

    def space(self, **words: Any) -> dict[str, str]:
        """See `Embedder.space`."""
        with self._server.reading():
            answer: dict[str, str] = self._server.ask("POST", "/library/space", self._body(words))
            return answer

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        show_progress: bool | None = None,
        deterministic: bool = False,
        **words: Any,
    ) -> Reranking:
        """See `Reranker.rerank` and `Embedder.rerank`; a progress bar is never shown."""
        del show_progress
        _refuse_deterministic(deterministic)
        fields = {"query": query, "documents": list(documents), **words}
        with self._server.reading():
            answer = self._server.ask("POST", "/library/rerank", self._body(fields))
            rows: Sequence[Any] = [None] * len(answer["results"])
            if answer["embeddings"] is not None:
                rows = list(_array(answer["embeddings"]))
            return Reranking(
                results=tuple(
                    Ranked(index, score, documents[index], row)
                    for (index, score), row in zip(answer["results"], rows, strict=True)
                ),
                cut=tuple(answer["cut"]),
                query_cut=answer["query_cut"],
                tokens=answer["tokens"],
                failed=tuple(answer["failed"]),
                scoring=answer["scoring"],
            )

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _embed(self, texts: list[str], words: dict[str, Any], start: int) -> list[Mapping[str, Any]]:
        """The answers for texts, in one request, or in more if the server refuses so many at a time.

        start: their place in the call. The bits of a text depend on the texts of its request, so there are no more
        requests than need be.
        """
        late = bool(words.get("late_chunking"))
        if late or len(texts) <= self._most:
            try:
                return [self._server.ask("POST", "/library/embed", self._body({"texts": texts, **words}))]
            except Refusal as refusal:
                if refusal.kind not in _TOO_LARGE or len(texts) == 1 or late:
                    raise refusal.as_ours(start) from None
            self._most = len(texts) // 2
        half = len(texts) // 2
        return [*self._embed(texts[:half], words, start), *self._embed(texts[half:], words, start + half)]

    def _body(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"model": self.spec.name, **{name: value for name, value in fields.items() if value is not None}}


def _refuse_deterministic(asked: bool) -> None:
    if asked:
        raise UsageError("deterministic: a server runs the texts of all callers together; leave one of both out.")


def _joined(parts: Sequence[Mapping[str, Any]], spec: EmbeddingSpec) -> Embedded:
    """The answers to parts of a call as the answer to the whole."""
    counts = [len(one["token_counts"]) for one in parts]
    starts = [sum(counts[:n]) for n in range(len(parts))]
    truncated = np.zeros(sum(counts), np.bool_)
    for start, one in zip(starts, parts, strict=True):
        truncated[[start + n for n in one["truncated"]]] = True
    return Embedded(
        np.concatenate([_array(one["vectors"]) for one in parts]),
        np.concatenate([np.array(one["token_counts"], np.int32) for one in parts]),
        truncated,
        tuple(start + n for start, one in zip(starts, parts, strict=True) for n in one["failed"]),
        spec,
    )


def _array(given: Mapping[str, Any]) -> NDArray[Any]:
    """An array as `dialects.library` writes it."""
    raw = np.frombuffer(base64.b64decode(given["base64"]), np.dtype(given["dtype"]))
    return raw.reshape(given["shape"]).astype(raw.dtype.newbyteorder("="))


def _passage(hit: Mapping[str, Any]) -> passages.Shown:
    path = hit["path"].encode() if "path_base64" not in hit else base64.b64decode(hit["path_base64"])
    return passages.of_record(hit, path, hit["passage"]["start_line"], hit["passage"]["end_line"])


class _UnixConnection(http.client.HTTPConnection):
    """HTTP through a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_CONNECT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(address: str) -> Any:
    """What opens a connection to an address. Raises UsageError."""
    if address.startswith("unix:"):
        path = os.path.abspath(os.path.expanduser(address.removeprefix("unix:").removeprefix("//")))
        return lambda: _UnixConnection(path)
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    plain = not (url.username or url.query or url.fragment or url.path.strip("/"))
    if url.scheme not in ("http", "https") or not url.hostname or not plain:
        raise UsageError(f"{address}: is no address of a server; expected http://HOST:PORT or unix:PATH.")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    host = url.hostname
    return lambda: kind(host, port, timeout=_CONNECT)
