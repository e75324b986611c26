"""The description of the API as OpenAPI 3.1, made of the table of routes.

A body's fields are those that its reader asks for, and an answer's are those that its writer writes: both are called
here with nothing but names and samples. So neither is written down twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import numpy as np

from .. import __version__
from .dialects.calls import (
    Classified,
    ClassifyCall,
    EmbedCall,
    Embeddings,
    Fault,
    Input,
    RankedDocument,
    Ranking,
    RerankCall,
)
from .dialects.fields import Fields
from .routes import Answered, Endpoint, Mapped

Schema = dict[str, Any]
_FAULTS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 500, 503, 504)
_TEXT: Schema = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"text": {"type": "string"}},
                           "required": ["text"], "additionalProperties": False}]}  # fmt: skip
_IDS: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_HEADERS: Schema = {
    "X-Request-Id": {"schema": {"type": "string"}, "required": True},
    "X-Truncated": {"schema": {"type": "string"}, "description": "the places of texts that were cut"},
}
_KINDS = {bool: "boolean", str: "string", int: "integer", float: "number", Mapping: "object"}
_RETRY: Schema = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
_TIMEOUT: Schema = {
    "name": "X-Timeout", "in": "header", "description": "seconds, at most the server's own limit",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}  # fmt: skip


def describe(endpoints: Iterable[Endpoint], plain: Mapping[str, Any], *, with_key: bool) -> Schema:
    """The document. `plain`: further paths of GET, each with a sample of its answer: text if it is a str.

    with_key: a key is asked for.
    """
    paths: dict[str, Schema] = {}
    for one in endpoints:
        for method in one.methods:
            paths.setdefault(_path(one.path), {}).setdefault(method.lower(), _operation(one, method))
    for path, sample in plain.items():
        kind = "text/plain" if isinstance(sample, str) else "application/json"
        content = {kind: {"schema": schema_of([sample])}}
        done = {"description": "OK", "content": content}
        paths[path] = {"get": {"responses": {"200": done, **({"503": done} if path == "/ready" else {})}}}
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "jina_local", "version": __version__},
        "paths": paths,
    }
    if with_key:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        document["security"] = [{"key": []}]
    return document


def schema_of(samples: Sequence[Any]) -> Schema:
    """A schema that all samples fit: what they have in common is required, and numbers may have fractions."""
    kinds: dict[str, list[Any]] = {}
    for one in samples:
        kinds.setdefault(_kind(one), []).append(one)
    schemas = [_schema_of_kind(kind, ones) for kind, ones in kinds.items()]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _schema_of_kind(kind: str, samples: Sequence[Any]) -> Schema:
    if kind == "array":
        items = [item for one in samples for item in (one.tolist() if isinstance(one, np.ndarray) else one)]
        return {"type": kind, "items": schema_of(items)} if items else {"type": kind}
    if kind == "object":
        names = list(dict.fromkeys(name for one in samples for name in one))
        return {
            "type": kind,
            "properties": {name: schema_of([one[name] for one in samples if name in one]) for name in names},
            "required": [name for name in names if all(name in one for one in samples)],
        }
    return {"type": kind}


def _kind(value: Any) -> str:
    for python, kind in _KINDS.items():
        if isinstance(value, python):
            return kind
    return "null" if value is None else "array"


def _operation(one: Endpoint, method: str) -> Schema:
    names = re.findall(r"{(\w+)", one.path)
    place = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    found: Schema = {"parameters": [*place, _TIMEOUT], "responses": _responses(one)}
    if method in ("POST", "PUT", "PATCH"):
        readers = [one.work.read] if isinstance(one.work, Mapped | Answered) else one.readers
        schemas = [_body(read) for read in readers]
        body = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _responses(one: Endpoint) -> Schema:
    samples = [] if one.example is None else [one.example]
    if isinstance(one.work, Mapped):
        samples = [one.work.write(*sample) for sample in _SAMPLES.get(one.work.call.__name__, ())]
    answer = {"application/json": {"schema": schema_of(samples) if samples else {}}}
    faults = [one.fault(Fault(400, "type", "message", param, "id")) for param in (None, "input")]
    wrong = {"application/json": {"schema": schema_of(faults)}}
    found: Schema = {"200": {"description": "OK", "headers": _HEADERS, "content": answer}}
    for status in _FAULTS:
        headers = {**_HEADERS, **(_RETRY if status in (429, 503) else {})}
        found[str(status)] = {"description": HTTPStatus(status).phrase, "headers": headers, "content": wrong}
    return found


def _body(read: Callable[[Any], Any]) -> Schema:
    """The schema of what a dialect's reader takes."""
    asked = _Asked()
    read(asked)
    return asked.schema


