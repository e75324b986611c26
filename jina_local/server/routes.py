"""What is answered where: a table from paths to a dialect and a call on the models in service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..inference.queue import Call
from .dialects import v1
from .dialects.calls import Fault
from .served import Served


@dataclass(frozen=True)
class Reply:
    """What is sent back: a body for JSON, and the texts of the request that were cut."""

    body: Any
    truncated: Sequence[int] = ()
    status: int = 200


# (the body, the call) -> the reply; blocks, in a thread. Where a path has parameters, the body is
# {"path": {name: value}, "body": body}. A request without a body has {}.
Work = Callable[[Any, Call], Reply]


@dataclass(frozen=True)
class Endpoint:
    """One path."""

    path: str  # as Starlette writes it
    methods: Sequence[str]
    work: Work
    fault: Callable[[Fault], Any]  # an error in the dialect's shape


def endpoints(served: Served) -> list[Endpoint]:
    """Every path whose work is done in a thread. The first that fits answers."""
    return [*_v1(served)]


def _v1(served: Served) -> list[Endpoint]:
    embeddings = _mapped(v1.read_embeddings, served.embed, v1.write_embeddings)
    rerank = _mapped(v1.read_rerank, served.rerank, v1.write_rerank)
    classify = _mapped(v1.read_classify, served.classify, v1.write_classify)

    def models(_body: Any, _ticket: Call) -> Reply:
        return Reply(v1.write_models([service.info() for service in served.services]))

    def model(given: Any, _ticket: Call) -> Reply:
        return Reply(v1.write_model(served.find(given["path"]["model_id"])[0].info()))

    return [
        Endpoint("/v1/embeddings", ["POST"], embeddings, v1.write_fault),
        *(Endpoint(path, ["POST"], rerank, v1.write_fault) for path in ("/v1/rerank", "/v1/reranking", "/v2/rerank")),
        Endpoint("/v1/classify", ["POST"], classify, v1.write_fault),
        Endpoint("/v1/models", ["GET"], models, v1.write_fault),
        Endpoint("/v1/models/{model_id:path}", ["GET"], model, v1.write_fault),
    ]


def _mapped(read: Callable[[Any], Any], call: Callable[[Any, Call], Any], write: Callable[[Any, Any], Any]) -> Work:
    """The work of a path that a dialect reads and writes."""

    def work(body: Any, ticket: Call) -> Reply:
        asked = read(body)
        reply = call(asked, ticket)
        return Reply(write(asked, reply), reply.truncated)

    return work
