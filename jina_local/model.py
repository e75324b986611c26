"""`load` and the Embedder: the only place where finding, tokens, batches, engines and vectors meet."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import batching, registry, tokens, vectors
from .backends import Backend
from .errors import ModelDamaged, NonFiniteError, UsageError
from .formats import gguf
from .resident import Resident
from .spec import Embedded, EmbeddingSpec, ModelSpec, Origin, Weights
from .tokens import Encoded, Tokenizer
from .vocabulary import tokenizer_json
from .weights import find

_log = logging.getLogger("jina_local")
_BAR_AFTER = 2.0  # seconds before a progress bar appears


def load(
    name_or_path: str | os.PathLike[str] = registry.DEFAULT_MODEL,
    *,
    backend: str = "auto",
    weights: str | None = None,
    task: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> Embedder:
    """Open a model: a converted folder, a .gguf file or a folder of them, a published checkpoint, or a name.

    backend: "auto", "mlx" or "llama". weights: a label such as "Q8_0" or "8bit"; None takes the closest to
    lossless that is there. task: opened at once (default: the model's own default); others on first use. A base with
    adapters beside it serves all its tasks at once; so does a published checkpoint where no task is given here, and
    with one that adapter is merged, which costs nothing per token.
    device: None, "cpu" or "metal". threads: physical cores by default. revision: a commit of the hub
    repository instead of the pinned one. offline: True never opens a socket; None follows HF_HUB_OFFLINE.
    What was chosen, and why, is in `.spec.origin`. Raises ModelNotFound, ModelDamaged, EngineMissing, UsageError.
    """
    found = find(
        name_or_path,
        backend=backend,
        weights=weights,
        revision=revision,
        offline=offline,
        tasks=None if task is None else [task],
    )
    return Embedder(found, task=task, device=device, threads=threads)


class Embedder:
    """A loaded embedding model. Safe to call from several threads; close it, or use it in a `with`."""

    def __init__(
        self, found: Weights, *, task: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        self._found = found
        self._tokenizer = open_tokenizer(found)
        self._resident = Resident(found, merge=task is not None, device=device, threads=threads)
        first = task if task is not None else found.model.default_task or found.model.tasks[0]
        registry.resolve(found.model, task=first)
        with self._resident.lease(first) as (engine, _):
            if self._tokenizer.vocab_size > engine.vocab:
                raise ModelDamaged(
                    f"{self._tokenizer.where} has {self._tokenizer.vocab_size} tokens, the model's table "
                    f"{engine.vocab} rows: the tokenizer is another model's."
                )
            self.spec: ModelSpec = replace(found.model, origin=_origin(found, first, engine, self._resident.reasons))

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        overflow: str = "truncate",
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> NDArray[np.generic]:
        """Texts -> (n_texts, dim) float32, or (dim,) for a single str.

        task: one of `.spec.tasks`. prompt_name: "query" or "document" (default). truncate_dim: one of
        `.spec.dims`; the vector is cut, then normalised. max_length: tokens, prompt included. precision: see
        vectors.finish. overflow: "truncate" cuts and logs a warning, "error" raises. deterministic: one text a
        pass, for the same bits in any company. show_progress: None shows a bar for long work on a terminal.
        Raises UsageError, TextError, EngineError, and NonFiniteError with the texts that have no vector.
        """
        result = self.embed(
            texts,
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_length=max_length,
            normalize=normalize,
            precision=precision,
            overflow=overflow,
            show_progress=show_progress,
            deterministic=deterministic,
        )
        if result.failed:
            raise NonFiniteError(result.failed, len(result.vectors))
        cut = np.flatnonzero(result.truncated)
        if len(cut):
            _log.warning(
                "%d of %d texts were cut to %d tokens (index %s)",
                len(cut),
                len(result.vectors),
                result.spec.max_tokens,
                ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else ""),
            )
        return result.vectors[0] if isinstance(texts, str) else result.vectors

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        precision: str = "float32",
        overflow: str = "truncate",
        show_progress: bool | None = None,
        deterministic: bool = False,
    ) -> Embedded:
        """As `encode`, with the token count of every text, which were cut, and which have no usable vector."""
        spec = registry.resolve(
            self.spec,
            task=task,
            prompt_name=prompt_name,
            truncate_dim=truncate_dim,
            max_length=max_length,
            normalize=normalize,
            precision=precision,
            overflow=overflow,
        )
        encoded = self._tokenizer.encode(_listed(texts), spec)
        with self._resident.lease(spec.task) as (engine, adapter):
            pooled = _run(engine, adapter, encoded, spec, deterministic=deterministic, show_progress=show_progress)
        failed = tuple(int(i) for i in np.flatnonzero(vectors.unusable(pooled, spec.dim)))
        return Embedded(vectors.finish(pooled, spec), encoded.counts, encoded.truncated, failed, spec)

    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[np.generic]:
        """`encode` with prompt_name="query"."""
        return self.encode(texts, task=task, prompt_name="query", truncate_dim=truncate_dim, precision=precision)

    def encode_document(
        self,
        texts: str | Sequence[str],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[np.generic]:
        """`encode` with prompt_name="document"."""
        return self.encode(texts, task=task, prompt_name="document", truncate_dim=truncate_dim, precision=precision)

    def similarity(
        self, a: NDArray[np.generic], b: NDArray[np.generic], *, precision: str = "float32"
    ) -> NDArray[np.float32]:
        """Cosine of every row of `a` with every row of `b`: (n_a, n_b) float32. See vectors.similarity."""
        if precision not in registry.PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}. Possible: {', '.join(registry.PRECISIONS)}.")
        return vectors.similarity(np.asarray(a), np.asarray(b), precision)

    def tokenize(
        self, texts: str | Sequence[str], *, prompt_name: str | None = None, max_length: int | None = None
    ) -> list[NDArray[np.int32]]:
        """The ids that `encode` would run for each text: prompt, special tokens and truncation applied."""
        task = self.spec.default_task or self.spec.tasks[0]
        spec = registry.resolve(self.spec, task=task, prompt_name=prompt_name, max_length=max_length)
        return self._tokenizer.encode(_listed(texts), spec).ids

    def close(self) -> None:
        """Free all weights. Waits for calls that are under way."""
        self._resident.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        origin = self.spec.origin
        return f"<Embedder {self.spec.name} {origin.weights if origin else ''} on {self._found.backend}>"


def _run(
    engine: Backend,
    adapter: str | None,
    encoded: Encoded,
    spec: EmbeddingSpec,
    *,
    deterministic: bool,
    show_progress: bool | None,
) -> NDArray[np.float32]:
    """All passes of one call: (n_texts, hidden) float32. A text without a usable row is tried once more, alone."""
    lengths = encoded.counts.tolist()
    n = len(lengths)
    groups = [[i] for i in range(n)] if deterministic else batching.plan(lengths, engine.budget)
    loads = [batching.cost(group, lengths, engine.budget) for group in groups]
    lanes = batching.lanes_for(loads, engine.lanes)
    pooled = np.empty((n, engine.hidden), np.float32)

    def one_pass(group: list[int], sharers: int) -> int:
        batch = tokens.pack(encoded, group, spec.pooling)
        pooled[group] = vectors.pool(engine.forward(batch, sharers, adapter), batch.owner, len(group), spec.pooling)
        return len(batch.ids)

    with _bar(sum(lengths), show_progress) as advance:
        if lanes == 1:
            for group in groups:
                advance(one_pass(group, 1))
        else:
            pool = ThreadPoolExecutor(lanes, thread_name_prefix="jina_local")
            try:
                for done in pool.map(lambda group: one_pass(group, lanes), groups):
                    advance(done)
            finally:
                pool.shutdown(cancel_futures=True)
    for i in np.flatnonzero(vectors.unusable(pooled, spec.dim)):
        one_pass([int(i)], 1)
    return pooled


@contextmanager
def _bar(total: int, show: bool | None) -> Iterator[Callable[[int], object]]:
    if show is False:
        yield lambda done: None
        return
    from tqdm import tqdm

    delay = 0.0 if show else _BAR_AFTER
    # disable=None: only on a terminal.
    with tqdm(total=total, unit="tok", unit_scale=True, disable=None if show is None else False, delay=delay) as bar:
        yield bar.update


def open_tokenizer(found: Weights) -> Tokenizer:
    """The tokenizer of the files, or the one rebuilt from a GGUF's own vocabulary."""
    if found.tokenizer is not None:
        return Tokenizer.from_file(found.tokenizer)
    path = next(iter(found.files.values()))
    return Tokenizer(tokenizer_json(gguf.read_header(path)), f"the vocabulary in {path}")


def _origin(found: Weights, task: str, engine: Backend, adapters: tuple[str, ...]) -> Origin:
    return Origin(
        path=Path(found.files[task]),
        form=found.form,
        backend=found.backend,
        weights=found.label,
        device=engine.device,
        dtype=engine.dtype,
        threads=engine.threads,
        revision=found.revision,
        reasons=(*found.reasons, *adapters, *engine.reasons),
    )


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not hasattr(texts, "__len__") or not hasattr(texts, "__getitem__"):
        raise UsageError(f"texts are {type(texts).__name__}; expected a str or a sequence of str.")
    if len(texts) == 0:
        raise UsageError("no texts were given; expected a str or at least one text in the list.")
    return texts
