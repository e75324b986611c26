"""ONNX files of others: the protobuf read strictly, so that every reader of an accepted file sees the same graph.

Refused: members that are not in the tables below, among them functions, graphs within graphs, sparse and segmented
tensors; a single member that is there twice; a member of another wire type; tensors whose bytes are not as many as
their shape says; more members than any model has. No weights are read: they are outside, in files beside the graph.
Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelDamaged
from .files import open_regular, read_all
from .schema import check, list_of, matching, shown, whole

_MOST_BYTES, _MOST_MEMBERS = 64 << 20, 1_000_000
_DTYPES: Mapping[int, str] = {
    1: "<f4", 2: "u1", 3: "i1", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8",
}  # fmt: skip
_LOCATION = matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.(onnx_data|data)", "a plain file name with .onnx_data or .data"
)
_DECIMAL = matching(r"0|[1-9][0-9]{0,14}", "a number")
_DIMS = list_of(whole(0, 1 << 40), 8)

# Message -> number -> (name, kind). A kind is "int", "float", "text", "bytes", a list of numbers ("ints", "floats"),
# or another message; with a `*` the member may be there many times.
_MESSAGES: Mapping[str, Mapping[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "int"), 2: ("producer_name", "text"), 3: ("producer_version", "text"),
        4: ("domain", "text"), 5: ("model_version", "int"), 6: ("doc_string", "text"), 7: ("graph", "Graph"),
        8: ("opset_import", "*Opset"), 14: ("metadata_props", "*Entry"),
    },
    "Opset": {1: ("domain", "text"), 2: ("version", "int")},
    "Graph": {
        1: ("node", "*Node"), 2: ("name", "text"), 5: ("initializer", "*Tensor"), 10: ("doc_string", "text"),
        11: ("input", "*Value"), 12: ("output", "*Value"), 13: ("value_info", "*Value"),
        16: ("metadata_props", "*Entry"),
    },
    "Node": {
        1: ("input", "*text"), 2: ("output", "*text"), 3: ("name", "text"), 4: ("op_type", "text"),
        5: ("attribute", "*Attribute"), 6: ("doc_string", "text"), 7: ("domain", "text"),
        9: ("metadata_props", "*Entry"),
    },
    "Attribute": {
        1: ("name", "text"), 2: ("f", "float"), 3: ("i", "int"), 4: ("s", "bytes"), 5: ("t", "Tensor"),
        7: ("floats", "floats"), 8: ("ints", "ints"), 9: ("strings", "*bytes"), 13: ("doc_string", "text"),
        20: ("type", "int"),
    },
    "Tensor": {
        1: ("dims", "ints"), 2: ("data_type", "int"), 4: ("float_data", "floats"), 5: ("int32_data", "ints"),
        7: ("int64_data", "ints"), 8: ("name", "text"), 9: ("raw_data", "bytes"), 12: ("doc_string", "text"),
        13: ("external_data", "*Entry"), 14: ("data_location", "int"), 16: ("metadata_props", "*Entry"),
    },
    "Value": {1: ("name", "text"), 2: ("type", "Type"), 3: ("doc_string", "text"), 4: ("metadata_props", "*Entry")},
    "Type": {1: ("tensor_type", "TensorType"), 6: ("denotation", "text")},
    "TensorType": {1: ("elem_type", "int"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "*Dim")},
    "Dim": {1: ("dim_value", "int"), 2: ("dim_param", "text"), 3: ("denotation", "text")},
    "Entry": {1: ("key", "text"), 2: ("value", "text")},
}  # fmt: skip
_WIRES = {"int": 0, "float": 5, "ints": 0, "floats": 5}  # of single numbers; everything else has a length before it
_NUMBERS = {"ints", "floats"}  # whose members may also be packed, with a length before them


@dataclass(frozen=True)
class Tensor:
    """A tensor's type and shape. `place`: (file, first byte, bytes) if it is outside the graph, else None."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    place: tuple[str, int, int] | None


