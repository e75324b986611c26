"""The options by which a command is told what to load, and the environment variables that stand in for them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .. import backends, registry
from ..errors import UsageError
from ..spec import ModelSpec


def add_options(p: argparse.ArgumentParser, default: str) -> None:
    """The group "model" of a command's options; `default` is the model that is loaded where none is named."""
    g = p.add_argument_group("model")
    g.add_argument("--model", metavar="NAME", help=f"name, folder or .gguf file (default: {default})")
    g.add_argument("--weights", metavar="LABEL", help="for example Q8_0 or 8bit (default: the best there is)")
    g.add_argument("--backend", choices=("auto", *backends.BACKENDS), help="engine (default: auto)")
    g.add_argument("--device", choices=("cpu", "metal"), help="default: the engine's best")
    g.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    g.add_argument("--offline", action="store_true", help="open no socket, even if the model is not here")


def settings(args: argparse.Namespace, default: str, of_model: str = "") -> dict[str, Any]:
    """What `load` is asked for: an option, else its environment variable, else the default.

    of_model: put into the names of the two variables that say which model, so that what is set for one kind of model
    is not tried with another; those of the engine and the machine are the same for every command.
    """
    backend = _setting(args.backend, "BACKEND") or "auto"
    if backend not in ("auto", *backends.BACKENDS):
        raise UsageError(f"JINA_LOCAL_BACKEND is {backend!r}. Possible: auto, {', '.join(backends.BACKENDS)}.")
    threads = _setting(args.threads, "THREADS")
    if isinstance(threads, str) and not threads.isdecimal():
        raise UsageError(f"JINA_LOCAL_THREADS is {threads!r}; expected a whole number from 1.")
    return {
        "name_or_path": _setting(args.model, f"{of_model}MODEL") or default,
        "backend": backend,
        "weights": _setting(args.weights, f"{of_model}WEIGHTS"),
        "device": _setting(args.device, "DEVICE"),
        "threads": None if threads is None else int(threads),
        "offline": True if args.offline else None,
        "show_progress": args.progress,
    }


def check_name(name: str, *, rank: bool) -> None:
    """`check_kind` for what is a model's name, before anything is fetched by it."""
    if os.path.lexists(name):
        return
    try:
        row = registry.lookup(name.partition(":")[0])
    except UsageError:  # perhaps a file's; `load` says what is wrong with it
        return
    check_kind(row.spec, rank=rank)


def check_kind(model: ModelSpec, *, rank: bool) -> None:
    """Raise UsageError where a model that ranks documents is wanted and this one embeds texts, or the other way."""
    if (model.scoring is not None) == rank:
        return
    fit = ", ".join(row.spec.name for row in registry.PUBLISHED if (row.spec.scoring is not None) == rank)
    if rank:
        raise UsageError(f"{model.name} embeds texts and ranks none: use `embed`, or one of the rerankers: {fit}.")
    raise UsageError(f"{model.name} ranks documents and has no vectors: use `rerank`, or another model: {fit}.")


def _setting(option: str | int | None, name: str) -> str | int | None:
    return option if option is not None else os.environ.get(f"JINA_LOCAL_{name}") or None
