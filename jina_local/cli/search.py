"""`search`: a question in, the passages of an index that answer it out, with their files and lines."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import console
from ..errors import EngineMissing, ModelNotFound, UsageError
from ..records import json_text
from . import options, terminal

if TYPE_CHECKING:
    from ..reranking.reranker import Reranker
    from ..search.index import Index
    from ..search.query import Answer, Hit

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
exit codes:
  0 something was found, 1 nothing was, 2 bad options, 3 the index or the model,
  69 no engine, 70 the engine broke, 73 cannot write, 130 interrupted.
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
    filters: dict[str, Any] = {
        "languages": _languages(args.lang or ()),
        "paths": tuple(args.path or ()),
        "since_ns": None if args.since is None else _since(args.since, time.time()),
        "min_score": args.min_score,
    }
    with ExitStack() as stack:
        index = stack.enter_context(opened(args))
        reranker, missing = _reranker(args, stack)
        answer = index.search(question, args.k, mode=args.mode, reranker=reranker, **filters)
        return show(args, index, answer, question, missing)


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


def _languages(wanted: Sequence[str]) -> tuple[str, ...]:
    """Languages as the index names them, from their names or suffixes."""
    from ..registry import near_match
    from ..search.extract import LANGUAGES, language_named

    out = []
    for name in wanted:
        found = language_named(name)
        if found is None:
            near = near_match(name, LANGUAGES)
            raise UsageError(f"--lang {name}: unknown{near}. Known: {', '.join(sorted(LANGUAGES))}, and suffixes.")
        out.append(found)
    return tuple(out)


_LATEST = 2**63 - 1  # what a file's time can be, in nanoseconds
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _since(given: str, now: float) -> int:
    """A moment in nanoseconds: a date with or without a time, local, or how long ago."""
    from datetime import datetime

    if ago := re.fullmatch(r"(\d+)([mhdw])", given):
        return max(int(now - int(ago[1]) * _UNITS[ago[2]]), 0) * 10**9
    try:
        return min(int(datetime.fromisoformat(given).timestamp()) * 10**9, _LATEST)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--since {given}: expected a date such as 2026-01-31, or 90m, 12h, 7d, 4w.") from None


# --- what is shown


@dataclass(frozen=True)
class Shown:
    """A passage as it is shown: the lines of `text` have the numbers `first` and up, unless `first` is None."""

    hit: Hit
    path: Path
    text: str
    first: int | None  # None: the document's unit is no line, and one number stands for the whole passage
    last: int

    @property
    def place(self) -> str:
        """What follows the path: `:12-18`, or ` page 3`."""
        start, end = self.hit.chunk.start_line, self.hit.chunk.end_line
        before = ":" if self.first is not None else f" {self.hit.document.unit} "
        return f"{before}{start}" + (f"-{end}" if end > start else "")


def show(args: argparse.Namespace, index: Index, answer: Answer, question: str, missing: Sequence[str]) -> int:
    """Write an answer as `args` wants it; 1 if it is empty."""
    from ..records import output

    if args.context is not None and args.context < 0:
        raise UsageError(f"--context {args.context}: expected a whole number from 0.")
    output.check_target(args.output)
    notes = [*missing, *answer.missing]
    with console.quiet_stdout() as stdout:
        chosen = options.ranked_format(args, stdout)
        passages = [_shown(index, hit, args.context) for hit in answer.hits]
        if args.max_tokens is not None:
            passages = _within(index, passages, args.max_tokens, notes)
        with output.destination(args.output, stdout) as file:
            for line in _lines(chosen, args, passages, question, answer.mode, notes, stdout):
                file.write(line)
    for note in notes:
        console.say(note)
    if answer.mode != getattr(args, "mode", answer.mode):
        console.say(f"{answer.mode} search answered")
    if not passages:
        console.say("nothing was found")
    return console.OK if passages else NOTHING


def _shown(index: Index, hit: Hit, context: int | None) -> Shown:
    """The passage as it was indexed, or as many more lines around it as the file has now."""
    path, chunk = Path(os.fsdecode(hit.document.path)), hit.chunk
    if hit.document.unit != "line":
        return Shown(hit, path, chunk.text, None, chunk.end_line)
    if context and not hit.state:
        start = max(1, chunk.start_line - context)
        found = index.get(path, start, chunk.end_line + context - start + 1)
        return Shown(hit, path, found.text, found.start_line, found.end_line)
    return Shown(hit, path, chunk.text, chunk.start_line, chunk.end_line)


def _within(index: Index, passages: list[Shown], most: int, notes: list[str]) -> list[Shown]:
    """The first passages that have at most so many tokens together; the last may have lost lines at its end."""
    if most < 1:
        raise UsageError(f"--max-tokens {most}: expected a whole number from 1.")
    kept: list[Shown] = []
    for one in passages:
        lines = one.text.split("\n")
        # A passage is cut once at most, so counting line by line costs little.
        while lines and (tokens := index.count_tokens(["\n".join(lines)])[0]) > most:
            lines.pop()
        if not lines:
            break
        text = "\n".join(lines)
        most -= tokens
        cut = len(text) < len(one.text)
        kept.append(replace(one, text=text, last=one.last if one.first is None else one.first + len(lines) - 1))
        if cut:
            notes.append(f"passage {len(kept)} was cut")
            break
    if left := len(passages) - len(kept):
        notes.append(f"{left} of {len(passages)} passages did not fit into --max-tokens")
    return kept


def _lines(
    chosen: str,
    args: argparse.Namespace,
    passages: Sequence[Shown],
    question: str,
    mode: str,
    notes: Sequence[str],
    stdout: BinaryIO,
) -> Iterator[bytes]:
    if chosen == "paths":
        for path in dict.fromkeys(one.hit.document.path for one in passages):
            yield path + b"\n"
    elif chosen == "jsonl":
        for one in passages:
            yield json_text.dumps(record(one)).encode() + b"\n"
    elif chosen == "json":
        body = {"mode": mode, "missing": list(notes), "hits": [record(one) for one in passages]}
        yield json_text.dumps(body).encode() + b"\n"
    else:
        on_terminal = options.on_terminal(args, stdout)
        styled = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        room = terminal.columns(stdout) if on_terminal else None
        for line in _table(passages, question, args.context, styled, room):
            yield line.encode("utf-8", "backslashreplace")


def record(one: Shown) -> dict[str, Any]:
    """A passage as JSON has it."""
    hit = one.hit
    out: dict[str, Any] = {
        "path": hit.document.path.decode("utf-8", "backslashreplace"),
        "start_line": one.first or hit.chunk.start_line,
        "end_line": one.last,
        "unit": hit.document.unit,
        "context": hit.chunk.context,
        "language": hit.document.language,
        "score": hit.score,
        "bm25": hit.bm25,
        "cosine": hit.cosine,
        "text": one.text,
    }
    if hit.state:
        out["state"] = hit.state
    return out


def _table(passages: Sequence[Shown], question: str, context: int, styled: bool, room: int | None) -> Iterator[str]:
    from ..search import highlight

    for n, one in enumerate(passages, 1):
        state = f"  ({one.hit.state} since it was indexed)" if one.hit.state else ""
        name = terminal.one_line(_near(one.path), None)
        title = _link(name, one.path) if styled else name
        about = terminal.one_line(one.hit.chunk.context, None if room is None else max(room // 2, 10))
        yield f"{n}. {title}{one.place}{state}  {one.hit.score:.2f}{f'  {about}' if about else ''}\n"
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
