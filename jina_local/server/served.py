"""The models in service: a name from a request -> a call on the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import registry
from ..embedding import vectors
from ..embedding.embedder import Embedder, Prepared
from ..embedding.request import resolve
from ..errors import NonFiniteError, TextTooLong, UsageError
from ..inference.queue import Call, Counts
from ..reranking.reranker import Reranker
from ..spec import NO_TASK, Embedded, ModelSpec, Reranking
from ..text.tokenizer import Encoded, checked
from .dialects.calls import (
    Classified,
    ClassifyCall,
    EmbedCall,
    Embeddings,
    FoundPassages,
    Input,
    RankedDocument,
    Ranking,
    RerankCall,
    SearchCall,
    Token,
    TokenizeCall,
)
from .dialects.fields import BadField
from .faults import ModelUnknown, NotReady, Refused
from .indexes import Indexes
from .service import Service
from .settings import Settings
from .tokens import tokens_of

# A name may end in one of these after a colon, for clients that cannot send a task: the task and the prompt.
_SIDES = {"query": ("retrieval", "query"), "document": ("retrieval", "document")}


class Served:
    """All models of a server. Its methods block, and are called from many threads."""

    def __init__(self, settings: Settings, indexes: Sequence[Path] = ()) -> None:
        """indexes: the files that can be searched."""
        self.settings = settings
        self._services: dict[str, Service] = {}
        self.indexes = Indexes(settings, indexes)
        self.state = "loading"  # "loading" | "ready" | "draining"

    def open(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Load models, each by the words of `load`. Raises what `load` raises, and UsageError for a name twice."""
        for words in models:
            service = Service.open(self.settings, words)
            if service.name in self._services:
                service.model.close()
                raise UsageError(f"{service.name} is given twice; a server has one of each.")
            self._services[service.name] = service
        machine = {key: models[0].get(key) for key in ("device", "threads", "isolate")} if models else {}
        self.indexes.open(self.services, machine)
        self.state = "ready"

    def close(self) -> None:
        """Close all models after the calls that are under way."""
        self.state = "draining"
        self.indexes.close()
        for service in self._services.values():
            service.model.close()

    def require_ready(self) -> None:
        """Raise NotReady unless requests are taken."""
        if self.state == "loading":
            raise NotReady("loading", "the models are being loaded.")
        if self.state == "draining":
            raise NotReady("draining", "the server is about to end.")

    @property
    def services(self) -> Sequence[Service]:
        """In the order in which they were named."""
        return tuple(self._services.values())

    def counts(self) -> dict[str, Counts]:
        """What each model's queue has done."""
        return {service.name: service.queue.counts() for service in (*self.indexes.own, *self.services)}

    def find(self, name: str | None, kind: type[Embedder | Reranker] | None = None) -> tuple[Service, str]:
        """The service of a name, and what stands after its colon; no name is the first of its kind.

        Raises ModelUnknown with the names there are.
        """
        fitting = [s for s in self.services if kind is None or isinstance(s.model, kind)]
        if name is None:
            if not fitting:
                raise ModelUnknown(f"no {_KIND[kind]} is in service here.")
            return fitting[0], ""
        base, _, suffix = name.partition(":")
        try:
            wanted = registry.lookup(base).spec.name
        except UsageError:
            wanted = base
        for service in fitting:
            if service.name == wanted:
                return service, suffix
        names = ", ".join(s.name for s in fitting) or f"no {_KIND[kind]} at all"
        near = registry.near_match(base, [s.name for s in fitting])
        raise ModelUnknown(f"the model {name[:100]!r} is not in service here{near}. In service: {names}.")

    def embed(self, call: EmbedCall, ticket: Call) -> Embeddings:
        """Vectors for texts."""
        service, suffix = self.find(call.model, Embedder)
        model = service.embedder
        self.check_count("input", len(call.inputs))
        task, prompt_name = _side(model.spec, call, suffix)
        texts = [_as_text(model, n, one) for n, one in enumerate(call.inputs)]
        if call.late_chunking:
            self.check_size("input", texts)
        prepared = model.prepare(
            texts,
            task=task,  # type: ignore[arg-type]  # `resolve` judges the word
            prompt_name=prompt_name,
            truncate_dim=call.dimensions,
            max_length=None if call.max_length is None else min(call.max_length, model.spec.max_tokens),
            normalize=call.normalize,
            precision=call.precision,  # type: ignore[arg-type]  # the dialect has its own words for it
            overflow="truncate" if call.truncate else "error",
            late_chunking=call.late_chunking,
        )
        result = self._run(service, prepared, ticket)
        spec = prepared.spec
        of_prefix = {prefix: name for name, prefix in model.spec.prompts.items() if name not in model.spec.tasks}
        return Embeddings(
            model=service.name,
            task=spec.task,
            prompt_name=of_prefix.get(spec.prefix),
            vectors=result.vectors,
            tokens=_own_tokens(model, texts, prepared),
            truncated=[int(n) for n in np.flatnonzero(result.truncated)],
        )

    def rerank(self, call: RerankCall, ticket: Call) -> Ranking:
        """Documents in order. A model that embeds ranks by the cosine of its vectors, if it is asked for by name."""
        service, _ = self.find(call.model, Reranker if call.model is None else None)
        self.check_count("documents", len(call.documents))
        model = service.model
        if isinstance(model, Embedder):
            return self._rank_by_cosine(service, call, ticket)
        self.check_size("documents", [call.query, *call.documents])
        prepared = model.prepare(
            call.query,
            call.documents,
            top_n=call.top_n,
            max_doc_length=call.max_doc_length,
            return_embeddings=call.return_embeddings,
            window=None,
        )
        if not call.truncate and (prepared.fed.cut or prepared.fed.query_cut):
            raise _too_long(prepared.fed.cut)
        return _ranking(service, service.rank(prepared, ticket))

    def classify(self, call: ClassifyCall, ticket: Call) -> Classified:
        """The labels' shares of each text: the softmax of the cosines with the labels' vectors."""
        service, suffix = self.find(call.model, Embedder)
        model = service.embedder
        if len(call.labels) < 2:
            raise BadField("labels", "are fewer than two; there is nothing to choose among.")
        self.check_count("input", len(call.inputs) + len(call.labels))
        task = suffix or ("classification" if "classification" in model.spec.tasks else model.spec.tasks[0])
        prepared = model.prepare(
            [*call.labels, *call.inputs],
            task=task,  # type: ignore[arg-type]  # `resolve` judges the word
            overflow="truncate" if call.truncate else "error",
        )
        result = self._run(service, prepared, ticket)
        count = len(call.labels)
        cosines = vectors.similarity(result.vectors[count:], result.vectors[:count], "float32")
        shares = np.exp(cosines - cosines.max(axis=1, keepdims=True))
        texts = [*call.labels, *call.inputs]
        return Classified(
            model=service.name,
            labels=call.labels,
            scores=shares / shares.sum(axis=1, keepdims=True),
            tokens=sum(_own_tokens(model, texts, prepared)),
            truncated=[int(n) - count for n in np.flatnonzero(result.truncated) if n >= count],
        )

    def tokenize(self, call: TokenizeCall) -> list[list[Token]]:
        """The tokens of texts. The prompt stands before them if the request or the model's name asks for one."""
        service, suffix = self.find(call.model, Embedder)
        model = service.embedder
        self.check_count("inputs", len(call.inputs))
        most = self.settings.max_request_tokens
        if sum(map(len, call.inputs)) > most:
            raise Refused(422, "too_many_tokens", f"more than {most} characters in one request.", "inputs")
        prefix = ""
        if suffix or call.task is not None or call.prompt_name is not None:
            asked = EmbedCall(None, [], task=call.task, prompt_name=call.prompt_name)
            task, prompt_name = _side(model.spec, asked, suffix)
            prefix = resolve(model.spec, task=task, prompt_name=prompt_name).prefix
        texts = [prefix + checked(n, text) for n, text in enumerate(call.inputs)]
        return [tokens_of(model.tokenizer, text, template=call.special_tokens) for text in texts]

    def search(self, call: SearchCall, ticket: Call) -> FoundPassages:
        """The passages of an index that answer a question."""
        ticket.alone = call.alone
        reranker = None
        if call.rerank:
            reranker, suffix = self.find(None if call.rerank is True else call.rerank, Reranker)
            if suffix:
                raise BadField("rerank", f"ends in {suffix[:60]!r}; a reranker has nothing after its colon.")
        return self.indexes.search(call, ticket, reranker)

    def _run(self, service: Service, prepared: Prepared, ticket: Call) -> Embedded:
        """Run what was prepared, through the queue. Raises NonFiniteError unless every text has a vector."""
        result = service.embed(prepared, ticket)
        if result.failed:
            raise NonFiniteError(result.failed, len(result.vectors))
        return result

    def _rank_by_cosine(self, service: Service, call: RerankCall, ticket: Call) -> Ranking:
        if call.return_embeddings or call.max_doc_length is not None:
            raise UsageError(f"return_embeddings and max_doc_length are for a reranker; {service.name} embeds.")
        model = service.embedder
        for side, texts in () if call.truncate else (("query", [call.query]), ("document", call.documents)):
            try:
                model.prepare(texts, task="retrieval", prompt_name=side, overflow="error")
            except TextTooLong as error:
                raise _too_long([error.index] if side == "document" else []) from None
        found = service.rank_by_cosine(call.query, call.documents, ticket, top_n=call.top_n)
        return _ranking(service, found)

    def check_size(self, param: str, texts: Sequence[str]) -> None:
        """Raise Refused for more characters than a request may have whose texts are tokenised whole."""
        most = self.settings.max_request_chars
        if sum(map(len, texts)) > most:
            raise Refused(422, "too_many_tokens", f"more than {most} characters in one request.", param)

    def check_count(self, param: str, count: int) -> None:
        """Raise Refused for more texts than a request may have."""
        if count > self.settings.max_inputs:
            message = f"{count} texts in one request; {self.settings.max_inputs} are allowed."
            raise Refused(422, "too_many_inputs", message, param)


