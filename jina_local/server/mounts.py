"""Apps of other rooms that a server answers with at paths of their own, behind the same guard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..inference.queue import Call
from .guard import App
from .served import Served

ticket: ContextVar[Call] = ContextVar("ticket")  # of the request that an app answers


@dataclass(frozen=True)
class Hosted:
    """One app. It answers while the context that `running` makes is open."""

    app: App
    running: Callable[[], AbstractAsyncContextManager[Any]]


class Mounted:
    """An app that is made when it is first asked for: its imports may take longer than all else at the start."""

    def __init__(self, make: Callable[[], Hosted]) -> None:
        self._make = make
        self._app: asyncio.Future[App] | None = None
        self._running: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def app(self) -> App:
        """The app, which answers until `close`. Raises what making it raised."""
        if self._app is None:
            self._app = asyncio.get_running_loop().create_future()
            self._running = asyncio.create_task(self._run(self._app))
        return await asyncio.shield(self._app)  # a caller that goes away takes it from no other one

    async def close(self) -> None:
        """End the context in which it answers."""
        self._closing.set()
        if self._running is not None:
            await self._running

    async def _run(self, app: asyncio.Future[App]) -> None:
        """Keep the context open. It is left by the task that has entered it, as anyio wants it."""
        try:
            hosted = await asyncio.get_running_loop().run_in_executor(None, self._make)
        except Exception as error:
            app.set_exception(error)
            return
        async with hosted.running():
            app.set_result(hosted.app)
            await self._closing.wait()


Mount = Callable[[Served], Mapping[str, Mounted]]  # what there is to serve -> path -> app
