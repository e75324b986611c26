"""The library's own calls on the models in service, for `client.py`: nothing is added, and nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..embedding.embedder import Embedder
from ..errors import UsageError
from ..inference.queue import Call
from .dialects.calls import LibraryCall
from .dialects.fields import BadField
from .dialects.library import write_array
from .served import Served
from .service import Service


def embed(served: Served, call: LibraryCall, ticket: Call) -> dict[str, Any]:
    """`Embedder.embed`. Texts without a usable vector are in `failed`."""
    ticket.alone = True  # else the last bits would depend on who else asks
    service = _service(served, call.model, Embedder)
    served.check_count("texts", len(call.texts))
    if call.words.get("late_chunking"):
        served.check_size("texts", call.texts)
    answer = service.embed(service.embedder.prepare(call.texts, **call.words), ticket)  # type: ignore[arg-type]  # `resolve` judges
    return {
        "model": service.name,
        "vectors": write_array(answer.vectors),
        "token_counts": answer.token_counts.tolist(),
        "truncated": np.flatnonzero(answer.truncated).tolist(),
        "failed": list(answer.failed),
    }


def space(served: Served, call: LibraryCall) -> dict[str, str]:
    """`Embedder.space`."""
    return _service(served, call.model, Embedder).embedder.space(**call.words)  # type: ignore[arg-type]  # `resolve` judges


def rerank(served: Served, call: LibraryCall, ticket: Call) -> dict[str, Any]:
    """`Reranker.rerank`, or that of an Embedder."""
    ticket.alone = True
    service = _service(served, call.model, None)
    served.check_count("documents", len(call.texts))
    model, words = service.model, call.words
    if isinstance(model, Embedder):
        if others := words.keys() - {"top_n", "truncate_dim", "max_length"}:
            raise BadField(min(others), f"is for rerankers; {service.name} embeds.")
        answer = service.rank_by_cosine(call.query, call.texts, ticket, **words)
    else:
        if "truncate_dim" in words:
            raise BadField("truncate_dim", f"is for embedding models; {service.name} reranks.")
        served.check_size("documents", [call.query, *call.texts])
        answer = service.rank(model.prepare(call.query, call.texts, **words), ticket)  # type: ignore[arg-type]
    with_vectors = bool(answer.results) and answer.results[0].embedding is not None
    return {
        "model": service.name,
        "results": [[one.index, one.score] for one in answer.results],
        "embeddings": write_array(np.stack([one.embedding for one in answer.results])) if with_vectors else None,  # type: ignore[misc]
        "cut": list(answer.cut),
        "query_cut": answer.query_cut,
        "tokens": answer.tokens,
        "failed": list(answer.failed),
        "scoring": answer.scoring,
    }


def _service(served: Served, name: str | None, kind: type[Embedder] | None) -> Service:
    service, suffix = served.find(name, kind)
    if suffix:
        raise UsageError(f"the model's name ends in {suffix[:60]!r}; give its task as `task`.")
    return service
