"""Damaged files, counted by outcome: `python -m tests.fuzz [KIND ...] [--cases N] [--minutes M] [--seed S]`.

Every case is named by its seed: `--only KIND:SEED:NUMBER` runs one again and shows what became of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from .bases import KINDS
from .counting import PAST, count, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--cases", type=int, default=300, help="of each kind (default: 300)")
    parser.add_argument("--minutes", type=float, help="stop each kind after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", metavar="KIND:SEED:NUMBER", help="one case, again")
    args = parser.parse_args()
    if unknown := [kind for kind in args.kinds if kind not in KINDS]:
        parser.error(f"unknown kind {unknown[0]!r}; possible: {', '.join(KINDS)}")
    if args.only:
        kind, seed, number = args.only.split(":")
        with tempfile.TemporaryDirectory() as root:
            for _, became, what in run(kind, range(int(number), int(number) + 1), int(seed), Path(root)):
                print(f"{became}\n    {what}")
        return 0
    bad = 0
    for kind in args.kinds:
        start = time.monotonic()
        outcomes, faults = count(kind, args.cases, args.seed, args.jobs, args.minutes and args.minutes * 60)
        total = sum(outcomes.values())
        past = sum(outcomes[o] for o in PAST)
        bad += len(faults)
        print(json.dumps({"kind": kind, "seed": args.seed, "cases": total, "past the gate": past,
                          "seconds": round(time.monotonic() - start), **dict(outcomes)}))  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
