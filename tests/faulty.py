"""What tests of a faulty worker share: passes, the rows that they should have, and limits that do not wait."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jina_local.backends.jobs import Limits
from jina_local.backends.remote import RemoteBackend
from jina_local.inference import batching
from jina_local.spec import TokenBatch
from tests.fakes import FakeBackend
from tests.faulty_worker import FAULTS

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["", "x", "Which planet is red?", "日本語のテキスト", " ".join(["word"] * 40)]
Open = Callable[..., RemoteBackend]
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


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0


def gone(pid: int, seconds: float = 2.0) -> bool:
    """Whether a process ends within so many seconds."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)
