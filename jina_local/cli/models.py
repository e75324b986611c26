"""`models`: what is on this machine, fetched, found, checked and removed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import backends, console, registry
from ..errors import UsageError

if TYPE_CHECKING:
    from ..store.hub_cache import Verified
    from ..store.inventory import Listed, Place

SUMMARY = "list, pull, path, rm, verify: the models on this machine"

_EPILOG = f"""actions:
  list     every model, and what of it is in the hub cache and in the store of local conversions
  pull     fetch a model and compare every file with the hub's size and digest (default: {registry.DEFAULT_MODEL})
  path     where the files are that would be opened
  rm       delete a model from the hub cache and the local store
  verify   compare files with their digests: of a model, of a converted folder, or of all that is here

examples:
  jina-local models list
  jina-local models pull v5-nano --task retrieval --weights Q4_K_M
  jina-local models pull v5-nano --backend mlx
  jina-local models path pico --backend mlx
  du -sh "$(jina-local models path v5-nano)"

exit codes: 0 done, 2 misused, 3 not here or damaged, 73 cannot write.
"""
# Options, and the actions that they belong to; given with another action they are refused, not ignored.
_ONLY = (
    (("json",), ("list",)),
    (("task", "weights", "revision", "progress"), ("pull",)),
    (("backend",), ("pull", "path")),
)


def parser(add: Any) -> argparse.ArgumentParser:
    """The options of `models`."""
    p: argparse.ArgumentParser = add("models", SUMMARY, _EPILOG)
    p.add_argument("action", choices=tuple(_ACTIONS), metavar="ACTION", help=", ".join(_ACTIONS))
    p.add_argument("name", nargs="?", metavar="NAME", help="a model, as `list` prints it; for verify also a folder")
    p.add_argument("--offline", action="store_true", help="open no socket; only pull ever does")
    p.add_argument("--json", action="store_true", default=None, help="list: as JSON")
    g = p.add_argument_group("pull")
    g.add_argument(
        "--backend", choices=("auto", *backends.BACKENDS), help="whose files, also for path (default: auto)"
    )
    g.add_argument("--task", action="append", metavar="TASK", help="may be given more than once")
    g.add_argument("--weights", metavar="LABEL", help="type of the GGUF file (llama only), for example Q4_K_M")
    g.add_argument("--revision", metavar="COMMIT", help="instead of the pinned one")
    g.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
    return p


def run(args: argparse.Namespace) -> int:
    """Do one action; 3 where verify found faults."""
    for options, actions in _ONLY:
        given = [option for option in options if getattr(args, option) is not None]
        if given and args.action not in actions:
            raise UsageError(f"--{given[0]} belongs to `models {actions[0]}`, not to `models {args.action}`.")
    with console.quiet_stdout() as stdout:
        return _ACTIONS[args.action](args, stdout)


def _list(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import inventory

    if args.name is not None:
        raise UsageError(f"list takes no name; `models path {args.name}` says where one model is.")
    models = inventory.listing()
    if args.json:
        text = json.dumps([asdict(model) for model in models], indent=1, default=str) + "\n"
    else:
        text = "".join(map(_described, models))
    stdout.write(_bytes(text))
    return console.OK


def _described(model: Listed) -> str:
    head = f"{model.name}  ({', '.join(model.aliases)})\n" if model.aliases else f"{model.name}\n"
    if model.scoring:
        vectors = f", {model.dims[-1]}-d embeddings" if model.dims else ""
        does, what = f"ranks documents ({model.scoring}{vectors})", ""
    else:
        does, what = f"{model.dims[-1]} dimensions", f"; {', '.join(model.tasks)}"
        what += "; late chunking" if model.late_chunking else ""
    facts = f"  {does}, {model.max_tokens} tokens, {model.license}{what}\n"
    places = [
        f"  {p.where:<12} {_size(p.size):>9}  {', '.join(p.holds) or 'base'}\n    {p.path}\n" for p in model.places
    ]
    return head + facts + ("".join(places) or f"  not here: jina-local models pull {model.name}\n")


def _pull(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import hub

    row = registry.lookup(_wanted(args))
    if hub.offline(True if args.offline else None):
        raise UsageError("pull needs the network, and --offline, JINA_LOCAL_OFFLINE or HF_HUB_OFFLINE forbids it.")
    asked = args.backend or os.environ.get("JINA_LOCAL_BACKEND") or "auto"
    kind = backends.preferred() if asked == "auto" else asked
    to_convert = (kind, asked) == ("llama", "auto") and not (args.weights or row.gguf_repo or row.bundled)
    if to_convert:
        kind = "mlx"  # the checkpoint is all there is
    if kind == "mlx" and args.weights is not None:
        raise UsageError("--weights is for llama; MLX takes the published checkpoint (smaller: `convert mlx`).")
    terms = ", non-commercial" if "NC" in row.spec.license else ""
    console.say(f"{row.spec.name}: the weights are {row.spec.license}{terms}")
    held = hub.pull(
        row,
        kind,
        tasks=args.task,
        weights=args.weights,
        revision=args.revision,
        progress=console.wants_progress(args.progress),
    )
    for note in held.notes:
        console.say(note)
    if to_convert:
        console.say(f"for llama.cpp: {hub.unpublished(row)}")
    stdout.write(_bytes("".join(f"{path}\n" for path in dict.fromkeys(held.files.values()))))
    return console.OK


def _path(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import inventory

    kind = None if args.backend == "auto" else args.backend
    stdout.write(_bytes(f"{inventory.path(_wanted(args), kind)}\n"))
    return console.OK


def _rm(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import inventory

    if args.name is None:
        raise UsageError(f"rm needs a name: {', '.join(registry.names())}.")
    gone: list[Place] = inventory.remove(args.name)
    for place in gone:
        console.say(f"removed from the {place.where}: {place.path} ({_size(place.size)})")
    return console.OK


def _verify(args: argparse.Namespace, stdout: BinaryIO) -> int:
    from ..store import inventory

    names = [args.name] if args.name is not None else [model.name for model in inventory.listing() if model.places]
    found: list[Verified] = [one for name in names for one in inventory.verify(name)]
    for one in found:
        unknown = f", {one.unknown} without a known digest" if one.unknown else ""
        stdout.write(_bytes(f"{'NOT OK' if one.faults else 'ok'}  {one.path}  ({one.checked} files{unknown})\n"))
        stdout.write(_bytes("".join(f"        {fault}\n" for fault in one.faults)))
    return console.DAMAGED if any(one.faults for one in found) else console.OK


_ACTIONS: dict[str, Callable[[argparse.Namespace, BinaryIO], int]] = {
    "list": _list,
    "pull": _pull,
    "path": _path,
    "rm": _rm,
    "verify": _verify,
}


def _wanted(args: argparse.Namespace) -> str:
    return str(args.name or os.environ.get("JINA_LOCAL_MODEL") or registry.DEFAULT_MODEL)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _bytes(text: str) -> bytes:
    return os.fsencode(text)  # paths are bytes, and go out as they are
