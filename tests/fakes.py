"""An engine, an embedder and a reranker without weights: what they answer is a function of what they are asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jina_local import registry
from jina_local.backends.checks import check_task
from jina_local.embedding import vectors
from jina_local.embedding.request import resolve
from jina_local.errors import EngineError, TextError
from jina_local.reranking.request import resolve as resolve_ranking
from jina_local.spec import RERANK, Budget, Embedded, ModelSpec, Origin, Ranked, Reranking, TokenBatch


class FakeBackend:
    """A Backend whose rows depend on the task, the ids up to and including their own place, and on nothing else.

    `looks_ahead`: on all ids of their text, as an encoder's do. Ids in `poison` make the rows of their text NaN.
    `batches` and `asked` keep the passes and their tasks.
    """

    def __init__(
        self,
        hidden: int = 32,
        vocab: int = 1000,
        *,
        lanes: int = 1,
        budget: Budget | None = None,
        adapters: Sequence[str] = (),
        looks_ahead: bool = False,
    ) -> None:
        self.hidden, self.vocab, self.lanes, self.looks_ahead = hidden, vocab, lanes, looks_ahead
        self.budget = budget or Budget(tokens=64, texts=8, padded=False)
        self.device, self.dtype, self.threads = "cpu", "float32", 1
        self.reasons: tuple[str, ...] = ("it is a fake",)
        self.poison: frozenset[int] = frozenset()
        self.adapters = tuple(adapters)
        self.batches: list[TokenBatch] = []
        self.asked: list[str | None] = []
        self.closed = False

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> np.ndarray:
        """(n_rows, hidden) float32."""
        if self.closed:
            raise EngineError("this backend is closed")
        check_task(task, self.adapters)
        self.batches.append(batch)
        self.asked.append(task)
        out = np.empty((len(batch.rows), self.hidden), np.float32)
        for n, (row, owner) in enumerate(zip(batch.rows, batch.owner, strict=True)):
            text = batch.ids[batch.starts[owner] : batch.starts[owner + 1]]
            if text.min(initial=0) < 0 or text.max(initial=0) >= self.vocab:
                raise EngineError(f"a token id is outside 0 to {self.vocab - 1}")
            seen = text if self.looks_ahead else batch.ids[batch.starts[owner] : row + 1]
            out[n] = (
                np.nan
                if self.poison & set(text.tolist())
                else noise((task or "").encode() + seen.tobytes(), self.hidden)
            )
        return out

    def close(self) -> None:
        """Forward raises from here on."""
        self.closed = True


class FakeEmbedder:
    """What `load` returns, without weights: a vector is a hash of prompt, task and text; a token is a character.

    Texts that hold `BROKEN` have no vector. `calls` keeps how many texts each call had.
    """

    BROKEN = "\x00broken"

    def __init__(self, spec: ModelSpec | None = None, **loaded: object) -> None:
        row = registry.lookup(registry.DEFAULT_MODEL)
        self.spec = replace(
            spec or registry.narrow(row, hidden=64, max_positions=100, tasks=row.spec.tasks),
            origin=Origin(Path("/fake"), "mlx", "mlx", "32bit", "cpu", "float32", 1, None, ("it is a fake",)),
        )
        self.loaded = loaded
        self.calls: list[int] = []
        self.closed = False

    def embed(
        self, texts: Sequence[str], *, show_progress: bool | None = None, deterministic: bool = False, **words: Any
    ) -> Embedded:
        """As Embedder.embed."""
        self.calls.append(len(texts))
        spec = resolve(self.spec, **words)
        overflow = spec.overflow
        pooled = np.empty((len(texts), self.spec.dims[-1]), np.float32)
        counts = np.empty(len(texts), np.int32)
        for i, text in enumerate(texts):
            try:
                raw = (spec.prefix + text).encode()
            except UnicodeEncodeError as error:
                raise TextError(i, f"invalid surrogate at character {error.start}.") from error
            if len(text) > spec.max_tokens and overflow == "error":
                raise TextError(i, f"has more than the {spec.max_tokens} tokens that are allowed.")
            counts[i] = len(text)
            pooled[i] = np.nan if self.BROKEN in text else noise(spec.task.encode() + raw, pooled.shape[1])
        failed = tuple(int(i) for i in np.flatnonzero(vectors.unusable(pooled, spec.dim)))
        cut = counts > spec.max_tokens
        return Embedded(vectors.finish(pooled, spec), np.minimum(counts, spec.max_tokens), cut, failed, spec)

    def space(self, **words: Any) -> dict[str, str]:
        """As Embedder.space."""
        spec = resolve(self.spec, **words)
        return {"model": spec.model, "task": spec.task, "prompt": spec.prefix, "dim": str(spec.dim)}

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> Reranking:
        """As Embedder.rerank."""
        words = {"truncate_dim": truncate_dim, "max_length": max_length}
        asked = self.embed([query], prompt_name="query", **words)
        found = self.embed(documents, prompt_name="document", **words)
        scores = (found.vectors @ asked.vectors[0]).tolist()
        ranked = [Ranked(i, scores[i], documents[i]) for i in range(len(documents)) if i not in found.failed]
        ranked.sort(key=lambda one: -one.score)
        cut = tuple(np.flatnonzero(found.truncated).tolist())
        return Reranking(tuple(ranked[:top_n]), cut, bool(asked.truncated[0]), 0, found.failed, "cosine")

    def close(self) -> None:
        """Remembered, so that tests can ask."""
        self.closed = True

    def __enter__(self) -> FakeEmbedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FakeReranker:
    """`load`'s result for a reranker, without weights: a score is a hash of query and document.

    Requests are checked by the real rules. Documents and queries of more than `LONG` characters count as cut.
    Documents that hold `BROKEN` have no score. `asked` keeps the arguments of the last call.
    """

    BROKEN = "\x00broken"
    LONG = 100

    def __init__(self, name: str = registry.DEFAULT_RERANKER, **loaded: object) -> None:
        self.spec = replace(
            registry.narrow(registry.lookup(name), hidden=64, max_positions=9000, tasks=[RERANK]),
            origin=Origin(Path("/fake"), "mlx", "mlx", "32bit", "cpu", "float32", 1, None, ("it is a fake",)),
        )
        self.loaded = loaded
        self.asked: dict[str, object] = {}
        self.closed = False

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        instruction: str | None = None,
        max_doc_length: int | None = None,
        max_query_length: int | None = None,
        return_embeddings: bool = False,
        block_size: int | None = None,
        max_length: int | None = None,
        overlap_tokens: int | None = None,
        window: bool | None = None,
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> Reranking:
        """As Reranker.rerank."""
        self.asked = {
            "query": query, "documents": list(documents), "top_n": top_n, "instruction": instruction,
            "max_doc_length": max_doc_length, "max_query_length": max_query_length,
            "return_embeddings": return_embeddings, "block_size": block_size, "max_length": max_length,
            "overlap_tokens": overlap_tokens, "window": window, "show_progress": show_progress,
            "deterministic": deterministic,
        }  # fmt: skip
        request = resolve_ranking(
            self.spec, query, documents, top_n=top_n, instruction=instruction, max_doc_length=max_doc_length,
            max_query_length=max_query_length, return_embeddings=return_embeddings, block_size=block_size,
            max_length=max_length, overlap_tokens=overlap_tokens, window=window,
        )  # fmt: skip
        failed = tuple(i for i, document in enumerate(documents) if self.BROKEN in document)
        vector = noise(query.encode(), 4) if return_embeddings else None
        ranked = [
            Ranked(i, self.score(query, document), document, vector)
            for i, document in enumerate(documents)
            if i not in failed
        ]
        ranked.sort(key=lambda one: -one.score)
        cut = tuple(i for i, document in enumerate(documents) if len(document) > self.LONG)
        return Reranking(
            tuple(ranked[: request.top_n]), cut, len(query) > self.LONG, 0, failed, str(self.spec.scoring)
        )

    @staticmethod
    def score(query: str, document: str) -> float:
        """-1 to 1."""
        return float(noise(f"{query}\0{document}".encode(), 1)[0])

    def close(self) -> None:
        """Remembered, so that tests can ask."""
        self.closed = True

    def __enter__(self) -> FakeReranker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def noise(seed: bytes, width: int) -> np.ndarray:
    """(width,) float32 from -1 to 1, a function of the seed alone."""
    raw = hashlib.shake_256(seed).digest(2 * width)
    return (np.frombuffer(raw, "<u2").astype(np.float32) / np.float32(32767.5)) - 1
