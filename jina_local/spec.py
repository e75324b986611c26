"""The nouns that cross the walls between rooms: frozen records, no text, no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


RERANK = "rerank"  # the one task of a reranker
MARKS = "<|embed_token|>", "<|rerank_token|>"  # the tokens after a document and the query of a listwise reranker
NO_TASK = "none"  # of v3: the base without any adapter and without a prompt, which has to be asked for by name


@dataclass(frozen=True)
class Origin:
    """Where a loaded model comes from, what runs it, and why it was chosen."""

    path: Path
    form: str  # "mlx" | "gguf" | "onnx" | "checkpoint"
    backend: str  # "mlx" | "llama" | "onnx"
    weights: str  # "Q8_0", "8bit", "16bit", "BF16", ...
    device: str  # "metal" | "cpu"
    dtype: str  # what the engine computes in
    threads: int
    revision: str | None  # the commit the files were published at, where it is known
    reasons: tuple[str, ...]  # one sentence for each choice that was made for the caller


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer that a model was trained with, as far as it can be told without the vocabulary."""

    form: str  # how text is normalised and split, as llama.cpp calls it: "qwen2" | "jina-v5-nano" | "t5"
    opening: tuple[str, ...] = ()  # the tokens before every text
    closing: tuple[str, ...] = ()  # and after it
    between: tuple[str, ...] | None = None  # the tokens between two texts read together; None: the model reads none


@dataclass(frozen=True)
class ModelSpec:
    """What a model is and can do. A registry row, or a row narrowed to the files that were found."""

    name: str
    architecture: str  # as GGUF calls it: "qwen3" | "eurobert" | "jina-bert-v3" | "bert"
    tasks: tuple[str, ...]  # a reranker has one, RERANK
    default_task: str | None  # None: the caller has to say
    prompts: Mapping[str, str]  # prompt name -> text put before every input
    default_prompt: str | None  # None: each task has the prompt of its own name, and no other
    pooling: str  # "last" | "mean" | "first"; "marked" where a listwise reranker reads the rows of its marks
    dims: tuple[int, ...]  # Matryoshka widths, ascending; the last one is the full width
    max_tokens: int
    license: str
    tokenizer: TokenizerSpec
    origin: Origin | None = None
    # Other words for tasks: word -> prompt name, "" if none is given -> task. If all tasks share the prompts, a word
    # implies the one prompt that it names.
    task_words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    scoring: str | None = None  # of a reranker: "listwise" | "pairwise"; None: an embedding model
    late_chunking: bool = False  # whether a mean over a part of a text's tokens is a vector for that part


@dataclass(frozen=True)
class EmbeddingSpec:
    """One request, fully decided: below `registry.resolve` there are no defaults."""

    model: str
    task: str
    prefix: str
    pooling: str
    max_tokens: int
    overflow: str  # "truncate" | "error"
    dim: int
    normalize: bool
    precision: str  # "float32" | "int8" | "uint8" | "binary" | "ubinary"

    @property
    def space(self) -> tuple[str, str, int, str]:
        """Two vectors may be compared only if their spaces are equal."""
        return self.model, self.task, self.dim, self.precision


@dataclass(frozen=True)
class TokenBatch:
    """Texts laid end to end, without padding."""

    ids: NDArray[np.int32]  # (n_tokens,)
    starts: NDArray[np.int32]  # (n_texts + 1,): text i is ids[starts[i]:starts[i + 1]]
    rows: NDArray[np.int32]  # (n_rows,): positions in ids whose hidden state is wanted, ascending
    owner: NDArray[np.int32]  # (n_rows,): the text each row belongs to


@dataclass(frozen=True)
class Budget:
    """What one forward pass of an engine should hold; a longer text travels alone."""

    tokens: int  # per pass: the sum of lengths, or, padded, longest x count
    texts: int  # per pass
    padded: bool  # True: every text of a pass costs as much as the longest
    overhead: int = 0  # the fixed cost of one pass, in tokens
    multiple: int = 1  # padded lengths are rounded up to this


