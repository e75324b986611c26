"""After the model, in numpy: pool the rows, cut, normalise, quantise, compare. One order, owned here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..spec import EmbeddingSpec

# int8 and uint8: components of a unit vector of width d have the size of 1/sqrt(d); the range is fixed at
# RANGE/sqrt(d) either side of zero and what lies outside is clipped. Never taken from the batch: the same
# text has the same bytes in any company. With RANGE 4 a normal distribution loses 6e-5 of its components.
RANGE = 4.0


def pool(rows: NDArray[np.float32], owner: NDArray[np.int32], n_texts: int, pooling: str) -> NDArray[np.float32]:
    """(n_rows, hidden) float32 -> (n_texts, hidden) float32. Each text needs at least one row.

    `last` and `first` have one row a text already; `mean` takes all of a text's rows, which follow each other.
    """
    if pooling == "mean":
        bounds = np.searchsorted(owner, np.arange(n_texts + 1))
        means = sums(rows, bounds[:-1], bounds[1:]) / np.diff(bounds)[:, None]
        return np.asarray(means, np.float32)
    out = np.empty((n_texts, rows.shape[1]), np.float32)
    out[owner] = rows
    return out


def sums(
    rows: NDArray[np.float32], starts: NDArray[np.integer[Any]], ends: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """The sum of rows[start:end] for each span: (n_spans, hidden) float64. Spans may overlap.

    Sums are float64, because thousands of float32 rows added in turn lose two digits. One sum a span is the fastest
    way in numpy: add.at and add.reduceat take ten times as long over rows of this width.
    """
    out = np.empty((len(starts), rows.shape[1]), np.float64)
    for n, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows[start:end].sum(axis=0, dtype=np.float64, out=out[n])
    return out


def unusable(pooled: NDArray[np.float32], dim: int) -> NDArray[np.bool_]:
    """(n_texts,) True where the first `dim` components hold NaN or infinity, or are all zero."""
    head = pooled[:, :dim]
    return np.asarray(~np.isfinite(head).all(axis=1) | ~head.any(axis=1))


def finish(pooled: NDArray[np.float32], spec: EmbeddingSpec) -> NDArray[np.generic]:
    """(n_texts, hidden) float32 -> (n_texts, width): cut to spec.dim, then L2, then quantise.

    float32: width = dim. int8, uint8: width = dim, fixed range (see RANGE). ubinary: width = dim / 8, uint8,
    bit = component > 0, first dimension in the top bit. binary: the same minus 128, as int8.
    Rows that `unusable` names come out as zeros before quantising.
    """
    cut = np.array(pooled[:, : spec.dim], np.float32)
    cut[unusable(pooled, spec.dim)] = 0
    if spec.normalize:
        # In float64: the square of a large float32 component may overflow.
        norms = np.sqrt(np.einsum("ij,ij->i", cut, cut, dtype=np.float64))[:, None]
        cut = np.divide(cut, norms, out=np.zeros_like(cut), where=norms > 0, casting="unsafe")
    return quantise(cut, spec.precision)


def quantise(vectors: NDArray[np.float32], precision: str) -> NDArray[np.generic]:
    """(n, dim) float32 -> the precision asked for; see `finish` for the meaning of each."""
    if precision == "float32":
        return vectors
    if precision in ("ubinary", "binary"):
        bits = np.packbits(vectors > 0, axis=-1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    codes = np.clip(np.rint(vectors * np.float32(int8_scale(vectors.shape[-1]))), -127, 127)
    out: NDArray[np.generic] = codes.astype(np.int8) if precision == "int8" else (codes + 128).astype(np.uint8)
    return out


def int8_scale(dim: int) -> float:
    """The int8 code of a component, before rounding, is this many times the component."""
    return float(127.0 * np.sqrt(dim) / RANGE)


def similarity(a: NDArray[np.generic], b: NDArray[np.generic], precision: str) -> NDArray[np.float32]:
    """Cosine of every row of `a` with every row of `b`, (n_a, n_b) float32 from -1 to 1.

    Floats of any width are compared in float32. For binary and ubinary it is 1 - 2 x (differing bits) / (bits), the
    cosine of the signs. Raises UsageError for different widths or types.
    """
    a, b = (_float32_if_float(np.atleast_2d(x)) for x in (a, b))
    if a.shape[1] != b.shape[1] or a.dtype != b.dtype:
        raise UsageError(f"vectors of {a.shape[1]} x {a.dtype} cannot be compared with {b.shape[1]} x {b.dtype}.")
    if precision in ("ubinary", "binary"):
        signs_a, signs_b = _signs(a, precision), _signs(b, precision)
        return np.asarray(signs_a @ signs_b.T / np.float32(signs_a.shape[1]), np.float32)
    wide_a, wide_b = _wide(a, precision), _wide(b, precision)
    return np.asarray(_unit(wide_a) @ _unit(wide_b).T, np.float32)


def _float32_if_float(vectors: NDArray[np.generic]) -> NDArray[np.generic]:
    return vectors.astype(np.float32) if np.issubdtype(vectors.dtype, np.floating) else vectors


def _wide(codes: NDArray[np.generic], precision: str) -> NDArray[np.float32]:
    wide = codes.astype(np.float32)
    return wide - 128 if precision == "uint8" else wide


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return out


def _signs(codes: NDArray[np.generic], precision: str) -> NDArray[np.float32]:
    packed = (codes.astype(np.int16) + 128).astype(np.uint8) if precision == "binary" else codes
    return np.unpackbits(packed.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
