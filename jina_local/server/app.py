"""The routes: what is read from a request, what is called, and how it is answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from ..inference.queue import Call
from . import assets, faults, openapi, strict_json
from .dialects.calls import Fault
from .faults import Refused
from .guard import App, Guard, Message, Receive, Scope, Send
from .metrics import Metrics
from .mounts import Mounted, ticket
from .routes import Endpoint, Reply, endpoints, fault_shape
from .served import Served
from .settings import Settings

T = TypeVar("T")
_log = logging.getLogger("jina_local.server")
_LATE = 2.0  # seconds for an answer that says that the time is over


class State:
    """What the routes share."""

    def __init__(self, served: Served, settings: Settings) -> None:
        self.served, self.settings, self.metrics = served, settings, Metrics()
        # As many as there may be connections: a request that waits for its passes holds a thread.
        self._threads = ThreadPoolExecutor(settings.max_connections, thread_name_prefix="request")
        self.last_request = time.monotonic()

    @contextmanager
    def watching(self, path: str) -> Iterator[list[int]]:
        """Count a request to a path of the server's own. The block appends the status of its answer to the list."""
        began = self.last_request = time.monotonic()
        self.metrics.under_way += 1
        statuses: list[int] = []
        try:
            yield statuses
        finally:
            self.metrics.under_way -= 1
            self.last_request = time.monotonic()
            self.metrics.answered(path, statuses[-1] if statuses else 500, self.last_request - began)

    async def run(self, work: Callable[[Call], T], request: Request) -> T:
        """Do the work in a thread; see `wait`."""
        call = Call(self.seconds(request.headers))
        return await self.wait(asyncio.get_running_loop().run_in_executor(self._threads, work, call), call, request)

    async def wait(self, task: asyncio.Future[T], call: Call, request: Request) -> T:
        """What a call's task returns; it ends when it is done, its time is over, or nobody waits for it any more."""
        gone = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {task, gone}
        try:
            left = max(0.0, call.deadline - time.monotonic()) + _LATE
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise Refused(499, "client_closed", "the client has gone.")
            raise Refused(504, "deadline", "the time for this request is over; it was not answered.")
        finally:  # also if this is cancelled, as it is once the time for the last requests is over
            gone.cancel()
            call.end()
            if not task.done():
                task.add_done_callback(_forget)
                task.cancel()

    def close(self) -> None:
        """Wait for no thread: what they still do, nobody waits for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def seconds(self, headers: Mapping[str, str]) -> float:
        """How long a request may take: the server's limit, or less if the request says so."""
        given = headers.get("x-timeout")
        if given is None:
            return self.settings.timeout
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= self.settings.timeout:
            raise Refused(400, "invalid_request", f"X-Timeout: expected seconds up to {self.settings.timeout:g}.")
        return seconds


def build(served: Served, settings: Settings, state: State, mounted: Mapping[str, Mounted] | None) -> App:
    """The whole app, with the guard around it. mounted: None if the package mcp is not installed."""
    table = endpoints(served)
    plain = {
        "/health": (_health(served), {"status": "", "state": "", "version": ""}),
        "/live": (_health(served), {"status": "", "state": "", "version": ""}),
        "/ready": (_ready(served), {"ready": True, "state": ""}),
        "/metrics": (_metrics(state), ""),
    }
    described = openapi.describe(
        table, {path: sample for path, (_, sample) in plain.items()}, with_key=bool(settings.keys)
    )

    async def description(_request: Request) -> Response:
        return _plain(described)

    routes = [
        *(_route(one, state) for one in table),
        *(Route(path, _Hosting(path, one, state), methods=["POST"]) for path, one in (mounted or {}).items()),
        Route("/mcp{rest:path}", _no_mcp(mounted), methods=["GET", "POST"]),
        *assets.routes(),
        *(Route(path, answer, methods=["GET"]) for path, (answer, _) in plain.items()),
        Route("/openapi.json", description, methods=["GET"]),
    ]
    inner = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    inner.router.redirect_slashes = False  # it would answer with an address made of the Host header
    return Guard(inner, settings, _refuse)


def _route(one: Endpoint, state: State) -> Route:
    """A route whose work is done in a thread: JSON in, JSON out, an error in its dialect's shape."""

    async def endpoint(request: Request) -> Response:
        request_id, raw = request.state.request_id, getattr(request.state, "body", None)

        def whole(ticket: Call) -> tuple[Reply, bytes]:
            body = {} if not raw else strict_json.loads(raw)
            if request.path_params:
                query = dict(request.query_params)
                body = {"path": dict(request.path_params), "query": query, "body": body}
            reply = one.work(body, ticket)
            return reply, strict_json.dumps(reply.body)

        response: Response
        with state.watching(one.path) as statuses:
            try:
                state.served.require_ready()
                reply, text = await state.run(whole, request)
                response = Response(text + b"\n", reply.status, _said(reply), "application/json")
            except Exception as error:
                response = _failed(error, request_id, one.fault)
            statuses.append(response.status_code)
        return response

    return Route(one.path, endpoint, methods=list(one.methods))


