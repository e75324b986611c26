"""The Reranker: a query and documents -> scores in order. Prompts or pairs, passes and scores meet here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..backends import Backend
from ..errors import ModelDamaged, NonFiniteError, UsageError
from ..inference import passes
from ..inference.loaded import LoadedModel
from ..inference.queue import PassQueue
from ..spec import RERANK, ModelFiles, ModelSpec, Ranked, Reranking
from ..weights import projector
from ..weights.projector import Projector
from . import listwise, pairwise, scoring
from .request import Request, resolve

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .request import Words

_log = logging.getLogger("jina_local")


@dataclass(frozen=True)
class Blocks:
    """The blocks of one call of a listwise reranker."""

    blocks: list[listwise.Block]
    cut: tuple[int, ...]  # documents that were not read to their end
    query_cut: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each block."""
        return [len(block.batch.ids) for block in self.blocks]


@dataclass(frozen=True)
class Prepared:
    """A call as ids, ready for `Reranker.run`."""

    request: Request
    fed: pairwise.Pairs | Blocks

    @property
    def tokens(self) -> int:
        """Tokens that will be run."""
        return sum(self.fed.lengths)


@dataclass(frozen=True)
class Scores:
    """The scores of one call's documents, in the documents' order."""

    scores: NDArray[np.float64]  # (n_documents,): NaN where there is no usable score
    embeddings: NDArray[np.float32] | None = None  # (n_documents, dim)


@dataclass(frozen=True)
class _Listwise:
    """The parts that only a listwise reranker has, beside its engine."""

    prompter: listwise.Prompter
    project: Projector


