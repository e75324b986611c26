"""`embed`: texts in, vectors out, in constant memory and in the order they came."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import console, registry
from ..embedding.request import OVERFLOWS, PRECISIONS, Words, check_late_chunking, resolve
from ..errors import UsageError
from ..records import output, writers
from ..records.readers import Reading
from ..records.source import Source
from ..records.writers import Writer
from ..store import local_store
from . import options, terminal

if TYPE_CHECKING:
    from .. import Embedder
    from ..bulk.stream import Memory, Tally
    from ..server.client import RemoteModel
    from ..spec import EmbeddingSpec, ModelSpec

SUMMARY = "turn texts into vectors"

EXAMPLES = """examples:
  jina-local embed --model pico "The quick brown fox"
  jina-local embed "red planet" --prompt-name query --truncate-dim 256
  jina-local embed --input notes.txt --output notes.npy
  jina-local embed --input docs.jsonl --field body --id key --output docs.parquet
  jina-local embed --input notes.txt --output notes.csv --resume
  sort words.txt | jina-local embed --precision ubinary --keep text > words.jsonl
  jina-local embed --model v3 --late-chunking --input chapter.md > parts.jsonl
"""

_OUTPUT = """A terminal gets a table with the first numbers of each vector, a pipe jsonl,
a file the format of its suffix. jsonl has {"index": 0, "embedding": [...]} a
line, with "truncated": true if the text was cut, or {"index": 0, "error": ""}
if it has no vector. Without one, a row is null in json and parquet, empty in
csv, zero in npy and safetensors. --id and --keep need jsonl, csv or parquet.
A bar is shown on a terminal, unless the vectors are shown there or the texts
are arguments."""

_GOES_ON = "; the same command goes on with what was done"

_EPILOG = """--late-chunking:
  The texts are the pieces of one document, in their order. It is read as a
  whole, and each piece gets the mean over its own tokens. Together they have
  to fit into --max-length; a piece without a token is refused. The default task
  is that of documents. Only models that take a mean have it, not v5.
--resume:
  The vectors are also kept in FILE.resume until FILE is whole. After Ctrl-C, a
  crash or a loss of power the same command goes on: it reads its input from the
  start, and the model runs the texts alone that have no vector yet. Vectors
  belong to texts, so the input may have changed, and the format too. Another
  model, weights, task, width or precision is refused.
--shard:
  Every N-th text from the I-th on, for N machines with one input and an output
  each. index counts the texts of all shards.
tasks:
  v5 and pico: retrieval (the default), text-matching, clustering,
  classification. jina-embeddings-v3 has no default: retrieval.query,
  retrieval.passage, separation, classification, text-matching, or none for its
  base without an adapter. clustering means separation, retrieval means
  retrieval.query with --prompt-name query and retrieval.passage without.
environment:
  JINA_LOCAL_MODEL, JINA_LOCAL_WEIGHTS, JINA_LOCAL_BACKEND, JINA_LOCAL_DEVICE
  and JINA_LOCAL_THREADS stand in for the options of that name, and
  JINA_LOCAL_SERVER for --server. A server has to have the model that is asked
  for.
exit codes:
  0 done, 1 some texts have no vector, 2 bad input or options, 3 the model,
  69 no engine or no server, 70 the engine broke, 73 cannot write, 74 cannot
  read, 75 locked, or the server is too busy, 130 interrupted.
