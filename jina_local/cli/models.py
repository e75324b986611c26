"""`models`: what is on this machine, fetched, found, checked and removed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from .. import backends, console, registry
from ..errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from ..registry import Published
    from ..store.places import Place

SUMMARY = "list, pull, path, rm, verify: the models on this machine"

_EXIT = "exit codes: 0 done, 2 misused, 3 not here or damaged, 69 no engine, 73 cannot write."
_NAME = "a model, as `models list` prints it"
_FACTS = ("license", "tasks", "dims", "max_tokens", "scoring", "late_chunking")
_OPTIONS: dict[str, dict[str, Any]] = {
    "--json": {"action": "store_true", "help": "as JSON"},
    "--backend": {
        "choices": ("auto", *backends.BACKENDS),
        "help": "the engine whose files are meant (default: auto)",
    },
    "--task": {"action": "append", "metavar": "TASK", "help": "may be given more than once"},
    "--weights": {"metavar": "LABEL", "help": "type of the weights, for example Q4_K_M"},
    "--revision": {"metavar": "COMMIT", "help": "instead of the pinned one"},
    "--progress": {"action": argparse.BooleanOptionalAction, "help": "default: on a terminal"},
    "--offline": {"action": "store_true", "help": "open no socket; only pull ever does"},
}


@dataclass(frozen=True)
class _Action:
    """One action: what it does, and what its help says."""

    run: Callable[[argparse.Namespace, BinaryIO], int]
    summary: str
    name: str  # the help of NAME
    options: tuple[str, ...]  # beside --offline
    examples: tuple[str, ...]


class _Parser:
    """Reads the action, and leaves the rest to a parser that has the options of this action alone."""

    def __init__(self, add: Any) -> None:
        self._add = add

    def parse_intermixed_args(self, args: Sequence[str]) -> argparse.Namespace:
        """The action and its arguments."""
        name = next((arg for arg in args if arg in ACTIONS), None)
        if name is None:
            self._without_action(args)
        action, rest = ACTIONS[name], list(args)
        rest.remove(name)
        p = self._add(f"models {name}", action.summary, _epilog("examples", action.examples))
        p.add_argument("name", nargs="?", metavar="NAME", help=action.name)
        known = (*action.options, "--offline")
        for option in known:
            p.add_argument(option, **_OPTIONS[option])
        for option in (arg.partition("=")[0] for arg in rest if arg.startswith("--")):
            owner = next((other for other in ACTIONS if option in ACTIONS[other].options), name)
            if option in _OPTIONS and option not in known:
                raise UsageError(f"{option} belongs to `models {owner}`, not to `models {name}`.")
            if option not in (*known, "--no-progress", "--help"):
                p.error(f"unknown option {option}{registry.near_match(option, known)}")
        parsed: argparse.Namespace = p.parse_intermixed_args(rest)
        parsed.action = action
        return parsed

    def _without_action(self, args: Sequence[str]) -> NoReturn:
        """Show the help, or raise an error that names the actions."""
        if words := [arg for arg in args if not arg.startswith("-")]:
            near = registry.near_match(words[0], ACTIONS)
            raise UsageError(f"unknown action {words[0]!r}{near}. Actions: {', '.join(ACTIONS)}.")
        about = [f"{name:<8} {action.summary}" for name, action in ACTIONS.items()]
        examples = [example for action in ACTIONS.values() for example in action.examples[:1]]
        top = self._add("models", SUMMARY, _epilog("actions", about) + "\n" + _epilog("examples", examples))
        top.usage = f"{top.prog} ACTION [NAME] [options]; {top.prog} ACTION --help is about one action"
        top.parse_args(args)
        raise UsageError(f"no action was given.\n\n{top.format_help().rstrip()}")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}. See `jina-local models --help`.")


def _epilog(title: str, lines: Sequence[str]) -> str:
    return "\n  ".join([f"{title}:", *lines]) + f"\n{_EXIT if title == 'examples' else ''}\n"


def parser(add: Any) -> _Parser:
    """The parsers of the actions; `add` makes each."""
    return _Parser(add)


def run(args: argparse.Namespace) -> int:
    """Do one action; 3 if verify found faults."""
    with console.quiet_stdout() as stdout:
        return args.action.run(args, stdout)  # type: ignore[no-any-return]


def _list(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import places

    if args.name is not None:
        raise UsageError(f"list takes no name; `models path {args.name}` says where one model is.")
    there = [(row, places.of(row)) for row in registry.PUBLISHED]
    text = json.dumps([_record(*one) for one in there], indent=1) + "\n" if args.json else ""
    stdout.write(_bytes(text or "".join(_described(*one) for one in there)))
    return console.OK


def _record(row: Published, there: Sequence[Place]) -> dict[str, Any]:
    facts = {name: getattr(row.spec, name) for name in _FACTS}
    places = [{"where": p.where, "path": str(p.path), "holds": p.holds, "size": p.size} for p in there]
    return {"name": row.spec.name, "aliases": row.aliases, **facts, "places": places}


def _described(row: Published, there: Sequence[Place]) -> str:
    from ..store.places import size_text

    spec, aliases = row.spec, f"  ({', '.join(row.aliases)})" if row.aliases else ""
    if spec.scoring:
        vectors = f", {spec.dims[-1]}-d embeddings" if spec.dims else ""
        does, what = f"ranks documents ({spec.scoring}{vectors})", ""
    else:
        does, what = f"{spec.dims[-1]} dimensions", f"; {', '.join(spec.tasks)}"
        what += "; late chunking" if spec.late_chunking else ""
    facts = f"  {does}, {spec.max_tokens} tokens, {spec.license}{what}\n"
    lines = [f"  {p.where:<12} {size_text(p.size):>9}  {', '.join(p.holds)}\n    {p.path}\n" for p in there]
    return f"{spec.name}{aliases}\n{facts}" + ("".join(lines) or f"  not here: jina-local models pull {spec.name}\n")


def _pull(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import find, hub, local_store

    row = find.row_of(_wanted(args))
    if args.offline:
        raise UsageError("pull needs the network, and --offline forbids it.")
    if hub.offline(None):
        raise ModelNotFound(f"{row.spec.name}: JINA_LOCAL_OFFLINE or HF_HUB_OFFLINE is set. Unset it to fetch.")
    asked = _backend(args)
    backends.preferred()  # says how to install an engine if there is none
    installed = [one for one in find.engines_for(asked, None) if backends.installed(one) or one == asked]
    to_convert = (installed[0], asked) == ("llama", "auto") and not (args.weights or row.gguf_repo or row.bundled)
    # For llama.cpp alone the checkpoint may be all there is.
    engine = "mlx" if to_convert else next(iter(find.to_fetch(row, installed)), installed[0])
    if engine != "llama" and args.weights is not None:
        raise UsageError(
            f"--weights is for llama; {engine} takes the published checkpoint (smaller: `convert {engine}`)."
        )
    files = hub.pull(
        row,
        engine,
        tasks=args.task,
        weights=args.weights,
        revision=args.revision,
        show_progress=console.wants_progress(args.progress),
    )
    if to_convert:
        console.say(f"for llama.cpp: {local_store.how_to_make(row)}")
    stdout.write(_bytes("".join(f"{path}\n" for path in dict.fromkeys(files.values()))))
    return console.OK


def _path(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import find

    path = find.path(_wanted(args), backend=_backend(args), weights=args.weights, tasks=args.task or ())
    stdout.write(_bytes(f"{path}\n"))
    return console.OK


def _rm(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import inventory, places

    if args.name is None:
        raise UsageError(f"rm needs a name: {', '.join(registry.names())}.")
    for place in inventory.remove(args.name):
        console.say(f"removed from the {place.where}: {place.path} ({places.size_text(place.size)})")
    return console.OK


def _verify(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from .. import self_check
    from ..store import inventory

    all_here = (row.spec.name for row in registry.PUBLISHED if inventory.whole(row))
    names = all_here if args.name is None else [args.name]
    damaged = False
    for one in (one for name in names for one in inventory.verify(name)):
        # Files that have changed are not opened.
        computed = [] if one.faults else list(self_check.of_folder(one.path))
        wrong = bool(one.faults) or any(told.ok is False for told in computed)
        damaged |= wrong
        unknown = f", {one.unknown} without a known digest" if one.unknown else ""
        stdout.write(_bytes(f"{'NOT OK' if wrong else 'ok'}  {one.path}  ({one.checked} files{unknown})\n"))
        stdout.write(_bytes("".join(f"        {line}\n" for line in (*one.faults, *map(str, computed)))))
        stdout.flush()
    return console.DAMAGED if damaged else console.OK


ACTIONS = {
    "list": _Action(
        _list, "every model, and what of it is in the package, the local store and the hub cache", argparse.SUPPRESS,
        ("--json",), ("jina-local models list", "jina-local models list --json | jq '.[].places'"),
    ),
    "pull": _Action(
        _pull, "fetch a model and compare every file with the hub's size and digest",
        f"{_NAME} (default: {registry.DEFAULT_MODEL})",
        ("--backend", "--task", "--weights", "--revision", "--progress"),
        ("jina-local models pull v5-nano --task retrieval --weights Q4_K_M",
         "jina-local models pull v5-nano --backend mlx"),
    ),
    "path": _Action(
        _path, "where the files are that would be opened, if the network may not be used",
        f"{_NAME} (default: {registry.DEFAULT_MODEL})", ("--backend", "--task", "--weights"),
        ('du -shL "$(jina-local models path v5-nano)"', "jina-local models path pico --backend mlx"),
    ),
    "rm": _Action(
        _rm, "delete a model from the hub cache and the local store", _NAME, (), ("jina-local models rm v5-nano",)
    ),
    "verify": _Action(
        _verify, "compare files with their digests, and vectors with those that the converter wrote down",
        "a model or a converted folder (default: all that is here)", (),
        ("jina-local models verify", "jina-local models verify ~/converted/v5-nano"),
    ),
}  # fmt: skip


def _wanted(args: argparse.Namespace) -> str:
    return str(args.name or os.environ.get("JINA_LOCAL_MODEL") or registry.DEFAULT_MODEL)


def _backend(args: argparse.Namespace) -> str:
    return str(args.backend or os.environ.get("JINA_LOCAL_BACKEND") or "auto")


def _bytes(text: str) -> bytes:
    return os.fsencode(text)  # paths are bytes, and go out as they are
