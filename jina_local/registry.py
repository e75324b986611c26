"""The models as rows of facts: names, tasks, prompts, repositories, licences."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .errors import ModelDamaged, UsageError
from .spec import NO_TASK, RERANK, ModelSpec, TokenizerSpec

DEFAULT_MODEL = "jina-embeddings-v5-text-nano"
DEFAULT_RERANKER = "jina-reranker-v3"

_V5_TASKS = ("retrieval", "text-matching", "clustering", "classification")
_V5_PROMPTS = {"query": "Query: ", "document": "Document: "}
# Jina's API says by the task which side of a search a text is on; here the prompt of the one task says it.
_V5_WORDS = {
    "retrieval.query": {"": "retrieval", "query": "retrieval"},
    "retrieval.passage": {"": "retrieval", "document": "retrieval"},
    "retrieval.document": {"": "retrieval", "document": "retrieval"},
}
_V3_TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching", NO_TASK)
_QWEN = TokenizerSpec("qwen2")
_LLAMA_3 = TokenizerSpec("jina-v5-nano", closing=("<|end_of_text|>",))
_XLM_ROBERTA = TokenizerSpec("t5", ("<s>",), ("</s>",))
_XLM_ROBERTA_PAIRS = replace(_XLM_ROBERTA, between=("</s>", "</s>"))


@dataclass(frozen=True)
class Published:
    """A model as its makers publish it: repositories on the hub, pinned if a commit is known.

    A model that the package itself carries (`bundled`) has no repositories: the names are empty.
    """

    spec: ModelSpec
    aliases: tuple[str, ...]
    repo: str  # base checkpoint and adapters
    revision: str | None
    gguf_repo: str  # "{task}" is filled in if each task has a repository; "": none is published
    gguf_file: str  # "{task}" (but of a reranker) and "{type}" are filled in
    rope_theta: float  # a checkpoint with another base frequency is another model; 0: positions are learned
    revisions: Mapping[str, str] = field(default_factory=dict)  # repository -> pinned commit, beyond `revision`
    bundled: bool = False  # the files are in the package, under the model's name
    adapter_folders: bool = True  # adapters/{task}; False: the adapters are among the weights, or there are none
    merged_repo: str = ""  # where each task is published merged, with a graph; "{task}" is filled in; "": nowhere
    beside_gguf: tuple[str, ...] = ()  # files without which a GGUF file of the repository is of no use
    download: Mapping[str, float] = field(
        default_factory=dict
    )  # type of GGUF weights, or "checkpoint" -> about how many bytes `models pull` fetches

    def repos(self, engine: str, tasks: Iterable[str]) -> dict[str, str]:
        """Task -> the repository that has its files; empty if none are published in the form that an engine reads."""
        name = self.gguf_repo if engine == "llama" else self.repo
        return {task: name.format(task=task) for task in tasks} if name else {}

    @property
    def all_repos(self) -> list[str]:
        """Every repository that has files of the model."""
        found = [repo for engine in ("mlx", "llama") for repo in self.repos(engine, self.spec.tasks).values()]
        return list(dict.fromkeys(found))

    def pinned(self, repo: str) -> str | None:
        """The commit that is known for a repository, if any."""
        return self.revision if repo == self.repo else self.revisions.get(repo)

    @property
    def terms(self) -> str:
        """The licence of the weights, and whether it is for non-commercial use."""
        return f"{self.spec.license}, non-commercial" if "NC" in self.spec.license else self.spec.license

    def about(self, weights: str) -> str:
        """The approximate size of a download, if it is known, and the licence. weights: a key of `download`."""
        size = f"about {self.download[weights] / 1e9:.2g} GB" if weights in self.download else "size not known here"
        return f"{size}; {self.terms}"


# Sources: the model cards, the v5 report (arXiv 2602.15547, table 1 for the RoPE base) and the review of
# the published folders in the project's model notes. Context of nano: 8192, as its card's table has it. Sizes of
# downloads: as published, else those of our own conversions (tests/bench/README.md).
PUBLISHED: tuple[Published, ...] = (
    Published(
        spec=ModelSpec(
            name="jina-embeddings-v5-text-small",
            architecture="qwen3",
            tasks=_V5_TASKS,
            default_task="retrieval",
            prompts=_V5_PROMPTS,
            default_prompt="document",
            task_words=_V5_WORDS,
            pooling="last",
            dims=(32, 64, 128, 256, 512, 768, 1024),
            max_tokens=32768,
            license="CC BY-NC 4.0",
            tokenizer=_QWEN,
        ),
        aliases=("v5-small", "v5-text-small", "jina-embeddings-v5-small"),
        repo="jinaai/jina-embeddings-v5-text-small",
        revision="46ed7da5b47e4bca710b756313fafaf4110c6bd1",
        gguf_repo="jinaai/jina-embeddings-v5-text-small-{task}-GGUF",
        gguf_file="v5-small-{task}-{type}.gguf",
        merged_repo="jinaai/jina-embeddings-v5-text-small-{task}",
        rope_theta=3_500_000.0,
        download={"Q8_0": 0.64e9, "Q6_K": 0.50e9, "checkpoint": 1.37e9},
    ),
    Published(
        spec=ModelSpec(
            name="jina-embeddings-v5-text-nano",
            architecture="eurobert",
            tasks=_V5_TASKS,
            default_task="retrieval",
            prompts=_V5_PROMPTS,
            default_prompt="document",
            task_words=_V5_WORDS,
            pooling="last",
            dims=(32, 64, 128, 256, 512, 768),
            max_tokens=8192,
            license="CC BY-NC 4.0",
            tokenizer=_LLAMA_3,
        ),
        aliases=("v5-nano", "v5-text-nano", "jina-embeddings-v5-nano"),
        repo="jinaai/jina-embeddings-v5-text-nano",
        revision="8a7f00aac812071b69403df470f1038ec85f8925",
        gguf_repo="jinaai/jina-embeddings-v5-text-nano-{task}-GGUF",
        gguf_file="v5-nano-{task}-{type}.gguf",
        merged_repo="jinaai/jina-embeddings-v5-text-nano-{task}",
        revisions={"jinaai/jina-embeddings-v5-text-nano-retrieval-GGUF": "59cfaceeeb7d738c404659435af4c0da74d06c96"},
        rope_theta=1_000_000.0,
        download={"Q8_0": 0.23e9, "Q6_K": 0.18e9},
    ),
    # The prompts are those of its code and of the makers' own server; of the last three tasks they are empty. Without
    # a task it runs without an adapter, although its release post says otherwise.
    Published(
        spec=ModelSpec(
            name="jina-embeddings-v3",
            architecture="jina-bert-v3",
            tasks=_V3_TASKS,
            default_task=None,
            prompts={
                **dict.fromkeys(_V3_TASKS, ""),
                "retrieval.query": "Represent the query for retrieving evidence documents: ",
                "retrieval.passage": "Represent the document for retrieval: ",
            },
            default_prompt=None,
            pooling="mean",
            dims=(32, 64, 128, 256, 512, 768, 1024),
            max_tokens=8192,
            license="CC BY-NC 4.0",
            tokenizer=_XLM_ROBERTA,
            task_words={
                "retrieval": {
                    "": "retrieval.passage",
                    "document": "retrieval.passage",
                    "passage": "retrieval.passage",
                    "query": "retrieval.query",
                },
                "retrieval.document": {"": "retrieval.passage", "document": "retrieval.passage"},
                "clustering": {"": "separation"},
            },
            late_chunking=True,
        ),
        aliases=("v3", "embeddings-v3", "jina-embeddings-v3-hf"),
        repo="jinaai/jina-embeddings-v3",
        revision="ab036b023d30b4d1138c4c3bfa9f0c445ab455d6",
        gguf_repo="",
        gguf_file="v3-{task}-{type}.gguf",
        rope_theta=20_000.0,
        adapter_folders=False,
        download={"checkpoint": 1.16e9},
    ),
    Published(
        spec=ModelSpec(
            name="jina-reranker-v3",
            architecture="qwen3",
            tasks=(RERANK,),
            default_task=RERANK,
            prompts={},
            default_prompt=None,
            pooling="marked",
            dims=(512,),
            max_tokens=131072,
            license="CC BY-NC 4.0",
            tokenizer=_QWEN,
            scoring="listwise",
        ),
        aliases=("reranker-v3",),
        repo="jinaai/jina-reranker-v3",
        revision="10fb694fc21f7a710a563ff1eb977a460f3868e4",
        gguf_repo="jinaai/jina-reranker-v3-GGUF",
        gguf_file="jina-reranker-v3-{type}.gguf",
        rope_theta=1_000_000.0,
        adapter_folders=False,
        beside_gguf=("projector.safetensors",),
        download={"Q8_0": 0.64e9, "Q6_K": 0.50e9, "checkpoint": 1.2e9},
    ),
    Published(
        spec=ModelSpec(
            name="jina-reranker-v2-base-multilingual",
            architecture="bert",
            tasks=(RERANK,),
            default_task=RERANK,
            prompts={},
            default_prompt=None,
            pooling="first",
            dims=(),
            max_tokens=1024,
            license="CC BY-NC 4.0",
            tokenizer=_XLM_ROBERTA_PAIRS,
            scoring="pairwise",
        ),
        aliases=("reranker-v2", "jina-reranker-v2"),
        repo="jinaai/jina-reranker-v2-base-multilingual",
        revision="9cfeff2df7d40d1b78e75e5e9cebec92a99813c9",
        gguf_repo="",
        gguf_file="jina-reranker-v2-base-multilingual-{type}.gguf",
        rope_theta=0.0,
        adapter_folders=False,
        download={"checkpoint": 0.57e9},
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
            task_words=_V5_WORDS,
            pooling="last",
            dims=(32, 64, 128, 256),
            max_tokens=2048,
            license="Apache-2.0",
            tokenizer=_LLAMA_3,
        ),
        aliases=(),
        repo="",
        revision=None,
        gguf_repo="",
        gguf_file="pico-{task}-{type}.gguf",
        rope_theta=10_000.0,
        bundled=True,
    ),
)


# Near relatives that a caller may mean by name -> why they are refused.
_NOT_HERE = {
    "jina-reranker-v3.5": "layers of it see a window of 1024 tokens only, which this runtime does not compute; "
    "take jina-reranker-v3"
}


def names() -> list[str]:
    """The canonical names of all models."""
    return [row.spec.name for row in PUBLISHED]


def lookup(name: str) -> Published:
    """The row of a model, by name, alias or `owner/name`, in any case. Raises UsageError with the choices."""
    wanted = name.strip().lower().removeprefix("jinaai/")
    for row in PUBLISHED:
        if wanted in (row.spec.name, *row.aliases):
            return row
    if wanted in _NOT_HERE:
        raise UsageError(f"{name} cannot be run here: {_NOT_HERE[wanted]}.")
    raise UsageError(
        f"unknown model {name!r}{near_match(wanted, [n for r in PUBLISHED for n in (r.spec.name, *r.aliases)])}. "
        f"Known: {', '.join(names())}. A folder or a .gguf file can be given by its path."
    )


def tasks_for(row: Published, words: Iterable[str]) -> tuple[str, ...]:
    """`expand_tasks`; a word that the model does not know is a UsageError with its tasks."""
    words, known = list(words), (*row.spec.tasks, *row.spec.task_words)
    for word in words:
        if word not in known:
            also = f", and understands {', '.join(row.spec.task_words)}" if row.spec.task_words else ""
            raise UsageError(
                f"unknown task {word!r}{near_match(word, known)}. {row.spec.name} has: "
                f"{', '.join(row.spec.tasks)}{also}."
            )
    return expand_tasks(row, words)


def expand_tasks(row: Published, words: Iterable[str]) -> tuple[str, ...]:
    """The model's own tasks for a caller's words, each once: of v3 "retrieval" is two tasks. Unknown words stay."""
    tasks = [task for word in words for task in row.spec.task_words.get(word, {"": word}).values()]
    return tuple(dict.fromkeys(tasks))


def tasks_served(row: Published, adapters: Collection[str]) -> list[str]:
    """The tasks that adapters and their base serve together, in the model's order; of v3 also the base alone."""
    return [task for task in row.spec.tasks if task in adapters or (task == NO_TASK and adapters)]