@dataclass(frozen=True)
class OnnxFile:
    """A graph as it was read. `raw`: the bytes that were judged, which alone may be given to an engine."""

    path: Path
    raw: bytes
    operators: frozenset[tuple[str, str]]  # (domain, operator); of ONNX's own the domain is ""
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, tuple[np.dtype[Any], int]]  # name -> type, number of dimensions
    outputs: Mapping[str, tuple[np.dtype[Any], int]]

    def outside(self) -> dict[str, NDArray[Any]]:
        """The data of every tensor outside the graph. Raises ModelDamaged."""
        out: dict[str, NDArray[Any]] = {}
        for name, tensor in self.tensors.items():
            if tensor.place is not None:
                out[name] = _read(self.path.parent / tensor.place[0], tensor, name)
        return out


def read(path: Path) -> OnnxFile:
    """Read a graph and check that the bytes of its weights are there. Raises ModelDamaged."""
    raw, _ = read_all(path, _MOST_BYTES)
    model = _Reader(str(path)).message(memoryview(raw), "Model")
    graph = model.get("graph")
    if graph is None:
        raise ModelDamaged(f"{path}: holds no graph.")
    nodes = graph.get("node", [])
    constants = (a["t"] for node in nodes for a in node.get("attribute", []) if "t" in a)
    for constant in constants:
        if _tensor(constant, str(path)).place is not None:
            raise ModelDamaged(f"{path}: the value of a constant lies outside the graph.")
    tensors = _unique([(one.get("name", ""), _tensor(one, str(path))) for one in graph.get("initializer", [])], path)
    _check_places(path, tensors)
    return OnnxFile(
        path=path,
        raw=raw,
        operators=frozenset((_domain(node), node.get("op_type", "")) for node in nodes),
        tensors=tensors,
        inputs=_unique([_value(one, path) for one in graph.get("input", [])], path),
        outputs=_unique([_value(one, path) for one in graph.get("output", [])], path),
    )


class _Reader:
    """Decodes messages, and counts their members."""

    def __init__(self, where: str) -> None:
        self._where, self._left = where, _MOST_MEMBERS

    def message(self, data: memoryview, kind: str) -> dict[str, Any]:
        """The members by name; what may be there many times as a list."""
        table, out = _MESSAGES[kind], dict[str, Any]()
        for number, wire, value in self._members(data):
            if number not in table:
                raise self._fault(f"{kind} has a member {number}, which is not read here")
            name, form = table[number]
            many, form = form.startswith("*"), form.removeprefix("*")
            if form in _NUMBERS:
                out.setdefault(name, []).extend(self._numbers(form, wire, value))
                continue
            if wire != _WIRES.get(form, 2):
                raise self._fault(f"{kind}.{name} is of another type")
            if form in _MESSAGES:
                value = self.message(value, form)
            elif form == "text":
                value = self._text(value)
            if many:
                out.setdefault(name, []).append(value)
            elif name in out:
                raise self._fault(f"{kind}.{name} is there twice")
            else:
                out[name] = value
        return out

    def _members(self, data: memoryview) -> Iterator[tuple[int, int, Any]]:
        """(number, wire type, value): an int, 4 bytes, or as many bytes as stand before them."""
        at = 0
        while at < len(data):
            self._count()
            key, at = self._varint(data, at)
            wire = key & 7
            value: int | memoryview | None = None
            if wire == 0:
                value, at = self._varint(data, at)
            elif wire in (2, 5):
                size, at = self._varint(data, at) if wire == 2 else (4, at)
                value, at = data[at : at + size], at + size
            if value is None or at > len(data):
                raise self._fault("a member is cut, or of a type that ONNX does not have")
            yield key >> 3, wire, value

    def _numbers(self, form: str, wire: int, value: Any) -> list[Any]:
        if wire == _WIRES[form]:
            return [value]
        if wire != 2 or (form == "floats" and len(value) % 4):
            raise self._fault(f"a list of {form} is of another type")
        out: list[Any] = []
        at = 0
        while at < len(value):
            self._count()
            number, at = self._varint(value, at) if form == "ints" else (value[at : at + 4], at + 4)
            out.append(number)
        return out

    def _varint(self, data: memoryview, at: int) -> tuple[int, int]:
        """A number of 64 bits, signed, and the place after it."""
        value = shift = 0
        while at < len(data) and shift < 70:
            byte = data[at]
            value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
            if byte < 0x80:
                break
        else:
            raise self._fault("a number is cut, or too long")
        if value >= 1 << 64:
            raise self._fault("a number is too large")
        return value - (1 << 64) if value >> 63 else value, at

    def _text(self, data: memoryview) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise self._fault("a text is not UTF-8") from error

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._fault(f"it has more than {_MOST_MEMBERS:,} members")

    def _fault(self, what: str) -> ModelDamaged:
        return ModelDamaged(f"{self._where}: cannot be read as a graph: {what}.")


