"""Cases of a kind, run by several processes and counted by what became of them."""

from __future__ import annotations

import multiprocessing
import queue
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import farm, gateless
from .bases import Base, bases

# Outcomes that only a file past every check can have.
PAST = (
    farm.SAME,
    farm.CHANGED,
    farm.FORGED,
    farm.OTHER,
    farm.ODD,
)


def run(
    kind: str,
    found: list[Base],
    numbers: range,
    seed: int,
    until: float | None = None,
    *,
    gate_off: str | None = None,
) -> Iterator[tuple[str, str, str]]:
    """(case, what became of it, what was done) for each number. found: see `made`. gate_off: see `gateless.run`."""
    farm.preload()
    with tempfile.TemporaryDirectory(dir=memory_disk(), prefix="jina_local-fuzz-") as room:
        if gate_off:
            yield from gateless.run(found, kind, numbers, seed, Path(room), gate_off)
            return
        answers = [farm.expected(base) for base in found]
        for number in numbers:
            if until is not None and time.monotonic() > until:
                return
            name = f"{kind}:{seed}:{number}"
            if kind == "hub":
                yield (name, *farm.hub_case(name, Path(room)))
            else:
                at = number % len(found)
                yield (name, *farm.case(found[at], answers[at], name, Path(room)))


def made(kinds: Sequence[str], root: Path) -> dict[str, list[Base]]:
    """The models to damage, by kind. Made in a child, so that no engine has run here before forks."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {kind: pool.apply(bases, (kind, root)) for kind in kinds}


def memory_disk() -> str | None:
    """Where the folders of a case and its models are: hard links lead from one to the other."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _job(
    kinds: Sequence[str],
    numbers: range,
    seed: int,
    seconds: float | None,
    gate_off: str | None,
    lines: multiprocessing.Queue[tuple[str, str, str] | None],
) -> None:
    with tempfile.TemporaryDirectory(dir=memory_disk(), prefix="jina_local-models-") as root:
        models = made(kinds, Path(root))
        for kind in kinds:
            until = None if seconds is None else time.monotonic() + seconds
            for one in run(kind, models[kind], numbers, seed, until, gate_off=gate_off):
                lines.put(one)
    lines.put(None)


def count(
    kinds: Sequence[str],
    cases: int,
    seed: int,
    jobs: int,
    seconds: float | None = None,
    *,
    gate_off: str | None = None,
    show: str | None = None,
) -> tuple[Counter[str], list[str]]:
    """(how many had each outcome, the faults) of the cases of some kinds, so many of each.

    gate_off: "spawn" or "fork", see `gateless`. show: outcomes that begin so are printed, though they are no faults.
    """
    right = gateless.RIGHT if gate_off else farm.RIGHT
    context = multiprocessing.get_context("spawn")
    lines = context.Queue()
    children = [
        context.Process(target=_job, args=(kinds, range(n, cases, jobs), seed, seconds, gate_off, lines))
        for n in range(jobs)
    ]
    for child in children:
        child.start()
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    left = jobs
    while left:
        if any(child.exitcode not in (None, 0) for child in children):
            raise RuntimeError(f"{', '.join(kinds)}: the farm itself broke; see above")
        try:
            one = lines.get(timeout=5)
        except queue.Empty:
            continue
        if one is None:
            left -= 1
            continue
        name, became, what = one
        outcome = next((o for o in (*right, farm.OTHER, farm.DEATH, farm.HANG, farm.UNTYPED, farm.ODD,
                                    farm.MEMORY) if became.startswith(o)), became)  # fmt: skip
        outcomes[became.split(":")[0] if outcome == gateless.DIED else outcome] += 1
        if outcome not in right:
            faults.append(f"{name}  {became}\n    {what}")
        if outcome not in right or (show is not None and became.startswith(show)):
            print(f"{name}  {became}\n    {what}", file=sys.stderr)
        if sys.stderr.isatty() and sum(outcomes.values()) % 50 == 0:
            print(f"\r{kinds[0]} {sum(outcomes.values())}", end="\r", file=sys.stderr)
    for child in children:
        child.join()
    return outcomes, faults
