"""`embed`: texts in, vectors out, in constant memory and in the order they came."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import console, registry
from ..embedding.request import OVERFLOWS, PRECISIONS, check_late_chunking, resolve
from ..errors import TextError, UsageError
from ..records import readers, writers
from ..records.readers import Item, Source
from ..records.writers import Block
from . import inputs, options

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder
    from ..spec import Embedded

# Texts per block: few at first, so that the first vectors come early. Characters bound what a block holds.
_FIRST, _MOST, _CHARS = 64, 1024, 4_000_000

SUMMARY = "turn texts into vectors"

EXAMPLES = """examples:
  jina-local embed "The quick brown fox" --task retrieval --prompt-name query
  jina-local embed --input notes.txt --output notes.npy
  jina-local embed --input docs.jsonl --field body --truncate-dim 256 --output docs.parquet
  sort words.txt | jina-local embed --task text-matching --precision ubinary > words.jsonl
  grep . chapter.txt | jina-local embed --model v3 --late-chunking > chunks.jsonl
"""

_EPILOG = f"""{EXAMPLES}
input: .txt has one text a line, empty lines included; .jsonl strings, or objects with --field; .csv and .tsv
  a header; .parquet a column. Standard input is read as txt unless --input-format says otherwise.
output: jsonl has {{"index": 0, "embedding": [...]}} a line, with "truncated": true where a text was cut and
  {{"index": 0, "error": "..."}} where the model gave no vector. Such a row is null in json and parquet, empty
  in csv, zero in npy and safetensors.
--late-chunking: the texts, lines or records are the pieces of one document, in their order: it is read as a whole and
  each piece gets the mean over its own tokens, in the light of the others. All together have to fit into the model's
  tokens (or --max-length); a piece without a token, as an empty line, is refused. Without --task they are embedded as
  documents to be retrieved. Only models that take a mean over tokens have it, not v5, which reads the last one.
tasks: v5 and pico: retrieval (the default), text-matching, clustering, classification. jina-embeddings-v3 has no
  default: retrieval.query, retrieval.passage, separation, classification, text-matching, or none for its base
  without an adapter; clustering means separation, and retrieval with --prompt-name query the first, else the second.
environment: JINA_LOCAL_MODEL, JINA_LOCAL_WEIGHTS, JINA_LOCAL_BACKEND, JINA_LOCAL_DEVICE and JINA_LOCAL_THREADS
  stand in for the options of that name.
exit codes: 0 done, 1 some texts have no vector, 2 bad input or options, 3 the model, 69 no engine,
  70 the engine broke, 73 cannot write, 74 cannot read, 75 locked, 130 interrupted.