def _tensor(members: Mapping[str, Any], where: str) -> Tensor:
    name = f"tensor {shown(members.get('name', ''))}"
    number = members.get("data_type", 0)
    if number not in _DTYPES:
        raise ModelDamaged(f"{where}: {name} has the type {number}, which is not read here.")
    dtype = np.dtype(_DTYPES[number])
    shape = tuple(check(members.get("dims", []), _DIMS, where, f"the shape of {name}"))
    count, outside = math.prod(shape), members.get("data_location", 0)
    data = [key for key in ("float_data", "int32_data", "int64_data", "raw_data") if members.get(key)]
    if outside == 1 and not data:
        return Tensor(dtype, shape, _place(members, where, name, count * dtype.itemsize))
    there = [len(members[key]) // (dtype.itemsize if key == "raw_data" else 1) for key in data]
    odd = "raw_data" in data and len(members["raw_data"]) % dtype.itemsize
    if outside or members.get("external_data") or odd or sum(there) != count or len(data) > 1:
        raise ModelDamaged(f"{where}: the data of {name} is not that of its shape {shape}.")
    return Tensor(dtype, shape, None)


def _place(members: Mapping[str, Any], where: str, name: str, size: int) -> tuple[str, int, int]:
    entries = [(one.get("key", ""), one.get("value", "")) for one in members.get("external_data", [])]
    found = dict(entries)
    if len(found) < len(entries) or not found.keys() <= {"location", "offset", "length", "checksum"}:
        raise ModelDamaged(f"{where}: the place of {name} has members that are unknown or there twice.")
    location = check(found.get("location"), _LOCATION, where, f"the file of {name}")
    start, length = (
        int(check(found.get(key, default), _DECIMAL, where, f"the {key} of {name}"))
        for key, default in (("offset", "0"), ("length", str(size)))
    )
    if length != size:
        raise ModelDamaged(f"{where}: {name} has {length} bytes outside; its shape takes {size}.")
    return location, start, size


def _check_places(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelDamaged unless the places lie inside their files, without two on the same bytes."""
    places = sorted((one.place, name) for name, one in tensors.items() if one.place is not None and one.place[2])
    sizes: dict[str, int] = {}
    end: tuple[str, int] = "", 0
    for (file, start, size), name in places:
        if file not in sizes:
            with open_regular(path.parent / file) as opened:
                sizes[file] = os.fstat(opened.fileno()).st_size
        if start + size > sizes[file]:
            raise ModelDamaged(
                f"{path.parent / file}: ends before the end of {shown(name)}; it is cut, or another model's."
            )
        if end[0] == file and start < end[1]:
            raise ModelDamaged(f"{path}: the tensor {shown(name)} lies on another one's bytes.")
        end = file, start + size


def _read(path: Path, tensor: Tensor, name: str) -> NDArray[Any]:
    data = np.empty(math.prod(tensor.shape), tensor.dtype)
    with open_regular(path) as file:
        file.seek(tensor.place[1] if tensor.place else 0)
        if file.readinto(data.view(np.uint8).data) != data.nbytes:
            raise ModelDamaged(f"{path}: ends inside the tensor {shown(name)}; the file has changed or is cut.")
    return data.reshape(tensor.shape)


def _value(members: Mapping[str, Any], path: Path) -> tuple[str, tuple[np.dtype[Any], int]]:
    name, kind = members.get("name", ""), members.get("type", {}).get("tensor_type", {})
    number = kind.get("elem_type", 0)
    if number not in _DTYPES or "shape" not in kind:
        raise ModelDamaged(f"{path}: {shown(name)} has no type or shape that is read here.")
    return name, (np.dtype(_DTYPES[number]), len(kind["shape"].get("dim", [])))


def _domain(node: Mapping[str, Any]) -> str:
    domain: str = node.get("domain", "")
    return "" if domain == "ai.onnx" else domain


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ModelDamaged(f"{path}: two values of the graph have one name.")
    return found
