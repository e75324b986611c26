"""The door: who may ask, with what, and how much. A request that gets past it has its whole body in memory.

Host and Origin are judged before anything is read, so that a page of another site can reach nothing, by whatever name
it calls this machine (DNS rebinding) and whatever form it posts (CSRF).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from . import assets
from .faults import Refused, log_bug
from .settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
# Makes the answer to a request that is refused: (path, error, request id) -> an ASGI app.
Refuse = Callable[[str, BaseException, str], App]

_log = logging.getLogger("jina_local.server")
# Without a key: whether the server lives, and the page, which asks for the key itself.
_OPEN = frozenset({*assets.PATHS, "/health", "/ready", "/live"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_OWN_SITES = (None, b"same-origin", b"none")  # of Sec-Fetch-Site; browsers alone send it
_SKIPPED = 8  # times the limit of a body: as much of one that is refused is read all the same
_JSON = ("application/json", "application/vnd.elasticsearch+json")


class Guard:
    """An ASGI app around another one."""

    def __init__(self, app: App, settings: Settings, refuse: Refuse) -> None:
        self._app, self._settings, self._refuse = app, settings, refuse
        self._hosts = None if settings.uds is not None else frozenset(_hosts(settings))
        self._own_origins = frozenset(f"http://{host}" for host in self._hosts or ())
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.origins)
        self._keys = [_digest(key.encode()) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with what is wrong."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served here")
        request_id = secrets.token_hex(8)
        headers: Headers = scope["headers"]
        own = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        answering = _Answering(send, own)
        body = _Body(receive, headers, self._settings.max_body)
        try:
            origin = self._check_caller(scope, headers)
            if origin in self._origins:
                answering.headers += _allowed(origin)
                if scope["method"] == "OPTIONS":
                    await _preflight(answering)
                    return
            self._check_key(scope, headers)
            scope.setdefault("state", {})["request_id"] = request_id
            scope["state"]["body"] = await body.read(is_needed=scope["method"] in _WITH_BODY)
            await self._app(scope, receive, answering)
        except _Gone:
            return
        except Exception as error:
            if not isinstance(error, Refused):
                log_bug(_log, request_id, error)
            if answering.begun:
                return  # half an answer; uvicorn closes the connection
            if not await body.skip():
                answering.headers.append((b"connection", b"close"))
            await self._refuse(scope["path"], error, request_id)(scope, receive, answering)

    def _check_caller(self, scope: Scope, headers: Headers) -> str | None:
        """The Origin of a request, None without one. Raises Refused if its Host or its Origin is not on the list."""
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in headers)
        if size > self._settings.max_header:  # uvicorn looks only at one that comes in pieces
            raise Refused(431, "too_large", f"the header has more than {self._settings.max_header} bytes.")
        if self._hosts is not None:
            host = (_one(headers, b"host") or b"").decode("latin-1").lower()
            if host not in self._hosts:
                raise Refused(403, "forbidden_host", "the Host header names another machine, or none.")
        raw = _one(headers, b"origin")
        origin = None if raw is None else raw.decode("latin-1").lower()
        if origin is not None and origin not in self._origins and origin not in self._own_origins:
            raise Refused(403, "forbidden_origin", "web pages of this origin may not ask; see --cors-origin.")
        visit = scope["method"] == "GET" and scope["path"] == "/" and _one(headers, b"sec-fetch-dest") == b"document"
        if origin is None and not visit and _one(headers, b"sec-fetch-site") not in _OWN_SITES:
            raise Refused(403, "forbidden_origin", "another site's page may not ask.")
        return origin

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or (scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD")):
            return
        given = _digest(_key(headers))
        right = False
        for key in self._keys:
            right |= hmac.compare_digest(key, given)
        if not right:
            raise Refused(401, "unauthorized", "a valid key is needed: Authorization: Bearer KEY.")


class _Body:
    """The body of one request. How long it may take is the connection's business."""

    def __init__(self, receive: Receive, headers: Headers, most: int) -> None:
        self._receive, self._headers, self._most = receive, headers, most
        self._more = any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
        self._size = 0

    async def read(self, *, is_needed: bool) -> bytes:
        """The whole of it. Raises Refused if it is too large, encoded, or not JSON by its type."""
        encoding = _one(self._headers, b"content-encoding")
        if encoding not in (None, b"", b"identity"):
            raise Refused(415, "media_type", "an encoded body is not taken; send it as it is.")
        length = _one(self._headers, b"content-length") or b"0"
        parts: list[bytes] = []
        while self._more and int(length) <= self._most and self._size <= self._most:
            parts.append(await self._part())
        if self._more or self._size > self._most:
            raise Refused(413, "too_large", f"the body is larger than {self._most} bytes.")
        kind = (_one(self._headers, b"content-type") or b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind not in _JSON and (self._size or (is_needed and kind)):
            raise Refused(415, "media_type", "the body has to be JSON: Content-Type: application/json.")
        return b"".join(parts)

    async def skip(self) -> bool:
        """Read what is left, so that a client that still sends gets to see its answer; False if it is very much."""
        try:
            while self._more and self._size <= _SKIPPED * self._most:
                await self._part()
        except _Gone:
            pass
        return not self._more and self._size <= self._most

    async def _part(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        self._more = message.get("more_body", False)
        part: bytes = message.get("body", b"")
        self._size += len(part)
        return part


class _Gone(Exception):
    """The client has closed the connection."""


class _Answering:
    """`send`, with headers of our own."""

    def __init__(self, send: Send, headers: Headers) -> None:
        self._send, self.headers = send, headers
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        await self._send(message)


def _allowed(origin: str | None) -> Headers:
    """For a page of an origin on the list: it may read the answer."""
    return [
        (b"access-control-allow-origin", (origin or "").encode("latin-1")),
        (b"vary", b"origin"),
        (b"access-control-expose-headers", b"x-request-id, x-truncated, retry-after"),
    ]


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
        (b"access-control-allow-headers", b"authorization, *"),  # * leaves that one out
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _hosts(settings: Settings) -> Iterable[str]:
    """What a Host header may be. The port may be left out where it is HTTP's own."""
    names = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in settings.names)}
    if settings.host not in ("0.0.0.0", "::"):  # every address, of which none is a name
        names.add(f"[{settings.host}]" if ":" in settings.host else settings.host.lower())
    for name in names:
        yield f"{name}:{settings.port}"
        if settings.port == 80:
            yield name


def _one(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header; None if it is absent. One that is there twice is refused."""
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise Refused(400, "invalid_request", f"the header {name.decode()} is there twice.")
    return found[0].strip() if found else None


def _key(headers: Headers) -> bytes:
    authorization = _one(headers, b"authorization") or b""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() in (b"bearer", b"apikey"):
        return rest.strip()
    return _one(headers, b"x-api-key") or _one(headers, b"api-key") or b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
