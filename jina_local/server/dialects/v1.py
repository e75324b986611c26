"""The API of Jina, and OpenAI's, which have /v1/embeddings in common: what either sends is taken if it is clear.

Vectors as text: float; base64 of little-endian float32; binary (Jina's: bits packed, minus 128) and ubinary.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from .calls import (
    Classified,
    ClassifyCall,
    EmbedCall,
    Embeddings,
    Fault,
    ModelInfo,
    Ranking,
    RerankCall,
)
from .fields import BadField, Fields

_FORMS = {"float": "float", "base64": "base64", "binary": "binary", "ubinary": "ubinary"}
_PRECISIONS = {"float": "float32", "base64": "float32", "binary": "binary", "ubinary": "ubinary"}
_INPUT_TYPES = {"query": "query", "search_query": "query", "document": "document", "passage": "document",
                "search_document": "document"}  # fmt: skip


def read_embeddings(body: object) -> EmbedCall:
    """POST /v1/embeddings."""
    fields = Fields.of(body)
    fields.ignore("user", "object")
    form = fields.choice(
        "embedding_type", "encoding_format", "encoding_type", "output_dtype", among=_FORMS, default="float"
    )
    call = EmbedCall(
        model=fields.text("model"),
        inputs=fields.inputs("input", ids=True),
        task=fields.text("task", "task_type"),
        prompt_name=_prompt_name(fields),
        dimensions=fields.whole("dimensions", "output_dimension", "truncate_dim"),
        normalize=fields.flag("normalized", "normalize", default=True),
        precision=_PRECISIONS[form],
        truncate=fields.flag("truncate", "truncation", default=False),
        late_chunking=fields.flag("late_chunking", default=False),
        form=form,
    )
    fields.done()
    return call


def _prompt_name(fields: Fields) -> str | None:
    name, value = fields.any("prompt_name", "input_type")
    if value is None:
        return None
    if not isinstance(value, str) or (name == "input_type" and value not in _INPUT_TYPES):
        raise BadField(name, f"is {value!r:.60}. Possible: {', '.join(_INPUT_TYPES)}.")
    return _INPUT_TYPES[value] if name == "input_type" else value


def write_embeddings(call: EmbedCall, reply: Embeddings) -> dict[str, Any]:
    """The answer; `task`, `prompt_name` and `truncated` are ours, other clients pass them over."""
    total = sum(reply.tokens)
    return {
        "object": "list",
        "model": reply.model,
        "task": reply.task,
        "prompt_name": reply.prompt_name,
        "data": [
            {"object": "embedding", "index": n, "embedding": vector}
            for n, vector in enumerate(vectors_as(call.form, reply))
        ],
        "usage": {"prompt_tokens": total, "total_tokens": total},
        "truncated": list(reply.truncated),
    }


def vectors_as(form: str, reply: Embeddings) -> Sequence[Any]:
    """Each vector in the form that was asked for; "float" leaves them arrays, which are written as lists."""
    if form == "base64":
        return [base64.b64encode(np.asarray(row, "<f4").tobytes()).decode() for row in reply.vectors]
    return reply.lists()


def read_rerank(body: object) -> RerankCall:
    """POST /v1/rerank, also as Cohere's clients send it."""
    fields = Fields.of(body)
    call = RerankCall(
        model=fields.text("model"),
        query=fields.required("query"),
        documents=fields.texts("documents"),
        top_n=fields.whole("top_n"),
        max_doc_length=fields.whole("max_doc_length", "max_tokens_per_doc"),
        return_documents=fields.flag("return_documents", default=True),
        return_embeddings=fields.flag("return_embeddings", default=False),
        truncate=fields.flag("truncation", "truncate", default=True),
    )
    fields.done()
    return call


def write_rerank(call: RerankCall, reply: Ranking) -> dict[str, Any]:
    """The answer. Documents without a usable score are in `failed`, those that were not read whole in `truncated`."""
    results = []
    for one in reply.results:
        result: dict[str, Any] = {"index": one.index, "relevance_score": round(one.score, 8)}
        if call.return_documents:
            result["document"] = {"text": one.text}
        if one.embedding is not None:
            result["embedding"] = list(one.embedding)
        results.append(result)
    return {
        "object": "list",
        "model": reply.model,
        "scoring": reply.scoring,
        "usage": {"total_tokens": reply.tokens, "prompt_tokens": reply.tokens},
        "results": results,
        "truncated": list(reply.truncated),
        "query_truncated": reply.query_truncated,
        "failed": list(reply.failed),
    }


def read_classify(body: object) -> ClassifyCall:
    """POST /v1/classify, with labels (zero-shot)."""
    fields = Fields.of(body)
    call = ClassifyCall(
        model=fields.text("model"),
        inputs=fields.texts("input"),
        labels=fields.texts("labels"),
        truncate=fields.flag("truncate", "truncation", default=False),
    )
    fields.done()
    return call


def write_classify(call: ClassifyCall, reply: Classified) -> dict[str, Any]:
    """The answer."""
    data = []
    for n, row in enumerate(reply.scores.tolist()):
        best = max(range(len(row)), key=row.__getitem__)
        data.append(
            {
                "object": "classification",
                "index": n,
                "prediction": reply.labels[best],
                "score": row[best],
                "predictions": [
                    {"label": label, "score": score} for label, score in zip(reply.labels, row, strict=True)
                ],
            }
        )
    return {
        "object": "list",
        "model": reply.model,
        "usage": {"total_tokens": reply.tokens},
        "data": data,
        "truncated": list(reply.truncated),
    }


def write_model(info: ModelInfo) -> dict[str, Any]:
    """GET /v1/models/ID."""
    return {
        "id": info.name,
        "object": "model",
        "created": 0,
        "owned_by": "jina_local",
        "kind": info.kind,
        "tasks": list(info.tasks),
        "prompts": list(info.prompts),
        "dimensions": list(info.dims),
        "max_tokens": info.max_tokens,
        "pooling": info.pooling,
        "license": info.license,
        "backend": info.backend,
        "weights": info.weights,
        "device": info.device,
        "dtype": info.dtype,
        "digest": info.digest,
    }


def write_models(infos: Sequence[ModelInfo]) -> dict[str, Any]:
    """GET /v1/models."""
    return {"object": "list", "data": [write_model(info) for info in infos]}


def write_fault(fault: Fault) -> dict[str, Any]:
    """`error` as OpenAI's clients read it, `detail` as Jina's do."""
    return {
        "error": {
            "message": fault.message,
            "type": fault.type,
            "code": fault.type,
            "param": fault.param,
            "request_id": fault.request_id,
        },
        "detail": fault.message,
    }
