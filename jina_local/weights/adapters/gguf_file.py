"""One task's adapter in GGUF, held against the base that it is for before an engine sees it.

The format is llama.cpp's: general.type "adapter", general.architecture the base's, adapter.type "lora",
adapter.lora.alpha, and for a base tensor NAME the factors NAME.lora_a (rank, in) and NAME.lora_b (out, rank): the
layer is y = W x + alpha / rank B A x. Ours adds adapter.lora.task_name, and under `jina_local.base` the digest of the
published base, which the base file has too: an adapter runs beside every type made of its base, and beside no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelDamaged
from ...formats.checks import check_shapes
from ...formats.gguf import Header
from .. import architecture, tensor_names
from ..architecture import Architecture
from .mlx_file import check_scale

BASE_KEY = "jina_local.base"  # in a base and in its adapters; merged files have none
TASK_KEY = "jina_local.task"  # in merged files and in adapters
NAME_KEY = "adapter.lora.task_name"
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_AGAIN = "`python -m convert gguf SRC OUT --task all --adapters separate`"


@dataclass(frozen=True)
class Base:
    """What an adapter has to fit."""

    path: Path
    digest: str
    arch: Architecture


def is_adapter(header: Header) -> bool:
    """Whether a GGUF file says of itself that it is an adapter."""
    return header.text("general.type") == "adapter"


def task_of(header: Header) -> str | None:
    """The task that an adapter file names, or None. Raises ModelDamaged where its two keys disagree."""
    ours, theirs = header.text(TASK_KEY), header.text(NAME_KEY)
    if ours is not None and theirs is not None and ours != theirs:
        raise ModelDamaged(f"{header.path}: {TASK_KEY} is {ours!r}, {NAME_KEY} {theirs!r}. Convert it again.")
    return ours if ours is not None else theirs


def check(header: Header, task: str, base: Base) -> None:
    """Raise ModelDamaged unless the file is an adapter for `task` on `base`. Values are not read, see `check_values`.

    What is wrong first: not an adapter, another task, another base, a rank, alpha, target or shape that cannot be.
    """
    path, keys = header.path, header.keys
    if not is_adapter(header):
        raise ModelDamaged(f"{path}: general.type is {keys.get('general.type')!r}; an adapter's is 'adapter'.")
    if (named := task_of(header)) != task:
        raise ModelDamaged(f"{path}: is taken for the adapter of {task}, and names the task {named!r}. Rename it.")
    _check_base(header, base)
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
    _check_tensors(header, base)


def check_values(header: Header) -> None:
    """Read every factor once: ModelDamaged where one is not finite."""
    for name, tensor in header.tensors.items():
        values = np.memmap(header.path, _TYPES[tensor.type], "r", tensor.start, tensor.shape)
        if not np.isfinite(values).all():
            raise ModelDamaged(f"{header.path}: {name} holds NaN or infinity. Convert it again.")


def _check_base(header: Header, base: Base) -> None:
    digest = header.text(BASE_KEY)
    if digest is None:
        raise ModelDamaged(
            f"{header.path}: carries no digest of its base ({BASE_KEY}), so nothing says that it was trained on "
            f"{base.path.name}. Put the PEFT folder it came from under adapters/<task> of the published checkpoint "
            f"SRC and run {_AGAIN}."
        )
    if digest != base.digest:
        raise ModelDamaged(
            f"{header.path}: was made for the base {digest}, and {base.path} is of the base {base.digest}. Put it "
            f"beside its own base, or convert both from one checkpoint: {_AGAIN}."
        )


def _check_tensors(header: Header, base: Base) -> None:
    path, shapes, renamed = header.path, architecture.tensors(base.arch), tensor_names.gguf_names(base.arch)
    targets = {renamed[name]: shapes[name] for name in architecture.projections(base.arch)}
    found = {name: tensor.shape for name, tensor in header.tensors.items()}
    if not found:
        raise ModelDamaged(f"{path}: holds no LoRA factors.")
    first = next((shape for name, shape in found.items() if name.endswith(".lora_a")), ())
    rank = first[0] if first else 0
    # llama.cpp takes alpha 0 to mean a scale of 1, and multiplies with NaN.
    check_scale(rank, header.keys.get("adapter.lora.alpha"), f"{path}: adapter.lora")
    expected: dict[str, tuple[int, ...]] = {}
    for name, (out, inner) in targets.items():
        if f"{name}.lora_a" in found or f"{name}.lora_b" in found:
            expected |= {f"{name}.lora_a": (rank, inner), f"{name}.lora_b": (out, rank)}
    check_shapes(found, expected, str(path))
    if other := sorted({tensor.type for tensor in header.tensors.values()} - _TYPES.keys()):
        raise ModelDamaged(f"{path}: has factors of type {other[0]}; an adapter is {' or '.join(_TYPES)}.")