class Reranker:
    """A loaded reranker. Safe to call from several threads; close it, or use it in a `with`."""

    def __init__(
        self,
        files: ModelFiles,
        *,
        device: str | None = None,
        threads: int | None = None,
        isolate: Literal["process"] | None = None,
        queue: PassQueue | None = None,
    ) -> None:
        """Open what `store.find` found; `load` does it. Raises ModelDamaged, EngineMissing, UsageError.

        isolate: "process" runs the engine in a process of its own, None in this one.
        queue: what the passes of all callers go through, to share them.
        """
        self._model = LoadedModel(files, RERANK, device=device, threads=threads, isolate=isolate, queue=queue)
        self._tokenizer = self._model.tokenizer
        self._listwise: _Listwise | None = None
        try:
            if files.model.scoring == "listwise":
                prompter = listwise.Prompter(self._tokenizer)
                with self._model.lease(RERANK) as (engine, _):
                    self._listwise = _Listwise(prompter, _read_projector(files, engine))
            else:
                self._tokenizer.pair()  # raises ModelDamaged if there is no template for two texts
        except BaseException:
            self._model.close()
            raise
        self.spec: ModelSpec = replace(files.model, origin=self._model.origin)

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
        """Rank documents by falling score: the best `top_n` of them, and what happened to the others.

        Listwise (jina-reranker-v3): documents are read together, so a score depends on its company.
        instruction: what to rank by.
        max_doc_length, max_query_length: tokens of each text (2048, 512).
        return_embeddings: with the unit vectors that were compared.
        block_size: documents read together, 1 to 125. The default is 125, as in the published code; the model's card
            advises 64, which takes less memory. Scores of more documents than a block holds depend on it.
        max_length: tokens of one block, its prompt included; bounds the memory (the model's context).

        Pairwise (jina-reranker-v2): a score depends on the document alone.
        max_length: tokens of a pair (1024).
        overlap_tokens: a longer document is read in windows that overlap by this many tokens (80), and its best
            window counts.
        max_query_length: tokens of the query beside a window (512).
        window: False reads one pair and cuts its longer text.

        None takes the default in parentheses. deterministic: one pair a pass, for the same bits in any company; a
        block is a pass of its own in any case. show_progress: None shows a bar for long work on a terminal.
        An empty query is scored and logged as a warning. Texts that were cut and documents without a score are in the
        answer, and logged as warnings.
        Raises UsageError, TextError, EngineError, and NonFiniteError if no document has a score.
        """
        prepared = self.prepare(
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
        return self.finish(prepared, self.run(prepared, show_progress=show_progress, deterministic=deterministic))

    def prepare(self, query: str, documents: Sequence[str], **words: Unpack[Words]) -> Prepared:
        """Decide the request and turn the texts into pairs or blocks of ids, cut to fit."""
        request = resolve(self.spec, query, documents, **words)
        if self._listwise is None:
            return Prepared(request, self._pairs(request))
        return Prepared(request, self._blocks(self._listwise.prompter, request))

    def run(self, prepared: Prepared, *, show_progress: bool | None = None, deterministic: bool = False) -> Scores:
        """Run all passes and score the documents."""
        request, fed = prepared.request, prepared.fed
        with self._model.lease(RERANK) as (engine, _):
            if isinstance(fed, Blocks):
                return self._by_blocks(engine, fed, request, show_progress)
            return _by_pairs(engine, fed, len(request.documents), deterministic, show_progress)

    def finish(self, prepared: Prepared, scores: Scores) -> Reranking:
        """Put the documents in order. Raises NonFiniteError if none has a score, and logs what was cut."""
        request = prepared.request
        result = _answer(scores, prepared, str(self.spec.scoring))
        if len(result.failed) == len(request.documents):
            raise self._failure(result.failed, len(request.documents))
        _warn(result, len(request.documents))
        return result

    def digest(self) -> str:
        """A digest of the files; those that a manifest names are not read for it."""
        return self._model.digest()

    def close(self) -> None:
        """Free all weights. Waits for calls that are under way."""
        self._model.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        origin = self._model.origin
        return f"<Reranker {self.spec.name} {origin.weights} on {origin.backend}>"

    def _pairs(self, request: Request) -> pairwise.Pairs:
        _warn_if_empty(request.query)
        if not request.window:
            return pairwise.truncated(
                self._tokenizer, request.query, request.documents, max_length=request.max_length
            )
        return pairwise.windowed(
            self._tokenizer,
            request.query,
            request.documents,
            max_length=request.max_length,
            max_query_length=request.max_query_length,
            overlap_tokens=request.overlap_tokens,
        )

    def _blocks(self, prompter: listwise.Prompter, request: Request) -> Blocks:
        (query,) = listwise.shorten(self._tokenizer, [request.query], request.max_query_length)
        _warn_if_empty(query.text)
        parts = listwise.shorten(self._tokenizer, request.documents, request.max_doc_length)
        self._check_room(prompter, query, request)
        blocks = listwise.blocks(
            prompter,
            query,
            parts,
            instruction=request.instruction,
            max_length=request.max_length,
            max_doc_length=request.max_doc_length,
            block_size=request.block_size,
        )
        return Blocks(blocks, tuple(i for i, part in enumerate(parts) if part.cut), query.cut)

    def _by_blocks(self, engine: Backend, blocks: Blocks, request: Request, show_progress: bool | None) -> Scores:
        """Score documents together, one block after another, each on all threads."""
        if self._listwise is None:
            raise AssertionError("blocks were prepared for a reranker that reads pairs")
        projected: list[NDArray[np.float32]] = []
        with passes.bar(sum(blocks.lengths), show_progress) as advance:
            for block in blocks.blocks:
                states = engine.forward(block.batch)
                with np.errstate(invalid="ignore", over="ignore"):  # scoring.listwise looks for values not finite
                    projected.append(self._listwise.project(states))
                advance(len(block.batch.ids))
        documents = [rows[:-1] for rows in projected]
        return Scores(
            scoring.listwise(np.stack([rows[-1] for rows in projected]), documents),
            scoring.unit(np.concatenate(documents)).astype(np.float32) if request.return_embeddings else None,
        )

    def _check_room(self, prompter: listwise.Prompter, query: listwise.Part, request: Request) -> None:
        """Raise UsageError unless a block has room for the query, twice, and for a document of `max_doc_length`."""
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
        """The error if no document at all has a score."""
        company = "also when run alone. The other documents are not affected."
        if self._listwise is not None:
            company = (
                "and it reads the documents of a block together: a smaller block_size may tell which is at fault."
            )
        return NonFiniteError(failed, total, what="score", of="documents", company=company)


def _warn_if_empty(query: str) -> None:
    if not query.strip():
        _log.warning("the query is empty, so the order of the documents means little")


def _warn(result: Reranking, total: int) -> None:
    if result.failed:
        _log.warning("%d of %d documents have no score (index %s)", len(result.failed), total, _places(result.failed))
    if result.query_cut:
        _log.warning("the query was cut; its end was not read")
    if result.cut:
        _log.warning("%d of %d documents were cut (index %s)", len(result.cut), total, _places(result.cut))


def _places(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:10])) + (", ..." if len(indices) > 10 else "")


def _read_projector(files: ModelFiles, engine: Backend) -> Projector:
    if files.projector is None:
        raise ModelDamaged(f"{files.model.name} was found without its projector, and has no scores without it.")
    return projector.read(files.projector, engine.hidden)


def _by_pairs(
    engine: Backend, pairs: pairwise.Pairs, documents: int, deterministic: bool, show_progress: bool | None
) -> Scores:
    """Score each document by itself, or by its windows. A pair without a usable logit is run again, alone."""
    logits = np.full(len(pairs.ids), np.nan, np.float32)

    def one_pass(group: list[int], sharers: int) -> None:
        logits[group] = engine.forward(pairs.batch(group), sharers)[:, 0]

    passes.run(engine, pairs.lengths, one_pass, deterministic=deterministic, show_progress=show_progress)
    passes.run_alone(one_pass, np.flatnonzero(~np.isfinite(logits)))
    logits[~np.isfinite(logits)] = np.nan
    return Scores(scoring.best(scoring.sigmoid(logits), pairs.owner, documents))


def _answer(scored: Scores, prepared: Prepared, scoring_name: str) -> Reranking:
    request = prepared.request
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
    return Reranking(results, prepared.fed.cut, prepared.fed.query_cut, prepared.tokens, failed, scoring_name)
