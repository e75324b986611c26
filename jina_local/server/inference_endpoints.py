"""Elastic's inference API: endpoints are made, listed, deleted, and asked for vectors and rankings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import TextError, UsageError
from ..inference.queue import Call
from ..text import word_chunks
from ..text.chunks import Span
from .dialects import elastic
from .dialects.calls import Ranking
from .dialects.elastic import Chunking, InferenceEndpoint
from .endpoint_file import EndpointFile, Endpoints
from .faults import Refused
from .served import Served

_MOST = 1000
Given = Mapping[str, Any]  # a request: {"path": ..., "query": ..., "body": ...}


class InferenceApi:
    """The work of each method of a path. Safe to call from several threads."""

    def __init__(self, served: Served, file: EndpointFile) -> None:
        self._served, self._file = served, file

    def put(self, given: Given, ticket: Call) -> dict[str, Any]:
        """Keep a new endpoint, once its model has answered with its settings; its width is then known."""
        task_type, name, query = _asked(given, "timeout")
        _limit(ticket, query)
        if task_type is None:
            spec = self._served.find(elastic.read_model(given["body"]))[0].spec
            task_type = "text_embedding" if spec.scoring is None else "rerank"
        endpoint = self._tried(elastic.read_put(task_type, name, given["body"]), ticket)
        with self._file.changing() as endpoints:
            if name in endpoints:
                reason = f"Inference endpoint [{name}] already exists; delete it first."
                raise Refused(400, "resource_already_exists_exception", reason, "inference_id")
            if len(endpoints) >= _MOST:
                raise UsageError(f"{_MOST} inference endpoints are kept, and no more; delete one first.")
            endpoints[name] = endpoint
        return elastic.write_endpoint(endpoint)

    def get(self, given: Given, _ticket: Call) -> dict[str, Any]:
        """One endpoint, as a list of one."""
        task_type, name, _ = _asked(given)
        return elastic.write_endpoints([_chosen(self._file.all(), task_type, name)])

    def every(self, given: Given, _ticket: Call) -> dict[str, Any]:
        """All endpoints, or all of a task."""
        task_type = given.get("path", {}).get("task_type")
        return elastic.write_endpoints([e for e in self._file.all().values() if task_type in (None, e.task_type)])

    def delete(self, given: Given, _ticket: Call) -> dict[str, Any]:
        """Forget an endpoint, unless the request only asks whether it could be."""
        task_type, name, query = _asked(given, "dry_run", "force")
        elastic.read_flag(query, "force")  # nothing here depends on an endpoint, so there is nothing to overrule
        if elastic.read_flag(query, "dry_run"):
            _chosen(self._file.all(), task_type, name)
            return elastic.write_deleted(False)
        with self._file.changing() as endpoints:
            del endpoints[_chosen(endpoints, task_type, name).inference_id]
        return elastic.write_deleted(True)

    def infer(self, given: Given, ticket: Call) -> tuple[dict[str, Any], Ranking | None]:
        """Vectors; or a ranking, which is also given as it is."""
        task_type, name, query = _asked(given, "timeout")
        _limit(ticket, query)
        endpoint = _chosen(self._file.all(), task_type, name)
        if endpoint.task_type == "rerank":
            asked = elastic.read_rerank(endpoint, given["body"])
            ranking = self._served.rerank(asked, ticket)
            return elastic.write_rerank(asked, ranking), ranking
        call, chunking = elastic.read_embed(endpoint, given["body"])
        texts = [one for one in call.inputs if isinstance(one, str)]
        spans = [_spans(text, chunking) for text in texts]
        pieces = [text[start:end] for text, chunks in zip(texts, spans, strict=True) for start, end in chunks]
        with _naming_inputs(spans):
            reply = self._served.embed(replace(call, inputs=pieces), ticket)
        return elastic.write_embed(endpoint, reply, spans), None

    def _tried(self, endpoint: InferenceEndpoint, ticket: Call) -> InferenceEndpoint:
        if endpoint.task_type == "rerank":
            self._served.find(endpoint.service_settings["model_id"])
            return endpoint
        call, _ = elastic.read_embed(endpoint, {"input": "a"})
        width = self._served.embed(call, ticket).vectors.shape[1]
        dimensions = width * (8 if call.precision == "binary" else 1)
        return replace(endpoint, service_settings={**endpoint.service_settings, "dimensions": dimensions})


def _asked(given: Given, *query: str) -> tuple[str | None, str, dict[str, str]]:
    """The task, the id, and the parameters of the path that may be there."""
    path = given["path"]
    return path.get("task_type"), path["inference_id"], elastic.read_query(given["query"], *query)


def _limit(ticket: Call, query: Mapping[str, str]) -> None:
    """Give a call the time that the request names, if it is less than the server's."""
    seconds = elastic.read_seconds(query)
    if seconds is not None:
        ticket.deadline = min(ticket.deadline, time.monotonic() + seconds)


def _chosen(endpoints: Endpoints, task_type: str | None, name: str) -> InferenceEndpoint:
    """One endpoint. Raises Refused if there is none of that id, UsageError if it has another task."""
    found = endpoints.get(name)
    if found is None:
        reason = f"Inference endpoint not found [{name[:100]}]."
        raise Refused(404, "resource_not_found_exception", reason, "inference_id")
    if task_type not in (None, found.task_type):
        raise UsageError(f"{name} has the task {found.task_type}, not {str(task_type)[:60]}.")
    return found


def _spans(text: str, chunking: Chunking | None) -> list[Span]:
    """The chunks of an input."""
    if chunking is None:
        return [(0, len(text))]
    cut = word_chunks.of_sentences if chunking.strategy == "sentence" else word_chunks.of_words
    return cut(text, chunking.size, chunking.overlap)


@contextmanager
def _naming_inputs(spans: Sequence[Sequence[Span]]) -> Iterator[None]:
    """An error that names a chunk names its input instead."""
    try:
        yield
    except TextError as error:
        owners = [n for n, chunks in enumerate(spans) for _ in chunks]
        raise type(error)(owners[error.index], error.reason) from None
