"""One model in service: open, with its queue."""

from __future__ import annotations

import stat
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..embedding.embedder import Embedder
from ..embedding.embedder import Prepared as PreparedTexts
from ..inference.queue import Call, PassQueue
from ..loading import load
from ..reranking.reranker import Prepared as PreparedRanking
from ..reranking.reranker import Reranker
from ..spec import Embedded, ModelSpec, Reranking
from .dialects.calls import ModelInfo
from .faults import Refused
from .settings import Settings


@dataclass(eq=False)
class Service:
    """One model, open, with its queue."""

    name: str
    model: Embedder | Reranker
    queue: PassQueue
    most_tokens: int  # of a request
    _digest: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, settings: Settings, words: Mapping[str, Any]) -> Service:
        """Open a model by the words of `load`. Raises what `load` raises."""
        queue = PassQueue(
            max_batch_tokens=settings.max_batch_tokens,
            max_wait=settings.max_wait_ms / 1000,
            max_tokens=settings.queue_tokens,
            max_seconds=settings.queue_seconds,
        )
        model = load(**words, queue=queue)
        return cls(model.spec.name, model, queue, settings.max_request_tokens)

    @property
    def spec(self) -> ModelSpec:
        """What it is."""
        return self.model.spec

    @property
    def embedder(self) -> Embedder:
        """The model, which has to be one that embeds: `Served.find` is asked for the kind."""
        if not isinstance(self.model, Embedder):
            raise AssertionError(f"{self.name} does not embed")
        return self.model

    @property
    def reranker(self) -> Reranker:
        """The model, which has to be a reranker."""
        if not isinstance(self.model, Reranker):
            raise AssertionError(f"{self.name} is no reranker")
        return self.model

    def embed(self, prepared: PreparedTexts, ticket: Call) -> Embedded:
        """Run what an embedding model has prepared, through the queue. Raises Refused, Overloaded."""
        with self._admitted(ticket, int(prepared.ids.counts.sum())):
            pooled = self.embedder.run(prepared, show_progress=False)
        return self.embedder.finish(prepared, pooled)

    def rank_by_cosine(self, query: str, documents: Sequence[str], ticket: Call, **words: Any) -> Reranking:
        """`Embedder.rerank`, through the queue."""
        counts = self.embedder.tokenize([query, *documents], task="retrieval", max_length=words.get("max_length"))
        with self._admitted(ticket, sum(map(len, counts))):
            return self.embedder.rerank(query, documents, **words, show_progress=False)

    def rank(self, prepared: PreparedRanking, ticket: Call) -> Reranking:
        """Run what a reranker has prepared, through the queue. Raises Refused, Overloaded."""
        with self._admitted(ticket, prepared.tokens):
            scores = self.reranker.run(prepared, show_progress=False)
        return self.reranker.finish(prepared, scores)

    def _admitted(self, ticket: Call, tokens: int) -> AbstractContextManager[None]:
        """See `PassQueue.admit`. Raises Refused for more tokens than a request may have."""
        if tokens > self.most_tokens:
            message = f"{tokens} tokens in one request; {self.most_tokens} are allowed."
            raise Refused(422, "too_many_tokens", message, "input")
        return self.queue.admit(ticket, tokens)

    def info(self) -> ModelInfo:
        """What a client may want to know of it."""
        spec, origin = self.spec, self.spec.origin
        if origin is None:
            raise AssertionError("an open model has no origin")
        files = [one.stat() for one in (origin.path.rglob("*") if origin.path.is_dir() else [origin.path])]
        files = [one for one in files if stat.S_ISREG(one.st_mode)]
        with self._lock:  # reading a file for its digest takes a while, once
            self._digest = self._digest or self.model.digest()
        return ModelInfo(
            name=self.name,
            kind="embedding" if spec.scoring is None else "reranker",
            tasks=spec.tasks,
            prompts=[name for name in spec.prompts if name not in spec.tasks],
            dims=spec.dims,
            max_tokens=spec.max_tokens,
            pooling=spec.pooling,
            license=spec.license,
            backend=origin.backend,
            weights=origin.weights,
            device=origin.device,
            dtype=origin.dtype,
            digest=self._digest,
            architecture=spec.architecture,
            form=origin.form,
            size=sum(one.st_size for one in files),
            modified=max((one.st_mtime for one in files), default=0.0),
        )
