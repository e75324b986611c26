"""v3's late chunking against the same chunks each for itself.

    python -m tests.bench.late_chunking

The checkpoint is random and of the published size, see needs.py. Both take turns; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics

from jina_local import load
from jina_local.bench import texts
from jina_local.text.tokenizer import Tokenizer

from . import needs, turns

CHUNK = 128  # tokens of one chunk
_KIND = "v3"


def main() -> None:
    """Run it and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="Q4_K_M")
    parser.add_argument("--chunks", type=int, default=16, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    needs.add_checkpoint(parser)
    args = parser.parse_args()
    checkpoint, store = needs.converted(parser, _KIND, args, [args.weights])
    vocabulary = texts.words(Tokenizer.from_file(checkpoint / "tokenizer.json"))
    chunks = texts.texts_of([CHUNK] * args.chunks, 0, vocabulary)
    task = "retrieval.passage"
    with load(store / args.weights, task=task) as model:
        tokens = len(model.tokenize([" ".join(chunks)], task=task)[0])
        runs = {
            "late chunking, one pass": lambda: model.encode(chunks, late_chunking=True),
            "each chunk for itself": lambda: model.encode(chunks, task=task),
        }
        seconds = turns.seconds(runs, args.rounds)
    together, alone = seconds.values()
    report = {
        "model": model.spec.name, "weights": args.weights, "tokens": tokens, "chunks": len(chunks),
        **{name: round(tokens / statistics.median(times), 1) for name, times in seconds.items()},
        "times as long": round(statistics.median(a / b for a, b in zip(together, alone, strict=True)), 2),
    }  # fmt: skip
    for key, value in report.items():
        print(key, value)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
