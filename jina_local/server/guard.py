"""The door: who may ask, with what, and how fast. A request that gets past it has its whole body in memory.

Host and Origin are judged before anything is read, so that a page of another site can reach nothing, by whatever name
it calls this machine (DNS rebinding) and whatever form it posts (CSRF).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from . import assets
from .faults import Refused
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
_JSON = ("application/json", "application/vnd.elasticsearch+json")


class Guard:
    """An ASGI app around another one."""

    def __init__(self, app: App, settings: Settings, refuse: Refuse) -> None:
        self._app, self._settings, self._refuse = app, settings, refuse
        self._hosts = None if settings.uds is not None else frozenset(_hosts(settings))
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.origins)
        self._keys = [_digest(key.encode()) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with what is wrong."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served here")
        request_id = secrets.token_hex(8)
        headers: Headers = scope["headers"]
        origin = _one(headers, b"origin")
        own: Headers = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if origin is not None and origin.decode("latin-1").lower() in self._origins:
            own += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
            own += [(b"access-control-expose-headers", b"x-request-id, x-truncated, retry-after")]
        answering = _Answering(send, own, self._settings.body_seconds)
        try:
            self._check_caller(scope, headers, origin)
            if scope["method"] == "OPTIONS" and origin is not None:
                await _preflight(answering)
                return
            self._check_key(scope, headers)
            scope.setdefault("state", {})["request_id"] = request_id
            if scope["method"] in _WITH_BODY:
                scope["state"]["body"] = await self._body(headers, receive)
            await self._app(scope, receive, answering)
        except _Gone:
            return
        except Exception as error:
            if not isinstance(error, Refused):
                _log.exception("request %s failed", request_id)
            if answering.begun:
                raise
            if isinstance(error, Refused) and error.fault.status in (408, 413):
                own.append((b"connection", b"close"))
            await self._refuse(scope["path"], error, request_id)(scope, receive, answering)

    def _check_caller(self, scope: Scope, headers: Headers, origin: bytes | None) -> None:
        """Refuse a Host or an Origin that is not on the list."""
        hosts = [value for name, value in headers if name == b"host"]
        if self._hosts is not None:
            host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
            if host not in self._hosts:
                raise Refused(403, "forbidden_host", "the Host header names another machine, or none.")
        if origin is not None and origin.decode("latin-1").lower() not in self._origins | self._own_origins:
            raise Refused(403, "forbidden_origin", "web pages of this origin may not ask; see --cors-origin.")
        site, mode = _one(headers, b"sec-fetch-site"), _one(headers, b"sec-fetch-mode")
        visit = mode == b"navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if site == b"cross-site" and origin is None and not visit:
            raise Refused(403, "forbidden_origin", "another site's page may not ask.")

    @property
    def _own_origins(self) -> frozenset[str]:
        return frozenset(f"http://{host}" for host in self._hosts or ())

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or (scope["path"] in _OPEN and scope["method"] in ("GET", "HEAD")):
            return
        given = _digest(_key(headers))
        right = False
        for key in self._keys:
            right |= hmac.compare_digest(key, given)
        if not right:
            raise Refused(401, "unauthorized", "a valid key is needed: Authorization: Bearer KEY.")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body. Raises Refused if it is too large, too slow, encoded, or not JSON by its type."""
        most = self._settings.max_body
        encoding = _one(headers, b"content-encoding")
        if encoding not in (None, b"", b"identity"):
            raise Refused(415, "media_type", "an encoded body is not taken; send it as it is.")
        length = _one(headers, b"content-length")
        too_large = f"the body is larger than {most} bytes."
        if length is not None and (not length.isdigit() or int(length[:20]) > most):
            raise Refused(413, "too_large", too_large)
        body = bytearray()
        began = time.monotonic()
        while True:
            message = await self._next(receive, began, len(body))
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            if len(body) > most:
                raise Refused(413, "too_large", too_large)
            if not message.get("more_body"):
                break
        kind = (_one(headers, b"content-type") or b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind not in _JSON and (body or kind):
            raise Refused(415, "media_type", "the body has to be JSON: Content-Type: application/json.")
        return bytes(body)

    async def _next(self, receive: Receive, began: float, so_far: int) -> Message:
        """The next part of a body, which has to come in time."""
        settings = self._settings
        at_this_pace = settings.header_seconds + so_far / settings.body_rate
        left = began + min(settings.body_seconds, at_this_pace) - time.monotonic()
        try:
            return await asyncio.wait_for(receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise Refused(408, "request_timeout", "the body came too slowly.") from None


class _Gone(Exception):
    """The client has closed the connection."""


class _Answering:
    """`send`, with headers of our own, for clients that read."""

    def __init__(self, send: Send, headers: Headers, seconds: float) -> None:
        self._send, self._headers, self._seconds = send, headers, seconds
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        try:
            await asyncio.wait_for(self._send(message), self._seconds)
        except asyncio.TimeoutError:
            raise _Gone from None


async def _preflight(send: Send) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key, mcp-protocol-version"),
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
