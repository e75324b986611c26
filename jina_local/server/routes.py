"""What is answered where: a table from paths to a dialect and a call on the models in service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..inference.queue import Call
from . import library
from .dialects import elastic, mcp, ollama, search, tei, v1
from .dialects import library as dialect
from .dialects.calls import Fault, LibraryCall, ModelInfo, Ranking, RerankCall, TokenizeCall
from .endpoint_file import EndpointFile
from .inference_endpoints import InferenceApi
from .served import Served


@dataclass(frozen=True)
class Reply:
    """What is sent back: a body for JSON, and the texts of the request that were cut."""

    body: Any
    truncated: Sequence[int | str] = ()  # places, or "query"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


# (the body, the call) -> the reply; blocks, in a thread. Where a path has parameters, the body is
# {"path": {name: value}, "query": {name: value}, "body": body}. A request without a body has {}.
Work = Callable[[Any, Call], Reply]


@dataclass(frozen=True)
class Mapped:
    """The work of a path that a dialect reads and writes. The description of the API is made of these, too."""

    read: Callable[[Any], Any]
    call: Callable[[Any, Call], Any]
    write: Callable[[Any, Any], Any]

    def __call__(self, body: Any, ticket: Call) -> Reply:
        """Do it."""
        asked = self.read(body)
        reply = self.call(asked, ticket)
        return Reply(self.write(asked, reply), reply.truncated)


@dataclass(frozen=True)
class Answered:
    """The work of a path whose body a dialect reads, and whose answer takes more than a call on `Served`."""

    read: Callable[[Any], Any]
    answer: Callable[[Any, Call], Reply]

    def __call__(self, body: Any, ticket: Call) -> Reply:
        """Do it."""
        return self.answer(self.read(body), ticket)


@dataclass(frozen=True)
class Endpoint:
    """One path."""

    path: str  # as Starlette writes it
    methods: Sequence[str]
    work: Work
    fault: Callable[[Fault], Any]  # an error in the dialect's shape
    # For the description of the API, where `work` does not say it: an answer, and the readers that a body may have.
    example: Any = None
    readers: Sequence[Callable[[Any], Any]] = ()


_TEI = ("/embed", "/similarity", "/rerank", "/tokenize", "/info")


def endpoints(served: Served) -> list[Endpoint]:
    """Every path whose work is done in a thread. The first that fits answers."""
    return [*_v1(served), *_ollama(served), *_tei(served), *_elastic(served), *_search(served), *_library(served)]


def fault_shape(path: str) -> Callable[[Fault], Any]:
    """How an error is said at a path where there is nothing, or before its route is reached."""
    if path.startswith("/api/"):
        return ollama.write_fault
    if path.startswith("/_inference"):
        return elastic.write_fault
    if path.startswith("/mcp"):
        return mcp.write_fault
    return tei.write_fault if path in _TEI else v1.write_fault


def _v1(served: Served) -> list[Endpoint]:
    embeddings = Mapped(v1.read_embeddings, served.embed, v1.write_embeddings)
    rerank = Mapped(v1.read_rerank, served.rerank, v1.write_rerank)
    classify = Mapped(v1.read_classify, served.classify, v1.write_classify)

    def models(_body: Any, _ticket: Call) -> Reply:
        return Reply(v1.write_models([service.info() for service in served.services]))

    def model(given: Any, _ticket: Call) -> Reply:
        return Reply(v1.write_model(served.find(given["path"]["model_id"])[0].info()))

    sample = ModelInfo(
        "",
        "",
        [""],
        [""],
        [0],
        0,
        pooling="",
        license="",
        backend="",
        weights="",
        device="",
        dtype="",
        digest="",
        architecture="",
        form="",
        size=0,
        modified=0.0,
    )
    return [
        Endpoint("/v1/embeddings", ["POST"], embeddings, v1.write_fault),
        *(Endpoint(path, ["POST"], rerank, v1.write_fault) for path in ("/v1/rerank", "/v1/reranking", "/v2/rerank")),
        Endpoint("/v1/classify", ["POST"], classify, v1.write_fault),
        Endpoint("/v1/models", ["GET"], models, v1.write_fault, v1.write_models([sample])),
        Endpoint("/v1/models/{model_id:path}", ["GET"], model, v1.write_fault, v1.write_model(sample)),
    ]


def _ollama(served: Served) -> list[Endpoint]:
    def embed(asked: ollama.Named, ticket: Call) -> Reply:
        began = time.monotonic()
        reply = served.embed(asked.call, ticket)
        return Reply(ollama.write_embed(asked.name, reply, time.monotonic() - began), reply.truncated)

    def tags(_body: Any, _ticket: Call) -> Reply:
        return Reply(ollama.write_tags([service.info() for service in served.services]))

    def show(name: str, _ticket: Call) -> Reply:
        return Reply(ollama.write_show(served.find(name)[0].info()))

    works: dict[str, Work] = {
        "/api/embed": Answered(ollama.read_embed, embed),
        "/api/embeddings": Mapped(ollama.read_embeddings, served.embed, ollama.write_embeddings),
        "/api/show": Answered(ollama.read_show, show),
    }
    return [
        *(Endpoint(path, ["POST"], work, ollama.write_fault) for path, work in works.items()),
        Endpoint("/api/tags", ["GET"], tags, ollama.write_fault),
    ]


def _tei(served: Served) -> list[Endpoint]:
    def rerank(asked: tuple[RerankCall, bool], ticket: Call) -> Reply:
        call, raw = asked
        reply = served.rerank(call, ticket)
        return Reply(tei.write_rerank(call, raw, reply), _cut(reply))

    def tokenize(call: TokenizeCall, _ticket: Call) -> Reply:
        return Reply(tei.write_tokens(served.tokenize(call)))

    def info(_body: Any, _ticket: Call) -> Reply:
        most = served.settings
        limits = tei.Limits(__version__, most.max_connections, most.max_inputs, most.max_request_tokens)
        return Reply(tei.write_info(served.find(None)[0].info(), limits))

    works: dict[str, Work] = {
        "/embed": Mapped(tei.read_embed, served.embed, tei.write_embed),
        "/similarity": Mapped(tei.read_similarity, served.embed, tei.write_similarity),
        "/rerank": Answered(tei.read_rerank, rerank),
        "/tokenize": Answered(tei.read_tokenize, tokenize),
    }
    return [
        *(Endpoint(path, ["POST"], work, tei.write_fault) for path, work in works.items()),
        Endpoint("/info", ["GET"], info, tei.write_fault),
    ]


def _elastic(served: Served) -> list[Endpoint]:
    kept = served.settings.inference_file
    api = InferenceApi(served, EndpointFile(None if kept is None else Path(kept)))

    def answer(work: Callable[[Any, Call], Any]) -> Work:
        return lambda given, ticket: Reply(work(given, ticket), headers=elastic.HEADERS)

    def infer(given: Any, ticket: Call) -> Reply:
        body, ranking = api.infer(given, ticket)
        return Reply(body, [] if ranking is None else _cut(ranking), headers=elastic.HEADERS)

    works = {"PUT": answer(api.put), "GET": answer(api.get), "DELETE": answer(api.delete), "POST": infer}
    lists = ("/_inference", "/_inference/_all", "/_inference/{task_type}/_all")
    paths = ("/_inference/{inference_id}", "/_inference/{task_type}/{inference_id}")
    readers = elastic.readers()
    return [
        *(Endpoint(path, ["GET"], answer(api.every), elastic.write_fault) for path in lists),
        *(
            Endpoint(path, [method], work, elastic.write_fault, readers=readers.get(method, ()))
            for path in paths
            for method, work in works.items()
        ),
    ]


def _cut(ranking: Ranking) -> list[int | str]:
    """The texts of a ranking that were cut, for answers that have no place to say it."""
    return [*(["query"] if ranking.query_truncated else []), *ranking.truncated]


def _search(served: Served) -> list[Endpoint]:
    def indexes(_body: Any, _ticket: Call) -> Reply:
        return Reply(search.write_indexes(served.indexes.infos()))

    work = Mapped(search.read_search, served.search, search.write_search)
    return [
        Endpoint("/v1/search", ["POST"], work, v1.write_fault),
        Endpoint("/v1/indexes", ["GET"], indexes, v1.write_fault),
    ]


def _library(served: Served) -> list[Endpoint]:
    def embed(call: LibraryCall, ticket: Call) -> Reply:
        return Reply(library.embed(served, call, ticket))

    def space(call: LibraryCall, _ticket: Call) -> Reply:
        return Reply(library.space(served, call))

    def rerank(call: LibraryCall, ticket: Call) -> Reply:
        return Reply(library.rerank(served, call, ticket))

    works = {
        "/library/embed": Answered(dialect.read_embed, embed),
        "/library/space": Answered(dialect.read_space, space),
        "/library/rerank": Answered(dialect.read_rerank, rerank),
    }
    return [Endpoint(path, ["POST"], work, v1.write_fault) for path, work in works.items()]
