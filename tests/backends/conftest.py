"""An engine that dies as it is told to, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jina_local.backends.jobs import Limits
from jina_local.backends.remote import RemoteBackend
from tests.faulty import QUICK, Open


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Open]:
    """Open a faulty engine; `settings` are those of faulty_worker."""
    opened: list[RemoteBackend] = []

    def opener(limits: Limits = QUICK, **settings: object) -> RemoteBackend:
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(settings))
        backend = RemoteBackend("fake", path, limits=limits, worker="tests.faulty_worker")
        opened.append(backend)
        return backend

    yield opener
    for backend in opened:
        backend.close()
