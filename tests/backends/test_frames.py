"""Frames between a caller's process and an engine's."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import struct

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jina_local.backends import frames


def exchange(pieces: list[bytes], limit: int = 1 << 20) -> list[frames.Frame]:
    """What a reader makes of bytes that arrive in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = frames.Reader(lambda kind, sequence: limit)
        got = []
        for piece in pieces:
            theirs.sendall(piece)
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    if frame := reader.receive(ours):
                        got.append(frame)
        return got


@hypothesis.given(
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "arrays"), st.none() | st.text() | st.integers()),
    st.lists(
        st.tuples(st.sampled_from(["<i4", "<i8", "<f4"]), st.lists(st.integers(0, 5), min_size=1, max_size=2)),
        max_size=3,
    ),
    st.integers(0, 2**64 - 1),
    st.integers(1, 40),
)
def test_a_frame_comes_back_as_it_was_sent_however_it_is_cut(words, kinds, sequence, cut):
    arrays = {str(n): np.arange(math.prod(shape), dtype=kind).reshape(shape) for n, (kind, shape) in enumerate(kinds)}
    raw = b"".join(frames.pack(frames.Frame(frames.Kind.RUN, sequence, words, arrays))) * 2
    got = exchange([raw[n : n + cut] for n in range(0, len(raw), cut)])
    assert len(got) == 2
    for frame in got:
        assert (frame.kind, frame.sequence, dict(frame.words)) == (frames.Kind.RUN, sequence, words)
        assert {name: (a.dtype, a.tolist()) for name, a in frame.arrays.items()} == {
            name: (a.dtype, a.tolist()) for name, a in arrays.items()
        }


@hypothesis.given(st.integers(0, 2**32), st.data())
def test_a_damaged_frame_is_refused_or_another_frame_and_nothing_else(seed, data):
    raw = bytearray(b"".join(frames.pack(frames.Frame(2, 7, {"sharers": 1}, {"ids": np.arange(9, dtype=np.int32)}))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(frames.FrameError):
        exchange([bytes(raw)], limit=100)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost", "is no head of a frame"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 2, 2, 0, 2, 0), "the package was changed on disk"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2**31, 0), "2147483648 bytes of JSON"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2, 2**63), "9223372036854775808 of arrays"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2, 0) + b"[]", "JSON is list"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2, 0) + b"{}", "without a list of its arrays"),
        (
            struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 31, 8) + b'{"arrays": [["a", "<i4", [3]]]}' + bytes(8),
            "12 of 8",
        ),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 31, 8) + b'{"arrays": [["a", "<i4", [1]]]}' + bytes(8), "4 of 8"),
        (
            struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 32, 8) + b'{"arrays": [["a", "<i4", [-2]]]}' + bytes(8),
            "cannot be",
        ),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 30, 0) + b'{"arrays": [["a", "O", [10]]]}', "cannot be"),
    ],
)
def test_what_is_no_frame_is_refused_before_memory_is_taken(head, told):
    with pytest.raises(frames.FrameError, match=re.escape(told)):
        exchange([head])


def test_an_array_of_another_type_is_not_sent():
    with pytest.raises(frames.FrameError, match="an array of type <f8"):
        frames.pack(frames.Frame(2, 1, {}, {"ids": np.zeros(3)}))