@dataclass(frozen=True)
class Embedded:
    """The full answer to one call: vectors, and what happened to each text."""

    vectors: NDArray[np.generic]  # (n_texts, width); rows named in `failed` are zero
    token_counts: NDArray[np.int32]  # (n_texts,): tokens that were run, prompt and special tokens included
    truncated: NDArray[np.bool_]  # (n_texts,): True where a text was cut to fit
    failed: tuple[int, ...]  # texts for which the model gave no usable vector
    spec: EmbeddingSpec


@dataclass(frozen=True)
class Ranked:
    """One document of a ranking."""

    index: int  # its place in the caller's list
    score: float  # pairwise: 0 to 1; listwise and cosine: a cosine, which may be negative
    document: str  # as it was given, uncut
    embedding: NDArray[np.float32] | None = None  # listwise, with return_embeddings: (512,) of unit length


@dataclass(frozen=True)
class Reranking(Sequence[Ranked]):
    """The full answer to one call: a sequence of Ranked, and what happened to the other documents."""

    results: tuple[Ranked, ...]  # by falling score; equal ones in the caller's order
    cut: tuple[int, ...]  # documents that were not read to their end
    query_cut: bool
    tokens: int  # that were run, in all passes together
    failed: tuple[int, ...]  # documents for which the model gave no usable score; they are not in `results`
    scoring: str  # "listwise" | "pairwise" | "cosine": by an embedding model's own vectors

    @overload
    def __getitem__(self, place: int) -> Ranked: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Ranked, ...]: ...
    def __getitem__(self, place: int | slice) -> Ranked | tuple[Ranked, ...]:
        return self.results[place]

    def __len__(self) -> int:
        return len(self.results)


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model that were found, before anything is opened."""

    model: ModelSpec  # narrowed to what these files can serve
    form: str  # "gguf" | "mlx" | "onnx" | "checkpoint" | "graph"
    files: Mapping[str, Path]  # task -> .gguf file, or the folder that holds config.json and the weights
    label: str  # "Q8_0", "8bit", "BF16", ...
    tokenizer: Path | None  # None: rebuilt from the GGUF's own vocabulary
    revision: str | None
    reasons: tuple[str, ...]
    # Task -> adapter file, or folder of a published checkpoint; `files` then has the same base for every task and
    # one backend serves them all. Empty: the weights of each task are merged.
    adapters: Mapping[str, Path] = field(default_factory=dict)
    # Of a listwise reranker: the file that has its projector, or the checkpoint's folder; see projector.py.
    projector: Path | None = None
    # Of the tokenizer that the weights were converted with, as a manifest has it; None: there is no manifest.
    fingerprint: str | None = None
    # Task -> the numbers that the converter expects of it, see self_check.py; empty: they are not known.
    probes: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    engine: str | None = None  # that is to open the files; None: the first that reads their form
    # GGUF files, whose own vocabulary `tokenizer` has to agree with.
    vocabularies: tuple[Path, ...] = ()

    @property
    def backend(self) -> str:
        """The engine that opens the files."""
        return self.engine or READERS[self.form][0]


# A form of files -> the engines that read it.
READERS = {
    "gguf": ("llama",), "mlx": ("mlx",), "onnx": ("onnx",), "graph": ("onnx",), "checkpoint": ("mlx", "onnx"),
}  # fmt: skip


def readings(engines: Sequence[str]) -> list[tuple[str, str]]:
    """(engine, form) for each form that one of the engines reads, in the order in which files are to be taken.

    That is the order of the engines, but ONNX Runtime computes checkpoints and published graphs in float32, several
    times slower than llama.cpp runs GGUF files of them, so that these come first.
    """
    found = [(engine, form) for engine in engines for form, readers in READERS.items() if engine in readers]
    ggufs = ("llama", "gguf")
    if ggufs not in found:
        return found
    late = [one for one in found[: found.index(ggufs)] if one[0] == "onnx" and one[1] != "onnx"]
    at_once = [one for one in found if one not in late]
    place = at_once.index(ggufs) + 1
    return [*at_once[:place], *late, *at_once[place:]]


def engine_of(form: str, engines: Sequence[str]) -> str | None:
    """The first of the engines that reads a form of files; None if none does."""
    return next((engine for engine in engines if engine in READERS.get(form, ())), None)


def round_up(length: int, multiple: int) -> int:
    """The next multiple at or above `length`."""
    return -(-length // multiple) * multiple
