"""What adapters beside one base cost against merged files: tokens per second, and memory for all tasks.

    python -m convert gguf SRC sep --task all --adapters separate --type Q8_0 --type Q4_K_M
    python -m convert gguf SRC merged --task all --type Q8_0 --type Q4_K_M
    python -m tests.bench.adapters sep merged --weights Q8_0 --weights Q4_K_M

Both engines: what the folders hold decides. The two take turns, pass after pass, on the same ids, and the best pass
counts. `--cpu-time` with `--threads 1` counts the processor's time instead of the clock's: true ratios on a busy
machine, with a backend that runs on the CPU. The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jina_local import backends
from jina_local.backends import Backend
from jina_local.errors import JinaError
from jina_local.inference.batching import pack
from jina_local.spec import ModelFiles, TokenBatch
from jina_local.store import find
from jina_local.text.tokenizer import Encoded

CASES = {"4 texts of 64 tokens": [64] * 4, "1 text of 128": [128], "1 text of 12": [12]}
_MEMORY = """
import sys
from pathlib import Path
from jina_local import load
m = load(Path(sys.argv[1]), weights=sys.argv[2], threads=int(sys.argv[3]) or None)
for task in m.spec.tasks if sys.argv[4] == "all" else m.spec.tasks[:1]:
    m.encode("a few words", task=task)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def taken(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one pass."""
    start = clock()
    run()
    return clock() - start


def passes(engine: Backend, batch: TokenBatch, tasks: list[str | None]) -> Callable[[], object]:
    """A pass with each of the tasks in turn, one a call."""
    at = iter(range(1 << 30))
    return lambda: engine.forward(batch, 1, tasks[next(at) % len(tasks)])


def compare(sep: ModelFiles, merged: ModelFiles, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Case -> tokens per second merged, beside, and beside with another task at every pass."""
    task = next(iter(merged.files))
    plain = backends.open_backend(merged.backend, merged.files[task], threads=args.threads)
    beside = backends.open_backend(sep.backend, sep.files[task], adapters=sep.adapters, threads=args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for case, lengths in CASES.items():
        ids = [rng.integers(0, plain.vocab, n).astype(np.int32) for n in lengths]
        batch = pack(Encoded(ids, np.zeros(len(ids), np.bool_)), list(range(len(ids))), "last")
        runs = {
            "merged": passes(plain, batch, [None]),
            "beside": passes(beside, batch, [task]),
            "beside, tasks in turn": passes(beside, batch, list(sep.adapters)),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                run()
                times[name].append(taken(run, clock))
        found[case] = {name: sum(lengths) / min(seconds) for name, seconds in times.items()}
    plain.close()
    beside.close()
    return found


def memory(path: Path, label: str, threads: int | None, tasks: str) -> float:
    """MB resident in a process of its own that has loaded a folder and used one task, or all."""
    command = [sys.executable, "-c", _MEMORY, str(path), label, str(threads or 0), tasks]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1000


def arguments() -> tuple[argparse.Namespace, list[tuple[ModelFiles, ModelFiles]]]:
    """The command line, and for each label (base with adapters, merged files). Code 2 if either is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("separate", type=Path, help="a folder that `convert ... --adapters separate` wrote")
    parser.add_argument("merged", type=Path, help="a folder with merged files of the same model")
    parser.add_argument("--weights", action="append", required=True, metavar="LABEL")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    try:
        pairs = [
            (find.find(args.separate, weights=label), find.find(args.merged, weights=label)) for label in args.weights
        ]
    except JinaError as error:
        parser.error(str(error))
    for separate, merged in pairs:
        if not separate.adapters or merged.adapters:
            parser.error(f"{args.separate} has to hold a base with adapters, {args.merged} merged files.")
    return args, pairs


def main() -> None:
    """Print a table for each label."""
    args, pairs = arguments()
    results = {}
    for label, (separate, merged) in zip(args.weights, pairs, strict=True):
        speed = compare(separate, merged, args)
        print(f"{label}  {'tokens per second':<24} {'merged':>8} {'beside':>8} {'in turn':>8} {'costs':>7}")
        for case, rate in speed.items():
            cost = rate["merged"] / rate["beside"] - 1
            numbers = " ".join(f"{value:8.0f}" for value in rate.values())
            print(f"{'':{len(label)}}  {case:<24} {numbers} {cost:7.1%}")
        resident = {}
        if sys.platform == "linux":
            resident = {
                "beside, all tasks": memory(args.separate, label, args.threads, "all"),
                "merged, one task": memory(args.merged, label, args.threads, "one"),
            }
            print(f"{'':{len(label)}}  MB: " + ", ".join(f"{what} {size:.0f}" for what, size in resident.items()))
        results[label] = {"speed": speed, "memory": resident}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
