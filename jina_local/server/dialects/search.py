"""Questions to indexes: POST /v1/search and GET /v1/indexes, in the words of `search` of the command line."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from .calls import FoundPassages, IndexInfo, SearchCall
from .fields import Fields

_MODES = {mode: mode for mode in ("hybrid", "vector", "lexical")}


def read_search(body: object) -> SearchCall:
    """POST /v1/search."""
    fields = Fields.of(body)
    call = SearchCall(
        query=fields.required("query"),
        index=fields.text("index"),
        k=fields.whole("k") or 10,
        mode=fields.choice("mode", among=_MODES, default="hybrid"),
        lang=fields.strings("lang", alone=True),
        path=fields.strings("path", alone=True),
        since=fields.text("since"),
        min_score=fields.value("min_score", of=(float,)),
        rerank=fields.value("rerank", of=(bool, str)) or False,  # True: the first in service
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
