"""The inference API of Elasticsearch: endpoints with names, and text_embedding and rerank through them.

From Elastic's specification and clients: the paths, the settings of its service `jinaai`, the answers and the errors.
There a POST never cuts an input into chunks, because only semantic_text does. Here it does if the endpoint was made
with `chunking_settings`, unless the input is a query (input_type search). An input of several chunks then has, in its
place in the answer, `chunks` with `start_offset`, `end_offset` and `embeddings`, named as in a semantic_text field,
and no `embedding`: a client that does not know of chunks fails, and takes no part for the whole. The strategy
`recursive` is refused, because its separators are regular expressions from a request. An input that is too long is an
error. Bytes are int8 codes. Bits are those that Jina's API gives for `binary`: packed, minus 128.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .calls import EmbedCall, Embeddings, Fault, Ranking, RerankCall
from .fields import BadField, Fields

TASKS = ("text_embedding", "rerank")
# A client of Elastic's takes no other server's answers.
HEADERS = {"x-elastic-product": "Elasticsearch"}
_SERVICES = {"jinaai": "jinaai", "jina_local": "jina_local"}
_ELEMENTS = {"float": "float", "byte": "byte", "bit": "bit", "binary": "bit"}
_PRECISIONS = {"float": "float32", "byte": "int8", "bit": "binary"}
_ANSWERS = {"float": "text_embedding", "byte": "text_embedding_bytes", "bit": "text_embedding_bits"}
_SIMILARITIES = {"cosine": "cosine", "dot_product": "dot_product", "l2_norm": "l2_norm"}
_INPUT_TYPES = {
    "ingest": "retrieval.passage",
    "search": "retrieval.query",
    "classification": "classification",
    "clustering": "clustering",
}
_STRATEGIES = {"sentence": "sentence", "word": "word", "none": ""}
_LEAST = {"sentence": 20, "word": 10}  # words of a chunk
_NO_MATTER = ("pretty", "human", "error_trace")
_SECONDS = {"nanos": 1e-9, "micros": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(rf"(\d{{1,12}})({'|'.join(_SECONDS)})")
_ID = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,126}[a-z0-9])?")


@dataclass(frozen=True)
class Chunking:
    """How a long input is cut."""

    strategy: str  # "sentence" | "word"
    size: int  # words
    overlap: int  # words; of sentences 0 or 1


@dataclass(frozen=True)
class InferenceEndpoint:
    """A model under a name, with the settings that its requests leave out."""

    inference_id: str
    task_type: str
    service: str
    service_settings: Mapping[str, Any]
    task_settings: Mapping[str, Any]
    chunking: Chunking | None = None


def read_model(body: object) -> str:
    """PUT /_inference/ID: the model, which says what the task is."""
    return Fields.of(body).inner("service_settings", required=True).required("model_id")


def read_put(task_type: str, inference_id: str, body: object) -> InferenceEndpoint:
    """PUT /_inference/TASK_TYPE/ID. The key and the rate limit of a remote service are passed over, and not kept."""
    if not _ID.fullmatch(inference_id):
        raise BadField("inference_id", "takes a-z, 0-9 and, between them, hyphen, underscore and dot.")
    if task_type not in TASKS:
        raise BadField("task_type", f"is {task_type[:60]!r}. Possible: {', '.join(TASKS)}.")
    fields = Fields.of(body)
    fields.required("service")
    service = fields.choice("service", among=_SERVICES, default="")
    given = fields.inner("service_settings", required=True)
    given.ignore("api_key", "rate_limit")
    settings: dict[str, Any] = {"model_id": given.required("model_id")}
    if task_type == "rerank":
        task_settings, chunking = _rerank_settings(fields.inner("task_settings"), alone=True), None
    else:
        element = given.choice("element_type", "embedding_type", among=_ELEMENTS, default="float")
        usual = "l2_norm" if element == "bit" else "dot_product"
        settings["similarity"] = given.choice("similarity", among=_SIMILARITIES, default=usual)
        settings["element_type"] = element
        if (dimensions := given.whole("dimensions")) is not None:
            settings["dimensions"] = dimensions
        task_settings, chunking = _embedding_settings(fields.inner("task_settings")), _chunking(fields)
    given.done()
    fields.done()
    return InferenceEndpoint(inference_id, task_type, service, settings, task_settings, chunking)


def write_endpoint(endpoint: InferenceEndpoint) -> dict[str, Any]:
    """The answer to PUT, and an entry of GET; `read_put` reads it again from disk."""
    chunking = endpoint.chunking
    shown: dict[str, Any] = {
        "inference_id": endpoint.inference_id,
        "task_type": endpoint.task_type,
        "service": endpoint.service,
        "service_settings": dict(endpoint.service_settings),
        "task_settings": dict(endpoint.task_settings),
    }
    if chunking is not None:
        overlap = "sentence_overlap" if chunking.strategy == "sentence" else "overlap"
        shown["chunking_settings"] = {
            "strategy": chunking.strategy,
            "max_chunk_size": chunking.size,
            overlap: chunking.overlap,
        }
    return shown


def write_endpoints(endpoints: Sequence[InferenceEndpoint]) -> dict[str, Any]:
    """GET /_inference."""
    return {"endpoints": [write_endpoint(one) for one in endpoints]}


def write_deleted(done: bool) -> dict[str, Any]:
    """DELETE; not done: it was a dry run. No pipeline of a cluster can use an endpoint of this server."""
    return {"acknowledged": done, "pipelines": []}


def read_embed(endpoint: InferenceEndpoint, body: object) -> tuple[EmbedCall, Chunking | None]:
    """POST to an endpoint for text_embedding: the call, and how its inputs are cut."""
    fields = Fields.of(body)
    settings = {**endpoint.task_settings, **_embedding_settings(fields.inner("task_settings"))}
    input_type = _input_type(fields) or settings.get("input_type")
    of_service = endpoint.service_settings
    call = EmbedCall(
        model=of_service["model_id"],
        inputs=fields.texts("input"),
        task=None if input_type is None else _INPUT_TYPES[input_type],
        dimensions=of_service.get("dimensions"),
        precision=_PRECISIONS[of_service["element_type"]],
        late_chunking=settings.get("late_chunking", False),
    )
    fields.done()
    chunking = None if input_type == "search" else endpoint.chunking
    if call.late_chunking and chunking is not None and len(call.inputs) > 1:
        raise BadField("input", "has several texts; late chunking reads the chunks of one text together.")
    return call, chunking


def write_embed(
    endpoint: InferenceEndpoint, reply: Embeddings, spans: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, Any]:
    """The answer. `spans`: of each input, its chunks in characters, whose vectors follow each other."""
    vectors = iter(reply.lists())
    results: list[dict[str, Any]] = []
    for chunks in spans:
        if len(chunks) == 1:
            results.append({"embedding": next(vectors)})
            continue
        results.append(
            {
                "chunks": [
                    {"start_offset": start, "end_offset": end, "embeddings": next(vectors)} for start, end in chunks
                ]
            }
        )
    return {_ANSWERS[endpoint.service_settings["element_type"]]: results}


def read_rerank(endpoint: InferenceEndpoint, body: object) -> RerankCall:
    """POST to an endpoint for rerank. Documents come back only if they are asked for."""
    fields = Fields.of(body)
    settings = {
        **endpoint.task_settings,
        **_rerank_settings(fields.inner("task_settings"), alone=True),
        **_rerank_settings(fields, alone=False),
    }
    call = RerankCall(
        model=endpoint.service_settings["model_id"],
        query=fields.required("query"),
        documents=fields.texts("input"),
        top_n=settings.get("top_n"),
        return_documents=settings.get("return_documents", False),
    )
    fields.done()
    return call


def write_rerank(call: RerankCall, reply: Ranking) -> dict[str, Any]:
    """The answer."""
    return {
        "rerank": [
            {
                "index": one.index,
                "relevance_score": one.score,
                **({"text": one.text} if call.return_documents else {}),
            }
            for one in reply.results
        ]
    }


def readers() -> Mapping[str, Sequence[Callable[[object], object]]]:
    """By its method, all readers of a body: the path says which one it is, by a task or the name of an endpoint."""
    made = InferenceEndpoint("a", "", "jina_local", {"model_id": "", "element_type": "float"}, {})
    return {
        "PUT": [partial(read_put, task, made.inference_id) for task in TASKS],
        "POST": [partial(read_embed, made), partial(read_rerank, made)],
    }


def read_query(query: Mapping[str, str], *names: str) -> dict[str, str]:
    """The parameters of a path, of which these may be there, and those that change no answer."""
    fields = Fields(query)
    fields.ignore(*_NO_MATTER)
    found = {name: value for name in names if (value := fields.text(name)) is not None}
    fields.done()
    return found


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """A parameter of a path that is true or false; without a value it is true."""
    value = query.get(name, "false")
    if value not in ("", "true", "false"):
        raise BadField(name, f"is {value[:60]!r}; expected true or false.")
    return value != "false"


def read_seconds(query: Mapping[str, str]) -> float | None:
    """The parameter `timeout`, in seconds. None: the server's own limit."""
    value = query.get("timeout")
    if value is None or value == "-1":
        return None
    found = _DURATION.fullmatch(value)
    if found is None:
        raise BadField("timeout", f"is {value[:60]!r}; expected a duration such as 30s.")
    return int(found[1]) * _SECONDS[found[2]]


