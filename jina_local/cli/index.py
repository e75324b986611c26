"""`index`: folders into an index, and what there is to do with indexes: status, verify, rebuild, remove, list."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import console, registry
from ..errors import JinaError, SearchIndexError, UsageError
from . import options

if TYPE_CHECKING:
    from ..search.index import Index, Status
    from ..search.update import Progress, Updated

SUMMARY = "make folders searchable, and keep them so"

EXAMPLES = """examples:
  jina-local index ~/notes
  jina-local index ~/notes ~/mail --name all --exclude "*.log"
  jina-local index src --include "*.py" --model pico --watch
  jina-local index                      # the index of this folder, brought up to date
  jina-local index --status
  jina-local index --verify notes
  jina-local index --list --json
"""

_EPILOG = """files:
  Text, Markdown, source code, HTML, PDF, DOCX and notebooks.
  What .gitignore and .jinaignore name is left out. --status lists files that
  were skipped, and why.
stopping:
  Ctrl-C at any moment: all but the last seconds is kept, search works, and the
  same command goes on. After a run all is on disk, also if the power fails.
exit codes:
  0 done, 1 some passages have no vector, 2 bad options, 3 the index or the model,
  69 no engine, 70 the engine broke, 73 cannot write, 75 another process writes
  the index, 130 interrupted.
