"""Questions to indexes: POST /v1/search and GET /v1/indexes, in the words of `search` of the command line."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

from .calls import BadField, Fields, FoundPassages, IndexInfo, SearchCall

_MODES = {mode: mode for mode in ("hybrid", "vector", "lexical")}


def read_search(body: object) -> SearchCall:
    """POST /v1/search."""
    fields = Fields(body)
    call = SearchCall(
        query=fields.required("query"),
        index=fields.text("index"),
        k=fields.whole("k") or 10,
        mode=fields.choice("mode", among=_MODES, default="hybrid"),
        lang=_several(fields, "lang"),
        path=_several(fields, "path"),
        since=fields.text("since"),
        min_score=_number(fields, "min_score"),
        rerank=_rerank(fields),
        context=fields.whole("context", low=0),
        max_tokens=fields.whole("max_tokens"),
        alone=fields.flag("alone", default=False),
    )
    fields.done()
    return call


def write_search(call: SearchCall, reply: FoundPassages) -> dict[str, Any]:
    """The answer. Beside the record, a hit has the lines of the passage itself, and its path's bytes if no UTF-8."""
    hits = []
    for one in reply.hits:
        hit = {**one.record, "passage": {"start_line": one.start_line, "end_line": one.end_line}}
        try:
            one.path.decode()
        except UnicodeDecodeError:
            hit["path_base64"] = base64.b64encode(one.path).decode()
        hits.append(hit)
    return {
        "object": "list",
        "index": reply.index,
        "mode": reply.mode,
        "missing": list(reply.missing),
        "hits": hits,
    }


def write_indexes(infos: Sequence[IndexInfo]) -> dict[str, Any]:
    """GET /v1/indexes."""
    return {
        "object": "list",
        "data": [
            {
                "id": info.name,
                "object": "index",
                "files": info.files,
                "passages": info.passages,
                "vectors": info.vectors,
                "model": info.model,
                "dimensions": info.dim,
            }
            for info in infos
        ],
    }


def _several(fields: Fields, name: str) -> tuple[str, ...]:
    """One word or several."""
    _, value = fields.any(name)
    words = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadField(name, "expected a string or a list of strings.")
    return tuple(words)


def _number(fields: Fields, name: str) -> float | None:
    _, value = fields.any(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadField(name, "expected a number.")
    return value


def _rerank(fields: Fields) -> str | bool:
    """The name of a reranker; True takes the first one in service."""
    _, value = fields.any("rerank")
    if value is None:
        return False
    if not isinstance(value, str | bool):
        raise BadField("rerank", "expected true, false, or the name of a reranker in service.")
    return value
