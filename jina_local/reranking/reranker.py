"""The Reranker: a query and documents -> scores in order. Where prompts or pairs, passes and scores meet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..backends import Backend
from ..errors import ModelDamaged, NonFiniteError, UsageError
from ..inference import passes
from ..inference.loaded import Resident, check_vocabulary, open_tokenizer, origin
from ..spec import RERANK, ModelSpec, Weights
from ..weights import projector
from ..weights.projector import Projector
from . import listwise, pairwise, scoring
from .request import Request, resolve

_log = logging.getLogger("jina_local")


@dataclass(frozen=True)
class Ranked:
    """One document of an answer."""

    index: int  # its place in the caller's list
    score: float  # listwise: a cosine, which may be negative; pairwise: 0 to 1
    document: str  # as it was given, uncut
    embedding: NDArray[np.float32] | None = None  # listwise, with return_embeddings: (512,) of unit length


@dataclass(frozen=True)
class Reranking:
    """The full answer to one call, and what happened."""

    results: tuple[Ranked, ...]  # by falling score; equal ones in the caller's order
    cut: tuple[int, ...]  # documents that were not read to their end
    query_cut: bool
    tokens: int  # that were run, in all passes together
    failed: tuple[int, ...]  # documents for which the model gave no usable score; they are not in `results`


@dataclass(frozen=True)
class _Scored:
    """What a way of scoring says of the documents of one call, in their order."""

    scores: NDArray[np.float64]  # (n_documents,): NaN where there is no usable one
    cut: tuple[int, ...]
    query_cut: bool
    tokens: int
    embeddings: NDArray[np.float32] | None = None  # (n_documents, dim)


@dataclass(frozen=True)
class _Listwise:
    """What a listwise reranker has beside its engine."""

    prompter: listwise.Prompter
    project: Projector


class Reranker:
    """A loaded reranker. Safe to call from several threads; close it, or use it in a `with`."""

    def __init__(self, found: Weights, *, device: str | None = None, threads: int | None = None) -> None:
        """Open what `weights.find` found; `model.load` does it. Raises ModelDamaged, EngineMissing, UsageError."""
        self._found = found
        self._tokenizer = open_tokenizer(found)
        prompter = listwise.Prompter(self._tokenizer) if found.model.scoring == "listwise" else None
        if prompter is None:
            self._tokenizer.pair()  # a tokenizer without room for two texts is refused here, not at the first call
        self._resident = Resident(found, device=device, threads=threads)
        try:
            with self._resident.lease(RERANK) as (engine, _):
                check_vocabulary(self._tokenizer, engine)
                self._listwise = None if prompter is None else _Listwise(prompter, _projector(found, engine))
                self.spec: ModelSpec = replace(found.model, origin=origin(found, RERANK, engine, ()))
        except BaseException:
            self._resident.close()
            raise

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
    ) -> list[Ranked]:
        """The documents by falling score, the best `top_n` of them. None takes the model's own default.

        Listwise (jina-reranker-v3), where documents are read together and a score depends on its company:
        instruction: what to rank by. max_doc_length, max_query_length: tokens of each text (2048, 512).
        return_embeddings: with the unit vectors that were compared. block_size: documents read together, 1 to 125
        (64). max_length: tokens of one block, its prompt included; bounds the memory (the model's context).

        Pairwise (jina-reranker-v2), where a score depends on the document alone: max_length: tokens of a pair (1024).
        Documents beyond that are read in windows that overlap by overlap_tokens (80), beside a query of at most
        max_query_length (512), and the best window counts; window=False reads one pair, its longer text cut.

        deterministic: one pair a pass, for the same bits in any company; a block is a pass of its own in any case.
        show_progress: None shows a bar for long work on a terminal. What is cut is logged as a warning. Raises
        UsageError, TextError, EngineError, and NonFiniteError with the documents that have no score.
        """
        result = self.rerank_result(
            query,
            documents,
            top_n=top_n,
            instruction=instruction,
            max_doc_length=max_doc_length,
            max_query_length=max_query_length,
            return_embeddings=return_embeddings,
            block_size=block_size,
            max_length=max_length,
            overlap_tokens=overlap_tokens,
            window=window,
            show_progress=show_progress,
            deterministic=deterministic,
        )
        if result.failed:
            raise self._failure(result.failed, len(documents))
        _warn(result, len(documents))
        return list(result.results)

    def rerank_result(
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
        """As `rerank`, with what was cut, what it cost, and which documents have no score; logs nothing."""
        request = resolve(
            self.spec,
            query,
            documents,
            top_n=top_n,
            instruction=instruction,
            max_doc_length=max_doc_length,
            max_query_length=max_query_length,
            return_embeddings=return_embeddings,
            block_size=block_size,
            max_length=max_length,
            overlap_tokens=overlap_tokens,
            window=window,
        )
        with self._resident.lease(RERANK) as (engine, _):
            if self._listwise is None:
                scored = self._by_pairs(engine, request, deterministic, show_progress)
            else:
                scored = self._by_blocks(engine, self._listwise, request, show_progress)
        return _answer(scored, request)

    def close(self) -> None:
        """Free all weights. Waits for calls that are under way."""
        self._resident.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        found = self.spec.origin
        return f"<Reranker {self.spec.name} {found.weights if found else ''} on {self._found.backend}>"

    def _by_pairs(
        self, engine: Backend, request: Request, deterministic: bool, show_progress: bool | None
    ) -> _Scored:
        """Each document by itself, or by its windows. A pair without a usable logit is tried once more, alone."""
        if request.window:
            pairs = pairwise.windowed(
                self._tokenizer,
                request.query,
                request.documents,
                max_length=request.max_length,
                max_query_length=request.max_query_length,
                overlap_tokens=request.overlap_tokens,
            )
        else:
            pairs = pairwise.truncated(
                self._tokenizer, request.query, request.documents, max_length=request.max_length
            )
        logits = np.empty(len(pairs.ids), np.float32)

        def one_pass(group: list[int], sharers: int) -> None:
            logits[group] = engine.forward(pairs.batch(group), sharers)[:, 0]

        passes.run(engine, pairs.lengths, one_pass, deterministic=deterministic, show_progress=show_progress)
        for i in np.flatnonzero(~np.isfinite(logits)):
            one_pass([int(i)], 1)
        logits[~np.isfinite(logits)] = np.nan
        scores = scoring.best(scoring.sigmoid(logits), pairs.owner, len(request.documents))
        return _Scored(scores, pairs.cut, pairs.query_cut, sum(pairs.lengths))

    def _by_blocks(self, engine: Backend, own: _Listwise, request: Request, show_progress: bool | None) -> _Scored:
        """Documents together, block after block on all threads."""
        (query,) = listwise.shorten(self._tokenizer, [request.query], request.max_query_length)
        if not query.text.strip():
            raise UsageError("the query is empty without the model's own marks; there is nothing to rank by.")
        parts = listwise.shorten(self._tokenizer, request.documents, request.max_doc_length)
        self._check_room(own.prompter, query, request)
        blocks = listwise.blocks(
            own.prompter,
            query,
            parts,
            instruction=request.instruction,
            max_length=request.max_length,
            max_doc_length=request.max_doc_length,
            block_size=request.block_size,
        )
        projected: list[NDArray[np.float32]] = []
        with passes.bar(sum(len(block.batch.ids) for block in blocks), show_progress) as advance:
            for block in blocks:
                states = engine.forward(block.batch)
                with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is looked for below
                    projected.append(own.project(states))
                advance(len(block.batch.ids))
        documents = [rows[:-1] for rows in projected]
        return _Scored(
            scoring.listwise(np.stack([rows[-1] for rows in projected]), documents),
            tuple(i for i, part in enumerate(parts) if part.cut),
            query.cut,
            sum(len(block.batch.ids) for block in blocks),
            scoring.unit(np.concatenate(documents)).astype(np.float32) if request.return_embeddings else None,
        )

    def _check_room(self, prompter: listwise.Prompter, query: listwise.Part, request: Request) -> None:
        """Raise UsageError unless a block has room for the query, twice, and for the longest document."""
        around = prompter.overhead()
        if request.instruction is not None:
            around += len(self._tokenizer.plain([request.instruction], request.max_length)[0])
        needed = around + 2 * query.tokens + request.max_doc_length
        if request.max_length < needed:
            raise UsageError(
                f"max_length {request.max_length} is too small for a block of one document, which takes {needed} "
                f"tokens: {around} of the prompt{' and its instruction' if request.instruction else ''}, "
                f"{query.tokens} of the query, twice, and {request.max_doc_length} of max_doc_length. Lower "
                f"max_doc_length or max_query_length, or raise max_length (at most {self.spec.max_tokens})."
            )

    def _failure(self, failed: Sequence[int], total: int) -> NonFiniteError:
        company = "also when run alone. The other documents are not affected."
        if self._listwise is not None:
            company = (
                "and it reads the documents of a block together: a smaller block_size may tell which is at fault."
            )
        return NonFiniteError(failed, total, what="score", of="documents", company=company)


def _warn(result: Reranking, total: int) -> None:
    if result.query_cut:
        _log.warning("the query was cut; its end was not read")
    if result.cut:
        places = ", ".join(map(str, result.cut[:10])) + (", ..." if len(result.cut) > 10 else "")
        _log.warning("%d of %d documents were cut (index %s)", len(result.cut), total, places)


def _projector(found: Weights, engine: Backend) -> Projector:
    if found.projector is None:
        raise ModelDamaged(f"{found.model.name} was found without its projector, and has no scores without it.")
    return projector.read(found.projector, engine.hidden)


def _answer(scored: _Scored, request: Request) -> Reranking:
    results = tuple(
        Ranked(
            index=i,
            score=float(scored.scores[i]),
            document=request.documents[i],
            embedding=None if scored.embeddings is None else scored.embeddings[i],
        )
        for i in scoring.order(scored.scores)[: request.top_n]
    )
    failed = tuple(int(i) for i in np.flatnonzero(np.isnan(scored.scores)))
    return Reranking(results, scored.cut, scored.query_cut, scored.tokens, failed)