def _path(path: str) -> str:
    """A path as OpenAPI writes it: without the kinds of its parameters."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


class _Asked(Fields):
    """The fields that a reader asks for, each with its schema. It is given samples of them."""

    def __init__(self, *, optional: bool = False) -> None:
        """optional: null stands for an object that is left out."""
        super().__init__({})
        kind = ["object", "null"] if optional else "object"
        self.schema: Schema = {"type": kind, "properties": {}, "additionalProperties": False}

    def _add(self, names: Sequence[str], schema: Schema, *, required: bool = False) -> None:
        for name in names:
            self.schema["properties"][name] = schema
        if required and len(names) == 1:
            self.schema.setdefault("required", []).append(names[0])
        elif required:
            self.schema["anyOf"] = [{"required": [name]} for name in names]

    def any(self, *names: str) -> tuple[str, object]:
        self._add(names, {})
        return names[0], None

    def value(self, *names: str, of: tuple[type, ...]) -> Any:
        self._add(names, {"type": [*(_KINDS[kind] for kind in of), "null"]})

    def flag(self, *names: str, default: bool) -> bool:
        self._add(names, {"type": ["boolean", "null"], "default": default})
        return default

    def whole(self, *names: str, low: int = 1) -> int | None:
        self._add(names, {"type": ["integer", "null"], "minimum": low})
        return None

    def choice(self, *names: str, among: Mapping[str, str], default: str) -> str:
        missing = [] if names[0] in self.schema.get("required", ()) else [None]
        self._add(names, {"enum": [*among, *missing]})
        return default

    def inputs(self, *names: str, ids: bool = False) -> list[Input]:
        kinds = [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]
        if ids:
            kinds += [_IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}]
        self._add(names, {"anyOf": kinds}, required=True)
        return [""]

    def strings(self, name: str, *, alone: bool = False, required: bool = False) -> list[str]:
        kinds: list[Schema] = [{"type": "array", "items": {"type": "string"}}]
        kinds += [{"type": "string"}] if alone else []
        self._add([name], {"anyOf": kinds if required else [*kinds, {"type": "null"}]}, required=required)
        return []

    def inner(self, name: str, *, required: bool = False) -> Fields:
        inner = _Asked(optional=not required)
        self._add([name], inner.schema, required=required)
        return inner

    def required(self, *names: str) -> str:
        self._add(names, {"type": "string"}, required=True)
        return ""

    def ignore(self, *names: str) -> None:
        self._add(names, {})

    def done(self) -> None:
        """There is no body to judge."""


def _embedded(form: str, vectors: np.ndarray, prompt_name: str | None) -> tuple[EmbedCall, Embeddings]:
    return EmbedCall(None, [""], form=form), Embeddings("", "", prompt_name, vectors, [1], [0])


_RANKED = RankedDocument(0, 0.5, "")
_RANKINGS = [Ranking("", [one], 1, [0], query_truncated=False, failed=[0], scoring="") for one in
             (_RANKED, RankedDocument(0, 0.5, "", [0.5]))]  # fmt: skip
_SAMPLES: Mapping[str, Sequence[tuple[Any, Any]]] = {  # by the call of Served
    "embed": [
        _embedded("float", np.full((1, 1), 0.5, np.float32), None),
        _embedded("base64", np.full((1, 1), 0.5, np.float32), ""),
        _embedded("binary", np.ones((1, 1), np.int8), ""),
    ],
    "rerank": [
        (RerankCall(None, "", [""]), _RANKINGS[0]),
        (RerankCall(None, "", [""], return_documents=False), _RANKINGS[1]),
    ],
    "classify": [(ClassifyCall(None, [""], [""]), Classified("", [""], np.full((1, 1), 0.5, np.float32), 1, [0]))],
}