"""


def parser(add: Any) -> options.Parser:
    """The options of `embed`; `add` makes the parser."""
    p: options.Parser = add("embed", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} [TEXT ...] [options]"
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed; without any, and without --input, stdin")
    options.add_model(p, registry.DEFAULT_MODEL)
    options.add_server(p)
    g = p.add_argument_group("vectors")
    g.add_argument("--task", metavar="TASK", help="what the vectors are for; each model has its own, see below")
    g.add_argument("--prompt-name", metavar="NAME", help="query or document (default: document)")
    g.add_argument("--truncate-dim", type=int, metavar="N", help="cut to a trained width, then normalise")
    g.add_argument("--precision", choices=PRECISIONS, default="float32", help="default: float32")
    g.add_argument("--no-normalize", action="store_true", help="leave the length of the vectors as it comes")
    g.add_argument("--max-length", type=int, metavar="TOKENS", help="default: all that the model takes")
    g.add_argument("--overflow", choices=OVERFLOWS, help="a text that is too long (default: truncate)")
    g.add_argument("--late-chunking", action="store_true", help="the texts are the pieces of one document, see below")
    g.add_argument("--cache", action="store_true", help="use vectors of earlier runs and indexes, and keep new ones")
    g.add_argument("--deterministic", action="store_true", help="one text a pass: the same bits in any company")
    options.add_input(p, "texts")
    g = options.add_output(p, ("table", *writers.FORMATS), _OUTPUT)
    g.add_argument("--id", metavar="FIELD", help="a field of the records that goes out as id")
    g.add_argument("--resume", action="store_true", help="go on with a stopped run to --output FILE, see below")
    g.add_argument("--shard", type=_shard, metavar="I/N", help="the I-th of N parts of the texts, see below")
    g.add_argument("--keep", action="append", metavar="FIELD", help="another field that goes out; may be repeated")
    return p


def run(args: argparse.Namespace) -> int:
    """Embed; 1 if some texts have no vector."""
    _check_options(args)
    settings = {**options.settings(args, registry.DEFAULT_MODEL), "task": args.task}
    server = options.server(args)
    _check_model(options.known_model(settings["name_or_path"]), args)
    keep = _kept(args)
    reading = _reading(args, keep)
    if args.format != "table":
        writers.check(writers.format_of(args.output, args.format), keep)
    output.check_target(args.output)
    with (
        options.telling_what_is_left(args.output, _GOES_ON if args.resume else ""),
        closing(options.open_source(args, args.texts, reading, EXAMPLES)) as source,
        console.quiet_stdout() as stdout,
    ):
        chosen = _format(args, stdout)
        with cast("Embedder", options.open_model(settings, server)) as embedder:
            _check_model(embedder.spec, args)
            tally = _embedded(embedder, args, source, reading, keep, chosen, stdout)
    _report(tally, source)
    return console.SOME_FAILED if tally.failed or tally.bad else console.OK


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that exclude each other."""
    for name in ("resume", "shard", "cache"):
        if args.late_chunking and getattr(args, name):
            raise UsageError(f"--{name}: late chunking reads the input as one document, which cannot be divided.")
    if args.cache and args.deterministic:
        raise UsageError("--cache with --deterministic: the cache has vectors that were run in company.")
    if args.resume and (not output.is_file(args.output) or output.written_directly(args.output)):
        raise UsageError("--resume needs --output FILE: a stream cannot be gone on with.")
    if args.late_chunking and args.overflow == "truncate":
        raise UsageError("--overflow truncate: late chunking cuts nothing; input that is too long is an error.")


def _check_model(spec: ModelSpec | None, args: argparse.Namespace) -> None:
    """Refuse early, if the model is known, what it cannot do."""
    if spec is None:
        return
    if spec.scoring is not None:
        able = ", ".join(row.spec.name for row in registry.PUBLISHED if row.spec.scoring is None)
        raise UsageError(f"{spec.name} ranks documents and has no vectors: use `rerank`, or another model: {able}.")
    if args.late_chunking:
        check_late_chunking(spec)


