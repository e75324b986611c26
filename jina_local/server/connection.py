"""One connection: uvicorn's, with limits on its client's time. A client that is slow at anything is cut off."""

from __future__ import annotations

import asyncio
import socket
import time
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import strict_json
from .dialects import v1
from .dialects.calls import Fault
from .settings import Settings

_SLOW_HEADER = Fault(408, "request_timeout", "the request's header came too slowly.")
_SLOW_BODY = Fault(408, "request_timeout", "the request's body came too slowly.")
_TOO_MANY = Fault(503, "too_many_connections", "the server has as many connections as it takes.")


class _Connection(H11Protocol):
    """uvicorn bounds the time between requests and, roughly, the size of a header.

    Added here: `header_seconds` from the first byte that is awaited to the end of a header; `body_seconds` for a
    body, which has to come at `body_rate` too, and for an answer to be read; `max_connections` at a time.
    """

    settings: Settings
    _late: asyncio.TimerHandle | None = None  # ends a client that sends too slowly
    _unread: asyncio.TimerHandle | None = None  # ends a client that reads too slowly
    _body_began: float | None = None
    _body_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        one = transport.get_extra_info("socket")
        if one.family != socket.AF_UNIX:  # asyncio does so only for sockets that name their protocol
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)  # pause_writing is called whenever a client is behind
        if len(self.connections) > self.settings.max_connections:
            self._end(_TOO_MANY, b"retry-after: 1\r\n")
        else:
            self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch_no_more()
        self._unwatch_reading()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE:
            self._watch_header()
        elif state is h11.SEND_BODY:
            self._watch_body(len(data))
        else:
            self._watch_no_more()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.settings.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch_reading()

    def send_400_response(self, msg: str) -> None:
        limit = f"or its header has more than {self.settings.max_header} bytes"
        self._end(Fault(400, "invalid_request", f"the request is not HTTP/1.1, {limit}."))

    def _watch_header(self) -> None:
        if self._body_began is not None:
            self._watch_no_more()
        if self._late is None:
            self._late = self.loop.call_later(self.settings.header_seconds, self._end, _SLOW_HEADER)

    def _watch_body(self, size: int) -> None:
        """Give a body the time of a header, and more as it comes, up to its limit."""
        if self._body_began is None:
            self._watch_no_more()
            self._body_began = time.monotonic()
        elif self._late is not None:
            self._late.cancel()
        self._body_bytes += size
        seconds = self.settings.header_seconds + self._body_bytes / self.settings.body_rate
        left = self._body_began + min(seconds, self.settings.body_seconds) - time.monotonic()
        self._late = self.loop.call_later(left, self._end, _SLOW_BODY)

    def _watch_no_more(self) -> None:
        self._body_began, self._body_bytes = None, 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _unwatch_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end(self, fault: Fault, header: bytes = b"") -> None:
        """Say what is wrong unless an answer has begun, and close."""
        if not self.transport.is_closing():
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(_answer(fault, header))
            self.transport.close()


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """The class of a server's connections."""
    return type("Connection", (_Connection,), {"settings": settings})


def _answer(fault: Fault, header: bytes) -> bytes:
    """A whole answer, for a request that no route will see."""
    body = strict_json.dumps(v1.write_fault(fault))
    first = f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}\r\n"
    last = f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    return first.encode() + header + last.encode() + body
