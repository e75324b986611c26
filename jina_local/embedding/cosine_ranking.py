"""A ranking by an embedding model: the cosine of each document's vector with the query's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NonFiniteError, UsageError
from ..spec import Ranked, Reranking
from . import vectors
from .request import as_list

if TYPE_CHECKING:
    from .embedder import Embedder
    from .request import SideWords


def rank(
    model: Embedder,
    query: str,
    documents: Iterable[str],
    *,
    top_n: int | None,
    truncate_dim: int | None,
    max_length: int | None,
    show_progress: bool | None,
    deterministic: bool,
) -> Reranking:
    """See `Embedder.rerank`."""
    if not isinstance(query, str):
        raise UsageError(f"the query is {type(query).__name__}, expected str; each call ranks for one query.")
    if isinstance(documents, str):
        raise UsageError("documents are one str; expected a list of them: [document].")
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise UsageError(f"top_n {top_n!r} is out of range; expected a whole number from 1.")
    given = as_list(documents)
    words: SideWords = {"task": "retrieval", "truncate_dim": truncate_dim, "max_length": max_length}
    asked = model.embed([query], prompt_name="query", show_progress=False, **words)
    if asked.failed:
        raise NonFiniteError(asked.failed, 1, of="queries")
    found = model.embed(
        given, prompt_name="document", show_progress=show_progress, deterministic=deterministic, **words
    )
    scores = vectors.similarity(found.vectors, asked.vectors, "float32")[:, 0]
    failed = set(found.failed)
    order = [int(i) for i in np.argsort(-scores, kind="stable") if int(i) not in failed]
    return Reranking(
        results=tuple(Ranked(i, float(scores[i]), given[i]) for i in order[:top_n]),
        cut=tuple(int(i) for i in np.flatnonzero(found.truncated)),
        query_cut=bool(asked.truncated[0]),
        tokens=int(asked.token_counts.sum() + found.token_counts.sum()),
        failed=found.failed,
        scoring="cosine",
    )
