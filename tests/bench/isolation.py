"""What an engine in a process of its own costs: start, one text, many texts, side by side with this process's.

    python -m tests.bench.isolation MODEL --backend llama

The two ways take turns, so that a busy machine is busy for both; medians are of the differences of neighbours.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from jina_local import load

QUERY = "Which planet is known as the Red Planet?"
START = f"""
import time
start = time.perf_counter()
from jina_local import load
load({{!r}}, backend={{!r}}, isolate={{!r}}).encode({QUERY!r})
print(time.perf_counter() - start)
"""
WAYS = (None, "process")


def compare(what: str, rounds: int, once: Callable[[str | None], object]) -> None:
    """Print the median of each way, and of what the second takes more than the first beside it."""
    took: dict[str | None, list[float]] = {way: [] for way in WAYS}
    for n in range(rounds):
        for way in WAYS if n % 2 else WAYS[::-1]:
            start = time.perf_counter()
            once(way)
            took[way].append(time.perf_counter() - start)
    pairs = list(zip(*took.values(), strict=True))
    here, apart = (1000 * statistics.median(times) for times in took.values())
    more = 1000 * statistics.median(b - a for a, b in pairs)
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{what:22} {here:10.1f} ms here {apart:10.1f} ms apart {more:+9.1f} ms, ratio {ratio:.3f}, n {rounds}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="pico")
    parser.add_argument("--backend", default="llama")
    parser.add_argument("--rounds", type=int, default=5, help="of a start and of many texts; 40 times as many of one")
    parser.add_argument("--texts", type=int, default=500)
    args = parser.parse_args()

    def start(way: str | None) -> None:
        code = START.format(args.model, args.backend, way)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    compare("start, one text, end", args.rounds, start)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in rng.integers(0, 999, rng.integers(5, 60))) for _ in range(args.texts)]
    models = {way: load(args.model, backend=args.backend, isolate=way) for way in WAYS}
    vectors: dict[str | None, bytes] = {}

    def many(way: str | None) -> None:
        vectors[way] = models[way].encode(texts, show_progress=False).tobytes()

    compare("one text", 40 * args.rounds, lambda way: models[way].encode(QUERY))
    compare(f"{args.texts} texts", args.rounds, many)
    print("the same bits" if vectors[None] == vectors["process"] else "OTHER BITS")
    for model in models.values():
        model.close()


if __name__ == "__main__":
    main()