_KIND: Mapping[type[Embedder | Reranker] | None, str] = {
    Embedder: "embedding model",
    Reranker: "reranker",
    None: "model",
}


def _ranking(service: Service, found: Reranking) -> Ranking:
    """A ranking as dialects have it."""
    results = [
        RankedDocument(one.index, one.score, one.document, None if one.embedding is None else one.embedding.tolist())
        for one in found
    ]
    return Ranking(
        model=service.name,
        results=results,
        tokens=found.tokens,
        truncated=found.cut,
        query_truncated=found.query_cut,
        failed=found.failed,
        scoring=found.scoring,
    )


def _too_long(documents: Sequence[int]) -> Refused:
    """A ranking's text that may not be cut: the first of the documents, or the query."""
    place = f"documents[{documents[0]}]" if documents else "query"
    return Refused(422, "input_too_long", f"{place} has more tokens than are read.", place)


def _side(spec: ModelSpec, call: EmbedCall, suffix: str) -> tuple[str | None, str | None]:
    """The task and the prompt of a request. What it leaves open is decided as Jina's API does.

    There text-matching is the default of v5, and v3 without a task runs without an adapter. "retrieval" alone is
    refused, because its two sides have different vectors.
    """
    task, prompt_name, known = call.task, call.prompt_name, (*spec.tasks, *spec.task_words)
    if suffix:
        if task is not None or prompt_name is not None:
            raise BadField("model", f"ends in {suffix!r}, and the request has a task or a prompt too; give one.")
        if suffix in _SIDES:
            return _SIDES[suffix]
        if suffix not in known:
            words = ", ".join([*_SIDES, *spec.tasks])
            raise ModelUnknown(f"{spec.name} has no {suffix[:60]!r} after its colon. Possible: {words}.")
        task = suffix
    if task is not None and task not in known:
        near = registry.near_match(task, known)
        raise BadField("task", f"is {task[:60]!r}{near}. Possible: {', '.join(known)}.")
    if task == "retrieval" and prompt_name is None:
        raise BadField("task", "is retrieval, of which there are two: retrieval.query and retrieval.passage.")
    if task is None and prompt_name is None:
        for usual in ("text-matching", NO_TASK):
            if usual in spec.tasks and (usual == NO_TASK) == (spec.default_prompt is None):
                return usual, None
        if len(spec.tasks) > 1:
            raise BadField("task", f"is missing, and {spec.name} has no default. Possible: {', '.join(spec.tasks)}.")
    return task, prompt_name


