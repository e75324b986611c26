"""`models`: what is on this machine, fetched, found, checked and removed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from .. import backends, console, registry
from ..errors import UsageError

if TYPE_CHECKING:
    from ..store.inventory import Listed

SUMMARY = "list, pull, path, rm, verify: the models on this machine"

_EXAMPLES = """
  jina-local models list
  jina-local models pull v5-nano --task retrieval --weights Q4_K_M
  jina-local models verify"""
_EXIT = "exit codes: 0 done, 2 misused, 3 not here or damaged, 69 no engine, 73 cannot write."


@dataclass(frozen=True)
class _Action:
    """One action: what its help says, its options, what it does."""

    summary: str
    name: str  # how its help describes NAME; "": it takes none
    options: tuple[str, ...]
    examples: str
    run: Callable[[argparse.Namespace, BinaryIO], int]


class _Parser:
    """Reads the action, then leaves the rest to a parser of that action's own options."""

    def __init__(self, add: Any) -> None:
        self._add = add

    def parse_intermixed_args(self, args: Sequence[str]) -> argparse.Namespace:
        """The arguments of the action among them."""
        action = next((arg for arg in args if arg in ACTIONS), None)
        if action is None:
            return self._without_action(args)
        parser = self._of(action)
        rest = list(args)
        rest.remove(action)
        known = [*ACTIONS[action].options, "--offline", "--no-progress", "--help"]
        for option in (arg.partition("=")[0] for arg in rest if arg.startswith("--")):
            owners = [name for name, other in ACTIONS.items() if option in other.options]
            if owners and action not in owners:
                raise UsageError(f"{option} belongs to `models {owners[0]}`, not to `models {action}`.")
            if option not in known:
                parser.error(f"unknown option {option}{registry.near_match(option, known)}")
        parsed: argparse.Namespace = parser.parse_intermixed_args(rest)
        parsed.action = action
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}. See `jina-local models --help`.")

    def _without_action(self, args: Sequence[str]) -> argparse.Namespace:
        """Help, or an error that names the actions."""
        about = "".join(f"  {name:<8} {action.summary}\n" for name, action in ACTIONS.items())
        more = "`jina-local models ACTION --help` is about one action.\n"
        top = self._add("models", SUMMARY, f"actions:\n{about}\nexamples:{_EXAMPLES}\n\n{more}{_EXIT}\n")
        top.usage = f"{top.prog} ACTION [NAME] [options]"
        words = [arg for arg in args if not arg.startswith("-")]
        if words:
            near = registry.near_match(words[0], ACTIONS)
            raise UsageError(f"unknown action {words[0]!r}{near}. Actions: {', '.join(ACTIONS)}.")
        top.parse_args(args)
        raise UsageError(f"no action was given.\n\n{top.format_help().rstrip()}")

    def _of(self, name: str) -> Any:
        action = ACTIONS[name]
        p = self._add(f"models {name}", action.summary, f"examples:{action.examples}\n\n{_EXIT}\n")
        p.add_argument("name", nargs="?", metavar="NAME", help=action.name or argparse.SUPPRESS)
        for option in action.options:
            p.add_argument(option, **_OPTIONS[option])
        p.add_argument("--offline", action="store_true", help="open no socket; only pull ever does")
        return p


def parser(add: Any) -> _Parser:
    """The parsers of the actions; `add` makes each."""
    return _Parser(add)


def run(args: argparse.Namespace) -> int:
    """Do one action; 3 if verify found faults."""
    with console.quiet_stdout() as stdout:
        return ACTIONS[args.action].run(args, stdout)


