"""A caller's words for a ranking -> one request, fully decided, or an error. See embedding.request for vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..errors import TextError, UsageError
from ..spec import ModelSpec
from ..text.tokenizer import checked

# The defaults of the published code. If a model has a shorter context, the limits shrink with it.
_DOC_LENGTH, _QUERY_LENGTH, _PAIR_LENGTH, _OVERLAP = 2048, 512, 1024, 80
_BLOCK = 125  # documents read together: the default of the published code, and the most that it takes
_HOW_IT_READS = {
    "listwise": "which reads all documents together",
    "pairwise": "which reads one document at a time",
}


@dataclass(frozen=True)
class Request:
    """One call. Parameters of the other kind of reranker have their defaults, which nothing reads."""

    query: str
    documents: list[str]
    top_n: int
    max_length: int
    max_query_length: int
    # Listwise.
    instruction: str | None
    max_doc_length: int
    block_size: int
    return_embeddings: bool
    # Pairwise.
    overlap_tokens: int
    window: bool


class Words(TypedDict, total=False):
    """The parameters of a request, for type checkers, where they are passed on to `resolve` as they are.

    `resolve` has their defaults, `Reranker.rerank` says what they mean.
    """

    top_n: int | None
    instruction: str | None
    max_doc_length: int | None
    max_query_length: int | None
    return_embeddings: bool
    block_size: int | None
    max_length: int | None
    overlap_tokens: int | None
    window: bool | None


def resolve(
    model: ModelSpec,
    query: str,
    documents: Sequence[str],
    *,
    top_n: int | None = None,
    instruction: str | None = None,
    max_doc_length: int | None = None,
    max_query_length: int | None = None,
    return_embeddings: bool = False,
    block_size: int | None = None,
    max_length: int | None = None,
    overlap_tokens: int | None = None,
    window: bool | None = None,
) -> Request:
    """Decide one request. Every argument is honoured, or refused with UsageError or TextError; none is ignored."""
    _check_flag("return_embeddings", return_embeddings)
    _check_flag("window", window)
    listwise, longest = model.scoring == "listwise", model.max_tokens
    if listwise:
        _refuse(model, "pairwise", {"overlap_tokens": overlap_tokens, "window": window})
    else:
        given = {"instruction": instruction, "max_doc_length": max_doc_length, "block_size": block_size}
        _refuse(model, "listwise", {**given, "return_embeddings": return_embeddings or None})
    if window is False:
        for name, value in {"max_query_length": max_query_length, "overlap_tokens": overlap_tokens}.items():
            if value is not None:
                raise UsageError(f"{name} {value!r} is for windows, and window=False asks for none. Leave one out.")
    request = Request(
        query=_checked_query(query),
        documents=_checked_documents(documents),
        top_n=_number("top_n", top_n, 1, None, default=len(documents)),
        max_length=_number("max_length", max_length, 1, longest, longest if listwise else min(_PAIR_LENGTH, longest)),
        max_query_length=_number(
            "max_query_length",
            max_query_length,
            1,
            longest,
            max(1, min(_QUERY_LENGTH, longest // (8 if listwise else 2))),
        ),
        instruction=_checked_instruction(instruction),
        max_doc_length=_number("max_doc_length", max_doc_length, 1, longest, max(1, min(_DOC_LENGTH, longest // 4))),
        block_size=_number("block_size", block_size, 1, _BLOCK, _BLOCK),
        return_embeddings=return_embeddings,
        overlap_tokens=_number("overlap_tokens", overlap_tokens, 0, longest, _OVERLAP),
        window=window is not False,
    )
    if not listwise and request.window and request.max_length < 2 * request.max_query_length:
        raise UsageError(
            f"max_length {request.max_length} is less than twice max_query_length {request.max_query_length}: a long "
            f"query would leave too little room for windows. Give max_query_length={request.max_length // 2} or "
            "less, or a larger max_length."
        )
    return request


def _refuse(model: ModelSpec, other: str, given: Mapping[str, object]) -> None:
    """Raise UsageError if a parameter was given that belongs to the other kind of reranker."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name} is for a {other} reranker, {_HOW_IT_READS[other]}; {model.name} is {model.scoring}. "
                "Leave it out."
            )


def _checked_query(query: object) -> str:
    """The query, which may be empty: the published code scores an empty query too."""
    if not isinstance(query, str):
        raise UsageError(f"the query is {type(query).__name__}, expected str; each call ranks for one query.")
    try:
        return checked(0, query)
    except TextError as error:
        raise UsageError(f"the query: {error.reason}") from None


def _checked_documents(documents: object) -> list[str]:
    if isinstance(documents, str):
        raise UsageError("documents are one str; expected a list of them: [document].")
    if (
        isinstance(documents, bytes | Mapping)
        or not hasattr(documents, "__len__")
        or not hasattr(documents, "__getitem__")
    ):
        raise UsageError(f"documents are {type(documents).__name__}; expected a sequence of str.")
    given: list[object] = list(documents)  # type: ignore[call-overload]
    if not given:
        raise UsageError("no documents were given; expected at least one.")
    out: list[str] = []
    for i, document in enumerate(given):
        if isinstance(document, Mapping) and "text" in document:
            raise TextError(i, "is a dict, expected str. Give the texts alone: [d['text'] for d in documents].")
        out.append(checked(i, document))
    return out


def _checked_instruction(instruction: object) -> str | None:
    if instruction is None:
        return None
    if not isinstance(instruction, str):
        raise UsageError(f"the instruction is {type(instruction).__name__}, expected str.")
    try:
        checked(0, instruction)
    except TextError as error:
        raise UsageError(f"the instruction: {error.reason}") from None
    if not instruction.strip():
        raise UsageError("the instruction is empty; leave it out, or say what to rank by.")
    return instruction


def _number(name: str, value: object, low: int, high: int | None, default: int) -> int:
    """The value, or the default for None. Raises UsageError if it is no whole number from `low` to `high`."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high}"
        raise UsageError(f"{name} {value!r} is out of range; expected a whole number from {low}{upper}.")
    return value


def _check_flag(name: str, value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; expected True or False.")
