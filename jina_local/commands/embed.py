"""`embed`: texts in, vectors out, in constant memory and in the order they came."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import backends, console, readers, registry, writers
from ..errors import TextError, UsageError
from ..readers import Item, Source
from ..writers import Block

if TYPE_CHECKING:
    from ..model import Embedder
    from ..spec import Embedded

# Texts per block: few at first, so that the first vectors come early. Characters bound what a block holds.
_FIRST, _MOST, _CHARS = 64, 1024, 4_000_000

SUMMARY = "turn texts into vectors"

EXAMPLES = """examples:
  jina-local embed "The quick brown fox" --task retrieval --prompt-name query
  jina-local embed --input notes.txt --output notes.npy
  jina-local embed --input docs.jsonl --field body --truncate-dim 256 --output docs.parquet
  sort words.txt | jina-local embed --task text-matching --precision ubinary > words.jsonl
"""

_EPILOG = f"""{EXAMPLES}
input: .txt has one text a line, empty lines included; .jsonl strings, or objects with --field; .csv and .tsv
  a header; .parquet a column. Standard input is read as txt unless --input-format says otherwise.
output: jsonl has {{"index": 0, "embedding": [...]}} a line, with "truncated": true where a text was cut and
  {{"index": 0, "error": "..."}} where the model gave no vector. Such a row is null in json and parquet, empty
  in csv, zero in npy and safetensors.
environment: JINA_LOCAL_MODEL, JINA_LOCAL_WEIGHTS, JINA_LOCAL_BACKEND, JINA_LOCAL_DEVICE and JINA_LOCAL_THREADS
  stand in for the options of that name.
exit codes: 0 done, 1 some texts have no vector, 2 bad input or options, 3 the model, 69 no engine,
  70 the engine broke, 73 cannot write, 74 cannot read, 75 locked, 130 interrupted.
