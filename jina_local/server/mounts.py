"""Apps of other rooms that a server answers with at paths of their own, behind the same guard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from .guard import App
from .served import Served


@dataclass(frozen=True)
class Hosted:
    """One app. It answers while the context that `running` makes is open."""

    app: App
    running: Callable[[], AbstractAsyncContextManager[Any]]


Mount = Callable[[Served], Mapping[str, Hosted]]  # what there is to serve -> path -> app
