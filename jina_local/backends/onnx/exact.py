"""Whether the engine's product of whole numbers is exact on this processor: a product whose sums are known tells.

On x86 without VNNI, ONNX Runtime adds pairs of u8 x s8 in 16 bits, which saturate. Its product of u8 by u8 does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...formats.onnx_file import Graph
from ...weights.int8 import LEVELS, Int8
from .layers import Weight, whole_product

Codes = type[np.int8] | type[np.uint8]
# (M, K) u8 around 128 and codes (K, N) -> their product (M, N) float32, by the engine.
Multiply = Callable[[NDArray[np.uint8], NDArray[Any]], NDArray[np.float32]]

# No size is a multiple of a kernel's tile, so that full tiles and rests both count; the sums are exact in float32.
_INNER, _OUTPUTS, _ROWS = 771, 35, (1, 35)


@cache
def codes_type(open_session: Callable[[Graph, int], Any]) -> Codes:
    """The type of weights whose products are exact in the engine on this machine; int8 if both are.

    open_session: graph, threads -> session. Raises EngineError if no type is exact.
    """

    def multiply(states: NDArray[np.uint8], codes: NDArray[Any]) -> NDArray[np.float32]:
        g = Graph()
        weight, scales = g.weight("codes", codes), g.weight("scales", np.ones(codes.shape[1], np.float32))
        y = whole_product(g, g.input("states", np.uint8, ("M", len(codes))), weight, codes.dtype, scales)
        g.output("rows", y, np.float32, ("M", codes.shape[1]))
        rows: NDArray[np.float32] = open_session(g, 1).run(None, {"states": states})[0]
        return rows

    return exact_type(multiply)


def exact_type(multiply: Multiply) -> Codes:
    """The first of int8 and uint8 that is multiplied exactly at the ends of the range. Raises EngineError."""
    signs = np.where(np.arange(_OUTPUTS) % 2, -1, 1)
    codes = np.tile((signs * LEVELS).astype(np.int8), (_INNER, 1))
    types: tuple[Codes, ...] = (np.int8, np.uint8)
    for dtype in types:
        given = codes if dtype is np.int8 else unsigned(codes)
        if all(_is_exact(multiply, count, given, codes) for count in _ROWS):
            return dtype
    raise EngineError(
        "ONNX Runtime's products of 8-bit numbers are wrong on this processor, so its vectors would be. "
        "Use F32 weights: python -m convert onnx SRC OUT --bits 32."
    )


def for_engine(weights: Mapping[str, Weight], dtype: Codes) -> dict[str, Weight]:
    """The same weights, with the codes of matrices in the type that `codes_type` names."""
    if dtype is np.int8:
        return dict(weights)
    return {
        name: Int8(unsigned(weight.codes), weight.scales, None if weight.low is None else unsigned(weight.low))
        if isinstance(weight, Int8)
        else weight
        for name, weight in weights.items()
    }


def unsigned(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """int8 codes as u8 around 128."""
    return codes.view(np.uint8) ^ np.uint8(128)


def _is_exact(multiply: Multiply, count: int, given: NDArray[Any], codes: NDArray[np.int8]) -> bool:
    states = np.tile(np.array([[255], [0]], np.uint8), ((count + 1) // 2, len(codes)))[:count]
    sums = (states.astype(np.int64) - 128) @ codes.astype(np.int64)
    return np.array_equal(multiply(states, given), sums.astype(np.float32))
