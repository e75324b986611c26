"""Checks of the tensors in a file: their names and shapes, their types, finite values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamaged

FLOATS = ("F16", "BF16", "F32")


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


def finite(data: NDArray[np.float32], where: str) -> NDArray[np.float32]:
    """`data` itself. Raises ModelDamaged if a value is NaN or infinite."""
    if not np.isfinite(data).all():
        bad = int(data.size - np.isfinite(data).sum())
        raise ModelDamaged(f"{where}: {bad} of {data.size} values are NaN or infinite.")
    return data


def _some(what: str, names: Iterable[str]) -> Iterator[str]:
    listed = list(names)
    if listed:
        yield f"{len(listed)} {what}: {', '.join(listed[:10])}{', ...' if len(listed) > 10 else ''}"
