"""A process that opens and closes a model again and again: `python -m tests.backends.reopened PATH ENGINE COUNT HOW`.

It prints one JSON object a line: threads, descriptors and resident memory (MB) after a number of cycles. HOW is
"close", or "drop" for a model that nobody closes. Used by test_leaks.py.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np

import jina_local


def state() -> dict[str, float]:
    """What the operating system says that this process has."""
    me = Path("/proc/self")
    pages = int((me / "statm").read_text().split()[1])
    return {
        "threads": len(list((me / "task").iterdir())),
        "descriptors": len(list((me / "fd").iterdir())),
        "memory": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1),
    }


def main(path: str, engine: str, count: int, how: str) -> None:
    """See the module."""
    expected = None
    for cycle in range(1, count + 1):
        model = jina_local.load(path, backend=engine, threads=1)
        vectors = model.encode(["one text", "and another one"])
        assert expected is None or np.array_equal(vectors, expected)
        expected = vectors
        if how == "close":
            model.close()
        del model
        if cycle in (10, count // 2, count):
            gc.collect()
            print(json.dumps({"cycles": cycle, **state()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
