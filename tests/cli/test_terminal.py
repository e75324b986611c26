"""terminal.py: one line a text, no wider than there is room, with nothing in it that a terminal would obey."""

from __future__ import annotations

import io
import os
import unicodedata

import pytest

from jina_local.cli import terminal


def width(line):
    """Columns as a terminal counts them, worked out apart from the code under test."""
    wide = sum(unicodedata.east_asian_width(c) in ("W", "F") for c in line)
    none = sum(bool(unicodedata.combining(c)) for c in line)
    return len(line) + wide - none


@pytest.mark.parametrize(
    ("text", "room", "line"),
    [
        ("short", 5, "short"),
        ("longer", 5, "long…"),
        ("longer", None, "longer"),
        ("", 5, ""),
        ("ab", 1, "…"),
        ("ab", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("日本語", 1, "…"),
        ("ab日", 3, "ab…"),
        ("e\u0301te\u0301", 3, "e\u0301te\u0301"),
        ("e\u0301te\u0301s", 3, "e\u0301t…"),
        ("one\ntwo\tthree\r", None, "one\\ntwo\\tthree\\r"),
        ("ab\ncd", 4, "ab…"),
        ("\x1b[31mred\x00\x7f\x9b", None, "\\x1b[31mred\\x00\\x7f\\x9b"),
        ("left\u202eright\u2028", None, "left\\u202eright\\u2028"),
        ("half \ud800", None, "half \\ud800"),
        ("👩\u200d👩\u200d👧", None, "👩\u200d👩\u200d👧"),
    ],
)
def test_one_line(text, room, line):
    assert terminal.one_line(text, room) == line


def test_no_line_is_wider_than_its_room_and_none_is_cut_without_need():
    text = "a日e\u0301ｆ\n終\u0302z" * 3
    full = terminal.one_line(text, None)
    for room in range(1, width(full) + 2):
        line = terminal.one_line(text, room)
        assert width(line) <= room
        assert (line == full) == (room >= width(full))
        assert line == full or (line.endswith("…") and full.startswith(line[:-1]))
        assert line == full or width(line) >= room - 1


def test_columns_are_those_of_the_terminal_or_as_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.columns(io.BytesIO()) is None
    monkeypatch.setenv("COLUMNS", "33")
    assert terminal.columns(io.BytesIO()) == 33
    monkeypatch.setenv("COLUMNS", "0")
    assert terminal.columns(io.BytesIO()) is None


@pytest.mark.skipif(os.name != "posix", reason="terminals as POSIX has them")
def test_columns_of_a_real_terminal(monkeypatch):
    import fcntl
    import pty
    import struct
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "wb", buffering=0) as file:
        fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 71, 0, 0))
        assert terminal.columns(file) == 71
        fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        assert terminal.columns(file) == 80
    os.close(leader)
