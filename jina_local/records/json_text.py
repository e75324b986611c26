"""A value of a record as JSON that every reader takes."""

from __future__ import annotations

import base64
import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """JSON without NaN and infinity, which become null; dates, decimals and bytes of Parquet become strings.

    Half a surrogate pair is written as an escape, so that the result can always be encoded.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, default=_plain)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(json.loads(text))
    return text


def _plain(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
