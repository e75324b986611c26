"""A user's words for filters -> the filters of a Question. `named` is what the user calls the filter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from ..errors import UsageError
from ..registry import near_match
from .extract import LANGUAGES, language_named

_LATEST = 2**63 - 1  # what a file's time can be, in nanoseconds
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def languages(wanted: Sequence[str], named: str) -> tuple[str, ...]:
    """Languages as the index names them, from their names or suffixes."""
    out = []
    for name in wanted:
        found = language_named(name)
        if found is None:
            near = near_match(name, LANGUAGES)
            raise UsageError(f"{named} {name}: unknown{near}. Known: {', '.join(sorted(LANGUAGES))}, and suffixes.")
        out.append(found)
    return tuple(out)


def since(given: str, now: float, named: str) -> int:
    """A moment in nanoseconds: a date with or without a time, local, or how long ago."""
    if ago := re.fullmatch(r"(\d{1,12})([mhdw])", given):
        return max(int(now - int(ago[1]) * _UNITS[ago[2]]), 0) * 10**9
    try:
        return min(int(datetime.fromisoformat(given).timestamp()) * 10**9, _LATEST)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{named} {given}: expected a date such as 2026-01-31, or 90m, 12h, 7d, 4w.") from None
