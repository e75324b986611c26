"""The nearest vectors, exactly: every int8 code is compared with the question's, the best are rescored in float16.

NumKong's kernel reads codes about as fast as memory gives them. Without the package numpy compares them in blocks,
about three times as slow; `kernel` says which of the two it is. tests/bench/README.md has the times.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embedding import vectors
from .database import SLOTS, Reader

Floats = NDArray[np.float32]
RESCORED = 100
_ROWS = 1024  # of a numpy block: its float32 stays in the cache


@dataclass(frozen=True)
class Vectors:
    """All vectors of an index in one state, in memory. Arrays are never written to after they are here."""

    generation: int
    chunks: NDArray[np.int32]  # (n,): the chunk of each place, 0 if the place is empty
    codes: NDArray[np.int8]  # (n, dim)
    places: NDArray[np.int32]  # (highest chunk + 1,): the place of each chunk's vector, -1 if it has none

    @property
    def count(self) -> int:
        """How many chunks have a vector."""
        return int(np.count_nonzero(self.chunks))

    def places_of(self, chunks: NDArray[np.int32]) -> NDArray[np.int32]:
        """The places of some chunks, -1 for those without a vector."""
        out = np.full(len(chunks), -1, np.int32)
        known = chunks < len(self.places)
        out[known] = self.places[chunks[known]]
        return out


NONE = Vectors(0, np.zeros(0, np.int32), np.zeros((0, 0), np.int8), np.zeros(0, np.int32))


def read(reader: Reader, before: Vectors = NONE) -> Vectors:
    """The vectors as the reader sees them; only blocks newer than `before` are read."""
    generation = reader.generation()
    if generation == before.generation:
        return before
    blocks = reader.connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
    kept = before if 0 < len(before.chunks) <= blocks * SLOTS else NONE
    chunks, codes = np.zeros(blocks * SLOTS, np.int32), None
    chunks[: len(kept.chunks)] = kept.chunks
    for block in reader.blocks(kept.generation):
        if codes is None:
            codes = np.empty((len(chunks), block.int8.shape[1]), np.int8)
            if kept.codes.shape[1] == codes.shape[1]:
                codes[: len(kept.codes)] = kept.codes
        at = slice((block.number - 1) * SLOTS, block.number * SLOTS)
        chunks[at], codes[at] = block.chunks, block.int8
    if codes is None:
        codes = kept.codes
    places = np.full(int(chunks.max(initial=0)) + 1, -1, np.int32)
    places[chunks] = np.arange(len(chunks), dtype=np.int32)
    places[0] = -1
    return Vectors(generation, chunks, codes, places)


def kernel() -> str:
    """Say what `scan` runs on: "numkong" or "numpy"."""
    return "numkong" if importlib.util.find_spec("numkong") else "numpy"


def scan(codes: NDArray[np.int8], query: Floats) -> Floats:
    """Compare every row of (n, dim) int8 with a unit vector, (dim,) float32: (n,) cosines, up to the codes' rounding.

    The codes are those of vectors.quantise. A row of zeros has cosine 0.
    """
    asked = vectors.quantise(query[None], "int8")
    scale = float(vectors.int8_scale(query.shape[0])) ** 2
    dots = _numkong(codes, asked) if kernel() == "numkong" else _numpy(codes, asked)
    dots /= np.float32(scale)
    return dots


def best(scores: Floats, count: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    """Places of the `count` largest scores, best first, ties by place; of the allowed ones only, (n,) bool."""
    places = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    given = scores if allowed is None else scores[places]
    if count < len(given):
        # Ties with the last one taken must not be decided by the partition.
        least = np.partition(given, len(given) - count)[len(given) - count]
        kept = np.flatnonzero(given >= least)
        places, given = places[kept], given[kept]
    return places[np.argsort(-given, kind="stable")[:count]]


def rescore(rows: NDArray[np.float16], query: Floats) -> Floats:
    """Cosines of (n, dim) float16 unit vectors with the question's, (n,) float32."""
    # A matrix product would round a row in another way in other company.
    return np.asarray(np.einsum("ij,j->i", rows.astype(np.float32), query), np.float32)


def _numkong(codes: NDArray[np.int8], asked: NDArray[Any]) -> Floats:
    if not len(codes):
        return np.zeros(0, np.float32)
    import numkong

    return np.asarray(numkong.cdist(asked, codes, "dot", out_dtype="f32"), np.float32).reshape(-1)


def _numpy(codes: NDArray[np.int8], asked: NDArray[Any]) -> Floats:
    wide = asked[0].astype(np.float32)
    out = np.empty(len(codes), np.float32)
    for start in range(0, len(codes), _ROWS):
        block = codes[start : start + _ROWS]
        np.matmul(block.astype(np.float32), wide, out=out[start : start + len(block)])
    return out
