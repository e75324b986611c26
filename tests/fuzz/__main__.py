"""Damaged files, counted by outcome: `python -m tests.fuzz [KIND ...] [--cases N] [--minutes M] [--seed S]`.

With --gate-off spawn our own checks are left out, and engines in processes of their own open the files: see
gateless.py. With --gate-off fork these processes are forks, which is faster by far.
Every case is named by its seed: `--only KIND:SEED:NUMBER` runs one again and shows what became of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from . import gateless
from .bases import KINDS
from .counting import PAST, count, made, memory_disk, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (default: all)")
    parser.add_argument("--cases", type=int, default=300, help="of each kind (default: 300)")
    parser.add_argument("--minutes", type=float, help="stop each kind after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", metavar="KIND:SEED:NUMBER", help="one case, again")
    parser.add_argument("--show", metavar="OUTCOME", help="print cases whose outcome begins so, as faults are")
    parser.add_argument("--gate-off", choices=("fork", "spawn"), help=f"of {', '.join(gateless.KINDS)}")
    args = parser.parse_args()
    kinds = gateless.KINDS if args.gate_off else KINDS
    if unknown := [kind for kind in args.kinds if kind not in kinds]:
        parser.error(f"unknown kind {unknown[0]!r}; possible: {', '.join(kinds)}")
    if args.only:
        kind, seed, number = args.only.split(":")
        with tempfile.TemporaryDirectory(dir=memory_disk()) as root:
            numbers = range(int(number), int(number) + 1)
            found = made([kind], Path(root))[kind]
            for _, became, what in run(kind, found, numbers, int(seed), gate_off=args.gate_off):
                print(f"{became}\n    {what}")
        return 0
    bad = 0
    for kind in args.kinds or kinds:
        start = time.monotonic()
        seconds = args.minutes and args.minutes * 60
        outcomes, faults = count(
            [kind], args.cases, args.seed, args.jobs, seconds, gate_off=args.gate_off, show=args.show
        )
        total = sum(outcomes.values())
        past = sum(outcomes[o] for o in PAST)
        bad += len(faults)
        print(json.dumps({"kind": kind, "seed": args.seed, "cases": total,
                          **({} if args.gate_off else {"past the gate": past}),
                          "seconds": round(time.monotonic() - start), **dict(outcomes)}), flush=True)  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