def _list(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import inventory

    if args.name is not None:
        raise UsageError(f"list takes no name; `models path {args.name}` says where one model is.")
    models = inventory.listing()
    text = json.dumps([*map(_record, models)], indent=1) + "\n" if args.json else "".join(map(_described, models))
    stdout.write(_bytes(text))
    return console.OK


def _record(model: Listed) -> dict[str, Any]:
    spec = model.row.spec
    facts = {
        name: getattr(spec, name) for name in ("license", "tasks", "dims", "max_tokens", "scoring", "late_chunking")
    }
    places = [
        {"where": place.where, "path": str(place.path), "holds": place.holds, "size": place.size}
        for place in model.places
    ]
    return {"name": spec.name, "aliases": model.row.aliases, **facts, "places": places}


def _described(model: Listed) -> str:
    from ..store.places import size_text

    spec, aliases = model.row.spec, model.row.aliases
    head = f"{spec.name}  ({', '.join(aliases)})\n" if aliases else f"{spec.name}\n"
    if spec.scoring:
        vectors = f", {spec.dims[-1]}-d embeddings" if spec.dims else ""
        does, what = f"ranks documents ({spec.scoring}{vectors})", ""
    else:
        does, what = f"{spec.dims[-1]} dimensions", f"; {', '.join(spec.tasks)}"
        what += "; late chunking" if spec.late_chunking else ""
    facts = f"  {does}, {spec.max_tokens} tokens, {spec.license}{what}\n"
    places = [f"  {p.where:<12} {size_text(p.size):>9}  {', '.join(p.holds)}\n    {p.path}\n" for p in model.places]
    return head + facts + ("".join(places) or f"  not here: jina-local models pull {spec.name}\n")


def _pull(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import find, hub, local_store

    row = find.row_of(_wanted(args))
    if hub.offline(True if args.offline else None):
        raise UsageError("pull needs the network, and --offline, JINA_LOCAL_OFFLINE or HF_HUB_OFFLINE forbids it.")
    asked = _backend(args)
    engine = backends.preferred() if asked == "auto" else asked
    to_convert = (engine, asked) == ("llama", "auto") and not (args.weights or row.gguf_repo or row.bundled)
    if to_convert:
        engine = "mlx"  # the checkpoint is all there is
    if engine == "mlx" and args.weights is not None:
        raise UsageError("--weights is for llama; MLX takes the published checkpoint (smaller: `convert mlx`).")
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
    from ..store import inventory

    names = [args.name] if args.name is not None else [one.row.spec.name for one in inventory.listing() if one.places]
    verified = [one for name in names for one in inventory.verify(name)]
    for one in verified:
        unknown = f", {one.unknown} without a known digest" if one.unknown else ""
        stdout.write(_bytes(f"{'NOT OK' if one.faults else 'ok'}  {one.path}  ({one.checked} files{unknown})\n"))
        stdout.write(_bytes("".join(f"        {fault}\n" for fault in one.faults)))
    return console.DAMAGED if any(one.faults for one in verified) else console.OK


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
}
ACTIONS = {
    "list": _Action(
        "every model, and what of it is in the package, the local store and the hub cache",
        "", ("--json",), "\n  jina-local models list --json | jq '.[].places'", _list,
    ),
    "pull": _Action(
        "fetch a model and compare every file with the hub's size and digest",
        f"a model, as `models list` prints it (default: {registry.DEFAULT_MODEL})",
        ("--backend", "--task", "--weights", "--revision", "--progress"),
        "\n  jina-local models pull v5-nano --task retrieval --weights Q4_K_M\n  jina-local models pull v5-nano "
        "--backend mlx", _pull,
    ),
    "path": _Action(
        "where the files are that would be opened, if the network may not be used",
        f"a model, as `models list` prints it (default: {registry.DEFAULT_MODEL})",
        ("--backend", "--task", "--weights"),
        '\n  jina-local models path pico --backend mlx\n  du -shL "$(jina-local models path v5-nano)"', _path,
    ),
    "rm": _Action(
        "delete a model from the hub cache and the local store", "a model, as `models list` prints it", (),
        "\n  jina-local models rm v5-nano", _rm,
    ),
    "verify": _Action(
        "compare files with their digests", "a model or a converted folder (default: all that is here)", (),
        "\n  jina-local models verify\n  jina-local models verify ~/converted/v5-nano", _verify,
    ),
}  # fmt: skip


def _wanted(args: argparse.Namespace) -> str:
    return str(args.name or os.environ.get("JINA_LOCAL_MODEL") or registry.DEFAULT_MODEL)


def _backend(args: argparse.Namespace) -> str:
    return str(args.backend or os.environ.get("JINA_LOCAL_BACKEND") or "auto")


def _bytes(text: str) -> bytes:
    return os.fsencode(text)  # paths are bytes, and go out as they are
