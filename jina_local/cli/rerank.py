"""`rerank`: a query and documents in, the documents by falling score out."""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import console, registry
from ..errors import OutputError, TextError, UsageError
from ..records import writers
from ..records.readers import Item, Source
from . import inputs, options, terminal

if TYPE_CHECKING:
    from ..reranking.reranker import Reranker
    from ..spec import Ranked, Reranking

SUMMARY = "put documents in the order in which they answer a query"
FORMATS = ("table", "json", "jsonl")
# Of the options, those that a request is made of; what is None takes the model's own default.
_REQUEST = (
    "top_n", "instruction", "max_doc_length", "max_query_length", "max_length", "block_size", "overlap_tokens",
    "window", "return_embeddings", "deterministic",
)  # fmt: skip
_OLD = "retrieval_"

EXAMPLES = """examples:
  jina-local rerank "red planet" "Mars looks red." "Venus is hot." "Saturn has rings."
  jina-local rerank "red planet" --input docs.txt --top-n 3
  sort notes.txt | jina-local rerank "what to buy"
  jina-local rerank "red planet" --input found.jsonl --field body --format jsonl > ranked.jsonl
"""

_EPILOG = f"""{EXAMPLES}
input: as for `embed`: .txt has one document a line; .jsonl strings, or objects with --field; .csv and .tsv a header;
  .parquet a column. Standard input is read as txt unless --input-format says otherwise. All documents are read
  before the model runs: it needs them all, and a listwise reranker scores them in each other's company.
output: a table on a terminal, else jsonl: {{"index": 0, "score": 0.25, "document": "..."}} a line, best first, with
  what else stood in the document's record. Where the record has a key of one of these names, as a search's score,
  that is {_OLD}score. index counts from 0 over the documents, the table's line as the input does.
scores: of jina-reranker-v3 a cosine, which may be negative; of jina-reranker-v2 from 0 to 1. Neither is a
  probability, and they cannot be held against each other.
environment: JINA_LOCAL_RERANK_MODEL and JINA_LOCAL_RERANK_WEIGHTS stand in for --model and --weights, as
  JINA_LOCAL_MODEL and JINA_LOCAL_WEIGHTS are for `embed` and not looked at; JINA_LOCAL_BACKEND, JINA_LOCAL_DEVICE and
  JINA_LOCAL_THREADS for the options of that name.
exit codes: 0 done, 1 some documents have no score, 2 bad input or options, 3 the model, 69 no engine,
  70 the engine broke, 73 cannot write, 74 cannot read, 130 interrupted.
"""


def parser(add: Any) -> argparse.ArgumentParser:
    """The options of `rerank`; `add` makes the parser."""
    p: argparse.ArgumentParser = add("rerank", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} QUERY [DOC ...] [options]"
    p.add_argument(
        "texts", nargs="*", metavar="QUERY DOC", help="the query, then documents; without any and --input: stdin"
    )
    options.add_options(p, registry.DEFAULT_RERANKER)
    g = p.add_argument_group("ranking")
    g.add_argument("--top-n", type=int, metavar="N", help="the best N only")
    g.add_argument("--max-query-length", type=int, metavar="TOKENS", help="default: 512")
    g.add_argument("--max-length", type=int, metavar="TOKENS", help="of a block; pairwise: of a pair (1024)")
    g.add_argument("--deterministic", action="store_true", help="pairwise: one pair a pass, the same bits always")
    g = p.add_argument_group("listwise only (jina-reranker-v3)")
    g.add_argument("--instruction", metavar="TEXT", help="what to rank by, beside the query")
    g.add_argument("--max-doc-length", type=int, metavar="TOKENS", help="of each document (default: 2048)")
    g.add_argument("--block-size", type=int, metavar="N", help="documents read together, 1 to 125 (default: 64)")
    g.add_argument("--return-embeddings", action="store_true", help="with the vectors that were compared")
    g = p.add_argument_group("pairwise only (jina-reranker-v2)")
    g.add_argument("--overlap-tokens", type=int, metavar="N", help="of a long document's windows (default: 80)")
    g.add_argument(
        "--no-window", dest="window", action="store_const", const=False, help="cut instead of reading in windows"
    )
    g = p.add_argument_group("input and output")
    inputs.add_options(g)
    g.add_argument("--output", metavar="FILE", help="default: stdout")
    g.add_argument("--format", choices=FORMATS, help="default: table on a terminal, else by suffix, else jsonl")
    g.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
    return p


def run(args: argparse.Namespace) -> int:
    """Rank; 1 where some documents have no score."""
    if not args.texts:
        raise UsageError(f"no query was given.\n\n{EXAMPLES.rstrip()}")
    query, documents = args.texts[0], args.texts[1:]
    settings = options.settings(args, registry.DEFAULT_RERANKER, "RERANK_")
    options.check_name(settings["name_or_path"], rank=True)
    if args.top_n is not None and args.top_n < 1:
        raise UsageError(f"--top-n {args.top_n}: expected a whole number from 1.")
    writers.check_target(args.output, "")
    with (
        closing(inputs.source(args, documents, EXAMPLES, what="documents", records=True)) as source,
        console.quiet_stdout() as stdout,
    ):
        chosen = _format(args, stdout)
        items = list(source.items)
        _hint(items, args)
        found = _ranked(settings, query, items, source, args) if items else None
        ranked = found.results if found else ()
        with writers.destination(args.output, stdout) as file:
            if chosen == "table":
                width = terminal.columns(stdout) if args.output in (None, "-") else None
                file.writelines(map(_encoded, _table(ranked, items, source.unit, width)))
            else:
                file.writelines(_json(chosen, ranked, items, args.field))
    _report(found, items, source, args)
    return console.SOME_FAILED if found and found.failed else console.OK


