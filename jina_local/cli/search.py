"""`search`: a question in, the passages of an index that answer it out, with their files and lines."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import console
from ..errors import EngineMissing, ModelNotFound, UsageError
from ..records import json_text
from . import options, terminal

if TYPE_CHECKING:
    from ..reranking.reranker import Reranker
    from ..search.index import Index
    from ..search.passages import Found, Shown
    from ..search.query import Answer
    from ..server.client import Server

SUMMARY = "find passages in folders that `index` has made searchable"
FORMATS = ("table", "json", "jsonl", "paths")
NOTHING = 1  # the exit code if nothing was found, as grep has it

EXAMPLES = """examples:
  jina-local search "how do I reset the router"
  jina-local search "parse a manifest" --lang py --path "src/*" -k 5
  jina-local search "tax 2024" --index notes --since 90d --format paths
  jina-local search "retry policy" --rerank jina-reranker-v3 --context 5
  jina-local search "red planet" -k 50 | jina-local rerank "red planet" --field text
"""

_OUTPUT = """A terminal gets the matching lines of each passage, a pipe jsonl, a file the
format of its suffix. A record has path, start_line, end_line, text, context
(headings, or the name of a function), language, score, bm25, cosine. A terminal
links each path to its file. json is one object that also has the mode that
answered, and what is missing from the answer."""

_EPILOG = """scores:
  hybrid adds the standardised BM25 to the standardised cosine, over all passages
  of the index; vector is the cosine, lexical BM25; with --rerank it is the
  reranker's. They order one answer, and compare with no other question's.
which index:
  --index, else the one that covers this folder, else the only one there is.
  With --server, or JINA_LOCAL_SERVER: the name of one that the server was
  given, else its only one; --rerank is a model in service there.
exit codes:
  0 something was found, 1 nothing was, 2 bad options, 3 the index or the model,
  69 no engine or no server, 70 the engine broke, 73 cannot write, 75 the server
  is too busy, 130 interrupted.
"""


def parser(add: Any) -> options.Parser:
    """The options of `search`; `add` makes the parser."""
    p: options.Parser = add("search", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} QUESTION [options]"
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument("texts", nargs="*", metavar="QUESTION", help="several words are one question")
    g = add_index(p)
    g.add_argument("-k", type=int, default=10, metavar="N", help="passages (default: 10)")
    g.add_argument("--mode", choices=("hybrid", "vector", "lexical"), default="hybrid", help="default: hybrid")
    g.add_argument("--rerank", metavar="MODEL", help="a reranker reads the best passages again")
    g.add_argument("--min-score", type=float, metavar="X", help="leave out what scores less")
    g = p.add_argument_group("filters")
    g.add_argument("--lang", action="append", metavar="NAME", help="a language or a suffix: py; may be repeated")
    g.add_argument("--path", action="append", metavar="GLOB", help="of paths, names or folders; may be repeated")
    g.add_argument("--since", metavar="WHEN", help="files changed since 2026-01-31, or in the last 12h, 7d, 4w")
    add_output(p, _OUTPUT)
    add_machine(p)
    options.add_server(p)
    return p


def add_index(p: argparse.ArgumentParser) -> Any:
    """Add the option that chooses an index; the group in which it is."""
    g = p.add_argument_group("what is asked")
    g.add_argument("--index", metavar="NAME|FOLDER", help="default: the index of this folder, or the only one")
    return g


def add_output(p: argparse.ArgumentParser, formats: str) -> None:
    """Add the options of how passages are shown."""
    g = options.add_output(p, FORMATS, formats)
    g.add_argument(
        "--context", type=int, metavar="LINES", help="lines of the file around each match (table) or each passage"
    )
    g.add_argument("--max-tokens", type=int, metavar="N", help="of all passages together, as the model counts them")


def add_machine(p: argparse.ArgumentParser) -> None:
    """Add the options of how the index's model is run."""
    g = p.add_argument_group("the index's model")
    g.add_argument("--device", choices=("cpu", "metal"), help="default: the engine's best")
    g.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")


def run(args: argparse.Namespace) -> int:
    """Search; 1 if nothing was found."""
    question = " ".join(args.texts).strip()
    if not question:
        raise UsageError(f"no question was given.\n\n{EXAMPLES.rstrip()}")
    _check(args)
    server = options.server(args, ("device", "threads"))
    found = _found_here(args, question) if server is None else _found_there(server, args, question)
    return show(args, found, question)


def _found_here(args: argparse.Namespace, question: str) -> Found:
    from ..search import filters

    narrowed: dict[str, Any] = {
        "languages": filters.languages(args.lang or (), "--lang"),
        "paths": tuple(args.path or ()),
        "since_ns": None if args.since is None else filters.since(args.since, time.time(), "--since"),
        "min_score": args.min_score,
    }
    with ExitStack() as stack:
        index = stack.enter_context(opened(args))
        reranker, missing = _reranker(args, stack)
        answer = index.search(question, args.k, mode=args.mode, reranker=reranker, **narrowed)
        return found_in(args, index, answer, missing)


def _found_there(server: Server, args: argparse.Namespace, question: str) -> Found:
    return server.search(
        question,
        index=args.index,
        k=args.k,
        mode=args.mode,
        lang=args.lang,
        path=args.path,
        since=args.since,
        min_score=args.min_score,
        rerank=args.rerank,
        context=args.context,
        max_tokens=args.max_tokens,
    )


def found_in(args: argparse.Namespace, index: Index, answer: Answer, missing: Sequence[str] = ()) -> Found:
    """An answer as it is shown, with what was `missing` before the index was asked."""
    from ..search import passages

    _check(args)
    made = passages.found(index, answer, context=args.context, max_tokens=args.max_tokens)
    return replace(made, notes=[*missing, *made.notes])


