"""A few tokens decoded with repacked weights, in a process of its own: `python -m` this module, and a .gguf file.

`repack` starts it by its name, because a build with a fault dies at the decode. It exits with 0 if the
rows are finite.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ...spec import TokenBatch
from .backend import LlamaBackend


def _decode_once(path: Path) -> None:
    backend = LlamaBackend(path, device="cpu", threads=1, extra_buffers=True)
    ids = np.arange(32, dtype=np.int32)
    first = np.zeros(1, np.int32)  # the one row that every kind of model gives
    rows = backend.forward(TokenBatch(ids, np.array([0, 32], np.int32), first, first))
    backend.close()
    sys.exit(0 if np.isfinite(rows).all() else 1)


if __name__ == "__main__":
    _decode_once(Path(sys.argv[1]))
