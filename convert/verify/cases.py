"""What `verify` runs, by what a model is for: fixed texts -> passes, and rows of the result -> vectors and scores.

An embedding model gets queries and documents, a listwise reranker whole prompts, a pairwise one pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jina_local.embedding import vectors
from jina_local.embedding.request import resolve
from jina_local.inference import batching
from jina_local.reranking import listwise, pairwise, scoring
from jina_local.spec import EmbeddingSpec, ModelSpec, TokenBatch
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.projector import Projector

Floats = NDArray[np.float32]

# Short enough for the plain reference, long enough to pass one attention tile.
_MAX_TOKENS = 256
_PROMPTS = 2  # each listwise prompt holds all documents

QUERIES = (
    "Which planet is the largest?",
    "How do I boil an egg?",
    "Wie hoch ist die Zugspitze?",
    "¿Cuándo empezó la Revolución francesa?",
    "remove duplicate lines from a file",
    "プログラミング言語の選び方",
)
DOCUMENTS = (
    "Jupiter has more than twice the mass of all the other planets of the solar system together.",
    "Put the egg into boiling water, wait seven minutes, then cool it under the tap.",
    "Die Zugspitze ist mit 2962 Metern der höchste Berg Deutschlands; eine Zahnradbahn fährt hinauf.",
    "La toma de la Bastilla, el 14 de julio de 1789, suele darse como comienzo de la Revolución francesa.",
    "sort -u keeps one copy of every line; awk '!seen[$0]++' does the same without changing the order.",
    "最初の言語には、読みやすく、良い教材の多いものが向いている。",
    "Мост был построен за три года и открыт весной.",
    "A contract is void where one of the parties could not have known what it was agreeing to.",
    "यह किताब भारत की नदियों के बारे में है।",
    "x",
    "The committee met on Tuesday, heard the treasurer, and put off every decision until the autumn. " * 6,
    "e\u0301tude, nai\u0308ve, A\u030angstro\u0308m and \u00e9tude, na\u00efve, \u00c5ngstr\u00f6m",
)


@dataclass(frozen=True)
class Cases:
    """How one task of a model is judged."""

    passes: Callable[[Tokenizer], list[TokenBatch]]
    # (the wanted rows of each pass, the projector) -> (n, dim) vectors to hold against each other; of a pairwise
    # reranker its logits, which have no direction.
    vectors: Callable[[Sequence[Floats], Projector | None], Floats]
    scores: Callable[[Floats], Floats]  # those vectors -> (n_queries, n_documents), the more the better
    directed: bool  # whether the vectors have a direction, so that a cosine means something


def of(model: ModelSpec, task: str) -> Cases:
    """The cases of one task."""
    if model.scoring == "listwise":
        return Cases(_prompts, _projected, _listwise_scores, directed=True)
    if model.scoring == "pairwise":
        return Cases(lambda tokenizer: _pairs(model, tokenizer), _logits, _pairwise_scores, directed=False)
    if model.default_prompt is None:
        specs = [resolve(model, task=task)] * 2
    else:
        specs = [resolve(model, task=task, prompt_name=name) for name in ("query", "document")]
    return Cases(lambda tokenizer: _texts(specs, tokenizer), _pooled(model.pooling), _cosines, directed=True)


def _texts(specs: Sequence[EmbeddingSpec], tokenizer: Tokenizer) -> list[TokenBatch]:
    batches = []
    for spec, texts in zip(specs, (QUERIES, DOCUMENTS), strict=True):
        encoded = tokenizer.encode(texts, replace(spec, max_tokens=min(spec.max_tokens, _MAX_TOKENS)))
        batches += [batching.pack(encoded, [i], spec.pooling) for i in range(len(texts))]
    return batches


def _pooled(pooling: str) -> Callable[[Sequence[Floats], Projector | None], Floats]:
    def pool(rows: Sequence[Floats], projector: Projector | None) -> Floats:
        owner = [np.zeros(len(x), np.int32) for x in rows]
        return np.concatenate([vectors.pool(x, o, 1, pooling) for x, o in zip(rows, owner, strict=True)])

    return pool


def _cosines(found: Floats) -> Floats:
    return unit(found[: len(QUERIES)]) @ unit(found[len(QUERIES) :]).T


def _prompts(tokenizer: Tokenizer) -> list[TokenBatch]:
    prompter = listwise.Prompter(tokenizer)
    return [prompter.batch(query, DOCUMENTS) for query in QUERIES[:_PROMPTS]]


def _projected(rows: Sequence[Floats], projector: Projector | None) -> Floats:
    if projector is None:
        raise ValueError("a listwise reranker is judged with its projector")
    return np.concatenate([projector(x) for x in rows])


def _listwise_scores(found: Floats) -> Floats:
    blocks = unit(found).reshape(-1, len(DOCUMENTS) + 1, found.shape[1])
    return np.asarray(np.einsum("qd,qnd->qn", blocks[:, -1], blocks[:, :-1]))


def _pairs(model: ModelSpec, tokenizer: Tokenizer) -> list[TokenBatch]:
    room = min(model.max_tokens, _MAX_TOKENS)
    found = [pairwise.truncated(tokenizer, query, DOCUMENTS, max_length=room) for query in QUERIES]
    return [pairs.batch([i]) for pairs in found for i in range(len(DOCUMENTS))]


def _logits(rows: Sequence[Floats], projector: Projector | None) -> Floats:
    return np.concatenate(list(rows))


def _pairwise_scores(found: Floats) -> Floats:
    return scoring.sigmoid(found[:, 0]).reshape(len(QUERIES), -1).astype(np.float32)


def unit(x: Floats) -> Floats:
    """(n, dim) -> (n, dim) of length 1."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
