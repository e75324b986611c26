"""The Embedder: texts -> vectors. It prepares (texts to ids), runs (ids to rows) and finishes (rows to vectors)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..backends import Backend
from ..errors import NonFiniteError, UsageError
from ..inference import batching, passes
from ..inference.loaded import LoadedModel
from ..inference.queue import PassQueue
from ..spec import Embedded, EmbeddingSpec, ModelFiles, ModelSpec, Reranking
from ..text import chunks as spans_of
from ..text.chunks import Span
from ..text.tokenizer import Encoded, Tokenizer, checked
from . import cosine_ranking, late_chunking, vectors
from .late_chunking import Plan, require_all
from .request import PRECISIONS, Overflow, Precision, Task, as_list, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .request import ChunkWords, Float32ChunkWords, Float32SideWords, Float32Words, SideWords, Words

Texts = str | Iterable[str]
Vectors = NDArray[np.generic]
Floats = NDArray[np.float32]

_log = logging.getLogger("jina_local")
_OVERLAP = 256  # tokens that neighbouring passes over a long document share


@dataclass(frozen=True)
class Prepared:
    """A call's texts as ids, ready for `Embedder.run`; the calls of several callers may be run together."""

    spec: EmbeddingSpec
    ids: Encoded | Plan  # one sequence a text, or the passes over one document


