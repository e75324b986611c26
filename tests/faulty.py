"""What tests of a faulty worker share: passes, the rows that they should have, and limits that do not wait."""

from __future__ import annotations

import numpy as np

from jina_local.backends.jobs import Limits
from jina_local.inference import batching
from jina_local.spec import TokenBatch
from tests.fakes import FakeBackend
from tests.faulty_worker import FAULTS

QUICK = Limits(
    open_seconds=60, pass_seconds=60, token_seconds=0.0, silent_seconds=60, beat_seconds=0.2, within_seconds=60
)


def batch(*texts: list[int], wanted: str = "last") -> TokenBatch:
    """A pass over texts, each a list of ids."""
    return batching.lay_out([np.array(ids, np.int32) for ids in texts], wanted)


def expected(one: TokenBatch, task: str | None = None, **settings: object) -> np.ndarray:
    """The rows of a pass, without any other process."""
    return FakeBackend(**settings).forward(one, task=task)  # type: ignore[arg-type]


def fault(name: str) -> int:
    """The id that has a fault."""
    return FAULTS[name][0]