"""

_ACTIONS = {
    "status": "what it holds, and which files were skipped",
    "verify": "read all of it, and compare every checksum",
    "rebuild": "make it again; vectors of unchanged text are kept",
    "remove": "delete the index, not the folders",
    "list": "all indexes that have a name",
}


def parser(add: Any) -> options.Parser:
    """The options of `index`; `add` makes the parser."""
    p: options.Parser = add("index", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} [FOLDER ...] [options]"
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument(
        "folders", nargs="*", metavar="FOLDER",
        help="folders that join the index, or the name of an index; without any, the index of this folder",
    )  # fmt: skip
    p.add_argument(
        "--name", metavar="NAME", help="of the index, or the path of its file (default: the folder's name)"
    )
    actions = p.add_argument_group("actions, in place of an update").add_mutually_exclusive_group()
    for action, text in _ACTIONS.items():
        actions.add_argument(f"--{action}", dest="action", action="store_const", const=action, help=text)
    p.add_argument("--watch", action="store_true", help="go on: update the index whenever a file changes")
    p.add_argument("--json", action="store_true", help="status and list as JSON")
    g = p.add_argument_group("what goes in")
    for name in ("include", "exclude"):
        g.add_argument(
            f"--{name}", action="append", metavar="GLOB", help="of files; may be repeated; replaces earlier ones"
        )
    g = p.add_argument_group("vectors")
    g.add_argument("--task", metavar="TASK", help="default: retrieval")
    g.add_argument("--truncate-dim", type=int, metavar="N", help="a trained width (default: the model's)")
    options.add_model(p, f"the index's; of a new one {registry.DEFAULT_MODEL}")
    g = p.add_argument_group("running")
    g.add_argument(
        "--max-memory", metavar="SIZE", help="such as 1.5GB: the run ends, and keeps what it has, if it takes more"
    )
    g.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="for another writer (default: 0)")
    g.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="a bar on stderr (default: on a terminal)"
    )
    return p


def run(args: argparse.Namespace) -> int:
    """Update an index, or do one action; 1 if passages have no vector, 3 if verify found faults."""
    actions = {"status": _status, "verify": _verify, "remove": _remove, "list": _list}
    if args.json and args.action not in ("status", "list"):
        raise UsageError("--json goes with --status or --list.")
    if args.watch and args.action not in (None, "rebuild"):
        raise UsageError(f"--watch goes with an update, not with --{args.action}.")
    with console.quiet_stdout() as stdout:
        return actions[args.action](args, stdout) if args.action in actions else _update(args)


def _update(args: argparse.Namespace) -> int:
    from ..search import places

    path, folders = _target(args)
    if (why := places.unreliable(path)) is not None:
        console.say(f"warning: {path}: {why}")
    with _opened(args, path) as index, _telling_what_is_in(index):
        done = _updated(index, args, folders, args.wait, rebuild=args.action == "rebuild")
        if args.watch:
            _watch(index, args)
    return console.SOME_FAILED if done.failed else console.OK


def _updated(
    index: Index, args: argparse.Namespace, folders: Sequence[str], wait: float, *, rebuild: bool = False
) -> Updated:
    """One update, with bars and a summary."""
    most = None if args.max_memory is None else _bytes(args.max_memory)
    with _Bars(args.progress, most) as bars:
        done = index.update(
            *folders,
            include=args.include,
            exclude=args.exclude,
            rebuild=rebuild,
            wait=wait,
            command=" ".join(["index", *(args.folders or ["."])]),
            progress=bars,
        )
    console.say(_summary(done, index.status()))
    return done


def _watch(index: Index, args: argparse.Namespace) -> None:
    """Update the index whenever its folders change, until a signal comes."""
    from concurrent.futures import ThreadPoolExecutor

    from ..search.watch import watch

    folders = index.status().folders
    changed, stop = threading.Event(), threading.Event()
    changed.set()  # what changed during the first update

    def look() -> None:
        for paths in watch([os.fsencode(folder) for folder in folders], stop):
            if not all(index.wrote(path) for path in paths):
                changed.set()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        looking.add_done_callback(lambda _: changed.set())
        console.say(f"watching {', '.join(folders)}; Ctrl-C ends it")
        try:
            while not looking.done():
                changed.wait()
                changed.clear()
                missing = [folder for folder in folders if not os.path.isdir(folder)]
                if not missing and not looking.done():
                    _updated(index, args, (), math.inf)
        finally:
            stop.set()
        looking.result()


def _target(args: argparse.Namespace) -> tuple[Path, list[str]]:
    """The file of the index, and the folders that were given."""
    from ..search import places

    folders = [given for given in args.folders if os.path.isdir(os.path.expanduser(given))]
    others = [given for given in args.folders if given not in folders]
    if others:
        if len(args.folders) > 1 or args.name is not None:
            raise UsageError(f"{others[0]}: is no folder.")
        return places.known(others[0]), []
    if args.name is not None:
        return places.named(args.name), folders
    if folders:
        return places.for_folders([places.absolute(folder) for folder in folders]), folders
    return _one_index(args), []


def _one_index(args: argparse.Namespace) -> Path:
    """The index that an action is about: by name, by folder, that of this folder, or the only one."""
    from ..search import places

    given = [*args.folders, *([args.name] if args.name is not None else [])]
    if len(given) > 1:
        raise UsageError(f"--{args.action} is about one index, and several were given: {', '.join(given)}.")
    return places.asked_for(given[0] if given else None)


def _opened(args: argparse.Namespace, path: Path) -> Index:
    from ..search.index import Index
    from ..search.model import Loading

    settings = options.settings(args, "")
    named = settings.pop("name_or_path")
    if path.exists():  # the environment chooses the model of a new index; one that is there has its own
        named = args.model
        settings |= {"backend": args.backend or "auto", "weights": args.weights}
    return Index(
        path, model=named or None, task=args.task, truncate_dim=args.truncate_dim, loading=cast(Loading, settings)
    )


@contextmanager
def _telling_what_is_in(index: Index) -> Iterator[None]:
    """If the block is stopped by a signal, say how far the index is, and how to go on."""
    try:
        yield
    except BaseException as error:
        if console.is_stop(error) and index.path.exists():
            try:
                status = index.status()
            except SearchIndexError:
                raise error from None
            console.say(
                f"{status.name} has {status.counts.documents:,} files; {status.counts.vectors:,} of their "
                f"{status.counts.chunks:,} passages have vectors, the others are found by their words. "
                f"`index {status.name}` goes on."
            )
        raise


class _Bars:
    """A bar for each phase of an update, which ends if the process takes more than `most` bytes of memory."""

    def __init__(self, wanted: bool | None, most: int | None) -> None:
        self._wanted, self._most, self._phase, self._done = wanted, most, "", 0
        self._bar: console.Progress | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self._close()
            self._phase, self._done = progress.phase, 0
            unit = {"words": "files", "vectors": "passages"}[progress.phase]
            self._bar = console.progress(progress.total, unit, self._wanted, progress.phase)
        assert self._bar is not None
        if progress.tokens_per_second:
            self._bar.set_postfix_str(f"{progress.tokens_per_second:,.0f} tokens/s", refresh=False)
        self._bar.update(progress.done - self._done)
        self._done = progress.done
        if self._most is not None and (taken := _peak_memory()) > self._most:
            raise UsageError(
                f"the run takes {taken / 1e9:.2f} GB, and --max-memory allows {self._most / 1e9:.2f}: it ends here. "
                "All that is done is kept. Allow more, or take a smaller model or --weights of fewer bits."
            )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])B?", re.IGNORECASE)


def _bytes(given: str) -> int:
    """A size such as 1.5GB or 800M in bytes."""
    match = _SIZE.fullmatch(given)
    if match is None:
        raise UsageError(f"--max-memory {given}: expected a size such as 1.5GB or 800M.")
    return int(float(match[1]) * 1000 ** ("KMGT".index(match[2].upper()) + 1))


def _peak_memory() -> int:
    """The most bytes that this process has held in memory so far."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _summary(done: Updated, status: Status) -> str:
    kinds = ("added", "changed", "moved", "removed", "unchanged", "skipped")
    files = ", ".join(f"{getattr(done, kind):,} {kind}" for kind in kinds if getattr(done, kind)) or "none"
    text = f"{status.name}: files: {files}; {status.counts.chunks:,} passages"
    if done.vectors:
        text += f", {done.vectors:,} new vectors"
    if done.cached:
        text += f" ({done.cached:,} from the cache)"
    if done.tokens:
        text += f", {done.tokens:,} tokens at {done.tokens / done.seconds:,.0f} a second"
    if done.cut:
        text += f"; {done.cut:,} passages were cut"
    if done.failed:
        text += f"; {len(done.failed):,} have no vector, because the model gave none that can be used"
    return text + (" (`index --status` lists what was skipped)" if done.skipped else "")