def write_fault(fault: Fault) -> dict[str, Any]:
    """An error."""
    kinds = {
        400: "illegal_argument_exception",
        404: "resource_not_found_exception",
        422: "illegal_argument_exception",
        429: "es_rejected_execution_exception",
    }
    kind = fault.type if fault.type.endswith("_exception") else kinds.get(fault.status, "status_exception")
    cause = {"type": kind, "reason": fault.message}
    return {"error": {"root_cause": [cause], **cause}, "status": fault.status}


def _input_type(fields: Fields) -> str | None:
    value = fields.text("input_type")
    word = None if value is None else value.lower()
    if word is not None and word not in _INPUT_TYPES:
        raise BadField("input_type", f"is {value!r:.60}. Possible: {', '.join(_INPUT_TYPES)}.")
    return word


def _embedding_settings(given: Fields) -> dict[str, Any]:
    """The task_settings of text_embedding that are there."""
    found: dict[str, Any] = {}
    if (input_type := _input_type(given)) is not None:
        found["input_type"] = input_type
    if (late := given.value("late_chunking", of=(bool,))) is not None:
        found["late_chunking"] = late
    given.done()
    return found


def _rerank_settings(given: Fields, *, alone: bool) -> dict[str, Any]:
    """The task_settings of rerank that are there; newer clients put them beside the query."""
    found: dict[str, Any] = {}
    if (top_n := given.whole("top_n")) is not None:
        found["top_n"] = top_n
    if (documents := given.value("return_documents", of=(bool,))) is not None:
        found["return_documents"] = documents
    if alone:
        given.done()
    return found


def _chunking(fields: Fields) -> Chunking | None:
    """The chunking_settings; None if there are none, or if their strategy is `none`."""
    given = fields.inner("chunking_settings")
    strategy = given.choice("strategy", among=_STRATEGIES, default="sentence")
    size = given.whole("max_chunk_size", low=min(_LEAST.values()))
    overlaps = {"word": given.whole("overlap", low=0), "sentence": given.whole("sentence_overlap", low=0)}
    given.done()
    if not given.there or not strategy:
        return None
    if size is not None and size < _LEAST[strategy]:
        raise BadField("max_chunk_size", f"is {size}; expected a whole number from {_LEAST[strategy]}.")
    size, overlap = 250 if size is None else size, overlaps.pop(strategy)
    if any(other is not None for other in overlaps.values()):
        raise BadField("chunking_settings", f"have an overlap of another strategy than {strategy}.")
    most, usual = (1, 1) if strategy == "sentence" else (size // 2, min(100, size // 2))
    overlap = usual if overlap is None else overlap
    if overlap > most:
        raise BadField("chunking_settings", f"have an overlap of {overlap}; at most {most} are possible.")
    return Chunking(strategy, size, overlap)