def _shard(text: str) -> tuple[int, int]:
    """The two numbers of `--shard I/N`."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N, as 1/4 to 4/4, not {text!r}")
    return int(number), int(of)


def _kept(args: argparse.Namespace) -> dict[str, str]:
    """Name in the output -> field of the records."""
    keep = {field: field for field in args.keep or ()}
    if args.id is not None:
        if keep.get("id", args.id) != args.id:
            raise UsageError(f"--id {args.id} and --keep id would both be 'id' in the output: leave one of them out.")
        keep = {"id": args.id, **keep}
    return keep


def _reading(args: argparse.Namespace, keep: dict[str, str]) -> Reading:
    field = args.field
    if field is None and any(name != "text" for name in keep.values()):
        field = "text"  # fields are kept, so there have to be records
    return Reading(args.input_format, field, records=bool(keep), skip=args.errors == "skip")


def _format(args: argparse.Namespace, stdout: BinaryIO) -> str:
    shown = options.on_terminal(args, stdout)
    if args.format is None and shown:
        return "table"
    chosen = writers.format_of(args.output, args.format)
    if chosen in writers.BINARY and shown:
        raise UsageError(f"{chosen} is binary and stdout is a terminal: give --output FILE, or redirect.")
    return chosen


def _words(args: argparse.Namespace) -> Words:
    return {
        "task": args.task,
        "prompt_name": args.prompt_name,
        "truncate_dim": args.truncate_dim,
        "max_length": args.max_length,
        "normalize": not args.no_normalize,
        "precision": args.precision,
        "overflow": args.overflow,
        "late_chunking": args.late_chunking,
    }


def _embedded(
    embedder: Embedder,
    args: argparse.Namespace,
    source: Source,
    reading: Reading,
    keep: dict[str, str],
    chosen: str,
    stdout: BinaryIO,
) -> Tally:
    """Write the vectors of all texts. A request that is refused is refused before anything is read or written."""
    from ..bulk import stream

    words = _words(args)
    spec = resolve(embedder.spec, **words)
    tally = stream.Tally(spec.max_tokens)
    shown = options.on_terminal(args, stdout)
    wanted = False if args.progress is None and (args.texts or shown) else args.progress
    with (
        closing(console.progress(source.size, "texts" if source.size is None else "B", wanted)) as bar,
        _memories(args, embedder, words, spec) as memories,
        output.destination(args.output, stdout, alone=args.resume) as file,
    ):
        made = stream.embed(
            embedder, source.items, words, tally, reading=reading, keep=keep, shard=stream.Shard(*args.shard or ()),
            **memories, deterministic=args.deterministic,
        )  # fmt: skip
        writer = _writer(chosen, file, spec, keep, embedder, terminal.columns(stdout) if shown else None)
        complete, seen = False, 0
        try:
            for block in made:
                writer.write(block)
                now = tally.total if source.size is None else source.position
                bar.update(now - seen)
                seen = now
            complete = True
        finally:
            writer.close(complete)
    return tally


@contextmanager
def _memories(
    args: argparse.Namespace, embedder: Embedder, words: Words, spec: EmbeddingSpec
) -> Iterator[dict[str, Memory]]:
    """The vectors of earlier runs, as arguments of `stream.embed`."""
    from ..bulk import cache, resume, stream

    memories: dict[str, Memory] = {}
    with ExitStack() as stack:
        space = embedder.space(**words) if args.cache or args.resume else {}
        if args.cache:
            opened = stack.enter_context(cache.VectorCache(local_store.vector_cache()))
            memories["cache"] = stream.Cached(opened, json.dumps(space, sort_keys=True))
        if args.resume:
            target = Path(os.path.realpath(args.output))
            more = {"precision": spec.precision, "overflow": spec.overflow, "deterministic": str(args.deterministic)}
            left = stack.enter_context(resume.journal(target, {**space, **more}))
            if left.count:
                console.say(f"{target}{resume.SUFFIX} has {left.count} vectors of a stopped run")
            memories["journal"] = left
        yield memories


def _writer(
    chosen: str,
    file: BinaryIO,
    spec: EmbeddingSpec,
    keep: dict[str, str],
    embedder: Embedder,
    columns: int | None,
) -> Writer:
    if chosen == "table":
        return terminal.VectorTable(file, spec, tuple(keep), columns)
    origin = embedder.spec.origin
    weights = origin.weights if origin is not None else cast("RemoteModel", embedder).runs_as["weights"]
    return writers.open_writer(chosen, file, spec, keep, weights=weights)


def _report(tally: Tally, source: Source) -> None:
    cases = (
        (tally.cut, tally.first_cut, ("was", "were"), f"cut to {tally.max_tokens} tokens"),
        (tally.failed, tally.first_failed, ("has", "have"), f"no vector: {writers.UNUSABLE}"),
        (tally.bad, tally.first_bad, ("was", "were"), "passed over"),
    )
    for sentence in options.counted("texts", tally.total, source, cases):
        console.say(sentence)