def _as_text(model: Embedder, n: int, given: Input) -> str:
    """A text as it is, or the text of ids that surely are those of the model's own tokenizer.

    Nothing else says whose ids they are, and ids of another tokenizer, as OpenAI's clients send them, would give a
    vector of another text: most short runs of them are ids of some text here too. So they have to be between the
    special tokens of the model's template, and be what its tokenizer makes of their text.
    """
    if isinstance(given, str):
        return given
    tokenizer = model.tokenizer
    opening, closing = tokenizer.opening, tokenizer.closing
    inner = given[len(opening) : len(given) - len(closing)]
    if (opening or closing) and [*opening, *inner, *closing] == given and all(0 <= i < tokenizer.rows for i in inner):
        text = tokenizer.decode(inner)
        if tokenizer.plain([text]) == [inner]:
            return text
    around = "with its special tokens" if opening or closing else "and it has no special tokens to know them by"
    raise BadField(
        f"input[{n}]",
        f"has ids that are not surely those of {model.spec.name}'s tokenizer, {around}. Send the text (LangChain: "
        "check_embedding_ctx_length=False).",
    )


def _own_tokens(model: Embedder, texts: Sequence[str], prepared: Prepared) -> list[int]:
    """The tokens of each text by itself: special tokens included, the model's prompt not."""
    spec, ids = prepared.spec, prepared.ids
    if not spec.prefix:
        counts: list[int] = ids.counts.tolist()
        return counts
    if isinstance(ids, Encoded):
        return model.tokenizer.counts_alone(texts, ids, spec)
    around = len(model.tokenizer.opening) + len(model.tokenizer.closing)
    bodies = model.tokenizer.plain(texts, spec.max_tokens)
    return [min(len(body) + around, int(count)) for body, count in zip(bodies, ids.counts, strict=True)]
