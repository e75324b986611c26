"""The API of Hugging Face's Text Embeddings Inference.

Its server has one model and no task. Here `model` may be in the body too, without it the first model of its kind
answers, and `prompt_name` may be any word that says what the texts are for: query, document, or a task. Without one
the default is that of /v1/embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .calls import (
    EmbedCall,
    Embeddings,
    Fault,
    ModelInfo,
    Ranking,
    RerankCall,
    Token,
    TokenizeCall,
)
from .fields import BadField, Fields

_SIDES = {"query": "query", "document": "document", "passage": "document"}
_DIRECTIONS = {"right": "right", "Right": "right", "left": "left", "Left": "left"}
_POOLING = {"last": "last_token", "first": "cls"}


@dataclass(frozen=True)
class Limits:
    """What /info says of the server."""

    version: str
    connections: int
    inputs: int
    tokens: int


def read_embed(body: object) -> EmbedCall:
    """POST /embed."""
    fields = Fields.of(body)
    task, prompt_name = _side(fields)
    call = EmbedCall(
        model=fields.text("model"),
        inputs=fields.inputs("inputs", ids=True),
        task=task,
        prompt_name=prompt_name,
        dimensions=fields.whole("dimensions"),
        normalize=fields.flag("normalize", default=True),
        truncate=_truncate(fields),
    )
    fields.done()
    return call


def _side(fields: Fields) -> tuple[str | None, str | None]:
    """The task and the prompt that `prompt_name` stands for."""
    word = fields.text("prompt_name")
    return (None, _SIDES[word]) if word in _SIDES else (word, None)


def _truncate(fields: Fields) -> bool:
    truncate = fields.flag("truncate", default=False)
    if fields.choice("truncation_direction", among=_DIRECTIONS, default="right") == "left" and truncate:
        raise BadField("truncation_direction", "is left, and texts are only ever cut at their end.")
    return truncate


def write_embed(call: EmbedCall, reply: Embeddings) -> list[list[Any]]:
    """The answer: the vectors alone."""
    return reply.lists()


def read_rerank(body: object) -> tuple[RerankCall, bool]:
    """POST /rerank: the call, and whether raw scores are wanted."""
    fields = Fields.of(body)
    call = RerankCall(
        model=fields.text("model"),
        query=fields.required("query"),
        documents=fields.texts("texts"),
        return_documents=fields.flag("return_text", default=False),
        truncate=_truncate(fields),
    )
    raw = fields.flag("raw_scores", default=False)
    fields.done()
    return call, raw


def write_rerank(call: RerankCall, raw: bool, reply: Ranking) -> list[dict[str, Any]]:
    """The answer. A pairwise reranker's score is the sigmoid of its logit; a cosine is its own raw score."""
    if raw and reply.scoring == "pairwise":
        raise BadField("raw_scores", f"is true, and the logits of {reply.model} are not to be had.")
    return [
        {"index": one.index, "score": one.score, **({"text": one.text} if call.return_documents else {})}
        for one in reply.results
    ]


def read_similarity(body: object) -> EmbedCall:
    """POST /similarity: the source sentence is the first of the texts."""
    fields = Fields.of(body)
    model = fields.text("model")
    given = fields.inner("inputs", required=True)
    texts = [given.required("source_sentence"), *given.texts("sentences")]
    given.done()
    extra = fields.inner("parameters")
    task, prompt_name = _side(extra)
    truncate = _truncate(extra)
    extra.done()
    fields.done()
    return EmbedCall(model=model, inputs=texts, task=task, prompt_name=prompt_name, truncate=truncate)


def write_similarity(call: EmbedCall, reply: Embeddings) -> list[float]:
    """The answer: the cosine of each sentence with the source."""
    wide = reply.vectors.astype("float64")
    cosines: list[float] = (wide[1:] @ wide[0]).astype("float32").tolist()
    return cosines


def read_tokenize(body: object) -> TokenizeCall:
    """POST /tokenize."""
    fields = Fields.of(body)
    task, prompt_name = _side(fields)
    call = TokenizeCall(
        model=fields.text("model"),
        inputs=fields.texts("inputs"),
        task=task,
        prompt_name=prompt_name,
        special_tokens=fields.flag("add_special_tokens", default=True),
    )
    fields.done()
    return call


def write_tokens(texts: Sequence[Sequence[Token]]) -> list[list[dict[str, Any]]]:
    """The answer."""
    return [
        [
            {"id": one.id, "text": one.text, "special": one.start is None, "start": one.start, "stop": one.end}
            for one in tokens
        ]
        for tokens in texts
    ]


def write_info(info: ModelInfo, limits: Limits) -> dict[str, Any]:
    """GET /info."""
    kind: dict[str, Any] = {"embedding": {"pooling": _POOLING.get(info.pooling, info.pooling)}}
    return {
        "model_id": info.name,
        "model_sha": info.digest_of_all,
        "model_dtype": info.dtype,
        "served_model_name": info.name,
        "model_type": kind if info.kind == "embedding" else {"reranker": {"id2label": {}, "label2id": {}}},
        "max_concurrent_requests": limits.connections,
        "max_input_length": info.max_tokens,
        "max_batch_tokens": limits.tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.inputs,
        "auto_truncate": False,
        "tokenization_workers": limits.connections,
        "version": limits.version,
        "sha": None,
        "docker_label": None,
    }


def write_fault(fault: Fault) -> dict[str, Any]:
    """An error, and which of its kinds it is of."""
    kinds = {429: "Overloaded", 503: "Unhealthy"}
    kind = kinds.get(fault.status, "Backend" if fault.status >= 500 else "Validation")
    return {"error": fault.message, "error_type": kind}
