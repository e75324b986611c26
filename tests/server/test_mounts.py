"""Apps of other rooms: made at the first request, answered within its time, ended with the server."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from jina_local.errors import EngineMissing
from jina_local.server import app
from jina_local.server.mounts import Hosted, Mounted, ticket
from jina_local.server.served import Served
from jina_local.server.settings import Settings


class Room:
    """An app, and what has become of it."""

    def __init__(self, seconds=0.0):
        self.seconds, self.said, self.calls = seconds, [], []

    def make(self):
        self.said.append("made")
        return Hosted(self.answer, self.running)

    @asynccontextmanager
    async def running(self):
        self.said.append("open")
        yield
        self.said.append("closed")

    async def answer(self, scope, receive, send):
        self.calls.append(ticket.get())
        body = (await receive())["body"]
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.said.append("cancelled")
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body[::-1]})


async def ask(mounted, *, gone=False, **settings):
    """Status, headers and body of a request's answer, which the guard has let in."""
    served = Served(Settings(**settings))
    served.state = "ready"
    state, sent = app.State(served, served.settings), []
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": []}
    scope["state"] = {"request_id": "an-id", "body": b"abc"}

    async def receive():
        await asyncio.sleep(0 if gone else 60)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app._Hosting("/mcp", mounted, state)(scope, receive, send)
    state.close()
    assert state.metrics.under_way == 0
    return sent[0]["status"], sent[-1]["body"]


def test_an_app_is_made_once_and_ends_with_the_server():
    room = Room()

    async def talk():
        mounted = Mounted(room.make)
        assert room.said == []
        answers = await asyncio.gather(ask(mounted), ask(mounted))
        answers.append(await ask(mounted))
        await mounted.close()
        return answers

    assert asyncio.run(talk()) == [(200, b"cba")] * 3
    assert room.said == ["made", "open", "closed"]
    assert len(set(room.calls)) == 3


def test_one_that_nobody_asks_for_is_not_made():
    room = Room()
    asyncio.run(Mounted(room.make).close())
    assert room.said == []


@pytest.mark.parametrize(
    ("gone", "status", "kind", "code"), [(False, 504, "deadline", -32001), (True, 499, "client_closed", -32600)]
)
def test_a_late_answer_is_not_waited_for(monkeypatch, gone, status, kind, code):
    monkeypatch.setattr(app, "_LATE", 0.1)
    room = Room(seconds=60)

    async def talk():
        mounted = Mounted(room.make)
        await mounted.app()
        found = await ask(mounted, gone=gone, timeout=0.1)
        await asyncio.sleep(0)
        await mounted.close()
        return found

    found_status, body = asyncio.run(talk())
    found = json.loads(body)
    assert (found_status, found["jsonrpc"], found["id"]) == (status, "2.0", None)
    assert (found["error"]["code"], found["error"]["data"]) == (code, {"type": kind, "request_id": "an-id"})
    assert room.calls[0].over
    assert room.said == ["made", "open", "cancelled", "closed"]


def test_an_app_that_cannot_be_made_says_why():
    def make():
        raise EngineMissing("needs the package mcp: pip install 'jina_local[mcp]'.")

    async def talk():
        mounted = Mounted(make)
        found = [await ask(mounted), await ask(mounted)]
        await mounted.close()
        return found

    for status, body in asyncio.run(talk()):
        assert (status, json.loads(body)["error"]["data"]["type"]) == (501, "not_installed")
        assert b"pip install" in body
