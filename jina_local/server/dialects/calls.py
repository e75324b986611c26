"""Our own requests and replies, which every dialect maps to and from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Input = str | list[int]  # a text, or its ids as the model's own tokenizer gives them


@dataclass(frozen=True)
class EmbedCall:
    """A request for vectors. None: the model's own default."""

    model: str | None
    inputs: Sequence[Input]
    task: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    normalize: bool = True
    precision: str = "float32"
    max_length: int | None = None  # tokens of a text, if the model reads more
    truncate: bool = False  # False: a text that is too long is an error
    late_chunking: bool = False
    form: str = "float"  # how the dialect writes a vector


@dataclass(frozen=True)
class Embeddings:
    """The reply: vectors, and what happened to each text."""

    model: str
    task: str
    prompt_name: str | None
    vectors: NDArray[np.generic]  # (n_texts, width)
    tokens: Sequence[int]  # of each text by itself: special tokens included, the model's prompt not
    truncated: Sequence[int]  # the places of texts that were cut

    def lists(self) -> list[Any]:
        """The vectors as lists for JSON. Those of float32 stay arrays, which the server writes much faster."""
        if self.vectors.dtype == "float32":
            return list(self.vectors)
        rows: list[Any] = self.vectors.tolist()
        return rows


@dataclass(frozen=True)
class RerankCall:
    """A request for a ranking."""

    model: str | None
    query: str
    documents: Sequence[str]
    top_n: int | None = None
    max_doc_length: int | None = None
    return_documents: bool = True
    return_embeddings: bool = False
    truncate: bool = True


@dataclass(frozen=True)
class RankedDocument:
    """One document of a ranking."""

    index: int
    score: float
    text: str
    embedding: Sequence[float] | None = None


@dataclass(frozen=True)
class Ranking:
    """The reply: documents by falling score."""

    model: str
    results: Sequence[RankedDocument]
    tokens: int
    truncated: Sequence[int]  # documents that were not read to their end
    query_truncated: bool
    failed: Sequence[int]  # documents without a usable score
    scoring: str  # "listwise" | "pairwise" | "cosine"


@dataclass(frozen=True)
class ClassifyCall:
    """A request for the likeliest label of each text."""

    model: str | None
    inputs: Sequence[str]
    labels: Sequence[str]
    truncate: bool = False


@dataclass(frozen=True)
class Classified:
    """The reply."""

    model: str
    labels: Sequence[str]
    scores: NDArray[np.float32]  # (n_texts, n_labels): of each text they add up to 1
    tokens: int
    truncated: Sequence[int]


@dataclass(frozen=True)
class TokenizeCall:
    """A request for the tokens of texts."""

    model: str | None
    inputs: Sequence[str]
    task: str | None = None  # neither task nor prompt: the texts alone
    prompt_name: str | None = None
    special_tokens: bool = True  # with those that the model's template puts around a text


@dataclass(frozen=True)
class Token:
    """One token. `start` and `end` are bytes of prompt and text in UTF-8; a token of the template has none."""

    id: int
    text: str
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class SearchCall:
    """A question to an index. The names are those of `search` of the command line."""

    query: str
    index: str | None = None  # None: the only one
    k: int = 10
    mode: str = "hybrid"
    lang: Sequence[str] = ()
    path: Sequence[str] = ()
    since: str | None = None
    min_score: float | None = None
    rerank: str | bool = False  # a model in service; True: the first reranker
    context: int | None = None
    max_tokens: int | None = None
    alone: bool = False  # the last bits of the scores do not depend on who else asks


@dataclass(frozen=True)
class FoundPassage:
    """One passage of an answer."""

    record: Mapping[str, object]  # as `search --format json` has it
    path: bytes  # as the file system has it
    start_line: int  # of the passage itself; the record's lines may be more around it
    end_line: int


@dataclass(frozen=True)
class FoundPassages:
    """The reply."""

    index: str
    mode: str  # that answered
    missing: Sequence[str]  # sentences about all that had no part in the answer
    hits: Sequence[FoundPassage]
    truncated: Sequence[int]  # [0] if the question was cut


@dataclass(frozen=True)
class LibraryCall:
    """A call of the library over HTTP: the arguments of `Embedder.embed` or `rerank` as they are."""

    model: str | None
    texts: Sequence[str]
    words: Mapping[str, object]
    query: str = ""  # of a ranking


@dataclass(frozen=True)
class IndexInfo:
    """An index in service."""

    name: str
    files: int
    passages: int
    vectors: int
    model: str | None  # None: it has no vector yet
    dim: int | None


@dataclass(frozen=True)
class ModelInfo:
    """A model in service."""

    name: str
    kind: str  # "embedding" | "reranker"
    tasks: Sequence[str]
    prompts: Sequence[str]  # those that every task has; none where a task has one of its own
    dims: Sequence[int]
    max_tokens: int
    pooling: str
    license: str
    backend: str
    weights: str
    device: str
    dtype: str
    digest: str
    architecture: str
    form: str  # "mlx" | "gguf" | "checkpoint"
    size: int  # bytes of its file, or of the files of its folder
    modified: float  # seconds since 1970, of the last change to any of them

    @property
    def digest_of_all(self) -> str:
        """One digest where `digest` has one for each file."""
        return hashlib.sha256(self.digest.encode()).hexdigest() if "+" in self.digest else self.digest


@dataclass(frozen=True)
class Fault:
    """An error as every dialect says it in its own shape; `status` is the HTTP status."""

    status: int
    type: str  # "invalid_request", "overloaded", ...: see server/faults.py
    message: str
    param: str | None = None
    request_id: str = ""