def _check(args: argparse.Namespace) -> None:
    if args.context is not None and args.context < 0:
        raise UsageError(f"--context {args.context}: expected a whole number from 0.")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UsageError(f"--max-tokens {args.max_tokens}: expected a whole number from 1.")


def opened(args: argparse.Namespace) -> Index:
    """The index that is asked, open. Its model is never fetched: a question opens no socket."""
    from ..search import places
    from ..search.index import Index

    args.model = args.weights = args.backend = None
    args.offline = True
    settings = options.settings(args, "")
    loading = {name: settings[name] for name in ("device", "threads", "offline", "show_progress")}
    return Index.open(places.asked_for(args.index), **loading)


def _reranker(args: argparse.Namespace, stack: ExitStack) -> tuple[Reranker | None, list[str]]:
    """The reranker; or None, and why the answer goes without one."""
    if args.rerank is None:
        return None, []
    from ..loading import load
    from ..reranking.reranker import Reranker

    try:
        model = stack.enter_context(load(args.rerank, offline=True, device=args.device, threads=args.threads))
    except (ModelNotFound, EngineMissing) as error:
        return None, [f"{args.rerank} cannot be opened, so nothing was reranked: {error}"]
    if not isinstance(model, Reranker):
        raise UsageError(f"--rerank {args.rerank}: is no reranker; its vectors order nothing anew.")
    return model, []


# --- what is shown


def show(args: argparse.Namespace, found: Found, question: str) -> int:
    """Write an answer as `args` wants it; 1 if it is empty."""
    from ..records import output

    output.check_target(args.output)
    with console.quiet_stdout() as stdout:
        chosen = options.ranked_format(args, stdout)
        with output.destination(args.output, stdout) as file:
            for line in _lines(chosen, args, found, question, stdout):
                file.write(line)
    for note in found.notes:
        console.say(note)
    if found.mode != getattr(args, "mode", found.mode):
        console.say(f"{found.mode} search answered")
    if not found.passages:
        console.say("nothing was found")
    return console.OK if found.passages else NOTHING


def _lines(chosen: str, args: argparse.Namespace, found: Found, question: str, stdout: BinaryIO) -> Iterator[bytes]:
    from ..search.passages import record

    if chosen == "paths":
        for path in dict.fromkeys(one.path for one in found.passages):
            yield path + b"\n"
    elif chosen == "jsonl":
        for one in found.passages:
            yield json_text.dumps(record(one)).encode() + b"\n"
    elif chosen == "json":
        hits = [record(one) for one in found.passages]
        body = {"mode": found.mode, "missing": list(found.notes), "hits": hits}
        yield json_text.dumps(body).encode() + b"\n"
    else:
        on_terminal = options.on_terminal(args, stdout)
        styled = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        room = terminal.columns(stdout) if on_terminal else None
        for line in _table(found.passages, question, args.context, styled, room):
            yield line.encode("utf-8", "backslashreplace")


def _table(passages: Sequence[Shown], question: str, context: int, styled: bool, room: int | None) -> Iterator[str]:
    from ..search import highlight

    for n, one in enumerate(passages, 1):
        state = f"  ({one.state} since it was indexed)" if one.state else ""
        path = Path(os.fsdecode(one.path))
        name = terminal.one_line(_near(path), None)
        title = _link(name, path) if styled else name
        about = terminal.one_line(one.context, None if room is None else max(room // 2, 10))
        yield f"{n}. {title}{one.place}{state}  {one.score:.2f}{f'  {about}' if about else ''}\n"
        lines = one.text.split("\n")
        spans = highlight.spans(lines, question)
        best = max(range(len(lines)), key=lambda i: (_weight(spans[i]), bool(lines[i].strip()), -i))
        for i in _around(lines, best, context):
            number = "" if one.first is None else str(one.first + i)
            before = f"{number:>6}  "
            yield before + _marked(lines[i], spans[i], styled, None if room is None else room - len(before)) + "\n"
        yield "\n"


def _weight(spans: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


def _around(lines: Sequence[str], best: int, context: int | None) -> Sequence[int]:
    """The lines to show: so many on each side of the best; None takes one that is not empty."""
    if context is not None:
        return range(max(0, best - context), min(len(lines), best + context + 1))
    filled = [i for i, line in enumerate(lines) if line.strip() or i == best]
    at = filled.index(best)
    return filled[max(0, at - 1) : at + 2]


def _marked(line: str, spans: Sequence[tuple[int, int]], styled: bool, room: int | None) -> str:
    """A line for a terminal, the words of the question in bold."""
    if not styled:
        return terminal.one_line(line, room)
    out, used, last = [], 0, 0
    for start, end in [*spans, (len(line), len(line))]:
        for piece, bold in ((line[last:start], False), (line[start:end], True)):
            left = None if room is None else room - used
            text = terminal.one_line(piece, left)
            used += terminal.width_of(text)
            out.append(f"\x1b[1m{text}\x1b[0m" if bold and text else text)
        last = end
    return "".join(out)


def _near(path: Path) -> str:
    """The path below this folder, if it is there; else the whole of it."""
    here = os.getcwd()
    return os.path.relpath(path, here) if os.path.commonpath([here, path]) == here else str(path)


def _link(name: str, path: Path) -> str:
    """The name as a terminal's link to a file (OSC 8)."""
    return f"\x1b]8;;{path.as_uri()}\x1b\\{name}\x1b]8;;\x1b\\"
