"""One task's adapter in GGUF, checked against its base before an engine sees it.

The format is llama.cpp's: general.type "adapter", the base's general.architecture, adapter.type "lora",
adapter.lora.alpha, and for a base tensor NAME the factors NAME.lora_a (rank, in) and NAME.lora_b (out, rank). The
layer is y = W x + alpha / rank B A x. Our converter adds adapter.lora.task_name, and under `jina_local.base` the
digest of the published base, which the base's file has too. So an adapter runs beside every type that was made of its
base, and beside no other base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelDamaged
from ...formats.checks import check_types
from ...formats.gguf import Header
from .. import architecture, gguf_keys, tensor_names
from ..architecture import Architecture
from .rules import check_base, check_scale, linear_slots, pair_factors

BASE_KEY = "jina_local.base"  # in a base and in its adapters; merged files do not have it
TASK_KEY = "jina_local.task"  # in merged files and in adapters
NAME_KEY = "adapter.lora.task_name"
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_COMMAND = "python -m convert gguf SRC OUT --task all --adapters separate"


@dataclass(frozen=True)
class Base:
    """The base that an adapter has to fit."""

    path: Path
    digest: str | None  # of the published base; None in a merged file
    arch: Architecture


def is_adapter(header: Header) -> bool:
    """Whether the header of a GGUF file says that it is an adapter."""
    return header.text("general.type") == "adapter"


def task_of(header: Header) -> str | None:
    """The task that an adapter file names, or None. Raises ModelDamaged if its two keys disagree."""
    ours, theirs = header.text(TASK_KEY), header.text(NAME_KEY)
    if ours is not None and theirs is not None and ours != theirs:
        raise ModelDamaged(f"{header.path}: {TASK_KEY} is {ours!r}, {NAME_KEY} {theirs!r}. Convert it again.")
    return ours if ours is not None else theirs


def check(header: Header, task: str, base: Base) -> None:
    """Raise ModelDamaged unless the file is an adapter for `task` on `base`. See `check_values` for its values.

    Checked in this order: is it an adapter, for this task, for this base; then rank, alpha, targets and shapes.
    """
    path, keys = header.path, header.keys
    if not is_adapter(header):
        raise ModelDamaged(f"{path}: general.type is {keys.get('general.type')!r}; an adapter's is 'adapter'.")
    if (named := task_of(header)) != task:
        raise ModelDamaged(f"{path}: is taken for the adapter of {task}, and names the task {named!r}. Rename it.")
    check_base(header.text(BASE_KEY), base.digest, str(path), str(base.path), key=BASE_KEY, command=_COMMAND)
    if keys.get("general.architecture") != base.arch.kind:
        raise ModelDamaged(
            f"{path}: is for the architecture {keys.get('general.architecture')!r}, its base is {base.arch.kind}."
        )
    if keys.get("adapter.type") != "lora":
        raise ModelDamaged(f"{path}: adapter.type is {keys.get('adapter.type')!r}; only 'lora' is run.")
    if odd := [key for key in keys if key.startswith("adapter.alora.")]:
        raise ModelDamaged(
            f"{path}: {odd[0]} is set: an adapter that only some tokens switch on. It is not run here."
        )
    gguf_keys.check_adapter(keys, str(path))
    _check_tensors(header, base)


def check_values(header: Header) -> None:
    """Read every factor once. Raises ModelDamaged for NaN and infinity."""
    for name, tensor in header.tensors.items():
        values = np.memmap(header.path, _TYPES[tensor.type], "r", tensor.start, tensor.shape)
        if not np.isfinite(values).all():
            raise ModelDamaged(f"{header.path}: {name} holds NaN or infinity. Convert it again.")


def _check_tensors(header: Header, base: Base) -> None:
    where = str(header.path)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    first_a = next((shape for name, shape in shapes.items() if name.endswith(".lora_a")), ())
    rank = first_a[0] if first_a else 0
    if shapes:
        # llama.cpp takes alpha 0 to mean a scale of 1, and multiplies with NaN.
        check_scale(rank, header.keys.get("adapter.lora.alpha"), f"{where}: adapter.lora")
    renamed = tensor_names.gguf_names(base.arch)

    def names(weight: str) -> tuple[str, str]:
        return f"{renamed[weight]}.lora_a", f"{renamed[weight]}.lora_b"

    pair_factors(shapes, linear_slots(base.arch, architecture.projections(base.arch), rank, shapes, names), where)
    check_types({name: tensor.type for name, tensor in header.tensors.items()}, tuple(_TYPES), where)
