"""A server from its sockets to its end: listen, load, answer, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import OutputError, UsageError
from .app import State, build
from .connection import protocol
from .mounts import Mount, Mounted
from .served import Served
from .settings import Settings

_TRIES = 20  # of a port that is free in both families of addresses


def run(
    settings: Settings,
    models: Sequence[Mapping[str, Any]],
    ready: Callable[[Served, Sequence[str]], None],
    *,
    indexes: Sequence[Path] = (),
    mount: Mount | None = None,
) -> int | None:
    """Serve until a signal comes or nobody has asked for `idle_exit` seconds. Returns the signal's number, or None.

    models: the words of `load` for each model. They are loaded while /health is answered already.
    ready: called once requests are taken, with the addresses.
    indexes: the files that can be searched. mount: the apps that answer at paths of their own.
    Raises what loading raises, and UsageError for an address that cannot be had.
    """
    if not settings.is_loopback and not settings.keys:
        raise UsageError(
            f"{settings.host} can be reached from other machines, so a key is needed: --api-key-file FILE, or "
            "JINA_LOCAL_API_KEY."
        )
    with _sockets(settings) as (sockets, bound):
        served = Served(bound, indexes)
        mounted = None if mount is None else mount(served)
        return asyncio.run(_Server(bound, served, models, ready, mounted).serve_all(sockets))


class _Server(uvicorn.Server):
    """uvicorn's server, with our own way to begin and to end."""

    def __init__(
        self,
        settings: Settings,
        served: Served,
        models: Sequence[Mapping[str, Any]],
        ready: Callable[[Served, Sequence[str]], None],
        mounted: Mapping[str, Mounted] | None,
    ) -> None:
        self.settings, self._models, self._ready = settings, models, ready
        self.served, self._mounted = served, mounted
        self.state = State(self.served, settings)
        self.signal: int | None = None
        super().__init__(
            uvicorn.Config(
                build(self.served, settings, self.state, mounted),  # type: ignore[arg-type]  # an ASGI app, with names of its own
                http=protocol(settings),
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=max(1, round(settings.keep_alive_seconds)),
                timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
                h11_max_incomplete_event_size=settings.max_header,
            )
        )

    async def serve_all(self, sockets: Sequence[socket.socket]) -> int | None:
        """Answer from the first moment on, and load meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        serving = asyncio.ensure_future(self.serve(list(sockets)))
        loading = loop.run_in_executor(None, self.served.open, self._models)
        watching: asyncio.Future[None] | None = None
        try:
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and loading.exception() is not None:
                self.should_exit = True
            elif loading.done():
                self._ready(self.served, addresses(self.settings))
                watching = asyncio.ensure_future(self._watch_idle())
            await serving
            await loading
        finally:
            if watching is not None:
                watching.cancel()
            self.state.close()
            for one in dict.fromkeys((self._mounted or {}).values()):
                await one.close()
            await asyncio.shield(loop.run_in_executor(None, self.served.close))
        return self.signal

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are this class's own business."""
        yield

    def _stop(self, number: int) -> None:
        if self.signal is not None:  # it has come before: at once, and an engine does not stop within a pass
            os._exit(128 + number)
        self.signal = number
        self.served.state = "draining"
        self.should_exit = True

    async def _watch_idle(self) -> None:
        limit = self.settings.idle_exit
        if limit is None:
            return
        while True:
            idle = time.monotonic() - self.state.last_request
            if idle >= limit and not self.state.metrics.under_way:
                self.should_exit = True
                return
            await asyncio.sleep(max(0.05, min(limit - idle, 1.0)))


def addresses(settings: Settings) -> Sequence[str]:
    """Where a server can be reached."""
    if settings.uds is not None:
        return [f"unix:{settings.uds}"]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return [f"http://{host}:{settings.port}"]


@contextlib.contextmanager
def _sockets(settings: Settings) -> Iterator[tuple[list[socket.socket], Settings]]:
    """Sockets that are bound, and the settings with the port that was had. A socket's file is removed at the end."""
    if settings.uds is not None:
        with _unix_socket(settings.uds) as one:
            yield [one], settings
        return
    bound = _listen(settings.host, settings.port, settings.max_connections)
    try:
        yield bound, replace(settings, port=bound[0].getsockname()[1])
    finally:
        for one in bound:
            one.close()


def _listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """A socket for each of the host's addresses, all with one port."""
    for last in (False,) * _TRIES + (True,):
        bound: list[socket.socket] = []
        try:
            for family, address in _families(host):
                free = bound[0].getsockname()[1] if bound else port
                try:
                    bound.append(socket.create_server((address, free), family=family, backlog=backlog))
                except OSError as error:
                    # The machine may have no second kind of address. If it has one, nobody else may answer there.
                    if not bound or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
            return bound
        except OSError as error:
            for one in bound:
                one.close()
            if last or port or not bound:  # a port that is free in one family may be taken in the other
                raise UsageError(
                    f"{host}:{port} cannot be listened at: {error.strerror or error}. Give another --port; "
                    "0 takes a free one."
                ) from error
    raise AssertionError("the last try returns or raises")


def _families(host: str) -> Sequence[tuple[socket.AddressFamily, str]]:
    """Loopback is listened at in both families, because a client may try either for `localhost`."""
    if host in ("127.0.0.1", "localhost"):
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    return [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]


@contextlib.contextmanager
def _unix_socket(path: str) -> Iterator[socket.socket]:
    """A socket that nobody but its owner can open. One that a dead server has left is taken over."""
    path = os.path.abspath(os.path.expanduser(path))
    if os.path.lexists(path):
        _remove_dead(path)
    one = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        one.bind(path)
    except OSError as error:
        one.close()
        raise UsageError(f"{path}: cannot be listened at: {error.strerror or error}.") from error
    finally:
        os.umask(before)
    one.listen(128)
    own = os.lstat(path).st_ino
    try:
        yield one
    finally:
        one.close()
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(path).st_ino == own:
                os.unlink(path)


def _remove_dead(path: str) -> None:
    """Remove a socket that nobody listens at. Raises OutputError for another kind of file, UsageError if one does."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OutputError(f"{path}: is there already, and is no socket.")
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(1)
        try:
            other.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except PermissionError as error:
            raise UsageError(f"{path}: is another user's socket.") from error
        except (TimeoutError, BlockingIOError):
            pass  # it listens, and is too busy to take a connection
    raise UsageError(f"{path}: another server listens there.")