def _format(args: argparse.Namespace, stdout: BinaryIO) -> str:
    by_suffix = {".json": "json", ".jsonl": "jsonl", ".txt": "table"}
    if args.format is not None:
        chosen = str(args.format)
    elif args.output in (None, "-"):
        chosen = "table" if stdout.isatty() else "jsonl"
    elif (suffix := Path(args.output).suffix.lower()) in by_suffix:
        chosen = by_suffix[suffix]
    else:
        raise OutputError(
            f"--output {args.output}: the format cannot be told from the name. "
            f"Known suffixes: {', '.join(by_suffix)}; or give --format."
        )
    if chosen == "table" and args.return_embeddings:
        raise UsageError("--return-embeddings has no place in a table: give --format jsonl or json.")
    return chosen


def _hint(items: Sequence[Item], args: argparse.Namespace) -> None:
    """Say so where lines were read as texts and look like records; nothing is guessed."""
    if len(args.texts) > 1 or args.input not in (None, "-") or args.input_format is not None or not items:
        return
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(items[0].text), dict):
            console.say(f"the documents look like JSON; --input-format jsonl ranks by their {args.field!r}")


def _ranked(
    settings: dict[str, Any], query: str, items: Sequence[Item], source: Source, args: argparse.Namespace
) -> Reranking:
    from .. import loading

    request = {name: getattr(args, name) for name in _REQUEST}
    with loading.load(**settings) as loaded:
        options.check_kind(loaded.spec, rank=True)
        try:
            return cast("Reranker", loaded).rerank(
                query, [item.text for item in items], **request, show_progress=args.progress
            )
        except TextError as error:
            # The place in the list says nothing to the caller; the line in the input does.
            number = items[error.index].number
            raise UsageError(f"{source.name} {source.unit} {number}: {error.reason}") from error


def _table(ranked: Sequence[Ranked], items: Sequence[Item], unit: str, width: int | None) -> Iterator[str]:
    """Rank, score, place and text, one line a document, no wider than `width` columns."""
    if not ranked:
        return
    place = max(len(unit), len(str(items[-1].number)))
    start = f"{'rank':>4}  {'score':>7}  {unit:>{place}}  "
    yield f"{start}document\n"
    for n, one in enumerate(ranked, 1):
        start = f"{n:>4}  {one.score:>7.4f}  {items[one.index].number:>{place}}  "
        room = None if width is None else max(width - len(start), 1)
        yield f"{start}{terminal.one_line(one.document, room)}\n"


def _json(chosen: str, ranked: Iterable[Ranked], items: Sequence[Item], field: str) -> Iterator[bytes]:
    records = (_dumped(_record(one, items[one.index], field)) for one in ranked)
    if chosen == "jsonl":
        yield from (record + b"\n" for record in records)
        return
    before = b"[\n"
    for record in records:
        yield before + record
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def _record(one: Ranked, item: Item, field: str) -> dict[str, Any]:
    """What is said of a document, then what else its record has; keys of the same name step aside."""
    out: dict[str, Any] = {"index": one.index, "score": one.score, "document": one.document}
    if one.embedding is not None:
        # str of a numpy float32 is the shortest that reads back as the same float32.
        out["embedding"] = [float(str(x)) for x in one.embedding]
    rest = {key: value for key, value in (item.record or {}).items() if key != field}
    taken = {*out, *rest}
    for key, value in rest.items():
        if key in out:
            while key in taken:
                key = _OLD + key
            taken.add(key)
        out[key] = value
    return out


def _dumped(record: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity, which Python reads from JSON and other readers do not
        text = json.dumps(_finite(record), ensure_ascii=False, default=_plain)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold as an escape alone
        return json.dumps(json.loads(text)).encode()


def _plain(value: Any) -> str:
    """What a column of Parquet may hold beyond JSON's types: bytes as base64, dates and numbers as they print."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace")


def _report(found: Reranking | None, items: Sequence[Item], source: Source, args: argparse.Namespace) -> None:
    if found is None:
        console.say(f"{source.name}: no documents")
        return
    if found.query_cut:
        console.say("the query was cut; its end was not read")
    for places, verbs, what in (
        (found.cut, ("was", "were"), "cut"),
        (found.failed, ("has", "have"), "no score: the model gave NaN or infinity"),
    ):
        if places:
            first = items[min(places)].number
            verb = verbs[len(places) > 1]
            console.say(f"{len(places)} of {len(items)} documents {verb} {what} (first: {source.unit} {first})")
