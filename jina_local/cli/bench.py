"""`bench`: how fast a model is on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import backends, console, registry
from ..bench import BESIDE
from ..errors import UsageError
from . import options

if TYPE_CHECKING:
    from ..bench.report import Report

SUMMARY = "tokens per second, latency, memory and load time on this machine"

EXAMPLES = """examples:
  jina-local bench --model pico
  jina-local bench --model v5-nano --weights Q8_0,Q4_K_M --threads 4 --long
  jina-local bench --model pico --beside transformers --format json > pico.json
  jina-local bench --model ~/v5-small-gguf --beside llama
"""

_EPILOG = """The texts are made of words of the model's own vocabulary, so nothing else is
needed, and no socket is opened. All contenders are opened at once, each in a
process of its own, and take turns round after round. The vectors of each are
compared with those of the most exact weights first; one that gives other
vectors is named as such and is not timed.
mix:
  Texts of lognormal length, with a median of 60 tokens, in bulk. short: 64 texts
  of 8 tokens. Rerankers have pairs per second, of documents like those of the
  mix and one query.
times:
  How many times as fast as the first line, which is what `load` takes.
load s, peak MB:
  From the start of the process until the model is ready, and its most memory in
  bulk, the pages of the mapped file included.
--beside:
  llama is llama-cpp-python's own Llama.embed on the same GGUF files. The others
  need the published checkpoint: --checkpoint FOLDER, unless it is the model or
  in the hub cache. onnxruntime runs its onnx/model.onnx, or --graph FILE.
  transformers merges the adapter and runs sorted batches of 32, in float32, or
  in bfloat16 as transformers-bf16.
Ctrl-C ends the run and prints what was measured so far.
environment:
  JINA_LOCAL_MODEL, JINA_LOCAL_WEIGHTS, JINA_LOCAL_BACKEND, JINA_LOCAL_DEVICE
  and JINA_LOCAL_THREADS stand in for the options of that name.
exit codes:
  0 done, 1 a contender failed or gave other vectors, 2 bad options, 3 the model
  is not here or damaged, 69 no engine, 70 the engine broke, 130 interrupted.
"""


def parser(add: Any) -> options.Parser:
    """The options of `bench`; `add` makes the parser."""
    p: options.Parser = add("bench", SUMMARY, _EPILOG)
    p.description = f"{p.description}\n\n{EXAMPLES}"
    g = p.add_argument_group("model")
    g.add_argument("--model", metavar="NAME", help=f"name, folder or .gguf file (default: {registry.DEFAULT_MODEL})")
    g.add_argument("--weights", metavar="LABEL[,LABEL]", help="for example Q8_0,Q4_K_M (default: all that are here)")
    g.add_argument("--backend", choices=("auto", *backends.BACKENDS), help="default: all that are installed")
    g.add_argument("--device", choices=("cpu", "metal"), help="default: the engine's best")
    g.add_argument("--threads", type=_from_one, metavar="N", help="default: the physical cores")
    g.add_argument("--task", metavar="TASK", help="default: the model's own")
    g = p.add_argument_group("beside")
    g.add_argument("--beside", action="append", choices=BESIDE, help="another program; may be repeated")
    g.add_argument("--checkpoint", metavar="FOLDER", type=Path, help="the published checkpoint that it runs")
    g.add_argument(
        "--graph", action="append", metavar="FILE", type=Path, help="an ONNX graph for onnxruntime; may be repeated"
    )
    g = p.add_argument_group("work")
    g.add_argument("--texts", type=_from_one, metavar="N", help="of the mix (default: 96; of a reranker 32)")
    g.add_argument("--rounds", type=_from_one, default=3, metavar="N", help="turns of each (default: 3)")
    g.add_argument("--long", action="store_true", help="single texts of up to 8,192 tokens, too")
    g = p.add_argument_group("output", "A terminal gets a table and the JSON line, a pipe the line alone.")
    g.add_argument("--format", choices=("table", "json"), help="one of both alone")
    g.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
    p.set_defaults(offline=True)
    return p


def _from_one(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1")
    return int(word)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a contender failed or gave other vectors."""
    from ..bench.contenders import Request
    from ..bench.measure import Bench

    settings = options.settings(args, registry.DEFAULT_MODEL)
    for name in ("checkpoint", "graph"):
        if getattr(args, name) is not None and not args.beside:
            raise UsageError(f"--{name} is for --beside, which was not given.")
    request = Request(
        model=settings["name_or_path"],
        weights=tuple(label for label in (settings["weights"] or "").split(",") if label),
        backend=settings["backend"],
        task=args.task,
        device=settings["device"],
        threads=settings["threads"],
        beside=args.beside or (),
        checkpoint=args.checkpoint,
        graphs=args.graph or (),
    )
    with console.quiet_stdout() as stdout:
        bench = Bench(request, count=args.texts, rounds=args.rounds, long=args.long)
        bar = console.progress(bench.steps, "steps", settings["show_progress"], bench.report.model)

        def step(what: str) -> None:
            bar.update(1)
            bar.set_postfix_str(what, True)

        try:
            bench.run(step)
        except BaseException as error:
            bar.close()
            if console.is_stop(error) and any(row.rates for row in bench.report.rows):
                bench.report.facts["interrupted"] = True
                _write(bench.report, args, stdout)
            raise
        bar.close()
        _write(bench.report, args, stdout)
    return console.SOME_FAILED if bench.report.refused else console.OK


def _write(report: Report, args: argparse.Namespace, stdout: BinaryIO) -> None:
    forms = (args.format,) if args.format else ("table", "json") if stdout.isatty() else ("json",)
    if "table" in forms:
        stdout.write(report.as_table().encode() + b"\n" * ("json" in forms))
    if "json" in forms:
        stdout.write(json.dumps(report.as_json(), ensure_ascii=False).encode() + b"\n")
    stdout.flush()