class _Hosting:
    """An ASGI app of another room as a route's endpoint. The guard has read the body, so it is given once more."""

    def __init__(self, path: str, mounted: Mounted, state: State) -> None:
        self._path, self._mounted, self._state = path, mounted, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self._state.watching(self._path) as statuses:
            try:
                self._state.served.require_ready()
                call = Call(self._state.seconds(request.headers))
                ticket.set(call)
                task = asyncio.ensure_future(self._answer(scope, receive))
                messages = await self._state.wait(task, call, request)
            except Exception as error:
                refused = _failed(error, request.state.request_id, fault_shape(self._path))
                statuses.append(refused.status_code)
                await refused(scope, receive, send)
                return
            statuses.append(messages[0]["status"])
        for message in messages:
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive) -> list[Message]:
        """The whole answer, so that none is left half done by the end of its time."""
        body: list[bytes] = [scope["state"].get("body", b"")]
        messages: list[Message] = []

        async def again() -> Message:
            return {"type": "http.request", "body": body.pop()} if body else await receive()

        async def keep(message: Message) -> None:
            messages.append(message)

        app = await self._mounted.app()
        await app(scope, again, keep)
        return messages


def _no_mcp(mounted: Mapping[str, Mounted] | None) -> Callable[[Request], Awaitable[Response]]:
    """Why the Model Context Protocol is not spoken at a path."""
    if mounted is None:
        fault = Fault(501, "not_installed", "the package mcp is not installed here: pip install 'jina_local[mcp]'.")
    elif mounted:
        paths = ", ".join(mounted)
        fault = Fault(404, "not_found", f"MCP is spoken by POST at {paths}; no stream is kept open.")
    else:
        fault = Fault(404, "index_not_found", "MCP needs an index, and the server was given none: serve --index.")

    async def refuse(request: Request) -> Response:
        one = fault
        if mounted and request.url.path in mounted:
            one = replace(fault, status=405, type="method")
        return _response(faults.Answer(one), request.state.request_id, fault_shape(request.url.path))

    return refuse


def _said(reply: Reply) -> Mapping[str, str]:
    """The reply's headers, and the one that names the texts that were cut."""
    places = ",".join(map(str, reply.truncated[:100])) + (",..." if len(reply.truncated) > 100 else "")
    return {**reply.headers, "x-truncated": places} if reply.truncated else reply.headers


def _failed(error: BaseException, request_id: str, fault: Callable[[Fault], Any]) -> Response:
    answer = faults.of(error)
    if answer.fault.type == "internal":
        faults.log_bug(_log, request_id, error)
    return _response(answer, request_id, fault)


def _response(answer: faults.Answer, request_id: str, fault: Callable[[Fault], Any]) -> Response:
    headers = {} if answer.retry_after is None else {"retry-after": str(answer.retry_after)}
    if answer.fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = fault(replace(answer.fault, request_id=request_id))
    return Response(strict_json.dumps(body), answer.fault.status, headers, "application/json")


def _refuse(path: str, error: BaseException, request_id: str) -> Any:
    """What the guard answers."""
    return _response(faults.of(error), request_id, fault_shape(path))


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    kind = {404: "not_found", 405: "method"}.get(status, "invalid_request")
    said = f"{request.method} is not possible here." if status == 405 else "there is nothing at this path."
    shape = fault_shape(request.scope["path"])
    return _response(faults.Answer(Fault(status, kind, said)), request.state.request_id, shape)


def _health(served: Served) -> Callable[[Request], Awaitable[Response]]:
    async def health(_request: Request) -> Response:
        return _plain({"status": "ok", "state": served.state, "version": __version__})

    return health


def _ready(served: Served) -> Callable[[Request], Awaitable[Response]]:
    async def ready(_request: Request) -> Response:
        is_ready = served.state == "ready"
        return _plain({"ready": is_ready, "state": served.state}, 200 if is_ready else 503)

    return ready


def _metrics(state: State) -> Callable[[Request], Awaitable[Response]]:
    async def metrics(_request: Request) -> Response:
        return Response(state.metrics.text(state.served.counts()), media_type="text/plain; version=0.0.4")

    return metrics


def _plain(body: Any, status: int = 200) -> Response:
    return Response(strict_json.dumps(body), status, media_type="application/json")


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection. Its body has been read by the guard."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forget(task: Any) -> None:
    """An answer that nobody waits for: its error, if any, is nobody's."""
    if not task.cancelled():
        task.exception()
