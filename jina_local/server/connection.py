"""One connection: uvicorn's, with a limit on how long a header may take and on how many connections there are."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def protocol(header_seconds: float, max_connections: int) -> type[asyncio.Protocol]:
    """The class of a connection. uvicorn bounds the size of a header, and the time between requests, but not these.

    header_seconds: from the first byte that is awaited to the end of the header; then 408 and the end.
    max_connections: further ones get 503 and the end.
    """

    class Connection(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._end(b"503 Service Unavailable", b"retry-after: 1\r\n")
            else:
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch_no_more()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:  # the header is not whole yet
                self._watch()
            else:
                self._watch_no_more()

        def _watch(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(header_seconds, self._end, b"408 Request Timeout")

        def _watch_no_more(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _end(self, status: bytes, header: bytes = b"") -> None:
            if not self.transport.is_closing():
                self.transport.write(
                    b"HTTP/1.1 " + status + b"\r\n" + header + b"connection: close\r\ncontent-length: 0\r\n\r\n"
                )
                self.transport.close()

    return Connection
