"""Damage to ONNX files: members of the protobuf changed, dropped, doubled and exchanged, their lengths put right."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from jina_local.formats.onnx_reader import _MESSAGES

from . import mutate

# Members that an honest graph of these models does not have, by message: number and kind.
_FOREIGN = {
    "Model": ((20, "Graph"), (25, "Graph"), (99, "bytes")),
    "Graph": ((14, "bytes"), (15, "bytes")),
    "Node": ((8, "text"), (10, "bytes")),
    "Attribute": ((6, "Graph"), (10, "Tensor"), (11, "Graph"), (21, "text"), (22, "bytes")),
    "Tensor": ((3, "bytes"), (6, "bytes")),
    "Type": ((4, "bytes"), (9, "bytes")),
}  # fmt: skip
_OPERATORS = (
    "If", "Loop", "Scan", "RandomNormal", "EPContext", "Identity", "Reshape", "Gather", "Softmax", "Einsum", "Slice",
    "Attention", "Expand", "Tile", "Pad", "ConstantOfShape", "Range", "Transpose", "MatMul", "Split", "Trilu",
    "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "DequantizeLinear", "CumSum", "ScatterND", "Where",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 7, 16, -1, -2, 127, 128, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63))
_TEXTS = (
    b"", b"../model.onnx_data", b"/etc/passwd", b"model.onnx", b"model.onnx_data", b"no.onnx_data", b"com.microsoft",
    b"ai.onnx.ml", b"custom", b"input_ids", b"attention_mask", b"last_hidden_state", b"\xff\xfe", b"x" * 70000, b"-1",
    b"0", b"99999999999999999999", b"1e3", b"offset", b"location",
)  # fmt: skip


class Message:
    """A message as a list of members: [number, name, kind, wire, value]; the value of a message is a Message."""

    def __init__(self, raw: bytes, kind: str) -> None:
        self.kind, self.members = kind, list[list[Any]]()
        at = 0
        while at < len(raw):
            key, at = _number(raw, at)
            number, wire = key >> 3, key & 7
            name, form = _MESSAGES[kind].get(number, ("?", "bytes"))
            form = form.removeprefix("*")
            if wire == 0:
                value, at = _number(raw, at)
            else:
                size, at = _number(raw, at) if wire == 2 else (4, at)
                value, at = raw[at : at + size], at + size
            self.members.append([number, name, form, wire, Message(value, form) if form in _MESSAGES else value])

    def dump(self) -> bytes:
        """The bytes of the members."""
        out = []
        for number, _, _, wire, value in self.members:
            body = value.dump() if isinstance(value, Message) else value
            if wire == 0:
                out.append(_varint(number << 3) + _varint(int(value)))
            else:
                out.append(_varint(number << 3 | wire) + (_varint(len(body)) if wire == 2 else b"") + body)
        return b"".join(out)

    def inside(self) -> list[Message]:
        """This message and all messages in it."""
        return [self, *(one for m in self.members if isinstance(m[4], Message) for one in m[4].inside())]


def of_graph(rng: Random, raw: bytes) -> tuple[bytes, str]:
    """Change one or two members anywhere."""
    model = Message(raw, "Model")
    everywhere = [one for one in model.inside() if one.members]
    kinds = sorted({one.kind for one in everywhere})
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.choice(kinds)  # else nearly all damage would be to nodes
        message = rng.choice([one for one in everywhere if one.kind == kind and one.members] or [model])
        done.append(f"{message.kind}: {_change(rng, message, everywhere)}")
    return model.dump(), "; ".join(done)


def _change(rng: Random, message: Message, everywhere: list[Message]) -> str:
    members = message.members
    at = rng.randrange(len(members))
    _, name, form, wire, value = members[at]
    what = rng.choice(("value", "value", "value", "value", "drop", "double", "move", "swap", "foreign"))
    if what == "drop":
        members.pop(at)
    elif what == "double":
        members.insert(at, members[at])
    elif what == "move":
        members.insert(rng.randrange(len(members)), members.pop(at))
    elif what == "swap":
        other = rng.choice(rng.choice(everywhere).members or members)
        members[at][4], other[4] = (other[4], value) if other[3] == wire and other[2] == form else (value, other[4])
    elif what == "foreign" and message.kind in _FOREIGN:
        number, kind = rng.choice(_FOREIGN[message.kind])
        body = rng.choice([one for one in everywhere if one.kind == kind] or [Message(b"", "Entry")]).dump()
        members.append([number, "?", "bytes", 2, body])
    else:
        what = "value"
        members[at][4] = _other(rng, name, form, wire, value)
    return f"{what} of {name} {str(members[at][4])[:40] if at < len(members) and what == 'value' else ''}"


def _other(rng: Random, name: str, form: str, wire: int, value: Any) -> Any:
    if wire == 0:
        return rng.choice((rng.choice(_NUMBERS), value + 1, value - 1, value * 2))
    if wire == 5:
        return struct.pack("<f", rng.choice((0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), 2.0)))
    if isinstance(value, Message):
        return Message(b"", form)
    if name == "op_type":
        return rng.choice(_OPERATORS).encode()
    if form == "text":
        return rng.choice((rng.choice(_TEXTS), value[:-1], value + b"x"))
    return mutate.of_bytes(rng, value, 0, len(value))[0] if value else b"\0" * 8


def _number(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 0x80:
            return value - (1 << 64) if value >> 63 else value, at


def _varint(value: int) -> bytes:
    value, out = value & (1 << 64) - 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
