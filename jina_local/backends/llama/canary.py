"""A few tokens decoded with repacked weights, in a process of its own: `python -m` this module and a .gguf file.

`repack` starts it, because a build with a fault dies at the decode.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import numpy as np

from ...spec import TokenBatch
from .backend import LlamaBackend
from .repack import NOT_FINITE

_PR_SET_DUMPABLE = 4  # sys/prctl.h


def decode_once(path: str) -> int:
    """Decode with the weights of a .gguf file; 0 if the rows are finite, else NOT_FINITE."""
    _leave_no_core()
    backend = LlamaBackend(Path(path), device="cpu", threads=1, extra_buffers=True)
    ids = np.arange(2, 34, dtype=np.int32)  # without the padding token, whose position some files do not have
    first = np.zeros(1, np.int32)  # the one row that every kind of model gives
    rows = backend.forward(TokenBatch(ids, np.array([0, 32], np.int32), first, first))
    backend.close()
    return 0 if np.isfinite(rows).all() else NOT_FINITE


def _leave_no_core() -> None:
    """A death here is expected: it must not write a core file of 100 MB, nor call the system's crash reporter."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(decode_once(sys.argv[1]))
