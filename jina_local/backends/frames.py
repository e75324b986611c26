"""Frames between a caller's process and an engine's: a fixed head, a small JSON object, then the bytes of arrays.

    head     28 bytes, little-endian: b"JLW", version (1 byte), kind (1 byte), 3 zero bytes, sequence number (8),
             length of the JSON (4), length of the arrays (8)
    JSON     an object; its member "arrays" lists [name, type, shape] in the order of the bytes that follow
    arrays   their elements, little-endian, without gaps

Every length is held against a limit before memory is taken for it. Nothing in a frame is executed; it is no pickle.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

VERSION = 1
_MAGIC = b"JLW"
_HEAD = struct.Struct("<3sBB3xQIQ")
_MOST_JSON = 1 << 20
_TYPES = ("<i4", "<i8", "<f4")


class FrameError(Exception):
    """The bytes are no frame, or one that is not expected. The connection is of no use afterwards."""


class Kind(IntEnum):
    """What a frame says; the lower ones go to the engine's process, the upper ones come from it."""

    OPEN = 1  # the words of open_backend
    RUN = 2  # a pass: sharers, task; ids, starts, rows, owner
    OPENED = 16  # what Backend says of itself
    ROWS = 17  # the rows of a pass
    FAILED = 18  # the name of an exception, and its text
    BEAT = 19  # work goes on


@dataclass(frozen=True)
class Frame:
    """One message. An answer has the sequence number of its question."""

    kind: int
    sequence: int
    words: Mapping[str, object] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)


def pack(frame: Frame) -> list[memoryview]:
    """The bytes of a frame in pieces; those of arrays are not copied. Raises FrameError if it has no form."""
    ordered = {name: np.ascontiguousarray(data, data.dtype.newbyteorder("<")) for name, data in frame.arrays.items()}
    listed = [[name, data.dtype.str, list(data.shape)] for name, data in ordered.items()]
    if wrong := [kind for _, kind, _ in listed if kind not in _TYPES]:
        raise FrameError(f"an array of type {wrong[0]}; possible: {', '.join(_TYPES)}.")
    text = json.dumps({**frame.words, "arrays": listed}, allow_nan=False).encode()
    if len(text) > _MOST_JSON:
        raise FrameError(f"{len(text)} bytes of JSON; at most {_MOST_JSON} are possible.")
    size = sum(data.nbytes for data in ordered.values())
    head = _HEAD.pack(_MAGIC, VERSION, frame.kind, frame.sequence, len(text), size)
    return [memoryview(head + text), *(data.reshape(-1).view(np.uint8).data for data in ordered.values())]


class Reader:
    """Puts frames together from the pieces in which they arrive."""

    def __init__(self, limit: Callable[[int, int], int]) -> None:
        """`limit(kind, sequence)`: how many bytes of arrays such a frame may have. Others are a FrameError."""
        self._limit = limit
        self._await_head()

    def receive(self, connection: socket.socket) -> Frame | None:
        """Read once; the frame that is complete with it, or None.

        Raises EOFError at the end, FrameError, and OSError as sockets do; BlockingIOError if nothing is there.
        """
        count = connection.recv_into(self._buffer[self._filled :])
        if not count:
            raise EOFError
        self._filled += count
        while self._filled == len(self._buffer):
            frame = self._next()
            if frame is not None:
                return frame
        return None

    def _await(self, part: str, size: int) -> None:
        self._part, self._filled = part, 0
        # From numpy, because it does not clear the memory first.
        self._buffer = np.empty(size, np.uint8).data

    def _await_head(self) -> None:
        self._await("head", _HEAD.size)

    def _next(self) -> Frame | None:
        """Go on to the part after the one that is complete."""
        if self._part == "head":
            magic, version, kind, sequence, text, size = _HEAD.unpack(self._buffer)
            if magic != _MAGIC:
                raise FrameError(f"{bytes(self._buffer)!r} is no head of a frame.")
            if version != VERSION:
                raise FrameError(
                    f"frames of version {version}, expected {VERSION}: the package was changed on disk. Start the "
                    "program again."
                )
            if not 2 <= text <= _MOST_JSON or size > self._limit(kind, sequence):
                raise FrameError(f"a frame of kind {kind} with {text} bytes of JSON and {size} of arrays.")
            self._kind, self._sequence, self._size = kind, sequence, size
            self._await("text", text)
            return None
        if self._part == "text":
            self._words = _object(bytes(self._buffer))
            self._await("arrays", self._size)
            return None
        words = dict(self._words)
        arrays = _arrays(words.pop("arrays", None), self._buffer)
        frame = Frame(self._kind, self._sequence, words, arrays)
        self._await_head()
        return frame


def _object(text: bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame whose JSON cannot be read ({error}).") from error
    if not isinstance(value, dict):
        raise FrameError(f"a frame whose JSON is {type(value).__name__}, expected an object.")
    return value


def _arrays(listed: object, data: memoryview) -> dict[str, NDArray[np.generic]]:
    """The arrays in `data`, which they share."""
    if not isinstance(listed, list):
        raise FrameError("a frame without a list of its arrays.")
    arrays: dict[str, NDArray[np.generic]] = {}
    start = 0
    for entry in listed:
        name, kind, shape = entry if isinstance(entry, list) and len(entry) == 3 else ("", "", [])
        if not isinstance(name, str) or kind not in _TYPES or not _is_shape(shape):
            raise FrameError(f"a frame with an array that cannot be: {entry!r}.")
        end = start + int(kind[-1]) * math.prod(shape)
        if end > len(data):
            raise FrameError(f"a frame whose arrays end at byte {end} of {len(data)}.")
        arrays[name] = np.frombuffer(data[start:end], kind).reshape(shape)
        start = end
    if start != len(data):
        raise FrameError(f"a frame whose arrays end at byte {start} of {len(data)}.")
    return arrays


def _is_shape(shape: object) -> bool:
    lengths = shape if isinstance(shape, list) else []
    return len(lengths) in (1, 2) and all(type(length) is int and length >= 0 for length in lengths)
