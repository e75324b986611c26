"""A request for a model's files (engines in order, weight type, tasks), and the refusals that all layouts share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .. import registry
from ..errors import UsageError
from ..registry import Published


@dataclass(frozen=True)
class Request:
    """The part of a caller's request that concerns files."""

    engines: tuple[str, ...]  # that may run the files, preferred first
    label: str | None = None  # None: any type of weights
    tasks: tuple[str, ...] = ()  # tasks or words for them, all to be served; empty: any
    reasons: tuple[str, ...] = ()  # the choices made so far, a sentence each


def require_engine(request: Request, engine: str, what: str, source: str = "SRC") -> None:
    """Raise UsageError if the request does not allow the engine that reads the files."""
    if engine in request.engines:
        return
    wanted = request.engines[0]
    command = "gguf" if wanted == "llama" else "mlx"
    raise UsageError(
        f"{what}, which {engine} reads and {wanted} does not. Use backend={engine!r}, or convert the "
        f"published checkpoint: `python -m convert {command} {source} OUT --task all`."
    )


def require_tasks(request: Request, row: Published, served: Iterable[str], folder: Path) -> None:
    """Raise UsageError if a task that was asked for is unknown to the model, or not served by the files."""
    there = list(served)
    if missing := [task for task in registry.tasks_for(row, request.tasks) if task not in there]:
        raise UsageError(f"{folder}: has no weights for {', '.join(missing)}. There: {', '.join(there)}.")


def how_to_convert(label: str | None, source: str, out: str = "OUT", tasks: str = " --task all") -> str:
    """The command that makes weights of a type; None: GGUF files of the type that suits the machine."""
    if label is not None and is_bits(label):
        return f"python -m convert mlx {source} {out}{tasks} --bits {label[:-3]}"
    return f"python -m convert gguf {source} {out}{tasks}{f' --type {label.upper()}' if label else ''}"


def is_bits(label: str | None) -> bool:
    """Whether a type is named by its bits. Only our converter for MLX names weights so."""
    return label is not None and label.casefold().endswith("bit")
