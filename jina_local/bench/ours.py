"""A contender is opened: a model of this package, as `load` opens it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embedding.embedder import Embedder
from ..loading import load


@dataclass(frozen=True)
class Opened:
    """A contender that is ready.

    run: texts -> (n_texts, dim) vectors, or, if it ranks, (n_texts,) scores for the one query.
    about: what it runs on, as far as it says so.
    """

    run: Callable[[list[str]], NDArray[Any]]
    about: dict[str, str | int]


def open_model(query: str | None, **settings: Any) -> Opened:
    """The model that `load` opens with these settings. query: of a reranker."""
    model: Any = load(**settings, offline=True, show_progress=False)
    origin = model.spec.origin
    about = {"device": origin.device, "dtype": origin.dtype, "threads": origin.threads}
    if isinstance(model, Embedder):
        task = settings["task"]
        return Opened(lambda texts: model.encode(texts, task=task, show_progress=False), about)

    def ranked(texts: list[str]) -> NDArray[np.float64]:
        scores = np.empty(len(texts))
        for one in model.rerank(query, texts, show_progress=False):
            scores[one.index] = one.score
        return scores

    return Opened(ranked, about)