"""


def parser(add: Any) -> argparse.ArgumentParser:
    """The options of `embed`; `add` makes the parser."""
    p: argparse.ArgumentParser = add("embed", SUMMARY, _EPILOG)
    p.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed; without any, and without --input, stdin")
    g = p.add_argument_group("model")
    g.add_argument("--model", metavar="NAME", help=f"name, folder or .gguf file (default: {registry.DEFAULT_MODEL})")
    g.add_argument("--weights", metavar="LABEL", help="for example Q8_0 or 8bit (default: the best there is)")
    g.add_argument("--backend", choices=("auto", *backends.BACKENDS), help="engine (default: auto)")
    g.add_argument("--device", choices=("cpu", "metal"), help="default: the engine's best")
    g.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    g.add_argument("--offline", action="store_true", help="open no socket, even if the model is not here")
    g = p.add_argument_group("vectors")
    g.add_argument("--task", metavar="TASK", help="retrieval, text-matching, clustering or classification")
    g.add_argument("--prompt-name", metavar="NAME", help="query or document (default: document)")
    g.add_argument("--truncate-dim", type=int, metavar="N", help="cut to a trained width, then normalise")
    g.add_argument("--max-length", type=int, metavar="TOKENS", help="default: all that the model takes")
    g.add_argument("--precision", choices=registry.PRECISIONS, default="float32")
    g.add_argument("--no-normalize", action="store_true", help="leave the length of the vectors as it comes")
    g.add_argument("--overflow", choices=registry.OVERFLOWS, default="truncate", help="a text that is too long")
    g.add_argument("--deterministic", action="store_true", help="one text a pass: the same bits in any company")
    g = p.add_argument_group("input and output")
    g.add_argument("--input", metavar="FILE", help="read texts from a file, or from stdin for -")
    g.add_argument("--input-format", choices=readers.FORMATS, help="default: by suffix")
    g.add_argument("--field", metavar="NAME", default="text", help="key or column that holds the text")
    g.add_argument("--output", metavar="FILE", help="default: stdout")
    g.add_argument("--format", choices=writers.FORMATS, help="default: by suffix of --output, else jsonl")
    g.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
    return p


@dataclass
class _Tally:
    """What happened to the texts so far."""

    max_tokens: int
    total: int = 0
    cut: int = 0
    failed: int = 0
    first_cut: int = 0  # as the source counts
    first_failed: int = 0


def run(args: argparse.Namespace) -> int:
    """Embed; 1 where some texts have no vector."""
    settings = _settings(args)
    chosen = writers.format_of(args.output, args.format)
    writers.check_target(args.output, chosen)
    with closing(_source(args)) as source, console.quiet_stdout() as stdout:
        if args.output in (None, "-") and chosen in writers.BINARY and stdout.isatty():
            raise UsageError(f"{chosen} is binary and stdout is a terminal: give --output FILE, or redirect.")
        from .. import model

        with model.load(**settings) as embedder:
            tally = _stream(embedder, args, source, chosen, stdout)
    _report(tally, source)
    return console.SOME_FAILED if tally.failed else console.OK


def _stream(embedder: Embedder, args: argparse.Namespace, source: Source, chosen: str, stdout: BinaryIO) -> _Tally:
    request: dict[str, Any] = {
        "task": args.task,
        "prompt_name": args.prompt_name,
        "truncate_dim": args.truncate_dim,
        "max_length": args.max_length,
        "normalize": not args.no_normalize,
        "precision": args.precision,
        "overflow": args.overflow,
    }
    spec = registry.resolve(embedder.spec, **request)  # refused before anything is read or written
    tally = _Tally(spec.max_tokens)
    with (
        closing(console.progress(source.total, "texts", args.progress)) as bar,
        writers.destination(args.output, stdout) as file,
    ):
        writer = writers.open_writer(chosen, file, spec)
        complete = False
        try:
            for items in readers.blocks(source.items, first=_FIRST, most=_MOST, chars=_CHARS):
                answer = _embedded(embedder, items, source, request, args.deterministic)
                writer.write(_counted(answer, items, tally))
                bar.update(len(items))
            complete = True
        finally:
            writer.close(complete)
    return tally


def _embedded(
    embedder: Embedder, items: list[Item], source: Source, request: dict[str, Any], deterministic: bool
) -> Embedded:
    texts = [item.text for item in items]
    try:
        return embedder.embed(texts, **request, show_progress=False, deterministic=deterministic)
    except TextError as error:
        # The place in the block says nothing to the caller; the line in the input does.
        number = items[error.index].number
        raise UsageError(f"{source.name} {source.unit} {number}: {error.reason}") from error


def _counted(answer: Embedded, items: list[Item], tally: _Tally) -> Block:
    """The block to write, after its texts were counted. Whatever the engine says, nothing non-finite passes."""
    import numpy as np

    odd = np.zeros(len(items), np.bool_)
    if np.issubdtype(answer.vectors.dtype, np.floating):
        odd = ~np.isfinite(answer.vectors).all(axis=1)
    failed = frozenset({*answer.failed, *np.flatnonzero(odd).tolist()})
    vectors = np.where(odd[:, None], np.zeros_like(answer.vectors), answer.vectors) if odd.any() else answer.vectors
    block = Block(tally.total, vectors, answer.truncated, failed)
    cut = np.flatnonzero(answer.truncated)
    if len(cut) and not tally.cut:
        tally.first_cut = items[cut[0]].number
    if failed and not tally.failed:
        tally.first_failed = items[min(failed)].number
    tally.cut += len(cut)
    tally.failed += len(failed)
    tally.total += len(items)
    return block


def _report(tally: _Tally, source: Source) -> None:
    parts = []
    if tally.cut:
        verb = "was" if tally.cut == 1 else "were"
        parts.append(
            f"{tally.cut} of {tally.total} texts {verb} cut to {tally.max_tokens} tokens "
            f"(first: {source.unit} {tally.first_cut})"
        )
    if tally.failed:
        verb = "has" if tally.failed == 1 else "have"
        parts.append(
            f"{tally.failed} of {tally.total} texts {verb} no vector: {writers.UNUSABLE} "
            f"(first: {source.unit} {tally.first_failed})"
        )
    if parts:
        console.say("; ".join(parts))


def _source(args: argparse.Namespace) -> Source:
    if args.texts:
        if args.input is not None:
            raise UsageError("texts were given, and --input too: give one of them.")
        if args.input_format is not None:
            raise UsageError("--input-format says how to read --input or stdin, and texts were given instead.")
        return readers.arguments(args.texts)
    if args.input is None and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(f"no texts: give some, or --input FILE, or pipe them in.\n\n{EXAMPLES.rstrip()}")
    return readers.open_source(args.input or "-", input_format=args.input_format, field=args.field)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What `load` is asked for: an option, else its environment variable, else the default."""
    backend = _setting(args.backend, "BACKEND") or "auto"
    if backend not in ("auto", *backends.BACKENDS):
        raise UsageError(f"JINA_LOCAL_BACKEND is {backend!r}. Possible: auto, {', '.join(backends.BACKENDS)}.")
    threads = _setting(args.threads, "THREADS")
    if isinstance(threads, str) and not threads.isdecimal():
        raise UsageError(f"JINA_LOCAL_THREADS is {threads!r}; expected a whole number from 1.")
    return {
        "name_or_path": _setting(args.model, "MODEL") or registry.DEFAULT_MODEL,
        "backend": backend,
        "weights": _setting(args.weights, "WEIGHTS"),
        "task": args.task,
        "device": _setting(args.device, "DEVICE"),
        "threads": None if threads is None else int(threads),
        "offline": True if args.offline else None,
    }


def _setting(option: str | int | None, name: str) -> str | int | None:
    return option if option is not None else os.environ.get(f"JINA_LOCAL_{name}") or None
