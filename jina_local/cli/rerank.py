"""`rerank`: a query and documents in, the documents by falling score out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import console, registry
from ..errors import UsageError
from ..records import json_text, output
from ..records.readers import Item, Reading
from ..records.source import Source
from . import options, terminal

if TYPE_CHECKING:
    from .. import Ranked
    from ..server.client import Server
    from ..spec import ModelSpec

SUMMARY = "put documents in the order in which they answer a query"
FORMATS = ("table", "json", "jsonl")
# Options that only one kind of model takes. None takes the model's own default.
_OF_RERANKERS = (
    "instruction", "max_doc_length", "max_query_length", "block_size", "return_embeddings", "overlap_tokens", "window"
)  # fmt: skip
_OF_EMBEDDERS = ("truncate_dim",)
_OLD = "retrieval_"

EXAMPLES = """examples:
  jina-local rerank "red planet" "Mars looks red." "Venus is hot." "Saturn has rings."
  jina-local rerank "red planet" --input docs.txt --top-n 3
  jina-local rerank "red planet" --input found.jsonl --field body > ranked.jsonl
  sort notes.txt | jina-local rerank "what to buy" --format json
  jina-local rerank --model pico "red planet" --input docs.txt
"""

_INPUT = """ All
documents are read before the model runs: a listwise reranker scores them
together."""

_OUTPUT = f"""A terminal gets a table, a pipe jsonl, a file the format of its suffix. jsonl
has {{"index": 0, "score": 0.25, "document": "..."}} a line, best first, with
the other fields of the document's record. If the record has a field of one of
these names, such as a search's score, it is {_OLD}score. index counts
from 0 over the documents; the table has the line of the input instead."""

_EPILOG = """scores:
  of jina-reranker-v3 a cosine, which may be negative; of jina-reranker-v2 from
  0 to 1. Neither is a probability, and two models' scores cannot be compared.
embedding models:
  A model such as pico ranks by the cosine between its vectors of the query and
  of each document. The table then says cosine, each record has "scoring":
  "cosine", and stderr says so.
environment:
  JINA_LOCAL_RERANK_MODEL and JINA_LOCAL_RERANK_WEIGHTS stand in for --model and
  --weights; JINA_LOCAL_MODEL and JINA_LOCAL_WEIGHTS are for `embed` alone.
  JINA_LOCAL_BACKEND, JINA_LOCAL_DEVICE and JINA_LOCAL_THREADS stand in for the
  options of that name, JINA_LOCAL_SERVER for --server. A server has to have the
  model that is asked for.
exit codes:
  0 done, 1 some documents have no score, 2 bad input or options, 3 the model,
  69 no engine or no server, 70 the engine broke, 73 cannot write, 74 cannot
  read, 75 the server is too busy, 130 interrupted.
