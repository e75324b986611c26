"""Damage for tests: one member of a JSON value changed, removed or added, or a few bytes of a file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from jina_local.errors import ModelDamaged

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 1 << 31, 1 << 32, 1 << 53, 1 << 63, -(1 << 63), 10**40, 0.0, 0.5, -1.5,
    1e300, "", "a", "x" * 2000, "\u2581", "\ud800", "\0", "../x", "/etc/passwd", "é", "NFC", "Lowercase", "BPE",
    "WordLevel", "Unigram", "Sequence", "Replace", "Isolated", "$A", [], [[]], {}, [1], ["a"], ["a", 1],
    {"type": "NFD"}, {"type": []},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}, {"type": "Prepend", "prepend": "x"},
    {"String": "a"}, {"a": {"b": 1}}, [[["deep"]]], [None] * 20,
)  # fmt: skip


def refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """The words with which a call refuses a file, None if it does not; any other error passes through."""
    try:
        call(*arguments)
    except ModelDamaged as error:
        return str(error)
    return None


def damaged_json(value: Any, rng: random.Random) -> bytes:
    """The value with one or two of its nodes changed, as it would stand in a file."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 2)):
        _change(value, rng)
    raw = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    kind = rng.random()
    if kind < 0.1:
        return damaged_bytes(raw, rng)
    if kind < 0.15:
        return raw.replace(b'": ', rng.choice((b'": NaN, "x": ', b'": 1, "type": ', b'": -Infinity,"y": ')), 1)
    return raw


def damaged_bytes(raw: bytes, rng: random.Random, end: int | None = None) -> bytes:
    """One to three bytes before `end` changed; or the end cut off, or a piece repeated."""
    end = len(raw) if end is None else end
    kind, at = rng.random(), rng.randrange(end)
    if kind < 0.1:
        return raw[:at]
    if kind < 0.2:
        stop = min(end, at + rng.randint(1, 50))
        return raw[:stop] + raw[at:stop] + raw[stop:]
    out = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        out[rng.randrange(end)] = rng.choice((0, 0x22, 0x2C, 0x7B, 0xFF, rng.randrange(256)))
    return bytes(out)


def _change(value: Any, rng: random.Random) -> None:
    """One node, most often not far from the top: the members with names matter more than the thousandth of a list."""
    places = list(_places(value, rng))
    parent, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.15:
        del parent[key]
    elif kind < 0.25 and isinstance(parent, dict):
        parent[rng.choice(("extra", "type", "dropout", key + " ", "\ud800", "prepend_scheme"))] = copy.deepcopy(
            rng.choice(ODD)
        )
    elif kind < 0.35 and isinstance(parent, list):
        parent.extend(copy.deepcopy([parent[key]] * rng.randint(1, 40)))
    elif kind < 0.45:
        parent[key] = [parent[key]]
    elif kind < 0.55 and isinstance(parent[key], int):
        parent[key] += rng.choice((1, -1, 1 << 31, 1 << 32, 0.5))
    else:
        parent[key] = copy.deepcopy(rng.choice(ODD))


def _places(value: Any, rng: random.Random) -> Iterator[tuple[Any, Any]]:
    """(parent, key) of nodes; of a large list or object only a few."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys if len(keys) <= 30 else rng.sample(keys, 5):
        yield value, key
        if isinstance(value[key], dict | list) and value[key]:
            yield from _places(value[key], rng)
