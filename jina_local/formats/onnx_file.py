"""ONNX: a graph of operators as protobuf, written here, field by field, so that building one needs no other package.

Weights are outside the graph: each is named with its type and shape, and whoever opens or writes the graph says where
its bytes are. Only small constants are inside. The same graph gives the same bytes.
Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Union

import numpy as np
from numpy.typing import NDArray

# Opset 24 is the first whose Attention takes the length of each text; version 11 of the file format belongs to it.
OPSET, IR_VERSION = 24, 11
_MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators, which all of its builds have
_CONTRIBUTED = {"GroupQueryAttention", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention", "QuickGelu"}
_TYPES = {
    np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3, np.dtype(np.int32): 6,
    np.dtype(np.int64): 7, np.dtype(np.bool_): 9, np.dtype(np.float16): 10,
    np.dtype(np.float64): 11,
}  # fmt: skip
Dims = Sequence[int | str]  # a number, or the name of a size that each run gives
# Name -> (file beside the graph, first byte, bytes), of a weight.
Place = Callable[[str], tuple[str, int, int]]
Attribute = Union[int, float, str, Sequence[int], "Graph"]


class Graph:
    """Operators in the order in which they are added. A value is known by its name, which `node` returns."""

    def __init__(self, outer: Graph | None = None) -> None:
        self._outer = outer
        self._nodes: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._types: list[bytes] = []  # of values whose types and shapes other programs cannot infer
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0
        self.weights: dict[str, NDArray[np.generic]] = {}

    def branch(self) -> Graph:
        """A graph for an attribute of a node (If). It may use every value of this one."""
        return Graph(self)

    def input(self, name: str, dtype: type[np.generic], dims: Dims) -> str:
        """A value that each run gives."""
        self._inputs.append(_value(name, np.dtype(dtype), dims))
        return name

    def output(self, name: str, value: str, dtype: type[np.generic], dims: Dims) -> None:
        """Return a value of the graph under a name."""
        self._nodes.append(_bytes(1, value.encode()) + _bytes(2, name.encode()) + _bytes(4, b"Identity"))
        self._outputs.append(_value(name, np.dtype(dtype), dims))

    def add_output(self, name: str) -> None:
        """Return a value from a branch: float32, of a shape that is not said."""
        self._outputs.append(_value(name, np.dtype(np.float32)))

    def describe(self, value: str, dtype: type[np.generic], dims: Dims) -> str:
        """Say the type and shape of a value, which is returned."""
        self._types.append(_value(value, np.dtype(dtype), dims))
        return value

    def weight(self, name: str, data: NDArray[np.generic]) -> str:
        """A tensor whose bytes are outside the graph. It may be named again, as the same one."""
        self.weights[name] = data
        return name

    def constant(self, value: NDArray[np.generic] | np.generic) -> str:
        """A small tensor inside the graph; equal ones are there once."""
        if self._outer is not None:
            return self._outer.constant(value)
        data = np.asarray(value)
        key = (data.dtype.str, data.shape, data.tobytes())
        return self._constants.setdefault(key, f"constant_{len(self._constants)}")

    def node(self, operator: str, *inputs: str, **attributes: Attribute) -> str:
        """Add an operator of one output, whose name is returned. An input that is left out is ""."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Attribute) -> tuple[str, ...]:
        """Add an operator of several outputs."""
        names = tuple(self._name(operator) for _ in range(outputs))
        fields = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, name.encode()) for name in names]
        fields.append(_bytes(4, operator.encode()))
        fields += [_bytes(5, _attribute(name, value)) for name, value in sorted(attributes.items())]
        if operator in _CONTRIBUTED:
            fields.append(_bytes(7, _MICROSOFT.encode()))
            self._types += [_value(name, np.dtype(np.float32)) for name in names]
        self._nodes.append(b"".join(fields))
        return names

    def model(self, place: Place) -> bytes:
        """The whole file. Raises ValueError for a weight whose bytes are not of its type and shape."""
        graph = self.body("main", place)
        opsets = b"".join(
            _bytes(8, _bytes(1, domain.encode()) + _number(2, version))
            for domain, version in (("", OPSET), (_MICROSOFT, 1))
        )
        return _number(1, IR_VERSION) + _bytes(2, b"jina_local") + opsets + _bytes(7, graph)

    def body(self, name: str, place: Place | None = None) -> bytes:
        """The graph alone. `place` is not needed where there are no weights."""
        constants = [_inside(name, key) for key, name in self._constants.items()]
        if self.weights and place is None:
            raise ValueError("a graph with weights needs their places")
        outside = [_outside(name, data, place) for name, data in self.weights.items() if place is not None]
        parts: tuple[tuple[int, Iterable[bytes]], ...] = (
            (1, self._nodes),
            (2, [name.encode()]),
            (5, [*constants, *outside]),
            (11, self._inputs),
            (12, self._outputs),
            (13, self._types),
        )
        return b"".join(_bytes(field, one) for field, some in parts for one in some)

    def _name(self, operator: str) -> str:
        if self._outer is not None:
            return self._outer._name(operator)
        self._count += 1
        return f"{operator}_{self._count}"


def _attribute(name: str, value: Attribute) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(value, Graph):
        return head + _bytes(6, value.body(name)) + _number(20, 5)
    if isinstance(value, str):
        return head + _bytes(4, value.encode()) + _number(20, 3)
    if isinstance(value, float):
        return head + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, 2)
    return head + b"".join(_number(8, one) for one in value) + _number(20, 7)


def _value(name: str, dtype: np.dtype[np.generic], dims: Dims | None = None) -> bytes:
    kind = _number(1, _TYPES[dtype])
    if dims is not None:
        sizes = (_number(1, n) if isinstance(n, int) else _bytes(2, n.encode()) for n in dims)
        kind += _bytes(2, b"".join(_bytes(1, size) for size in sizes))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, kind))


def _inside(name: str, key: tuple[str, tuple[int, ...], bytes]) -> bytes:
    dtype, shape, data = key
    return _tensor(name, np.dtype(dtype), shape) + _bytes(9, data)


def _outside(name: str, data: NDArray[np.generic], place: Place) -> bytes:
    file, start, size = place(name)
    if size != data.nbytes:
        raise ValueError(f"{name}: {size} bytes in {file}, {data.nbytes} in its shape {data.shape}")
    entries: Mapping[str, str] = {"location": file, "offset": str(start), "length": str(size)}
    where = b"".join(_bytes(13, _bytes(1, k.encode()) + _bytes(2, v.encode())) for k, v in entries.items())
    return _tensor(name, data.dtype, data.shape) + where + _number(14, 1)


def _tensor(name: str, dtype: np.dtype[np.generic], shape: Sequence[int]) -> bytes:
    return b"".join(_number(1, n) for n in shape) + _number(2, _TYPES[dtype]) + _bytes(8, name.encode())


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
