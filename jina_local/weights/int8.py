"""Matrices in whole numbers, as ONNX Runtime multiplies them: int8 codes, and a float32 scale for each output.

The same rows of a linear layer's weight, (out, in), have one scale each, so the codes of one output are never coarser
because of another. The codes are stored (in, out), which is how the product reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import architecture
from .architecture import Architecture

LABEL = "INT8"  # the type of these weights, as files and people name it
METHOD = "jina_local-int8"  # quant_method in the config of a folder whose weights are these
LEVELS = 127  # codes from -127 to 127: symmetric, so that zero is zero


@dataclass(frozen=True)
class Int8:
    """A matrix: int8 codes (in, out), times a float32 scale for each output (out,)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True)
class Int8Rows:
    """A table: int8 codes (rows, width), times a float32 scale for each row (rows, 1)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


def matrix(weight: NDArray[np.float32]) -> Int8:
    """(out, in) float32 -> codes that are off by half a step at most."""
    codes, scales = _rounded(weight)
    return Int8(np.ascontiguousarray(codes.T), scales[:, 0])


def table(weight: NDArray[np.float32]) -> Int8Rows:
    """(rows, width) float32 -> codes that are off by half a step at most."""
    return Int8Rows(*_rounded(weight))


def widened(codes: NDArray[np.generic], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights that a file's codes stand for: (out, in) of a matrix, (rows, width) of a table."""
    wide = codes.astype(np.float32) * scales
    return np.ascontiguousarray(wide.T) if scales.ndim == 1 else wide


def layout(arch: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of a file of this kind: name -> dtype, shape. Scales have `scales` in the place of `weight`."""
    out: dict[str, tuple[str, tuple[int, ...]]] = {}
    matrices = set(architecture.projections(arch))
    for name, shape in architecture.tensors(arch).items():
        if name in matrices:
            out[name], out[scales_of(name)] = ("I8", shape[::-1]), ("F32", shape[:1])
        elif name == arch.table:
            out[name], out[scales_of(name)] = ("I8", shape), ("F32", (shape[0], 1))
        else:
            out[name] = ("F32", shape)
    return out


def scales_of(name: str) -> str:
    """The name of a weight's scales."""
    return name.removesuffix("weight") + "scales"


def _rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the shape of the weight, and the scale of each row (rows, 1); a row of zeros has the scale 1."""
    most = np.abs(weight).max(axis=1, keepdims=True)
    scales = np.where(most > 0, most / np.float32(LEVELS), np.float32(1))
    codes = np.empty(weight.shape, np.int8)
    step = max(1, (1 << 20) // weight.shape[1])  # rows at a time, which bounds the memory beside the result
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        codes[part] = np.rint(weight[part] / scales[part])
    return codes, scales
