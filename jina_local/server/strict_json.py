"""JSON as the server takes and gives it: nothing that two readers would read differently."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import UsageError

_DEPTH = 16
_DIGITS = 20
_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_TOO_DEEP = f"the body is nested more than {_DEPTH} deep."


def loads(raw: bytes) -> Any:
    """Read a body. Raises UsageError for NaN, names given twice, deep nests, long numbers and what is not JSON."""
    try:
        body = json.loads(
            raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object, parse_int=_whole
        )
    except UnicodeDecodeError as error:
        raise UsageError(f"the body is not UTF-8: byte {error.start} cannot be read.") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"the body is not JSON: {error.msg} at character {error.pos}.") from None
    except RecursionError:
        raise UsageError(_TOO_DEEP) from None
    _check_depth(body)
    return body


def dumps(body: Any) -> bytes:
    """Write a reply. The parts of its lists are written one by one, so that other threads may run in between.

    A list may be an array of float32, or hold some. Raises ValueError for what is not finite.
    """
    if isinstance(body, Mapping):
        return b"{" + b",".join(_plain(str(key)) + b":" + dumps(value) for key, value in body.items()) + b"}"
    if isinstance(body, np.ndarray):
        return _row(body) if body.ndim == 1 else b"[" + b",".join(map(_row, body)) + b"]"
    if isinstance(body, list) and body and isinstance(body[0], Mapping | list | np.ndarray):
        return b"[" + b",".join(dumps(one) for one in body) + b"]"
    return _plain(body)


def _row(row: np.ndarray) -> bytes:
    """A vector in decimals of which a reader makes the same float32: nine digits are enough for each."""
    if row.ndim != 1 or row.dtype != np.float32 or not np.isfinite(row).all():
        raise ValueError(f"an array {row.shape} of {row.dtype} cannot be written, or is not finite")
    return b"[" + b",".join([b"%.9g"] * len(row)) % tuple(row.tolist()) + b"]"


def _plain(value: Any) -> bytes:
    return _encoder.encode(value).encode()


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise UsageError(_TOO_DEEP)


def _refuse_constant(name: str) -> NoReturn:
    raise UsageError(f"the body has {name}, which is no number in JSON.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"the body has {name[:60]!r} twice.")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise UsageError(f"the body has a number of {len(digits)} digits; {_DIGITS} are allowed.")
    return int(digits)
