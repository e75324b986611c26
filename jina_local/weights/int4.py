"""Linear layers in 4 bits, for small files: codes around 8, and a float32 scale for each block of weights.

The layout is that of ONNX Runtime's MatMulNBits: (out, blocks, 16) uint8, two codes a byte, the first one low. That
product is slower than int8.py's, so a matrix is widened as it is opened, and runs in 8 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

BLOCK = 32  # weights a scale
_ZERO = 8
_FACTORS = np.linspace(0.75, 1.1, 8)  # of the scale that gives the largest weight the last code
_ROWS = 64  # at a time, which bounds the memory beside the result


def layout(name: str, out: int, width: int) -> tuple[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...]]]:
    """dtype and shape of the codes of a weight (out, width), and of its scales. Raises UsageError for part blocks."""
    if width % BLOCK:
        raise UsageError(
            f"{name}: {width} weights an output are not whole blocks of {BLOCK}, so INT4 cannot hold them."
        )
    return ("U8", (out, width // BLOCK, BLOCK // 2)), ("F32", (out, width // BLOCK))


def quantised(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(out, in) -> codes (out, in / BLOCK, BLOCK / 2) and scales (out, in / BLOCK), by least squares."""
    blocks = weight.reshape(len(weight), -1, BLOCK)
    parts = [_rounded(blocks[start : start + _ROWS].astype(np.float64)) for start in range(0, len(blocks), _ROWS)]
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([scales for _, scales in parts])


def widened(codes: NDArray[np.generic], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights that a file's codes stand for: (out, in) float32."""
    packed = codes.astype(np.uint8, copy=False)
    wide = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float32)
    wide -= _ZERO
    return (wide.reshape(*scales.shape, BLOCK) * scales[..., None]).reshape(len(scales), -1)


def _rounded(blocks: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    best, codes, scales = np.full(largest.shape, np.inf), np.zeros(blocks.shape), np.ones(largest.shape)
    for factor in _FACTORS:
        step = np.where(largest == 0, 1, largest / -_ZERO * factor)
        whole = np.clip(np.rint(blocks / step), -_ZERO, _ZERO - 1)
        squares = np.square(whole).sum(axis=2, keepdims=True)
        fitted = (whole * blocks).sum(axis=2, keepdims=True) / np.maximum(squares, 1)
        off = np.square(whole * fitted - blocks).sum(axis=2, keepdims=True)
        better = off < best
        best, scales = np.where(better, off, best), np.where(better, fitted, scales)
        codes = np.where(better, whole, codes)
    whole = (codes + _ZERO).astype(np.uint8)
    packed = whole[..., 0::2] + np.uint8(16) * whole[..., 1::2]
    return packed, scales[..., 0].astype(np.float32)
