"""What files are held against before anything is done with them: bounded JSON, the set of tensors, finite values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamaged
from .safetensors import open_regular

FLOATS = ("F16", "BF16", "F32")
_MAX_JSON = 64 << 20


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ModelDamaged unless exactly the expected tensors are there, each in its shape."""
    faults = [
        *_some("missing", sorted(expected.keys() - found.keys())),
        *_some("unknown", sorted(found.keys() - expected.keys())),
        *_some(
            "of another shape",
            [
                f"{n} {found[n]} (expected {expected[n]})"
                for n in sorted(expected.keys() & found.keys())
                if found[n] != expected[n]
            ],
        ),
    ]
    if faults:
        raise ModelDamaged(f"{where}: the tensors do not fit the config: {'; '.join(faults)}.")


def check_types(types: Mapping[str, str], allowed: Sequence[str], where: str) -> None:
    """Raise ModelDamaged unless every tensor (name -> dtype) is stored in one of the allowed types."""
    for name, dtype in types.items():
        if dtype not in allowed:
            raise ModelDamaged(f"{where}: {name} is stored as {dtype}; expected {' or '.join(allowed)}.")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size. Raises ModelDamaged, ModelNotFound is the finder's."""
    with open_regular(path) as file:
        raw = file.read(_MAX_JSON + 1)
    if len(raw) > _MAX_JSON:
        raise ModelDamaged(f"{path}: larger than {_MAX_JSON >> 20} MiB.")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelDamaged(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise ModelDamaged(f"{path}: holds {type(value).__name__}, expected a JSON object.")
    return value


def finite(data: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """`data`, or ModelDamaged where a value is NaN or infinite."""
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        raise ModelDamaged(f"{where}: {bad} of {data.size} values are NaN or infinite.")
    return data


def _some(what: str, names: Iterable[str]) -> Iterator[str]:
    listed = list(names)
    if listed:
        yield f"{len(listed)} {what}: {', '.join(listed[:10])}{', ...' if len(listed) > 10 else ''}"
