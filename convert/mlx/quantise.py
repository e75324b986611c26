"""Affine quantisation in numpy: float32 rows -> packed codes with a scale and a bias for each group of weights.

The layout and, without `refit`, the very bits of mx.quantize for the same weights in float16: row-major codes
as one little-endian bit stream a row, seen as uint32, and float16 scales and biases, w = scale * code + bias.
float16 and not bfloat16, because at 8 bits the rounding of bfloat16 scales alone adds a third to the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jina_local.errors import UsageError
from jina_local.formats.safetensors import to_f16

Floats = NDArray[np.float32]

BITS = (4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_REFIT_UP_TO = 6  # bits; above, a search gains less than the rounding of the vectors' own arithmetic
_TABLE_BITS = 8  # of the token table, at least: at 4 bits it alone costs as much as all linear layers together
_TABLES = ("embed_tokens.weight", "embeddings.word_embeddings.weight")
_PLAIN_CHUNK = 1 << 18  # weights worked on at a time; bounds the memory of a table of any size
_REFIT_CHUNK = 1 << 16  # smaller: the search passes over them hundreds of times and they should stay in cache
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a group's range: what outliers lose, the others gain
_STEPS = 3  # least-squares steps from each start; a fourth changes nothing that can be measured
_LEAST_RANGE = 1e-7  # a group whose weights lie closer than this, per code, counts as constant (mx.quantize)
_LEAST_SCALE = np.float16(2**-24)  # the smallest float16 above zero


@dataclass(frozen=True)
class Quantised:
    """One matrix of (rows, columns) weights."""

    codes: NDArray[np.uint32]  # (rows, columns * bits / 32)
    scales: NDArray[np.float16]  # (rows, columns / group_size)
    biases: NDArray[np.float16]  # (rows, columns / group_size)


def recipe(name: str, shape: Sequence[int], bits: int, group_size: int) -> tuple[int, int] | None:
    """(bits, group size) for one tensor of the checkpoint, or None where it stays in floating point.

    The linear layers of the blocks get `bits`, the token table never less than 8. All else stays: norms, biases, the
    tables of positions and token types, a classifier. 16 and 32 bits are floating point.
    Raises UsageError for what the format does not have, and where a row is not a whole number of groups.
    """
    if bits in (16, 32):
        return None
    if bits not in BITS:
        raise UsageError(f"bits {bits!r}: possible are {', '.join(map(str, BITS))}, 16 and 32.")
    if group_size not in GROUP_SIZES:
        raise UsageError(f"group_size {group_size!r}: possible are {', '.join(map(str, GROUP_SIZES))}.")
    if len(shape) != 2 or not (name in _TABLES or "layers." in name):
        return None
    if shape[1] % group_size:
        raise UsageError(
            f"{name}: its rows of {shape[1]} weights are not a whole number of groups of {group_size}. "
            "Give a smaller --group-size."
        )
    return (max(bits, _TABLE_BITS) if name in _TABLES else bits), group_size


def quantise(weight: Floats, bits: int, group_size: int, *, where: str, refit: bool | None = None) -> Quantised:
    """(rows, columns) float32 -> Quantised. Memory beyond the result is bounded, whatever the number of rows.

    `refit` searches for the scale and bias of least squared error instead of taking the group's ends (default:
    at 6 bits and below). On Gaussian weights that takes 6 to 12 % off the error and costs nothing at run time.
    `where` names the tensor in errors. Raises ModelDamaged where a weight does not fit float16.
    """
    rows, columns = weight.shape
    search = bits <= _REFIT_UP_TO if refit is None else refit
    step = max(1, (_REFIT_CHUNK if search else _PLAIN_CHUNK) // columns)
    out = Quantised(
        np.empty((rows, columns * bits // 32), np.uint32),
        np.empty((rows, columns // group_size), np.float16),
        np.empty((rows, columns // group_size), np.float16),
    )
    for start in range(0, rows, step):
        part = slice(start, start + step)
        groups = weight[part].reshape(-1, group_size)
        codes, scales, biases = _search(groups, bits, where) if search else _by_ends(groups, bits, where)
        out.codes[part] = _pack(codes, bits).reshape(out.codes[part].shape)
        out.scales[part] = scales.reshape(out.scales[part].shape)
        out.biases[part] = biases.reshape(out.biases[part].shape)
    return out


def dequantise(matrix: Quantised, bits: int, group_size: int) -> Floats:
    """The (rows, columns) float32 weights that a Quantised stands for."""
    rows = len(matrix.codes)
    codes = _unpack(matrix.codes, bits).reshape(rows, -1, group_size).astype(np.float32)
    codes *= matrix.scales.astype(np.float32)[:, :, None]
    codes += matrix.biases.astype(np.float32)[:, :, None]
    return codes.reshape(rows, -1)


def _by_ends(
    groups: Floats, bits: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """The rule of mx.quantize: codes from the float32 scale, the scale rounded afterwards."""
    scale, bias = _ends(groups, bits)
    codes = _codes(groups, scale, bias, bits).astype(np.uint8)
    return codes, to_f16(scale, f"{where} (scales)"), to_f16(bias, f"{where} (biases)")


def _ends(groups: Floats, bits: int) -> tuple[Floats, Floats]:
    """(n,) scale and bias: the end of larger magnitude is kept exactly, and zero falls on a code."""
    low, high = groups.min(axis=1), groups.max(axis=1)
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32((1 << bits) - 1), np.float32(_LEAST_RANGE))
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    steps = np.rint(edge / scale)
    zero = steps == 0
    return np.where(zero, scale, edge / np.where(zero, np.float32(1), steps)), np.where(zero, np.float32(0), edge)


def _codes(groups: Floats, scale: Floats, bias: Floats, bits: int) -> Floats:
    """The nearest codes, still as float32."""
    out = groups - bias[:, None]
    out /= scale[:, None]
    np.rint(out, out=out)
    return np.clip(out, 0, (1 << bits) - 1, out=out)


def _search(
    groups: Floats, bits: int, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """From several shrunken ranges, least squares down to a local best; the best of all, after rounding."""
    low, high = groups.min(axis=1), groups.max(axis=1)
    middle, width = (high + low) / 2, (high - low) / np.float32((1 << bits) - 1)
    half = np.float32(((1 << bits) - 1) / 2)
    means = groups.mean(axis=1)
    best = _rounded(groups, *_ends(groups, bits), bits, where)
    for shrink in _SHRINKS:
        scale = np.maximum(width * np.float32(shrink), np.float32(_LEAST_RANGE))
        bias = middle - scale * half
        for _ in range(_STEPS):
            scale, bias = _least_squares(groups, means, scale, bias, bits)
        found = _rounded(groups, scale, bias, bits, where)
        better = found.error < best.error
        best.codes[better] = found.codes[better]
        best.scales[better], best.biases[better] = found.scales[better], found.biases[better]
        best.error[better] = found.error[better]
    return best.codes.astype(np.uint8), best.scales, best.biases


def _least_squares(groups: Floats, means: Floats, scale: Floats, bias: Floats, bits: int) -> tuple[Floats, Floats]:
    """The scale and bias that fit the weights best with the codes that the given ones lead to."""
    codes = _codes(groups, scale, bias, bits)
    centre = codes.mean(axis=1)
    codes -= centre[:, None]
    spread = np.einsum("ij,ij->i", codes, codes)
    flat = spread == 0
    scale = np.where(flat, scale, np.einsum("ij,ij->i", codes, groups) / np.where(flat, np.float32(1), spread))
    return scale, means - scale * centre


@dataclass(frozen=True)
class _Candidate:
    codes: Floats
    scales: NDArray[np.float16]
    biases: NDArray[np.float16]
    error: Floats  # summed squares, by group


def _rounded(groups: Floats, scale: Floats, bias: Floats, bits: int, where: str) -> _Candidate:
    """What is left of a scale and bias in float16, with the codes that suit the rounded ones."""
    scales, biases = to_f16(scale, f"{where} (scales)"), to_f16(bias, f"{where} (biases)")
    scales = np.where(scales == 0, _LEAST_SCALE, scales)
    wide, offset = scales.astype(np.float32), biases.astype(np.float32)
    codes = _codes(groups, wide, offset, bits)
    off = codes * wide[:, None]
    off += offset[:, None]
    off -= groups
    return _Candidate(codes, scales, biases, np.einsum("ij,ij->i", off, off))


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Codes -> a flat bit stream, lowest bit first: eight codes fill exactly `bits` bytes."""
    eights = codes.reshape(-1, 8)
    packed = np.zeros(len(eights), "<u8")
    for place in range(8):
        packed |= eights[:, place].astype("<u8") << np.uint64(place * bits)
    stream = packed.view(np.uint8).reshape(-1, 8)[:, :bits]
    return np.ascontiguousarray(stream).reshape(-1).view("<u4")


def _unpack(codes: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    stream = np.ascontiguousarray(codes, "<u4").view(np.uint8).reshape(-1, bits)
    packed = np.zeros((len(stream), 8), np.uint8)
    packed[:, :bits] = stream
    whole = packed.view("<u8").reshape(-1)
    mask = np.uint64((1 << bits) - 1)
    return np.stack([(whole >> np.uint64(place * bits)) & mask for place in range(8)], axis=1).astype(np.uint8)