def narrow(row: Published, *, hidden: int, max_positions: int, tasks: Iterable[str]) -> ModelSpec:
    """The row as the files at hand can serve it: their width, their context, their tasks.

    Widths above `hidden` are dropped and `hidden` itself is the full width, so that a checkpoint of another
    size in the same layout has its own Matryoshka list. With one task that task is the default.
    """
    served = tuple(task for task in row.spec.tasks if task in set(tasks))
    default = served[0] if len(served) == 1 else row.spec.default_task if row.spec.default_task in served else None
    return replace(
        row.spec,
        tasks=served,
        default_task=default,
        dims=row.spec.dims if row.spec.scoring else (*(d for d in row.spec.dims if d < hidden), hidden),
        max_tokens=min(row.spec.max_tokens, max_positions),
    )


def check_length(row: Published, *, hidden: int, max_positions: int, where: str) -> None:
    """Raise ModelDamaged if a model of the published size would cut texts shorter than the published model does.

    where: the file, and the name that the length has in it.
    """
    if hidden == max(row.spec.dims, default=0) and max_positions < row.spec.max_tokens:
        raise ModelDamaged(f"{where} is {max_positions}; {row.spec.name} reads {row.spec.max_tokens} tokens.")


def identify(*, architecture: str, rope_theta: float, where: str = "") -> Published:
    """The row whose architecture and RoPE base a file has; ModelDamaged, naming `where`, if there is none."""
    near: list[str] = []
    for row in PUBLISHED:
        if row.spec.architecture != architecture:
            continue
        if row.rope_theta == rope_theta:
            return row
        near.append(f"{row.spec.name} has the RoPE base {row.rope_theta:g}, not {rope_theta:g}")
    raise ModelDamaged(
        f"{where}{': ' if where else ''}a {architecture} checkpoint that is none of the models known here "
        f"({'; '.join(near) or 'no model of that architecture'}). Known: {', '.join(names())}."
    )


def near_match(given: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)", or nothing if no known word is like the one given."""
    match = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
