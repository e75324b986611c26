"""Published checkpoint -> folders for ONNX Runtime: merged in float32 or kept apart, in float32 or in whole numbers.

The tensors are one safetensors file, under the published names; weights/int8.py says how whole numbers are laid out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local.errors import UsageError
from jina_local.weights import architecture, int8
from jina_local.weights.architecture import Architecture
from jina_local.weights.checkpoint import Checkpoint

from .. import source
from ..separate import write_separate
from ..task_folders import BASE, WEIGHTS, Form, Layout, Progress, write_folders
from . import public_graph

BITS = {4: "INT4", 8: "INT8", 16: "INT16", 32: "F32"}


def to_onnx(
    folder: Path,
    out: Path,
    *,
    tasks: Sequence[str],
    bits: int,
    separate: bool = False,
    force: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `out` (one task) or `out`/<task> (several) from the checkpoint in `folder`.

    With `separate`, `out` is one base for all tasks and `out`/adapters has a small file for each, to run beside it:
    float32 at 32 bits, else float16.
    bits: 8 and 16 for whole numbers with a scale for each output, and for each token of the table; 4 for linear
        layers in blocks, beside a table in 8 bits, all of which run in 8 bits; 32 for float32.
    `progress(what, done, of)` counts tensors. The same input gives the same bytes. Raises UsageError, ModelDamaged,
    OutputError, Locked.
    """
    if bits not in BITS:
        raise UsageError(f"bits {bits!r}: possible are {', '.join(map(str, BITS))}.")
    with Checkpoint(folder) as checkpoint:
        chosen = source.choose_tasks(checkpoint, tasks)
        form = Form(
            name="onnx",
            label=BITS[bits],
            layout=_layout(checkpoint.arch, bits),
            metadata={"format": "onnx"},
            tensors=lambda what: _tensors(checkpoint, what, bits, progress),
            configs=lambda target, what: _write_beside(checkpoint, target, what, bits),
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


def _layout(arch: Architecture, bits: int) -> Layout:
    if bits == 32:
        return {name: ("F32", shape) for name, shape in architecture.tensors(arch).items()}
    return int8.layout(arch, BITS[bits])


def _tensors(
    checkpoint: Checkpoint, what: str, bits: int, progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The weights with the adapter of the task `what`, or as they are for BASE."""
    arch = checkpoint.arch
    matrices, total = set(architecture.projections(arch)), len(architecture.tensors(arch))
    adapter = None if what == BASE else source.adapter_of(checkpoint, what)
    for done, (name, weight) in enumerate(checkpoint.merged(adapter), 1):
        if bits < 32 and (name in matrices or name == arch.table):
            yield from int8.tensors(name, weight, BITS[bits], table=name == arch.table)
        else:
            yield name, weight
        if progress:
            progress(f"onnx {what} {BITS[bits]}", done, total)


def _write_beside(checkpoint: Checkpoint, target: Path, what: str, bits: int) -> None:
    """Everything beside the weights. BASE has no graph: its vectors are of no task, and a graph takes no adapter."""
    config = source.plain_config(checkpoint, "float32")
    if bits < 32:
        methods = {label: method for method, label in int8.METHODS.items()}
        config["quantization_config"] = {"quant_method": methods[BITS[bits]]}
    source.write_beside(checkpoint, target, config)
    if what != BASE:
        public_graph.write(target, WEIGHTS, checkpoint.arch, source.row_of(checkpoint).spec.pooling)