def _status(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..search.index import Index

    with Index(_one_index(args)) as index:
        status = index.status()
    if args.json:
        return _write(stdout, json.dumps(_record(status), indent=1) + "\n")
    lines = [_line(status), f"  file      {status.path}"]
    lines += [f"  folder    {folder}" for folder in status.folders]
    lines += [f"  {kind:<8}  {glob}" for kind in ("include", "exclude") for glob in getattr(status, kind)]
    lines.append(f"  model     {status.model}, {status.dim} dimensions" if status.model else "  model     none yet")
    lines += [f"  skipped   {_shown(row.path)}: {row.reason}" for row in status.skipped]
    return _write(stdout, "\n".join(lines) + "\n")


def _list(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..search import places
    from ..search.index import Index

    if args.folders or args.name:
        raise UsageError("--list takes no name; `index --status NAME` is about one index.")
    records, lines = [], []
    for path in places.every():
        try:
            with Index(path) as index:
                status = index.status()
            records.append(_record(status))
            lines += [_line(status), *(f"  {folder}" for folder in status.folders)]
        except JinaError as error:
            records.append({"name": places.name_of(path), "path": str(path), "fault": str(error)})
            lines.append(f"{places.name_of(path)}: {error}")
    if args.json:
        return _write(stdout, json.dumps(records, indent=1) + "\n")
    return _write(stdout, "".join(f"{line}\n" for line in lines) or "no index yet: jina-local index FOLDER\n")


def _verify(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..search.index import Index

    with Index(_one_index(args)) as index:
        found = index.verify(wait=args.wait)
    _write(stdout, f"{'NOT OK' if found else 'ok'}  {index.path}\n" + "".join(f"        {one}\n" for one in found))
    if found:
        console.say("`index --rebuild` makes it again; vectors of unchanged text come from the cache")
    return console.DAMAGED if found else console.OK


def _remove(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..search.index import Index

    if not args.folders and args.name is None:
        raise UsageError("--remove needs the name or the folder of an index.")
    with Index(_one_index(args)) as index:
        index.remove(wait=args.wait)
    console.say(f"removed: {index.path}")
    return console.OK


def _record(status: Status) -> dict[str, Any]:
    counts = status.counts
    return {
        "name": status.name, "path": str(status.path), "folders": status.folders, "include": status.include,
        "exclude": status.exclude, "model": status.model, "dim": status.dim, "files": counts.documents,
        "passages": counts.chunks, "vectors": counts.vectors, "bytes": status.bytes,
        "skipped": [{"path": _shown(row.path), "reason": row.reason} for row in status.skipped],
    }  # fmt: skip


def _line(status: Status) -> str:
    from ..store.places import size_text

    counts = status.counts
    lacking = f", {status.without_vector:,} without a vector" if status.without_vector else ""
    skipped = f"; {counts.skipped:,} skipped" if counts.skipped else ""
    return (
        f"{status.name}: {counts.documents:,} files, {counts.chunks:,} passages{lacking}{skipped}; "
        f"{size_text(status.bytes)}"
    )


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _write(stdout: BinaryIO, text: str) -> int:
    stdout.write(text.encode(sys.getfilesystemencoding(), "surrogateescape"))
    return console.OK
