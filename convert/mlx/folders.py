"""Published checkpoint -> MLX folders in mlx-lm's layout: merged in float32 or kept apart, rounded or quantised.

Names carry `model.`, or of XLM-R `roberta.`, as published, and the config says what mlx-lm expects, so that it loads
the Qwen3 folders as they are; our own engine reads them with the prefix or without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local.errors import UsageError
from jina_local.formats import safetensors
from jina_local.weights import architecture
from jina_local.weights.architecture import Architecture
from jina_local.weights.checkpoint import Checkpoint

from .. import source
from ..separate import write_separate
from ..task_folders import BASE, Form, Progress, write_folders
from .quantise import BITS, GROUP_SIZES, quantise, recipe

_PLAIN = {16: "F16", 32: "F32"}


def to_mlx(
    folder: Path,
    out: Path,
    *,
    tasks: Sequence[str],
    bits: int,
    group_size: int | None = None,
    separate: bool = False,
    force: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `out` (one task) or `out`/<task> (several) from the checkpoint in `folder`.

    With `separate`, `out` is one base for all tasks and `out`/adapters has a small file for each, to run beside it:
    float32 at 32 bits, else float16.
    `bits`: 4, 5, 6 or 8 for affine codes in groups of `group_size` (32, 64 or 128; None: 32 at 4 bits, where 64
    loses too much, else 64) with the token table at 8 bits at least; 16 for float16, 32 for float32.
    `progress(what, done, of)` counts tensors. The same input gives the same bytes. Peak memory: about twice the
    largest tensor in float32 (the token table), whatever the size of the model. Raises UsageError, ModelDamaged,
    OutputError, Locked.
    """
    if bits not in (*BITS, *_PLAIN):
        raise UsageError(f"bits {bits!r}: possible are {', '.join(map(str, (*BITS, *_PLAIN)))}.")
    group_size = _group_size(bits, group_size)
    with Checkpoint(folder) as checkpoint:
        chosen = source.choose_tasks(checkpoint, tasks)
        form = Form(
            name="mlx",
            label=f"{bits}bit",
            layout=_layout(checkpoint.arch, bits, group_size),
            metadata={"format": "mlx"},
            tensors=lambda what: _tensors(checkpoint, what, bits, group_size, progress),
            configs=lambda target, _: _write_configs(checkpoint, target, bits, group_size),
        )
        if not separate:
            write_folders(checkpoint, out, chosen, form, force=force, source_name=source_name, revision=revision)
            return
        write_separate(
            checkpoint,
            out,
            chosen,
            form,
            dtype="F32" if bits == 32 else "F16",
            force=force,
            source_name=source_name,
            revision=revision,
            progress=progress,
        )


def _group_size(bits: int, asked: int | None) -> int:
    """The number of weights that share a scale, as asked or by default. Raises UsageError."""
    chosen = asked or (32 if bits == 4 else 64)
    if chosen not in GROUP_SIZES:
        raise UsageError(f"group_size {chosen!r}: possible are {', '.join(map(str, GROUP_SIZES))}.")
    return chosen


def _layout(arch: Architecture, bits: int, group_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of the file: name -> dtype, shape."""
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in architecture.tensors(arch).items():
        code, stored = recipe(name, shape, bits, group_size), _stored(arch, name)
        if code is None:
            layout[stored] = (_PLAIN.get(bits, "F16"), shape)
            continue
        rows, columns = shape
        layout[stored] = ("U32", (rows, columns * code[0] // 32))
        for part in ("scales", "biases"):
            layout[f"{stored.removesuffix('weight')}{part}"] = ("F16", (rows, columns // code[1]))
    return layout


def _stored(arch: Architecture, name: str) -> str:
    """A tensor's name in the file."""
    if not arch.xlm_roberta:
        return f"model.{name}"
    return name if name.startswith("classifier.") else f"roberta.{name}"


def _tensors(
    checkpoint: Checkpoint, what: str, bits: int, group_size: int, progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The weights with the adapter of the task `what`, or as they are for BASE."""
    total = len(architecture.tensors(checkpoint.arch))
    adapter = None if what == BASE else source.adapter_of(checkpoint, what)
    for done, (name, weight) in enumerate(checkpoint.merged(adapter), 1):
        code, stored = recipe(name, weight.shape, bits, group_size), _stored(checkpoint.arch, name)
        if code is not None:
            # From float32: rounding to float16 first would add its error to that of the codes.
            matrix = quantise(weight, *code, where=name)
            stem = stored.removesuffix("weight")
            yield f"{stem}weight", matrix.codes
            yield f"{stem}scales", matrix.scales
            yield f"{stem}biases", matrix.biases
        else:
            yield stored, weight if bits == 32 else safetensors.to_f16(weight, name)
        if progress:
            progress(f"mlx {what} {bits}bit", done, total)


def _write_configs(checkpoint: Checkpoint, target: Path, bits: int, group_size: int) -> None:
    arch = checkpoint.arch
    config = source.plain_config(checkpoint, "float32" if bits == 32 else "float16")
    if arch.kind == "qwen3":
        config["tie_word_embeddings"] = True  # else mlx-lm wants a vocabulary head
    if bits not in _PLAIN:
        config["quantization"] = config["quantization_config"] = _quantization(arch, bits, group_size)
    source.write_beside(checkpoint, target, config)


def _quantization(arch: Architecture, bits: int, group_size: int) -> dict[str, object]:
    """What mlx-lm writes: the setting for all, then the modules that have another, by their path."""
    entries: dict[str, object] = {"bits": bits, "group_size": group_size, "mode": "affine"}
    for name, shape in architecture.tensors(arch).items():
        code = recipe(name, shape, bits, group_size)
        if code is not None and code != (bits, group_size):
            module = _stored(arch, name).removesuffix(".weight")
            entries[module] = {"bits": code[0], "group_size": code[1], "mode": "affine"}
    return entries
