"""A caller's words for an embedding -> one request, fully decided: an EmbeddingSpec, or an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict, get_args

from ..errors import UsageError
from ..registry import PUBLISHED, near_match
from ..spec import NO_TASK, EmbeddingSpec, ModelSpec

Task = Literal[
    "retrieval",
    "text-matching",
    "clustering",
    "classification",
    "retrieval.query",
    "retrieval.passage",
    "retrieval.document",
    "separation",
    "none",
]
Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
Overflow = Literal["truncate", "error"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
OVERFLOWS: tuple[str, ...] = get_args(Overflow)


# The parameters of a request, for type checkers, where they are passed on to `resolve` as they are. `resolve` has
# their defaults, `Embedder.encode` says what they mean. The Float32 kinds tell that the vectors are float32.
class _AnyCall(TypedDict, total=False):
    task: Task | None
    truncate_dim: int | None
    max_length: int | None
    normalize: bool


class _Sides(_AnyCall, total=False):
    overflow: Overflow | None
    late_chunking: bool


class ChunkWords(_AnyCall, total=False):
    """Of `encode_chunks`."""

    prompt_name: str | None
    precision: Precision


class Float32ChunkWords(_AnyCall, total=False):
    """Of `encode_chunks`."""

    prompt_name: str | None
    precision: Literal["float32"]


class SideWords(_Sides, total=False):
    """Of `encode_query` and `encode_document`."""

    precision: Precision


class Float32SideWords(_Sides, total=False):
    """Of `encode_query` and `encode_document`."""

    precision: Literal["float32"]


class Words(SideWords, total=False):
    """Of `embed`."""

    prompt_name: str | None


class Float32Words(Float32SideWords, total=False):
    """Of `embed`."""

    prompt_name: str | None


def resolve(
    model: ModelSpec,
    *,
    task: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    max_length: int | None = None,
    normalize: bool = True,
    precision: str = "float32",
    overflow: str | None = None,
    late_chunking: bool = False,
) -> EmbeddingSpec:
    """Decide one request. Every argument is honoured or refused with UsageError; nothing is guessed.

    overflow: None is "truncate", but with late chunking, which cuts nothing, "error". late_chunking: texts are the
    pieces of one document; they are embedded as documents to be retrieved if neither task nor prompt is given.
    """
    if model.scoring:
        raise UsageError(f"{model.name} ranks documents and has no vectors for texts. Use rerank, or another model.")
    if late_chunking:
        check_late_chunking(model)
        if overflow == "truncate":
            raise UsageError("overflow 'truncate': late chunking cuts nothing; input that is too long is an error.")
        if task is None and model.default_task is None and prompt_name is None:
            prompt_name = "document"
    chosen, prefix = _task(model, task, prompt_name)
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}{near_match(precision, PRECISIONS)}. Possible: {', '.join(PRECISIONS)}."
        )
    if precision in ("int8", "uint8") and not normalize:
        raise UsageError(
            f"precision {precision!r} has fixed ranges for unit vectors and cannot be had with normalize=False. "
            "Leave normalize on, or ask for precision 'float32'."
        )
    if overflow is not None and overflow not in OVERFLOWS:
        raise UsageError(f"unknown overflow {overflow!r}. Possible: {', '.join(OVERFLOWS)}.")
    return EmbeddingSpec(
        model=model.name,
        task=chosen,
        prefix=prefix,
        pooling=model.pooling,
        max_tokens=_length(model, max_length),
        overflow="error" if late_chunking else overflow or "truncate",
        dim=_dim(model, truncate_dim, precision),
        normalize=normalize,
        precision=precision,
    )


def check_late_chunking(model: ModelSpec) -> None:
    """Raise UsageError for a model whose vectors are no means over tokens."""
    if model.late_chunking:
        return
    able = [row.spec.name for row in PUBLISHED if row.spec.late_chunking]
    why = {
        "last": "its vector is the state of a text's last token, which no other part of the text has",
        "first": "its vector is the state of a text's first token, which no other part of the text has",
    }.get(model.pooling, "it was not made for that")
    raise UsageError(
        f"{model.name} has no late chunking: {why}. It is for models that take a mean: {', '.join(able)}."
    )


def _task(model: ModelSpec, task: str | None, prompt_name: str | None) -> tuple[str, str]:
    """(task, text put before every input) for the caller's words."""
    own_prompts = model.default_prompt is None
    asked = task if task is not None else model.default_task
    if asked is None and own_prompts and prompt_name is not None:
        # A prompt that only one word has says which is meant: "query" is retrieval's.
        asked = next((word for word, by in model.task_words.items() if prompt_name in by), None)
    if asked is None:
        without = f" ({NO_TASK!r}: the base without an adapter)" if NO_TASK in model.tasks else ""
        raise UsageError(f"{model.name} needs a task: one of {', '.join(model.tasks)}{without}.")
    by_prompt = model.task_words.get(asked)
    if by_prompt and not own_prompts:
        (implied,) = (name for name in by_prompt if name)
        if prompt_name not in (None, implied):
            raise UsageError(
                f"task {asked!r} means {by_prompt['']!r} with prompt_name {implied!r}, but prompt_name "
                f"{prompt_name!r} was given. Leave one of them out."
            )
        prompt_name = implied
    chosen = by_prompt.get(prompt_name or "", "") if by_prompt else asked
    possible = (*model.tasks, *model.task_words)
    if asked not in possible or (chosen and chosen not in model.tasks):
        raise UsageError(f"unknown task {asked!r}{near_match(asked, possible)}. {_holds(model)}")
    if own_prompts:
        # What says the same twice is harmless: retrieval.query with the prompt "query", or with its own name.
        fits = {"", chosen} | {name for by in model.task_words.values() for name, to in by.items() if to == chosen}
        if not chosen or (prompt_name or "") not in fits:
            names = [name for name in by_prompt if name] if by_prompt else sorted(fits - {""})
            raise UsageError(
                f"prompt_name {prompt_name!r} does not go with task {asked!r} of {model.name}, whose prompt follows "
                f"from the task. Possible: {', '.join(names) or 'none'}."
            )
        return chosen, model.prompts[chosen]
    prompt = prompt_name if prompt_name is not None else str(model.default_prompt)
    if prompt not in model.prompts:
        raise UsageError(
            f"unknown prompt_name {prompt!r}{near_match(prompt, model.prompts)}. "
            f"{model.name} has: {', '.join(model.prompts)}."
        )
    return chosen, model.prompts[prompt]


