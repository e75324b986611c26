"""llama.cpp through its low-level calls: TokenBatch -> rows, with settings that cannot abort the process.

What is unusual about this engine:
- Qwen3 in embedding mode computes the vocabulary head for every token. Here the context runs without
  embeddings, flags only the wanted tokens, and a callback copies `result_norm` and stops before the head.
- Encoders (EuroBERT) take the whole pass as one ubatch: more tokens than n_ubatch is an abort, not an error.
- Attention covers the whole pass. About 256 tokens are best on a CPU, and one context a core beats
  one context on all cores.
- NaN stays in cells of the cache that a later text may look at; only clearing them with data removes it.
- An adapter belongs to a context. Weights are never changed: a lane that has run one task is told to run another.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import architecture
from ..architecture import Architecture
from ..errors import EngineError, ModelDamaged, UsageError
from ..formats import gguf
from ..spec import Budget, TokenBatch
from . import llama_adapters
from .extra_buffers import use_extra_buffers
from .llama_library import Library, forget_words, last_words, library
from .machine import available_memory, give_back, physical_cores
from .passes import check, check_task

# What a lane holds, and what the one context for longer passes holds; a pass beyond that, or a second one beside
# it, gets a context of its own, freed after it.
_TOKENS, _LONG_TOKENS = 512, 2048
_TEXTS = 32
_BUDGET = Budget(tokens=256, texts=_TEXTS, padded=False)
_MOST_LANES = 4  # each lane has a cache and buffers of its own
_UBATCH = 512  # causal texts may be cut into ubatches of this many tokens
_F32, _F16 = 0, 1  # ggml types of the KV cache


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
        if "token_embd.weight" not in header.tensors:
            raise ModelDamaged(f"{path}: holds no token_embd.weight; it is not a complete model.")
        self.arch = architecture.from_gguf(header.keys, header.tensors["token_embd.weight"].shape[0], str(path))
        self.hidden, self.vocab = self.arch.hidden, self.arch.vocab
        adapters = adapters or {}
        llama_adapters.check(adapters, header, self.arch)
        self._lib = library()
        self.device = _device(self._lib, device)
        self.threads = threads or physical_cores()
        self.lanes = 1 if self.device == "metal" else max(1, min(self.threads, _MOST_LANES))
        self.budget = _BUDGET
        if header.weights == "BF16":
            # It rounds what passes through the layers to 8 bits: a last-bit change from the company in a pass
            # grows to a cosine of 0.99999. Alone, every text has the same bits in any company.
            self.budget = replace(self.budget, texts=1)
        self.dtype = header.weights
        if extra_buffers is None:
            extra_buffers, why = use_extra_buffers(self._lib, path, header.weights)
        else:
            why = f"the caller set extra_buffers={extra_buffers}"
        self.reasons: tuple[str, ...] = (why,)
        # A 16-bit cache and 16-bit steps in attention hide behind 16-bit weights, not beside 32-bit ones.
        self._exact = header.weights == "F32"
        model = _load(self._lib, path, self.arch, self.device, extra_buffers)
        self._model = model
        self._free_lanes: list[_Lane] = []  # the one given back last is at the end
        self._returned, self._lanes_made = threading.Condition(), 0
        self._opened: list[_Lane] = []
        self._long = threading.Lock()
        self._long_lane: _Lane | None = None
        self._finalizer = weakref.finalize(self, _free, self._lib, model, self._opened)
        try:
            self._adapters = llama_adapters.Adapters(self._lib, model, adapters)
        except ModelDamaged:
            self.close()
            raise

    def forward(self, batch: TokenBatch, sharers: int = 1, task: str | None = None) -> NDArray[np.float32]:
        """See backends.Backend. The pass may be of any size; budget says what is fast."""
        check(batch, self.vocab, self.arch.max_positions)
        check_task(task, self._adapters.tasks)
        threads = max(1, self.threads // max(1, min(sharers, self.lanes)))
        with self._lane(len(batch.ids), len(batch.starts) - 1, len(batch.rows), task) as lane:
            return lane.run(batch, threads, task)

    def close(self) -> None:
        """Free contexts and weights, now; without it they are freed at exit."""
        self._finalizer()

    @contextlib.contextmanager
    def _lane(self, tokens: int, texts: int, rows: int, task: str | None) -> Iterator[_Lane]:
        if not self._finalizer.alive:
            raise EngineError("this model is closed.")
        few = max(texts, rows) <= _TEXTS
        if few and tokens <= _TOKENS:
            lane = self._take(task)
            try:
                yield lane
            finally:
                with self._returned:
                    self._free_lanes.append(lane)
                    self._returned.notify()
        elif few and tokens <= _LONG_TOKENS and self._long.acquire(blocking=False):
            try:
                if self._long_lane is None:
                    self._long_lane = _Lane(self, _LONG_TOKENS, _TEXTS, _TEXTS)
                    self._opened.append(self._long_lane)
                yield self._long_lane
            finally:
                self._long.release()
        else:
            lane = _Lane(self, max(tokens, texts), texts, rows)
            try:
                yield lane
            finally:
                lane.free()

    def _take(self, task: str | None) -> _Lane:
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
            lane = _Lane(self, _TOKENS, _TEXTS, _TEXTS)
        except BaseException:
            with self._returned:
                self._lanes_made -= 1
                self._returned.notify()
            raise
        self._opened.append(lane)
        return lane


class _Lane:
    """One llama context and the buffer that its rows are copied to."""

    def __init__(self, owner: LlamaBackend, tokens: int, texts: int, rows: int) -> None:
        api = owner._lib.api
        self._lib, self._hidden, self._causal = owner._lib, owner.hidden, owner.arch.causal
        self._adapters = owner._adapters
        self.task: str | None = None  # whose adapter it has
        capacity = -(-tokens // 256) * 256
        _check_room(owner, capacity)
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = capacity
        # An encoder needs the whole pass in one ubatch; n_ubatch below n_seq_max aborts with some poolings.
        params.n_ubatch = min(capacity, _UBATCH) if self._causal else capacity
        params.n_seq_max = texts
        params.n_outputs_max = max(rows, texts) if self._causal else capacity
        params.pooling_type = api.LLAMA_POOLING_TYPE_NONE
        # Flash attention works in 16 bits on short texts; without it the scores of long ones fill the memory.
        plain = owner._exact and capacity <= _TOKENS
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED if plain else api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = _F32 if owner._exact else _F16
        params.kv_unified = True
        params.embeddings = not self._causal
        params.n_threads = params.n_threads_batch = owner.threads
        self._callback = api.ggml_backend_sched_eval_callback(self._watch)
        if self._causal:
            params.cb_eval = self._callback
        forget_words()
        self._ctx = api.llama_init_from_model(owner._model, params)
        if not self._ctx:
            raise EngineError(
                f"llama.cpp made no context for {capacity} tokens: {last_words()}. If memory is short, lower "
                "max_length or use smaller weights."
            )
        self._memory = api.llama_get_memory(self._ctx)
        self._caught: list[NDArray[np.float32]] = []
        self._threads = owner.threads
        self._vocab, self._given_back = owner.vocab, 0

    def run(self, batch: TokenBatch, threads: int, task: str | None) -> NDArray[np.float32]:
        """One pass: (n_rows, hidden) float32."""
        api = self._lib.api
        if task != self.task:
            self._adapters.put_on(self._ctx, task)
            self.task = task
        if threads != self._threads:
            api.llama_set_n_threads(self._ctx, threads, threads)
            self._threads = threads
        if self._memory:
            api.llama_memory_clear(self._memory, False)
        native, _keep = _native(api, batch, all_rows=not self._causal)
        self._caught.clear()
        code = api.llama_decode(self._ctx, native)
        if code:
            raise EngineError(f"llama.cpp refused a pass of {len(batch.ids)} tokens (code {code}): {last_words()}.")
        rows = np.concatenate(self._caught) if self._causal else self._read(batch.rows)
        if rows.shape != (len(batch.rows), self._hidden):
            raise EngineError(f"llama.cpp returned {rows.shape[0]} rows where {len(batch.rows)} were asked for.")
        if self._memory and not np.isfinite(rows).all():
            api.llama_memory_clear(self._memory, True)
        if not self._causal and len(batch.ids) > self._given_back:
            self._give_back_logits(len(batch.ids))
        return rows

    def _give_back_logits(self, tokens: int) -> None:
        """Return the pages of a buffer that an encoder never uses to the system.

        llama.cpp keeps, and clears, room for the vocabulary's logits of every output, and an encoder's outputs are
        all its tokens: 0.5 MB each for nano. The pages stay mapped and read as the zeros they hold now.
        """
        start = ctypes.cast(self._lib.api.llama_get_logits(self._ctx), ctypes.c_void_p).value
        if start:
            give_back(start, 4 * self._vocab * tokens)
        self._given_back = tokens

    def free(self) -> None:
        """Free the context; harmless when it is gone already."""
        if self._ctx:
            self._lib.api.llama_free(self._ctx)
            self._ctx = None

    def _watch(self, tensor: int, ask: bool, _user_data: object) -> bool:
        """Called by the engine for every node: wants `result_norm` alone, and stops the graph after it."""
        if ask:
            return bool(self._lib.get_name(tensor) == b"result_norm")
        rows = np.empty((self._lib.nbytes(tensor) // 4 // self._hidden, self._hidden), np.float32)
        self._lib.tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
        self._caught.append(rows)
        return False

    def _read(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        out = np.empty((len(rows), self._hidden), np.float32)
        for i, row in enumerate(rows):
            pointer = self._lib.api.llama_get_embeddings_ith(self._ctx, int(row))
            if not pointer:
                raise EngineError(f"llama.cpp has no state for token {row} of the pass: {last_words()}.")
            out[i] = np.ctypeslib.as_array(pointer, (self._hidden,))
        return out


def _native(api: Any, batch: TokenBatch, *, all_rows: bool) -> tuple[Any, list[NDArray[np.generic]]]:
    """The batch as the C struct, and the arrays that it points into, which have to outlive the call."""
    n = len(batch.ids)
    lengths = np.diff(batch.starts)
    ids = np.ascontiguousarray(batch.ids, np.int32)
    positions = (np.arange(n) - np.repeat(batch.starts[:-1], lengths)).astype(np.int32)
    ones = np.ones(n, np.int32)
    texts = np.arange(len(lengths), dtype=np.int32)
    owners = (texts.ctypes.data + 4 * np.repeat(texts.astype(np.uint64), lengths)).astype(np.uint64)
    wanted = np.full(n, all_rows, np.int8)
    wanted[batch.rows] = 1
    int32, int8 = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int8)
    native = api.llama_batch(
        n_tokens=n,
        token=ids.ctypes.data_as(int32),
        embd=None,
        pos=positions.ctypes.data_as(int32),
        n_seq_id=ones.ctypes.data_as(int32),
        seq_id=owners.ctypes.data_as(ctypes.POINTER(int32)),
        logits=wanted.ctypes.data_as(int8),
    )
    return native, [ids, positions, ones, texts, owners, wanted]


def _check_room(owner: LlamaBackend, tokens: int) -> None:
    """Raise EngineError where a context for so many tokens cannot fit; the system would kill the process."""
    arch = owner.arch
    if arch.causal:
        cell = arch.layers * 2 * arch.kv_heads * arch.head_dim * (4 if owner._exact else 2)
    else:
        cell = 4 * arch.vocab  # see _give_back_logits
    needed = tokens * (cell + 4 * (6 * arch.hidden + 3 * arch.intermediate))
    free = available_memory()
    if free is not None and needed > free:
        raise EngineError(
            f"a pass of {tokens} tokens takes llama.cpp about {needed / 1e9:.1f} GB beside the weights, and "
            f"{free / 1e9:.1f} GB are free. Lower max_length, or use the mlx backend."
        )


def _device(lib: Library, asked: str | None) -> str:
    offload = bool(lib.api.llama_supports_gpu_offload())
    if asked in ("metal", "gpu") and not offload:
        raise UsageError(f"device {asked!r}: this build of llama.cpp has no GPU support; possible here: cpu.")
    if asked not in (None, "cpu", "metal", "gpu"):
        raise UsageError(f"unknown device {asked!r}; possible: cpu, metal.")
    return "metal" if offload and asked != "cpu" else "cpu"


def _load(lib: Library, path: Path, arch: Architecture, device: str, extra: bool) -> Any:
    api = lib.api
    params = api.llama_model_default_params()
    params.n_gpu_layers = -1 if device == "metal" else 0
    params.use_extra_bufts = extra
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


def _free(lib: Library, model: Any, lanes: list[_Lane]) -> None:
    for lane in lanes:
        lane.free()
    lib.api.llama_model_free(model)
