"""llama.cpp through its low-level calls: TokenBatch -> rows, with settings that cannot abort the process.

What is unusual about this engine:
- Qwen3 in embedding mode computes the vocabulary head for every token. Here the context runs without
  embeddings, flags only the wanted tokens, and a callback copies `result_norm` and stops before the head.
- Encoders (EuroBERT, XLM-R) take the whole pass as one ubatch: more tokens than n_ubatch is an abort, not an
  error. All their tokens are outputs, wanted or not; a classifier's logits are the engine's own RANK pooling.
- Attention covers the whole pass. About 256 tokens are best on a CPU, and one context a core beats
  one context on all cores.
- NaN stays in cells of the cache that a later text may look at; only clearing them with data removes it.
- An adapter belongs to a context. Weights are never changed: a lane that has run one task is told to run another.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
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
from . import tableless
from .adapters import Adapters
from .adapters import check as check_adapters
from .context import Lane, Loaded
from .library import Library, forget_words, last_words, library
from .repack import use_extra_buffers

# What a lane holds, and what the one context for longer passes holds; a pass beyond that, or a second one beside
# it, gets a context of its own, freed after it.
_TOKENS, _LONG_TOKENS = 512, 2048
_TEXTS = 32
_LONG_ROWS = 128  # of the context for longer passes: a listwise reranker wants a row of each of 64 documents
# Bytes of room for logits that nobody reads. An encoder's context that would take more runs on a copy of the weights
# without their token table, made when first needed: for 250,002 rows any pass that is too long for a lane.
_MOST_LOGITS = 1 << 30
_BUDGET = Budget(tokens=256, texts=_TEXTS, padded=False)
_MOST_LANES = 4  # each lane has a cache and buffers of its own
_CLASSIFIER = ("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias")


class LlamaBackend:
    """One GGUF file. Lanes are contexts on the shared weights; each is used by one thread at a time."""

    def __init__(
        self,
        path: Path,
        *,
        adapters: Mapping[str, Path] | None = None,
        device: str | None = None,
        threads: int | None = None,
        extra_buffers: bool | None = None,
    ) -> None:
        """`adapters`: task -> adapter file, where `path` is a base. `device`: None, "cpu" or "metal".

        `extra_buffers`: None decides by what is safe and fast here.
        """
        header = gguf.read_header(path)
        self.arch = _complete(header)
        self.hidden, self.vocab = self.arch.width, self.arch.vocab
        adapters = adapters or {}
        check_adapters(adapters, header, self.arch)
        self._lib = library()
        self.device = _device(self._lib, device)
        self.threads = threads or physical_cores()
        self.lanes = 1 if self.device == "metal" else max(1, min(self.threads, _MOST_LANES))
        # BF16 rounds what passes through the layers to 8 bits: a last-bit change from the company in a pass grows to
        # a cosine of 0.99999. Alone, every text has the same bits in any company.
        self.budget = replace(_BUDGET, texts=1) if header.weights == "BF16" else _BUDGET
        self.dtype = header.weights
        if extra_buffers is None:
            extra_buffers, why = use_extra_buffers(self._lib, path, header.weights)
        else:
            why = f"the caller set extra_buffers={extra_buffers}"
        self.reasons: tuple[str, ...] = (why,)
        self._path, self._extra_buffers, self._adapter_files = path, extra_buffers, dict(adapters)
        model = _load(self._lib, path, self.arch, self.device, extra_buffers)
        self._free_lanes: list[Lane] = []  # the one given back last is at the end
        self._returned, self._lanes_made = threading.Condition(), 0
        self._opened: list[Lane] = []
        self._long = threading.Lock()
        self._long_lane: Lane | None = None
        self._copying = threading.Lock()
        self._tableless: Loaded | None = None
        self._models = [model]
        self._finalizer = weakref.finalize(self, _free, self._lib, self._models, self._opened)
        try:
            beside = Adapters(self._lib, model, adapters)
        except ModelDamaged:
            self.close()
            raise
        # A 16-bit cache and 16-bit steps in attention hide behind 16-bit weights, not beside 32-bit ones.
        exact = header.weights == "F32"
        self._loaded = Loaded(self._lib, model, self.arch, beside, exact, self.threads)

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; budget says what is fast."""
        check(batch, self.vocab, self.arch.max_positions)
        check_task(task, self._loaded.adapters.tasks)
        if self.arch.labels:
            check_classified(batch)
        threads = max(1, self.threads // max(1, min(sharers, self.lanes)))
        with self._lane(len(batch.ids), len(batch.starts) - 1, len(batch.rows), task) as lane:
            return lane.run(batch, threads, task)

    def close(self) -> None:
        """Free contexts and weights, now; without it they are freed at exit."""
        self._finalizer()

    @contextlib.contextmanager
    def _lane(self, tokens: int, texts: int, rows: int, task: str | None) -> Iterator[Lane]:
        if not self._finalizer.alive:
            raise EngineError("this model is closed.")
        rows = max(rows, texts) if self.arch.causal else texts  # an encoder's tokens are all outputs in any case
        if max(texts, rows) <= _TEXTS and tokens <= _TOKENS:
            lane = self._take(task)
            try:
                yield lane
            finally:
                with self._returned:
                    self._free_lanes.append(lane)
                    self._returned.notify()
        elif texts <= _TEXTS and rows <= _LONG_ROWS and tokens <= _LONG_TOKENS and self._long.acquire(blocking=False):
            try:
                if self._long_lane is None:
                    self._long_lane = Lane(self._weights_for(_LONG_TOKENS), _LONG_TOKENS, _TEXTS, _LONG_ROWS)
                    self._opened.append(self._long_lane)
                yield self._long_lane
            finally:
                self._long.release()
        else:
            lane = Lane(self._weights_for(tokens), max(tokens, texts), texts, rows)
            try:
                yield lane
            finally:
                lane.free()

    def _weights_for(self, tokens: int) -> Loaded:
        """What a context for so many tokens runs on: the weights, or of an encoder a copy without its token table."""
        if self.arch.causal or 4 * self.vocab * tokens <= _MOST_LOGITS:
            return self._loaded
        with self._copying:
            if self._tableless is None:
                header = gguf.read_header(self._path)
                table = tableless.Table(self._lib, header)
                with tableless.copied(header) as copy:
                    one_row = replace(self.arch, vocab=1)
                    model = _load(self._lib, copy, one_row, self.device, self._extra_buffers, mapped=False)
                self._models.append(model)
                beside = Adapters(self._lib, model, self._adapter_files)
                self._tableless = replace(self._loaded, model=model, adapters=beside, embeddings=table.rows)
            return self._tableless

    def _take(self, task: str | None) -> Lane:
        """A free lane that has the task's adapter; else a new one while there may be more; else the longest idle.

        For nano a switch costs its next pass a little over 1 ms, and a lane takes about 40 MB.
        """
        with self._returned:
            while True:
                same = [lane for lane in self._free_lanes if lane.task == task]
                if same or (self._free_lanes and self._lanes_made >= self.lanes):
                    lane = same[-1] if same else self._free_lanes[0]
                    self._free_lanes.remove(lane)
                    return lane
                if self._lanes_made < self.lanes:
                    self._lanes_made += 1
                    break
                self._returned.wait()
        try:
            lane = Lane(self._loaded, _TOKENS, _TEXTS, _TEXTS)
        except BaseException:
            with self._returned:
                self._lanes_made -= 1
                self._returned.notify()
            raise
        self._opened.append(lane)
        return lane


def _complete(header: Header) -> Architecture:
    """The shape of a model file. Raises ModelDamaged where a part is missing that llama.cpp would not miss."""
    if "token_embd.weight" not in header.tensors:
        raise ModelDamaged(f"{header.path}: holds no token_embd.weight; it is not a complete model.")
    arch = architecture.from_gguf(header.keys, header.tensors["token_embd.weight"].shape[0], str(header.path))
    if arch.labels and (absent := [name for name in _CLASSIFIER if name not in header.tensors]):
        # It would leave the step out, or give back states for logits.
        raise ModelDamaged(f"{header.path}: its classifier is incomplete; it has no {', '.join(absent)}.")
    return arch


def _device(lib: Library, asked: str | None) -> str:
    offload = bool(lib.api.llama_supports_gpu_offload())
    if asked in ("metal", "gpu") and not offload:
        raise UsageError(f"device {asked!r}: this build of llama.cpp has no GPU support; possible here: cpu.")
    if asked not in (None, "cpu", "metal", "gpu"):
        raise UsageError(f"unknown device {asked!r}; possible: cpu, metal.")
    return "metal" if offload and asked != "cpu" else "cpu"


def _load(lib: Library, path: Path, arch: Architecture, device: str, extra: bool, *, mapped: bool = True) -> Any:
    api = lib.api
    params = api.llama_model_default_params()
    params.n_gpu_layers = -1 if device == "metal" else 0
    params.use_extra_bufts = extra
    if not mapped:
        params.load_mode = api.LLAMA_LOAD_MODE_NONE
    params.check_tensors = True  # NaN and infinity in the weights are refused here, not met in a vector
    # Ids are ours, so the file's vocabulary is never parsed: 0.15 s and 40 MB less, and no text code to crash.
    overrides = (api.llama_model_kv_override * 3)()  # ended by an entry without a key
    overrides[0].key, overrides[0].tag = b"tokenizer.ggml.model", api.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[0].value.val_str = b"no_vocab"
    overrides[1].key, overrides[1].tag = f"{arch.kind}.vocab_size".encode(), api.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[1].value.val_i64 = arch.vocab
    params.kv_overrides = overrides
    forget_words()
    model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelDamaged(f"{path}: llama.cpp cannot load it: {last_words()}.")
    return model


def _free(lib: Library, models: list[Any], lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.free()
    for model in models:
        lib.api.llama_model_free(model)