def _dim(model: ModelSpec, truncate_dim: int | None, precision: str) -> int:
    if truncate_dim is None:
        dim = model.dims[-1]
    elif isinstance(truncate_dim, bool) or not isinstance(truncate_dim, int) or truncate_dim not in model.dims:
        raise UsageError(
            f"truncate_dim {truncate_dim!r} is not a trained width of {model.name}. "
            f"Possible: {', '.join(map(str, model.dims))}."
        )
    else:
        dim = truncate_dim
    if precision in ("binary", "ubinary") and dim % 8:
        raise UsageError(f"precision {precision!r} packs 8 dimensions a byte and {dim} is not a multiple of 8.")
    return dim


def _length(model: ModelSpec, max_length: int | None) -> int:
    if max_length is None:
        return model.max_tokens
    if isinstance(max_length, bool) or not isinstance(max_length, int) or not 1 <= max_length <= model.max_tokens:
        raise UsageError(
            f"max_length {max_length!r} is out of range: {model.name} takes 1 to {model.max_tokens} tokens."
        )
    return max_length


def _holds(model: ModelSpec) -> str:
    where = f" as found in {model.origin.path}" if model.origin else ""
    return f"{model.name}{where} has: {', '.join(model.tasks)}."


def as_list(texts: str | Iterable[str]) -> list[str]:
    """The texts of a call. Raises UsageError for what is no str and no iterable of texts."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, Mapping):
        raise UsageError(
            f"texts are a {type(texts).__name__}; expected a str or an iterable of str. Give list(texts.values())."
        )
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise UsageError(f"texts are {type(texts).__name__}; expected a str or an iterable of str.")
    return list(texts)
