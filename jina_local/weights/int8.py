"""Weights in whole numbers, as ONNX Runtime multiplies them: int8 codes, and a float32 scale for each output.

The rows of a linear layer's weight, (out, in), have one scale each, so the codes of one output are never coarser
because of another. The codes are stored (in, out), which is how the product reads them.

INT8 has one code for each weight. INT16 has two, a high and a low one that counts in steps of 1 / PARTS. INT4 is INT8
whose linear layers are stored as int4.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import architecture, int4
from .architecture import Architecture

# quant_method in the config of a folder -> the type of its weights, as files and people name it.
METHODS = {"jina_local-int8": "INT8", "jina_local-int16": "INT16", "jina_local-int4": "INT4"}
LEVELS = 127  # codes from -127 to 127: symmetric, so that zero is zero
PARTS = 256  # low codes go from -128 to 127
Codes = NDArray[np.int8] | NDArray[np.uint8]  # in files int8; uint8 for the same around 128


@dataclass(frozen=True)
class Int8:
    """A matrix: codes (in, out), plus low ones / PARTS if there are any, times a scale for each output (out,)."""

    codes: Codes
    scales: NDArray[np.float32]
    low: Codes | None = None


@dataclass(frozen=True)
class Int8Rows:
    """A table: int8 codes (rows, width), plus low ones / PARTS if there are any, times a scale a row (rows, 1)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    low: NDArray[np.int8] | None = None


def tensors(
    name: str, weight: NDArray[np.float32], label: str, *, table: bool
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """A weight, (out, in) or (rows, width), as a file has it: off by half a step at most.

    Of INT16, where a low code would be one more than there is, a whole step of it.
    """
    if label == "INT4" and not table:
        yield from zip((name, scales_of(name)), int4.quantised(weight), strict=True)
        return
    codes, scales, low = _rounded(weight)
    yield name, codes if table else np.ascontiguousarray(codes.T)
    if label == "INT16":
        yield low_of(name), low if table else np.ascontiguousarray(low.T)
    yield scales_of(name), scales if table else scales[:, 0]


def matrix(weight: NDArray[np.float32]) -> Int8:
    """A linear layer's weight (out, in) in 8 bits."""
    codes, scales, _ = _rounded(weight)
    return Int8(np.ascontiguousarray(codes.T), scales[:, 0])


def widened(
    codes: NDArray[np.generic], scales: NDArray[np.float32], low: NDArray[np.generic] | None
) -> NDArray[np.float32]:
    """The weights that a file's codes stand for: (out, in) of a matrix, (rows, width) of a table."""
    wide = codes.astype(np.float32)
    if low is not None:
        wide += low.astype(np.float32) / np.float32(PARTS)
    wide *= scales
    return np.ascontiguousarray(wide.T) if scales.ndim == 1 else wide


def layout(arch: Architecture, label: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of a file of this kind: name -> dtype, shape. Raises UsageError for a width that has no blocks."""
    out: dict[str, tuple[str, tuple[int, ...]]] = {}
    matrices = set(architecture.projections(arch))
    for name, shape in architecture.tensors(arch).items():
        if name not in matrices and name != arch.table:
            out[name] = ("F32", shape)
            continue
        if label == "INT4" and name in matrices:
            out[name], out[scales_of(name)] = int4.layout(name, *shape)
            continue
        codes, scales = (shape, (shape[0], 1)) if name == arch.table else (shape[::-1], shape[:1])
        out[name], out[scales_of(name)] = ("I8", codes), ("F32", scales)
        if label == "INT16":
            out[low_of(name)] = ("I8", codes)
    return out


def scales_of(name: str) -> str:
    """The name of a weight's scales."""
    return name.removesuffix("weight") + "scales"


def low_of(name: str) -> str:
    """The name of a weight's low codes."""
    return name.removesuffix("weight") + "low"


def _rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
    """Codes, scales (rows, 1) and low codes; codes have the shape of the weight. A row of zeros has the scale 1."""
    most = np.abs(weight).max(axis=1, keepdims=True)
    scales = np.where(most > 0, most / np.float32(LEVELS), np.float32(1))
    codes, low = np.empty(weight.shape, np.int8), np.empty(weight.shape, np.int8)
    step = max(1, (1 << 20) // weight.shape[1])  # rows at a time, which bounds the memory beside the result
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        whole = weight[part] / scales[part]
        codes[part] = np.rint(whole)
        low[part] = np.minimum(np.rint((whole - codes[part]) * PARTS), PARTS // 2 - 1)
    return codes, scales, low