"""


def parser(add: Any) -> options.Parser:
    """The options of `rerank`; `add` makes the parser."""
    p: options.Parser = add("rerank", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} QUERY [DOC ...] [options]"
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument(
        "texts", nargs="*", metavar="QUERY DOC", help="the query, then documents; without any and --input: stdin"
    )
    options.add_model(p, registry.DEFAULT_RERANKER)
    options.add_server(p)
    g = p.add_argument_group("ranking")
    g.add_argument("--top-n", type=int, metavar="N", help="the best N only")
    g.add_argument(
        "--max-length", type=int, metavar="TOKENS", help="listwise: of a block; pairwise: of a pair (default: 1024)"
    )
    g.add_argument("--deterministic", action="store_true", help="one text or pair a pass: the same bits always")
    g = p.add_argument_group("rerankers only")
    g.add_argument("--max-query-length", type=int, metavar="TOKENS", help="default: 512")
    g = p.add_argument_group("listwise only (jina-reranker-v3)")
    g.add_argument("--instruction", metavar="TEXT", help="what to rank by, beside the query")
    g.add_argument("--max-doc-length", type=int, metavar="TOKENS", help="of each document (default: 2048)")
    g.add_argument("--block-size", type=int, metavar="N", help="documents read together, 1 to 125 (default: 125)")
    g.add_argument(
        "--return-embeddings", action="store_true", default=None, help="with the vectors that were compared"
    )
    g = p.add_argument_group("pairwise only (jina-reranker-v2)")
    g.add_argument("--overlap-tokens", type=int, metavar="N", help="of a long document's windows (default: 80)")
    g.add_argument(
        "--no-window", dest="window", action="store_const", const=False, help="cut instead of reading in windows"
    )
    g = p.add_argument_group("embedding models only")
    g.add_argument("--truncate-dim", type=int, metavar="N", help="compare vectors cut to a trained width")
    options.add_input(p, "documents", _INPUT)
    options.add_output(p, FORMATS, _OUTPUT)
    return p


def run(args: argparse.Namespace) -> int:
    """Rank; 1 if some documents have no score."""
    if not args.texts:
        raise UsageError(f"no query was given.\n\n{EXAMPLES.rstrip()}")
    query, documents = args.texts[0], args.texts[1:]
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the query: invalid surrogate at character {error.start}.") from error
    settings = options.settings(args, registry.DEFAULT_RERANKER, "RERANK_")
    server = options.server(args)
    _check_options(options.known_model(settings["name_or_path"]), args)
    if args.top_n is not None and args.top_n < 1:
        raise UsageError(f"--top-n {args.top_n}: expected a whole number from 1.")
    output.check_target(args.output)
    reading = Reading(args.input_format, args.field, records=True, skip=args.errors == "skip")
    with (
        options.telling_what_is_left(args.output),
        closing(options.open_source(args, documents, reading, EXAMPLES, "documents")) as source,
        console.quiet_stdout() as stdout,
    ):
        chosen = _format(args, stdout)
        items = list(source.items)
        ranking = _ranking(settings, server, query, items, reading, args)
        with output.destination(args.output, stdout) as file:
            if chosen == "table":
                width = terminal.columns(stdout) if output.is_stdout(args.output) else None
                file.writelines(map(_encoded, _table(ranking, source, width)))
            else:
                file.writelines(_json(chosen, ranking, args.field or "text"))
    _report(ranking, items, source)
    return console.SOME_FAILED if ranking.failed or any(item.fault for item in items) else console.OK


@dataclass(frozen=True)
class _Ranking:
    """What is to be shown of an answer."""

    rows: list[tuple[Ranked, int, Item]] = field(default_factory=list)  # with their places among all documents
    cut: list[Item] = field(default_factory=list)
    failed: list[Item] = field(default_factory=list)
    query_cut: bool = False
    by_cosine: bool = False  # ranked by an embedding model


def _check_options(spec: ModelSpec | None, args: argparse.Namespace) -> None:
    """Refuse options of the other kind of model, if the model is known."""
    if spec is None:
        return
    embeds = spec.scoring is None
    for name in _OF_RERANKERS if embeds else _OF_EMBEDDERS:
        if getattr(args, name) is not None:
            option = "no-window" if name == "window" else name.replace("_", "-")
            kinds = ("rerankers", "an embedding model") if embeds else ("embedding models", "a reranker")
            raise UsageError(f"--{option} is for {kinds[0]}, and {spec.name} is {kinds[1]}: leave it out.")


def _format(args: argparse.Namespace, stdout: BinaryIO) -> str:
    chosen = options.ranked_format(args, stdout)
    if chosen == "table" and args.return_embeddings:
        raise UsageError("--return-embeddings has no place in a table: give --format jsonl or json.")
    return chosen


def _ranking(
    settings: dict[str, Any],
    server: Server | None,
    query: str,
    items: list[Item],
    reading: Reading,
    args: argparse.Namespace,
) -> _Ranking:
    """Load the model and rank. Documents that it refuses turn into bad rows, in `items`."""
    if all(item.fault is not None for item in items):
        return _Ranking()
    from ..bulk import stream

    words = {name: getattr(args, name) for name in ("top_n", "max_length", "deterministic")}
    words["show_progress"] = False if args.progress is None and args.texts[1:] else args.progress
    with options.open_model(settings, server, "RERANK_") as model, _said_once():
        _check_options(model.spec, args)
        by_cosine = model.spec.scoring is None
        if by_cosine:
            console.say(f"{model.spec.name} is no reranker: documents are ranked by the cosine of its vectors")
        for name in _OF_EMBEDDERS if by_cosine else _OF_RERANKERS:
            words[name] = getattr(args, name)
        if not by_cosine:
            words["return_embeddings"] = bool(args.return_embeddings)
        answer, used = stream.call_with_good_rows(
            items, reading, lambda texts: model.rerank(query, texts, **words) if texts else None
        )
    if answer is None:
        return _Ranking()
    return _Ranking(
        rows=[(one, used[one.index], items[used[one.index]]) for one in answer.results],
        cut=[items[used[i]] for i in answer.cut],
        failed=[items[used[i]] for i in answer.failed],
        query_cut=answer.query_cut,
        by_cosine=by_cosine,
    )


@contextmanager
def _said_once() -> Iterator[None]:
    """Leave warnings of cut and failed documents out of the log: `_report` says them, with lines of the input."""
    log = logging.getLogger("jina_local")

    def is_news(record: logging.LogRecord) -> bool:
        return record.funcName != "_warn"  # of reranking/reranker.py

    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)


def _table(ranking: _Ranking, source: Source, width: int | None) -> Iterator[str]:
    """Rank, score, place and text, one line a document, no wider than `width` columns."""
    if not ranking.rows:
        return
    items = [item for _, _, item in ranking.rows]
    labels = [f"{terminal.one_line(i.name, None)}:{i.number}" if source.several else str(i.number) for i in items]
    unit = items[0].unit
    wide = max(len(unit), *map(len, labels))
    yield f"{'rank':>4}  {'cosine' if ranking.by_cosine else 'score':>7}  {unit:>{wide}}  document\n"
    for n, ((one, _, _), label) in enumerate(zip(ranking.rows, labels, strict=True), 1):
        start = f"{n:>4}  {one.score:>7.4f}  {label:>{wide}}  "
        room = None if width is None else max(width - len(start), 1)
        yield f"{start}{terminal.one_line(one.document, room)}\n"


def _json(chosen: str, ranking: _Ranking, field_name: str) -> Iterator[bytes]:
    records = (json_text.dumps(_record(ranking, *row, field_name)).encode() for row in ranking.rows)
    if chosen == "jsonl":
        yield from (record + b"\n" for record in records)
        return
    before = b"[\n"
    for record in records:
        yield before + record
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _record(ranking: _Ranking, one: Ranked, index: int, item: Item, field_name: str) -> dict[str, Any]:
    """The answer for a document, then the other fields of its record; a field of the same name is renamed."""
    out: dict[str, Any] = {"index": index, "score": one.score, "document": one.document}
    if ranking.by_cosine:
        out["scoring"] = "cosine"
    if one.embedding is not None:
        # str of a numpy float32 is the shortest that reads back as the same float32.
        out["embedding"] = [float(str(x)) for x in one.embedding]
    rest = {key: value for key, value in (item.record or {}).items() if key != field_name}
    taken = {*out, *rest}
    for key, value in rest.items():
        if key in out:
            while key in taken:
                key = _OLD + key
            taken.add(key)
        out[key] = value
    return out


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace")


def _report(ranking: _Ranking, items: Sequence[Item], source: Source) -> None:
    if not items:
        console.say(f"{source.name}: no documents")
    if ranking.query_cut:
        console.say("the query was cut; its end was not read")
    bad = [item for item in items if item.fault is not None]
    cases = (
        (ranking.cut, ("was", "were"), "cut"),
        (ranking.failed, ("has", "have"), "no score: the model gave NaN or infinity"),
        (bad, ("was", "were"), "passed over"),
    )
    counts = [(len(found), next(iter(found), None), verbs, rest) for found, verbs, rest in cases]
    for sentence in options.counted("documents", len(items), source, counts):
        console.say(sentence)
