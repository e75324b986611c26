"""llama.cpp through its low-level calls: TokenBatch -> rows, with settings that cannot abort the process.

What is unusual about this engine:
- Qwen3 in embedding mode computes the vocabulary head for every token. Here the context runs without
  embeddings, flags only the wanted tokens, and a callback copies `result_norm` and stops before the head.
- Encoders (EuroBERT, XLM-R) take the whole pass as one ubatch: more tokens than n_ubatch is an abort, not an
  error. All their tokens are outputs, wanted or not; a classifier's logits are the engine's own RANK pooling.
- Attention covers the whole pass. About 256 tokens are best on a CPU, and one context on each core beats
  one context on all cores.
- NaN stays in cells of the cache that a later text may look at; only clearing them with data removes it.
- An adapter belongs to a context, and the weights are never changed.
- It does not survive a fork: OpenMP's threads are gone in the child, and a thread that ran one pass waits for them.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, ModelDamaged, UsageError
from ...formats import gguf
from ...formats.gguf import Header
from ...spec import Budget, TokenBatch
from ...weights import architecture
from ...weights.architecture import Architecture
from ..checks import check, check_classified, check_task
from ..machine import physical_cores
from ..threads import shield
from . import tableless
from .adapters import Adapters
from .adapters import check as check_adapters
from .context import SharedWeights, Stop
from .library import Library, clear_log, library, logged_reason
from .pool import TEXTS, ContextPool
from .positions import PaddingTokens
from .repack import use_extra_buffers

_BUDGET = Budget(tokens=256, texts=TEXTS, padded=False)
_MOST_LANES = 4  # each has a context with a cache and buffers of its own
_CLASSIFIER = ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")


class LlamaBackend:
    """One GGUF file. Every pass has a context of its own on the shared weights. See backends.Backend."""

    def __init__(
        self,
        path: Path,
        *,
        adapters: Mapping[str, Path] | None = None,
        device: str | None = None,
        threads: int | None = None,
        extra_buffers: bool | None = None,
    ) -> None:
        """Open the file.

        adapters: task -> adapter file, if `path` is a base.
        device: None, "cpu" or "metal".
        threads: None takes the physical cores.
        extra_buffers: whether weights may be repacked; None takes the choice that is safe and fast here.
        """
        self._process = os.getpid()
        shield(lambda: self._open(path, dict(adapters or {}), device, threads, extra_buffers))

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; `budget` says which size is fast."""
        self._check_process()
        check(batch, self.vocab, self.arch.max_positions)
        check_task(task, self._tasks)
        if self.arch.labels:
            check_classified(batch)
        threads = max(1, self.threads // max(1, min(sharers, self.lanes)))
        stop = Stop()

        def one_pass() -> NDArray[np.float32]:
            with self._pool.lend(len(batch.ids), len(batch.starts) - 1, len(batch.rows), task) as context:
                return context.run(batch, threads, task, stop)

        return shield(one_pass, stop.request)

    def close(self) -> None:
        """Free contexts and weights after the passes that still run; without it they are freed at exit."""
        if os.getpid() == self._process:
            shield(self._finalizer)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise EngineError(
                "this model was opened before the process was forked, and llama.cpp does not survive a fork. Load it "
                "again in the new process, or start that with multiprocessing's 'spawn'."
            )

    def _open(
        self,
        path: Path,
        adapters: dict[str, Path],
        device: str | None,
        threads: int | None,
        extra_buffers: bool | None,
    ) -> None:
        header = gguf.read_header(path)
        self.arch = _architecture(header)
        self.hidden, self.vocab = self.arch.width, self.arch.vocab
        check_adapters(adapters, header, self.arch)
        lib = library()
        self.device = _device(lib, device)
        self.threads = threads or physical_cores()
        self.lanes = 1 if self.device == "metal" else max(1, min(self.threads, _MOST_LANES))
        # BF16 rounds the values between layers to 8 bits: a last-bit change caused by the other texts of a pass grows
        # to a cosine of 0.99999. Alone, every text has the same bits in any company.
        self.budget = replace(_BUDGET, texts=1) if header.weights == "BF16" else _BUDGET
        self.dtype = header.weights
        if extra_buffers is None:
            extra_buffers, why = use_extra_buffers(lib, path, header.weights)
        else:
            why = f"the caller set extra_buffers={extra_buffers}"
        self.reasons: tuple[str, ...] = (why,)
        load = functools.partial(_load, lib, device=self.device, extra_buffers=extra_buffers, adapters=adapters)
        padding = PaddingTokens(lib, header) if self.arch.kind == "bert" else None
        model, loaded = load(path, self.arch)
        # A 16-bit cache and 16-bit steps in attention do not show beside 16-bit weights, but beside 32-bit ones.
        exact = header.weights == "F32"
        weights = SharedWeights(lib, model, self.arch, loaded, exact, self.threads, padding=padding)
        self._tasks = loaded.tasks
        self._pool = ContextPool(weights, self.lanes, lambda: _copy_without_table(path, weights, load))
        self._finalizer = weakref.finalize(self, self._pool.close)


def _architecture(header: Header) -> Architecture:
    """The shape of a model file. Raises ModelDamaged if a part is missing that llama.cpp would not miss."""
    if "token_embd.weight" not in header.tensors:
        raise ModelDamaged(f"{header.path}: holds no token_embd.weight; it is not a complete model.")
    arch = architecture.from_gguf(header.keys, header.tensors["token_embd.weight"].shape[0], str(header.path))
    if arch.labels and (absent := [name for name in _CLASSIFIER if name not in header.tensors]):
        # llama.cpp would leave the step out, or return states in the place of logits.
        raise ModelDamaged(f"{header.path}: its classifier is incomplete; it has no {', '.join(absent)}.")
    return arch


def _device(lib: Library, asked: str | None) -> str:
    offload = bool(lib.api.llama_supports_gpu_offload())
    if asked in ("metal", "gpu") and not offload:
        raise UsageError(f"device {asked!r}: this build of llama.cpp has no GPU support; possible here: cpu.")
    if asked not in (None, "cpu", "metal", "gpu"):
        raise UsageError(f"unknown device {asked!r}; possible: cpu, metal.")
    return "metal" if offload and asked != "cpu" else "cpu"


def _load(
    lib: Library,
    path: Path,
    arch: Architecture,
    *,
    device: str,
    extra_buffers: bool,
    adapters: Mapping[str, Path],
    mapped: bool = True,
) -> tuple[Any, Adapters]:
    """The model, and its adapters."""
    api = lib.api
    params = api.llama_model_default_params()
    params.n_gpu_layers = -1 if device == "metal" else 0
    params.use_extra_bufts = extra_buffers
    if not mapped:
        params.load_mode = api.LLAMA_LOAD_MODE_NONE
    params.check_tensors = True  # NaN and infinity in the weights are refused here, before they reach a vector
    # The ids come from our own tokenizer, so the file's vocabulary is never parsed. That saves 0.15 s and 40 MB, and
    # there is no text code to crash.
    overrides = (api.llama_model_kv_override * 3)()  # ended by an entry without a key
    overrides[0].key, overrides[0].tag = b"tokenizer.ggml.model", api.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].value.val_str = b"no_vocab"
    overrides[1].key, overrides[1].tag = f"{arch.kind}.vocab_size".encode(), api.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].value.val_i64 = arch.vocab
    params.kv_overrides = overrides
    clear_log()
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelDamaged(f"{path}: llama.cpp cannot load it: {logged_reason()}.")
    try:
        return model, Adapters(lib, model, adapters)
    except BaseException:
        api.llama_model_free(model)
        raise


def _copy_without_table(
    path: Path, weights: SharedWeights, load: Callable[..., tuple[Any, Adapters]]
) -> SharedWeights:
    """An encoder's weights once more, for long passes. See tableless."""
    header = gguf.read_header(path)
    table = tableless.Table(weights.lib, header)
    with tableless.copied(header) as copy:
        model, adapters = load(copy, replace(weights.arch, vocab=1), mapped=False)
    return replace(weights, model=model, adapters=adapters, embeddings=table.rows)
