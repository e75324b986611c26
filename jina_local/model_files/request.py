"""A request for a model's files (engines in order, weight type, tasks), and the refusals that all layouts share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import registry
from ..errors import UsageError
from ..registry import Published
from ..spec import READERS, engine_of

_MADE_HERE = re.compile(r"(?i)(?P<mlx>\d+)bit|int(?P<onnx>\d+)")


@dataclass(frozen=True)
class Request:
    """The part of a caller's request that concerns files."""

    engines: tuple[str, ...]  # that may run the files, preferred first
    label: str | None = None  # None: any type of weights
    tasks: tuple[str, ...] = ()  # tasks or words for them, all to be served; empty: any
    reasons: tuple[str, ...] = ()  # the choices made so far, a sentence each


def require_reader(request: Request, form: str, what: str, source: str = "SRC") -> str:
    """The engine that is to read a form of files. Raises UsageError if the request allows none that does."""
    if engine := engine_of(form, request.engines):
        return engine
    wanted, readers = request.engines[0], READERS[form]
    command = "gguf" if wanted == "llama" else wanted
    raise UsageError(
        f"{what}, which {' and '.join(readers)} {'read' if len(readers) > 1 else 'reads'} and {wanted} does not. Use "
        f"backend={readers[0]!r}, or convert the published checkpoint: "
        f"`python -m convert {command} {source} OUT --task all`."
    )


def require_tasks(request: Request, row: Published, served: Iterable[str], folder: Path) -> None:
    """Raise UsageError if a task that was asked for is unknown to the model, or not served by the files."""
    there = list(served)
    if missing := [task for task in registry.tasks_for(row, request.tasks) if task not in there]:
        raise UsageError(f"{folder}: has no weights for {', '.join(missing)}. There: {', '.join(there)}.")


def how_to_convert(label: str | None, source: str, out: str = "OUT", tasks: str = " --task all") -> str:
    """The command that makes weights of a type; None: GGUF files of the type that suits the machine."""
    if label is not None and (match := _MADE_HERE.fullmatch(label)):
        engine, bits = ("mlx", match["mlx"]) if match["mlx"] else ("onnx", match["onnx"])
        return f"python -m convert {engine} {source} {out}{tasks} --bits {bits}"
    return f"python -m convert gguf {source} {out}{tasks}{f' --type {label.upper()}' if label else ''}"


def made_here(label: str | None) -> bool:
    """Whether only our converters make weights of a type: those for MLX and ONNX Runtime name them by their bits."""
    return label is not None and _MADE_HERE.fullmatch(label) is not None
