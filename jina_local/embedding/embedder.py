"""The Embedder: texts -> vectors. Where prompts, tokens, passes and pooling meet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..backends import Backend
from ..errors import NonFiniteError, UsageError
from ..inference import batching, passes
from ..inference.loaded import Resident, check_vocabulary, open_tokenizer, origin
from ..spec import Embedded, EmbeddingSpec, ModelSpec, Weights
from ..text import chunks as spans_of
from ..text.chunks import Span
from ..text.tokenizer import Encoded, checked
from . import late_chunking, vectors
from .request import PRECISIONS, resolve

_log = logging.getLogger("jina_local")


class Embedder:
    """A loaded embedding model. Safe to call from several threads; close it, or use it in a `with`."""

    def __init__(
        self, found: Weights, *, task: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        self._found = found
        self._tokenizer = open_tokenizer(found)
        asked = task if task is not None else found.model.default_task or found.model.tasks[0]
        resolve(found.model, task=asked)
        own = registry.spelled_out(registry.lookup(found.model.name), [asked])
        # Two merged copies of a model would cost more than adapters beside one base.
        merge = own[0] if task is not None and len(own) == 1 else None
        self._resident = Resident(found, merge=merge, device=device, threads=threads)
        with self._resident.lease(own[0]) as (engine, _):
            check_vocabulary(self._tokenizer, engine)
            self.spec: ModelSpec = replace(found.model, origin=origin(found, own[0], engine, self._resident.reasons))

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        overflow: str | None = None,
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> NDArray[np.generic]:
        """Texts -> (n_texts, dim) float32, or (dim,) for a single str.

        task: one of `.spec.tasks`, or one of the words in `.spec.task_words`; jina-embeddings-v3 has no default, and
        "none" is its base without an adapter. prompt_name: "query" or "document" (default); where each task has a
        prompt of its own, it tells which task of several a word means. truncate_dim: one of `.spec.dims`; the vector
        is cut, then normalised. max_length: tokens, prompt included. precision: see vectors.finish. overflow:
        "truncate" cuts and logs a warning, "error" raises. deterministic: one text a pass, for the same bits in any
        company. show_progress: None shows a bar for long work on a terminal.
        Raises UsageError, TextError, EngineError, and NonFiniteError with the texts that have no vector.
        """
        result = self.embed(
            texts,
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_length=max_length,
            normalize=normalize,
            precision=precision,
            overflow=overflow,
            show_progress=show_progress,
            deterministic=deterministic,
        )
        if result.failed:
            raise NonFiniteError(result.failed, len(result.vectors))
        cut = np.flatnonzero(result.truncated)
        if len(cut):
            _log.warning(
                "%d of %d texts were cut to %d tokens (index %s)",
                len(cut),
                len(result.vectors),
                result.spec.max_tokens,
                ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else ""),
            )
        return result.vectors[0] if isinstance(texts, str) else result.vectors

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        overflow: str | None = None,
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> Embedded:
        """As `encode`, with the token count of every text, which were cut, and which have no usable vector."""
        spec = resolve(
            self.spec,
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_length=max_length,
            normalize=normalize,
            precision=precision,
            overflow=overflow,
        )
        encoded = self._tokenizer.encode(_listed(texts), spec)
        with self._resident.lease(spec.task) as (engine, adapter):
            pooled = _run(engine, adapter, encoded, spec, deterministic=deterministic, show_progress=show_progress)
        return _answer(pooled, encoded.counts, encoded.truncated, spec)

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[np.generic]:
        """`encode` with prompt_name="query"; a model without a default task takes it for retrieval."""
        return self.encode(texts, task=task, prompt_name="query", truncate_dim=truncate_dim, precision=precision)

    def encode_document(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[np.generic]:
        """`encode` with prompt_name="document"; a model without a default task takes it for retrieval."""
        return self.encode(texts, task=task, prompt_name="document", truncate_dim=truncate_dim, precision=precision)

    def similarity(
        self, a: NDArray[np.generic], b: NDArray[np.generic], *, precision: str = "float32"
    ) -> NDArray[np.float32]:
        """Cosine of every row of `a` with every row of `b`: (n_a, n_b) float32. See vectors.similarity."""
        if precision not in PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}. Possible: {', '.join(PRECISIONS)}.")
        return vectors.similarity(np.asarray(a), np.asarray(b), precision)

    def tokenize(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        max_length: int | None = None,
    ) -> list[NDArray[np.int32]]:
        """The ids that `encode` would run for each text: prompt, special tokens and truncation applied."""
        if task is None and self.spec.default_prompt is not None:
            task = self.spec.default_task or self.spec.tasks[0]  # the prompt is the same for every task
        spec = resolve(self.spec, task=task, prompt_name=prompt_name, max_length=max_length)
        return self._tokenizer.encode(_listed(texts), spec).ids

    def encode_chunks(
        self,
        document: str,
        chunks: Iterable[Span] | Callable[[str], Iterable[Span]],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        max_length: int | None = None,
        overlap_tokens: int = 256,
        show_progress: bool | None = None,
    ) -> NDArray[np.generic]:
        """Late chunking: one vector for each part of a document that is read as a whole, (n_chunks, dim).

        chunks: (start, end) in characters, ascending by their starts, with gaps or overlaps as you like; or what
        gives them for the document, as `jina_local.chunks.sentences` or `m.spans(document, 200)`. A token belongs to
        the chunk in which it begins; the special tokens and the prompt to the first and last of the document.
        task: the document side of retrieval where nothing is said. max_length: tokens of one pass. A longer document
        is read in passes that share overlap_tokens with their neighbours (at most half a pass), each with the prompt;
        a token is taken from the pass in which it lies farther from the edge. The rest is as for `encode`.
        Only for models that take a mean over tokens; others are refused. Raises UsageError, TextError, EngineError,
        NonFiniteError.
        """
        spec = resolve(
            self.spec,
            late_chunking=True,
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            max_length=max_length,
        )
        if isinstance(overlap_tokens, bool) or not isinstance(overlap_tokens, int) or overlap_tokens < 0:
            raise UsageError(f"overlap_tokens {overlap_tokens!r}: expected a whole number from 0.")
        checked(0, document)
        spans = spans_of.checked(chunks(document) if callable(chunks) else chunks, len(document))
        plan = late_chunking.of_document(self._tokenizer, document, spans, spec, overlap_tokens)
        return _whole(self._late(plan, spec, show_progress))

    def encode_joined(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        max_length: int | None = None,
        show_progress: bool | None = None,
    ) -> NDArray[np.generic]:
        """Late chunking as Jina's API does it: the texts are the pieces of one document, in order; a vector for each.

        Each text is tokenised by itself and the tokens follow each other in one sequence, the prompt before the
        first. For this tokenizer that is as if a space joined the texts, as in Jina's own test against the API
        (jina-ai/late-chunking, tests/test_api.py). All together have to fit into max_length tokens: nothing is cut,
        and too many are a UsageError with the count. For the rest see `encode_chunks`.
        """
        return _whole(
            self.embed_joined(
                texts,
                task=task,
                prompt_name=prompt_name,
                truncate_dim=truncate_dim,
                normalize=normalize,
                precision=precision,
                max_length=max_length,
                show_progress=show_progress,
            )
        )

    def embed_joined(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        max_length: int | None = None,
        show_progress: bool | None = None,
    ) -> Embedded:
        """As `encode_joined`, with the token count of every text, and which have no usable vector."""
        spec = resolve(
            self.spec,
            late_chunking=True,
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            normalize=normalize,
            precision=precision,
            max_length=max_length,
        )
        if isinstance(texts, str):
            raise UsageError("texts are one str; expected the pieces of a document, or use `encode_chunks`.")
        plan = late_chunking.of_texts(self._tokenizer, _listed(texts), spec)
        return self._late(plan, spec, show_progress)

    def spans(self, document: str, tokens: int) -> list[Span]:
        """A document cut every so many tokens, for `encode_chunks`: (start, end) in characters, one after another."""
        _, starts = self._tokenizer.located(checked(0, document))
        return spans_of.of_size(starts.tolist(), len(document), tokens)

    def close(self) -> None:
        """Free all weights. Waits for calls that are under way."""
        self._resident.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        origin = self.spec.origin
        return f"<Embedder {self.spec.name} {origin.weights if origin else ''} on {self._found.backend}>"

    def _late(self, plan: late_chunking.Plan, spec: EmbeddingSpec, show_progress: bool | None) -> Embedded:
        with self._resident.lease(spec.task) as (engine, adapter):
            pooled = late_chunking.run(engine, adapter, plan, show_progress=show_progress)
        return _answer(pooled, plan.counts, np.zeros(len(plan.counts), np.bool_), spec)


def _run(
    engine: Backend,
    adapter: str | None,
    encoded: Encoded,
    spec: EmbeddingSpec,
    *,
    deterministic: bool,
    show_progress: bool | None,
) -> NDArray[np.float32]:
    """All passes of one call: (n_texts, hidden) float32. A text without a usable row is tried once more, alone."""
    lengths = encoded.counts.tolist()
    pooled = np.empty((len(lengths), engine.hidden), np.float32)

    def one_pass(group: list[int], sharers: int) -> None:
        batch = batching.pack(encoded, group, spec.pooling)
        pooled[group] = vectors.pool(engine.forward(batch, sharers, adapter), batch.owner, len(group), spec.pooling)

    passes.run(engine, lengths, one_pass, deterministic=deterministic, show_progress=show_progress)
    for i in np.flatnonzero(vectors.unusable(pooled, spec.dim)):
        one_pass([int(i)], 1)
    return pooled


def _answer(
    pooled: NDArray[np.float32], counts: NDArray[np.int32], truncated: NDArray[np.bool_], spec: EmbeddingSpec
) -> Embedded:
    """What a call gives for its pooled rows, (n, hidden)."""
    failed = tuple(int(i) for i in np.flatnonzero(vectors.unusable(pooled, spec.dim)))
    return Embedded(vectors.finish(pooled, spec), counts, truncated, failed, spec)


def _whole(result: Embedded) -> NDArray[np.generic]:
    """The vectors of chunks, if all have one."""
    if result.failed:
        company = "and the chunks of a document are read together."
        raise NonFiniteError(result.failed, len(result.vectors), of="chunks", company=company)
    return result.vectors


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not hasattr(texts, "__len__") or not hasattr(texts, "__getitem__"):
        raise UsageError(f"texts are {type(texts).__name__}; expected a str or a sequence of str.")
    if len(texts) == 0:
        raise UsageError("no texts were given; expected a str or at least one text in the list.")
    return texts