class Embedder:
    """A loaded embedding model. Safe to call from several threads. Close it, or use it in a `with`."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        task: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        isolate: Literal["process"] | None = None,
        queue: PassQueue | None = None,
    ) -> None:
        """Open what `store.find` found; `load` does it. Raises ModelDamaged, EngineMissing, UsageError.

        isolate: "process" runs the engine in a process of its own, None in this one.
        queue: what the passes of all callers go through, to share them.
        """
        asked = task if task is not None else files.model.default_task or files.model.tasks[0]
        resolve(files.model, task=asked)
        own = registry.expand_tasks(registry.lookup(files.model.name), [asked])
        # Two merged copies of a model would cost more than adapters beside one base.
        merge = task is not None and len(own) == 1
        self._model = LoadedModel(
            files, own[0], merge=merge, device=device, threads=threads, isolate=isolate, queue=queue
        )
        self.spec: ModelSpec = replace(files.model, origin=self._model.origin)

    @overload
    def encode(
        self,
        texts: Texts,
        *,
        show_progress: bool | None = ...,
        deterministic: bool = ...,
        **words: Unpack[Float32Words],
    ) -> Floats: ...
    @overload
    def encode(
        self,
        *,
        sentences: Texts,
        show_progress: bool | None = ...,
        deterministic: bool = ...,
        **words: Unpack[Float32Words],
    ) -> Floats: ...
    @overload
    def encode(
        self,
        texts: Texts,
        *,
        show_progress: bool | None = ...,
        deterministic: bool = ...,
        **words: Unpack[Words],
    ) -> Vectors: ...
    @overload
    def encode(
        self,
        *,
        sentences: Texts,
        show_progress: bool | None = ...,
        deterministic: bool = ...,
        **words: Unpack[Words],
    ) -> Vectors: ...
    def encode(
        self,
        texts: Texts | None = None,
        *,
        sentences: Texts | None = None,
        task: Task | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        precision: Precision = "float32",
        overflow: Overflow | None = None,
        late_chunking: bool = False,
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> Vectors:
        """Turn texts into vectors: (n_texts, dim) float32, or (dim,) if `texts` is one str.

        texts: a str, or any iterable of str; an empty one gives (0, dim). `sentences` is another name for it.
        task: one of `.spec.tasks` or of the words in `.spec.task_words`. jina-embeddings-v3 has no default task, and
            its "none" is the base without an adapter.
        prompt_name: "query" or "document" (default). If each task has a prompt of its own, it chooses among the tasks
            that a word stands for.
        truncate_dim: one of `.spec.dims`. The vector is cut, then normalised.
        max_length: tokens of a text, prompt included.
        precision: see `vectors.finish` for the layout of each.
        overflow: "truncate" cuts a text that is too long and logs a warning; "error" raises.
        late_chunking: the texts are the pieces of one document, in order. Each is tokenised by itself, the tokens
            follow each other in one pass after the prompt, and the mean over a piece's tokens is its vector, as in
            Jina's API (jina-ai/late-chunking, tests/test_api.py). Nothing is cut: too many tokens are a UsageError.
            Only models that pool the mean have it; see `encode_chunks` for longer documents.
        show_progress: True and False show a bar or none; None shows one for long work on a terminal.
        deterministic: runs one text a pass, for the same bits in any company.
        Raises UsageError, TextError, EngineError, and NonFiniteError with the texts that have no vector.
        """
        if (texts is None) == (sentences is None):
            raise UsageError("expected texts, or sentences, which is another name for them; got both or neither.")
        given = texts if texts is not None else sentences
        result = self.embed(
            given,  # type: ignore[arg-type]  # one of both is not None
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_length=max_length,
            normalize=normalize,
            precision=precision,
            overflow=overflow,
            late_chunking=late_chunking,
            show_progress=show_progress,
            deterministic=deterministic,
        )
        if late_chunking:
            return require_all(result)
        if result.failed:
            raise NonFiniteError(result.failed, len(result.vectors))
        if result.truncated.any():
            cut = np.flatnonzero(result.truncated)
            places = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
            _log.warning(
                "%d of %d texts were cut to %d tokens (index %s)",
                len(cut),
                len(result.truncated),
                result.spec.max_tokens,
                places,
            )
        return result.vectors[0] if isinstance(given, str) else result.vectors

    def embed(
        self,
        texts: Texts,
        *,
        show_progress: bool | None = None,
        deterministic: bool = False,
        **words: Unpack[Words],
    ) -> Embedded:
        """As `encode`, with the token count of every text, which were cut, and which have no usable vector."""
        prepared = self.prepare(texts, **words)
        pooled = self.run(prepared, show_progress=show_progress, deterministic=deterministic)
        return self.finish(prepared, pooled)

    def prepare(self, texts: Texts, **words: Unpack[Words]) -> Prepared:
        """Decide the request and turn the texts into ids, prompt and special tokens included, cut to fit."""
        spec = resolve(self.spec, **words)
        if not words.get("late_chunking"):
            return Prepared(spec, self._model.tokenizer.encode(as_list(texts), spec))
        if isinstance(texts, str):
            raise UsageError("texts are one str; expected the pieces of a document, or use `encode_chunks`.")
        pieces = as_list(texts)
        if not pieces:
            raise UsageError("no texts were given; late chunking expects at least one piece of a document.")
        return Prepared(spec, late_chunking.of_texts(self._model.tokenizer, pieces, spec))

    def run(self, prepared: Prepared, *, show_progress: bool | None = None, deterministic: bool = False) -> Floats:
        """Run all passes and pool: (n, hidden) float32, a row for each text or chunk, not finite if it has none."""
        spec = prepared.spec
        with self._model.lease(spec.task) as (engine, adapter):
            if isinstance(prepared.ids, Plan):
                return late_chunking.run(engine, adapter, prepared.ids, show_progress=show_progress)
            return _run(engine, adapter, prepared.ids, spec, show_progress=show_progress, deterministic=deterministic)

    def finish(self, prepared: Prepared, pooled: Floats) -> Embedded:
        """Turn pooled rows, (n, hidden) float32, into vectors: cut, normalise, quantise."""
        spec, ids = prepared.spec, prepared.ids
        failed = tuple(int(i) for i in np.flatnonzero(vectors.unusable(pooled, spec.dim)))
        return Embedded(vectors.finish(pooled, spec), ids.counts, ids.truncated, failed, spec)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._model.tokenizer

    def digest(self) -> str:
        """A digest of the files of all tasks; those that a manifest names are not read for it."""
        return self._model.digest()

    def space(self, **words: Unpack[Words]) -> dict[str, str]:
        """All that the vectors of a request depend on, their texts and `precision` left out.

        Vectors that were stored can be compared with new ones, and taken for them, if their spaces are equal.
        """
        spec = resolve(self.spec, **words)
        return {
            "model": spec.model,
            "weights": self._model.digest(spec.task),
            "tokenizer": self._model.tokenizer.fingerprint(),
            "task": spec.task,
            "prompt": spec.prefix,
            "max_tokens": str(spec.max_tokens),
            "dim": str(spec.dim),
            "normalize": str(spec.normalize),
            "late_chunking": str(bool(words.get("late_chunking"))),
        }

    @overload
    def encode_query(self, texts: Texts, **words: Unpack[Float32SideWords]) -> Floats: ...
    @overload
    def encode_query(self, texts: Texts, **words: Unpack[SideWords]) -> Vectors: ...
    def encode_query(self, texts: Texts, **words: Unpack[SideWords]) -> Vectors:
        """`encode` with prompt_name="query". A model without a default task takes it for retrieval."""
        return self.encode(texts, prompt_name="query", **words)

    @overload
    def encode_document(self, texts: Texts, **words: Unpack[Float32SideWords]) -> Floats: ...
    @overload
    def encode_document(self, texts: Texts, **words: Unpack[SideWords]) -> Vectors: ...
    def encode_document(self, texts: Texts, **words: Unpack[SideWords]) -> Vectors:
        """`encode` with prompt_name="document". A model without a default task takes it for retrieval."""
        return self.encode(texts, prompt_name="document", **words)

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> Reranking:
        """Rank documents by the cosine of their vectors with the query's. A reranker would read both texts together.

        The query has the prompt "query", the documents have "document", and the task is retrieval. The best `top_n`
        come back; documents without a usable vector are in `failed`. The other words are those of `encode`.
        """
        return cosine_ranking.rank(
            self,
            query,
            documents,
            top_n=top_n,
            truncate_dim=truncate_dim,
            max_length=max_length,
            show_progress=show_progress,
            deterministic=deterministic,
        )

    def similarity(self, a: Vectors, b: Vectors, *, precision: Precision = "float32") -> Floats:
        """Cosine of every row of `a` with every row of `b`: (n_a, n_b) float32. See vectors.similarity."""
        if precision not in PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}. Possible: {', '.join(PRECISIONS)}.")
        return vectors.similarity(np.asarray(a), np.asarray(b), precision)

    def tokenize(
        self,
        texts: Texts,
        *,
        task: Task | None = None,
        prompt_name: str | None = None,
        max_length: int | None = None,
    ) -> list[NDArray[np.int32]]:
        """The ids that `encode` would run for each text: prompt, special tokens and truncation applied."""
        if task is None and self.spec.default_prompt is not None and self.spec.default_task is None:
            task = self.spec.tasks[0]  # type: ignore[assignment]  # every task has the same prompts
        spec = resolve(self.spec, task=task, prompt_name=prompt_name, max_length=max_length)
        return self._model.tokenizer.encode(as_list(texts), spec).ids

    @overload
    def encode_chunks(
        self,
        document: str,
        chunks: Iterable[Span] | Callable[[str], Iterable[Span]],
        *,
        overlap_tokens: int = ...,
        show_progress: bool | None = ...,
        **words: Unpack[Float32ChunkWords],
    ) -> Floats: ...
    @overload
    def encode_chunks(
        self,
        document: str,
        chunks: Iterable[Span] | Callable[[str], Iterable[Span]],
        *,
        overlap_tokens: int = ...,
        show_progress: bool | None = ...,
        **words: Unpack[ChunkWords],
    ) -> Vectors: ...
    def encode_chunks(
        self,
        document: str,
        chunks: Iterable[Span] | Callable[[str], Iterable[Span]],
        *,
        overlap_tokens: int = _OVERLAP,
        show_progress: bool | None = None,
        **words: Unpack[ChunkWords],
    ) -> Vectors:
        """Late chunking: a vector for each part of a document that is read as a whole, (n_chunks, dim).

        chunks: (start, end) in characters, ascending by start, with gaps or overlaps as you like; or a function that
            finds them in the document, such as `jina_local.chunks.sentences` or `lambda d: m.spans(d, 200)`. A token
            belongs to the chunk in which it begins. The special tokens and the prompt belong to the first and last.
        task: retrieval's document side if none is given.
        max_length: tokens of one pass. A longer document is read in passes that share `overlap_tokens` with their
            neighbours (at most half a pass), each with the prompt. A token is taken from the pass in which it lies
            farther from the edge.
        The other words are those of `encode`. Only models that pool the mean have late chunking.
        Raises UsageError, TextError, EngineError, NonFiniteError.
        """
        spec = resolve(self.spec, late_chunking=True, **words)
        if isinstance(overlap_tokens, bool) or not isinstance(overlap_tokens, int) or overlap_tokens < 0:
            raise UsageError(f"overlap_tokens {overlap_tokens!r}: expected a whole number from 0.")
        checked(0, document)
        spans = spans_of.checked(chunks(document) if callable(chunks) else chunks, len(document))
        plan = late_chunking.of_document(self._model.tokenizer, document, spans, spec, overlap_tokens)
        prepared = Prepared(spec, plan)
        return require_all(self.finish(prepared, self.run(prepared, show_progress=show_progress)))

    def spans(self, document: str, tokens: int) -> list[Span]:
        """Cut a document every so many tokens, for `encode_chunks`: (start, end) in characters, one after another."""
        _, starts = self._model.tokenizer.located(checked(0, document))
        return spans_of.of_size(starts.tolist(), len(document), tokens)

    def close(self) -> None:
        """Free all weights. Waits for calls that are under way."""
        self._model.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        origin = self._model.origin
        return f"<Embedder {self.spec.name} {origin.weights} on {origin.backend}>"


def _run(
    engine: Backend,
    adapter: str | None,
    encoded: Encoded,
    spec: EmbeddingSpec,
    *,
    show_progress: bool | None,
    deterministic: bool,
) -> Floats:
    """All passes of one call: (n_texts, hidden) float32. A text without a usable row is tried once more, alone."""
    lengths = encoded.counts.tolist()
    pooled = np.full((len(lengths), engine.hidden), np.nan, np.float32)

    def one_pass(group: list[int], sharers: int) -> None:
        batch = batching.pack(encoded, group, spec.pooling)
        pooled[group] = vectors.pool(engine.forward(batch, sharers, adapter), batch.owner, len(group), spec.pooling)

    passes.run(engine, lengths, one_pass, deterministic=deterministic, show_progress=show_progress)
    passes.run_alone(one_pass, np.flatnonzero(vectors.unusable(pooled, spec.dim)))
    return pooled
