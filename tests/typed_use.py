"""What type checkers know of the public names: `mypy --strict` and pyright check this file, nothing runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from jina_local import Embedder, Ranked, Reranker, Reranking, chunks, load

Floats = NDArray[np.float32]


def use(model: Embedder, reranker: Reranker, texts: list[str]) -> None:
    assert_type(load(), Embedder)
    assert_type(load("jina-reranker-v3"), Reranker)
    assert_type(model.encode("x"), Floats)
    assert_type(model.encode(texts, task="clustering", truncate_dim=64), Floats)
    assert_type(model.encode(sentences=iter(texts), precision="float32"), Floats)
    assert_type(model.encode(texts, precision="int8"), NDArray[np.generic[Any]])
    assert_type(model.encode_query("x", truncate_dim=64), Floats)
    assert_type(model.encode_document(texts, precision="binary"), NDArray[np.generic[Any]])
    assert_type(model.encode_chunks("x", chunks.sentences), Floats)
    assert_type(model.rerank("x", texts), Reranking)
    ranking = reranker.rerank("x", texts, top_n=3)
    assert_type(ranking[0], Ranked)
    for one in ranking:
        assert_type(one.score, float)
    model.encode(texts, task="poetry")  # type: ignore[call-overload]  # no task has that name
    model.encode(texts, precison="int8")  # type: ignore[call-overload]  # no parameter has that name