"""


def parser(add: Any) -> argparse.ArgumentParser:
    """The options of `embed`; `add` makes the parser."""
    p: argparse.ArgumentParser = add("embed", SUMMARY, _EPILOG)
    p.add_argument("texts", nargs="*", metavar="TEXT", help="texts to embed; without any, and without --input, stdin")
    options.add_options(p, registry.DEFAULT_MODEL)
    g = p.add_argument_group("vectors")
    g.add_argument("--task", metavar="TASK", help="what the vectors are for; each model has its own, see below")
    g.add_argument("--prompt-name", metavar="NAME", help="query or document (default: document)")
    g.add_argument("--late-chunking", action="store_true", help="the texts are the pieces of one document, see below")
    g.add_argument("--truncate-dim", type=int, metavar="N", help="cut to a trained width, then normalise")
    g.add_argument("--max-length", type=int, metavar="TOKENS", help="default: all that the model takes")
    g.add_argument("--precision", choices=PRECISIONS, default="float32")
    g.add_argument("--no-normalize", action="store_true", help="leave the length of the vectors as it comes")
    g.add_argument("--overflow", choices=OVERFLOWS, help="a text that is too long (default: truncate)")
    g.add_argument("--deterministic", action="store_true", help="one text a pass: the same bits in any company")
    g = p.add_argument_group("input and output")
    inputs.add_options(g)
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
    settings = {**options.settings(args, registry.DEFAULT_MODEL), "task": args.task}
    options.check_name(settings["name_or_path"], rank=False)
    if args.late_chunking:
        _check_late(settings["name_or_path"], args)
    chosen = writers.format_of(args.output, args.format)
    writers.check_target(args.output, chosen)
    with closing(inputs.source(args, args.texts, EXAMPLES)) as source, console.quiet_stdout() as stdout:
        if args.output in (None, "-") and chosen in writers.BINARY and stdout.isatty():
            raise UsageError(f"{chosen} is binary and stdout is a terminal: give --output FILE, or redirect.")
        from .. import loading

        with cast("Embedder", loading.load(**settings)) as embedder:
            options.check_kind(embedder.spec, rank=False)
            tally = _stream(embedder, args, source, chosen, stdout)
    _report(tally, source)
    return console.SOME_FAILED if tally.failed else console.OK


def _check_late(name: str, args: argparse.Namespace) -> None:
    """What can be refused of --late-chunking before a model is looked for."""
    if args.overflow == "truncate":
        raise UsageError("--overflow truncate: late chunking cuts nothing; input that is too long is an error.")
    if os.path.lexists(name):
        return
    try:
        row = registry.lookup(name.partition(":")[0])
    except UsageError:  # no model's name; `load` says what is wrong with it
        return
    check_late_chunking(row.spec)


def _stream(embedder: Embedder, args: argparse.Namespace, source: Source, chosen: str, stdout: BinaryIO) -> _Tally:
    request: dict[str, Any] = {
        "task": args.task,
        "prompt_name": args.prompt_name,
        "truncate_dim": args.truncate_dim,
        "max_length": args.max_length,
        "normalize": not args.no_normalize,
        "precision": args.precision,
    }
    # Refused before anything is read or written.
    if args.late_chunking:
        spec = resolve(embedder.spec, **request, late_chunking=True)
        answers = _joined(embedder, source, request, spec.max_tokens)
    else:
        request["overflow"] = args.overflow or "truncate"
        spec = resolve(embedder.spec, **request)
        answers = _one_by_one(embedder, source, request, args.deterministic)
    tally = _Tally(spec.max_tokens)
    with (
        closing(console.progress(source.total, "texts", args.progress)) as bar,
        writers.destination(args.output, stdout) as file,
    ):
        writer = writers.open_writer(chosen, file, spec)
        complete = False
        try:
            for items, answer in answers:
                writer.write(_counted(answer, items, tally))
                bar.update(len(items))
            complete = True
        finally:
            writer.close(complete)
    return tally


_Answers = Iterator[tuple[list[Item], "Embedded"]]


def _one_by_one(embedder: Embedder, source: Source, request: dict[str, Any], deterministic: bool) -> _Answers:
    """Texts that have nothing to do with each other, in blocks."""
    for items in readers.blocks(source.items, first=_FIRST, most=_MOST, chars=_CHARS):
        with _placed(items, source):
            answer = embedder.embed(
                [item.text for item in items], **request, show_progress=False, deterministic=deterministic
            )
        yield items, answer


def _joined(embedder: Embedder, source: Source, request: dict[str, Any], max_tokens: int) -> _Answers:
    """The pieces of one document, all at once."""
    items: list[Item] = []
    held = 0
    for item in source.items:
        items.append(item)
        held += len(item.text)
        if held > _CHARS:
            raise UsageError(
                f"{source.name}: more than {_CHARS} characters at {source.unit} {item.number}; --late-chunking reads "
                f"the whole input as one document, of at most {max_tokens} tokens. Split the input."
            )
    if items:
        with _placed(items, source):
            answer = embedder.embed([item.text for item in items], **request, late_chunking=True, show_progress=False)
        yield items, answer


@contextmanager
def _placed(items: Sequence[Item], source: Source) -> Iterator[None]:
    """Errors about one text: its place in the call says nothing to the caller; the line in the input does."""
    try:
        yield
    except TextError as error:
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
