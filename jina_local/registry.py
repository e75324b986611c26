"""The models as rows of facts, and `resolve`: a caller's words -> one EmbeddingSpec, or an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .errors import ModelDamaged, UsageError
from .spec import EmbeddingSpec, ModelSpec

DEFAULT_MODEL = "jina-embeddings-v5-text-nano"
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
OVERFLOWS = ("truncate", "error")

_V5_TASKS = ("retrieval", "text-matching", "clustering", "classification")
_V5_PROMPTS = {"query": "Query: ", "document": "Document: "}


@dataclass(frozen=True)
class Published:
    """A model as its makers publish it: repositories on the hub, pinned where the commit is known.

    A model that the package itself carries (`bundled`) has no repositories: the names are empty.
    """

    spec: ModelSpec
    aliases: tuple[str, ...]
    repo: str  # base checkpoint and adapters
    revision: str | None
    gguf_repo: str  # one repository a task: "{task}" is filled in
    gguf_file: str  # "{task}" and "{type}" are filled in
    revisions: Mapping[str, str]  # repository -> pinned commit, beyond `revision`
    rope_theta: float  # a checkpoint with another base frequency is another model
    bundled: bool = False  # the files are in the package, under the model's name


# Sources: the model cards, the v5 report (arXiv 2602.15547, table 1 for the RoPE base) and the review of
# the published folders in the project's model notes. Context of nano: 8192, as its card's table has it.
PUBLISHED: tuple[Published, ...] = (
    Published(
        spec=ModelSpec(
            name="jina-embeddings-v5-text-small",
            architecture="qwen3",
            tasks=_V5_TASKS,
            default_task="retrieval",
            prompts=_V5_PROMPTS,
            default_prompt="document",
            pooling="last",
            dims=(32, 64, 128, 256, 512, 768, 1024),
            max_tokens=32768,
            license="CC BY-NC 4.0",
        ),
        aliases=("v5-small", "v5-text-small", "jina-embeddings-v5-small"),
        repo="jinaai/jina-embeddings-v5-text-small",
        revision="46ed7da5b47e4bca710b756313fafaf4110c6bd1",
        gguf_repo="jinaai/jina-embeddings-v5-text-small-{task}-GGUF",
        gguf_file="v5-small-{task}-{type}.gguf",
        revisions={},
        rope_theta=3_500_000.0,
    ),
    Published(
        spec=ModelSpec(
            name="jina-embeddings-v5-text-nano",
            architecture="eurobert",
            tasks=_V5_TASKS,
            default_task="retrieval",
            prompts=_V5_PROMPTS,
            default_prompt="document",
            pooling="last",
            dims=(32, 64, 128, 256, 512, 768),
            max_tokens=8192,
            license="CC BY-NC 4.0",
        ),
        aliases=("v5-nano", "v5-text-nano", "jina-embeddings-v5-nano"),
        repo="jinaai/jina-embeddings-v5-text-nano",
        revision="8a7f00aac812071b69403df470f1038ec85f8925",
        gguf_repo="jinaai/jina-embeddings-v5-text-nano-{task}-GGUF",
        gguf_file="v5-nano-{task}-{type}.gguf",
        revisions={"jinaai/jina-embeddings-v5-text-nano-retrieval-GGUF": "59cfaceeeb7d738c404659435af4c0da74d06c96"},
        rope_theta=1_000_000.0,
    ),
    # Ours: trained for the quick start and the tests (convert/pico, its card lies beside the weights).
    Published(
        spec=ModelSpec(
            name="pico",
            architecture="eurobert",
            tasks=_V5_TASKS,
            default_task="retrieval",
            prompts=_V5_PROMPTS,
            default_prompt="document",
            pooling="last",
            dims=(32, 64, 128, 256),
            max_tokens=2048,
            license="Apache-2.0",
        ),
        aliases=(),
        repo="",
        revision=None,
        gguf_repo="",
        gguf_file="pico-{task}-{type}.gguf",
        revisions={},
        rope_theta=10_000.0,
        bundled=True,
    ),
)


def names() -> list[str]:
    """The canonical names of all models."""
    return [row.spec.name for row in PUBLISHED]


def lookup(name: str) -> Published:
    """The row of a model, by name, alias or `owner/name`, in any case. Raises UsageError with the choices."""
    wanted = name.strip().lower().removeprefix("jinaai/")
    for row in PUBLISHED:
        if wanted in (row.spec.name, *row.aliases):
            return row
    raise UsageError(
        f"unknown model {name!r}{_near(wanted, [n for r in PUBLISHED for n in (r.spec.name, *r.aliases)])}. "
        f"Known: {', '.join(names())}. A folder or a .gguf file can be given by its path."
    )


def check_tasks(tasks: Iterable[str]) -> None:
    """Raise UsageError for a task that no model has, before any file is looked at."""
    known = list(dict.fromkeys(task for row in PUBLISHED for task in row.spec.tasks))
    for task in tasks:
        if task not in known:
            raise UsageError(f"unknown task {task!r}{_near(task, known)}. Known: {', '.join(known)}.")


def narrow(row: Published, *, hidden: int, max_positions: int, tasks: Iterable[str]) -> ModelSpec:
    """The row as the files at hand can serve it: their width, their context, their tasks.

    Widths above `hidden` are dropped and `hidden` itself is the full width, so that a checkpoint of another
    size in the same layout has its own Matryoshka list. With one task that task is the default.
    """
    held = tuple(task for task in row.spec.tasks if task in set(tasks))
    default = held[0] if len(held) == 1 else row.spec.default_task if row.spec.default_task in held else None
    return replace(
        row.spec,
        tasks=held,
        default_task=default,
        dims=(*(d for d in row.spec.dims if d < hidden), hidden),
        max_tokens=min(row.spec.max_tokens, max_positions),
    )


def identify(*, architecture: str, rope_theta: float) -> Published:
    """The row whose architecture and RoPE base a file has; ModelDamaged where there is none."""
    near: list[str] = []
    for row in PUBLISHED:
        if row.spec.architecture != architecture:
            continue
        if row.rope_theta == rope_theta:
            return row
        near.append(f"{row.spec.name} has the RoPE base {row.rope_theta:g}, not {rope_theta:g}")
    raise ModelDamaged(
        f"a {architecture} checkpoint that is none of the models known here "
        f"({'; '.join(near) or 'no model of that architecture'}). Known: {', '.join(names())}."
    )


def resolve(
    model: ModelSpec,
    *,
    task: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    max_length: int | None = None,
    normalize: bool = True,
    precision: str = "float32",
    overflow: str = "truncate",
) -> EmbeddingSpec:
    """Decide one request. Every argument is honoured or refused with UsageError; nothing is guessed."""
    chosen = task if task is not None else model.default_task
    if chosen is None:
        raise UsageError(f"{model.name} needs a task: one of {', '.join(model.tasks)}.")
    if chosen not in model.tasks:
        raise UsageError(f"unknown task {chosen!r}{_near(chosen, model.tasks)}. {_holds(model)}")
    prompt = model.default_prompt if prompt_name is None else prompt_name
    if prompt not in model.prompts:
        raise UsageError(
            f"unknown prompt_name {prompt!r}{_near(prompt, model.prompts)}. "
            f"{model.name} has: {', '.join(model.prompts)}."
        )
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {precision!r}{_near(precision, PRECISIONS)}. Possible: {', '.join(PRECISIONS)}."
        )
    if precision in ("int8", "uint8") and not normalize:
        raise UsageError(
            f"precision {precision!r} has fixed ranges for unit vectors and cannot be had with normalize=False. "
            "Leave normalize on, or ask for precision 'float32'."
        )
    if overflow not in OVERFLOWS:
        raise UsageError(f"unknown overflow {overflow!r}. Possible: {', '.join(OVERFLOWS)}.")
    return EmbeddingSpec(
        model=model.name,
        task=chosen,
        prefix=model.prompts[prompt],
        pooling=model.pooling,
        max_tokens=_length(model, max_length),
        overflow=overflow,
        dim=_dim(model, truncate_dim, precision),
        normalize=normalize,
        precision=precision,
    )


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


def _near(given: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
