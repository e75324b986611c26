"""Errors as HTTP knows them: one table from our exceptions to a status, a type and whether to come back."""

from __future__ import annotations

import logging
import math
import traceback
from dataclasses import dataclass

from ..errors import (
    CallEnded,
    EngineCrashed,
    EngineError,
    EngineMissing,
    IndexNotFound,
    JinaError,
    NonFiniteError,
    Overloaded,
    SearchIndexError,
    TextError,
    TextTooLong,
    UsageError,
)
from .dialects.calls import Fault
from .dialects.fields import BadField


class Refused(JinaError):
    """A request that is refused for what it is; `fault` says how."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.fault = Fault(status, kind, message, param)


class ModelUnknown(UsageError):
    """No model of that name is in service."""


class IndexUnknown(UsageError):
    """No index of that name is in service."""


class NotReady(JinaError):
    """The models are still being loaded, or the server is about to end."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """A fault, and the seconds after which another try makes sense."""

    fault: Fault
    retry_after: int | None = None


def log_bug(log: logging.Logger, request_id: str, error: BaseException) -> None:
    """Write where an error comes from. Its own text is left out because it may hold a part of a request."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s:\n%s", request_id, type(error).__name__, where.rstrip())


def of(error: BaseException) -> Answer:
    """How an error is answered. What is no JinaError is a bug, and its text is not shown."""
    text = str(error)
    if isinstance(error, Refused):
        return Answer(error.fault)
    if isinstance(error, NotReady):
        return Answer(Fault(503, error.kind, text), 1)
    if isinstance(error, Overloaded):
        return Answer(Fault(429, "overloaded", text), max(1, math.ceil(error.retry_after)))
    if isinstance(error, CallEnded):
        return Answer(Fault(504, "deadline", "the time for this request is over; it was not answered."))
    if isinstance(error, ModelUnknown):
        return Answer(Fault(404, "model_not_found", text, "model"))
    if isinstance(error, IndexUnknown):
        return Answer(Fault(404, "index_not_found", text, "index"))
    if isinstance(error, TextTooLong):
        return Answer(Fault(422, "input_too_long", text, f"input[{error.index}]"))
    if isinstance(error, TextError):
        return Answer(Fault(400, "invalid_request", text, f"input[{error.index}]"))
    if isinstance(error, BadField):
        return Answer(Fault(400, "invalid_request", text, error.param))
    if isinstance(error, UsageError):
        return Answer(Fault(400, "invalid_request", text))
    return _of_ours(error, text)


def _of_ours(error: BaseException, text: str) -> Answer:
    """Faults that are not the request's."""
    if isinstance(error, NonFiniteError):
        return Answer(Fault(500, "nonfinite_output", text))
    if isinstance(error, EngineCrashed):
        if error.by_text:
            return Answer(Fault(500, "worker_crashed", "the engine's process died of this text, twice."))
        return Answer(Fault(503, "breaker_open", "the engine's process died too often; see the server's log."), 30)
    if isinstance(error, EngineMissing):
        return Answer(Fault(501, "not_installed", text))
    if isinstance(error, IndexNotFound):
        return Answer(Fault(404, "index_not_found", text))
    if isinstance(error, EngineError | SearchIndexError):
        return Answer(Fault(500, "engine" if isinstance(error, EngineError) else "index", text))
    return Answer(Fault(500, "internal", "this is a bug in the server; its log has more."))
