"""One llama.cpp context: a pass in, the wanted rows out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from ...spec import TokenBatch
from ...weights.architecture import Architecture
from ..machine import available_memory, give_back
from .adapters import Adapters
from .library import Library, clear_log, logged_reason
from .positions import PaddingTokens

_UBATCH = 512  # causal texts may be cut into ubatches of this many tokens
# Longest pass of 32-bit files without flash attention: an encoder's scores are a square, a causal model's are not.
_PLAIN_TOKENS, _PLAIN_CAUSAL = 512, 8192
_F32, _F16 = 0, 1  # ggml types of the KV cache
_STOPPED = 2  # llama_decode's result if its abort callback was true (llama.h)


@dataclass(frozen=True)
class SharedWeights:
    """A loaded model, which several contexts run on at a time."""

    lib: Library
    model: Any
    arch: Architecture
    adapters: Adapters
    exact: bool  # 32 bits throughout
    threads: int
    # For a model without a token table: ids (n,) -> (n, hidden) float32, see tableless.
    embeddings: Callable[[NDArray[np.int32]], NDArray[np.float32]] | None = None
    padding: PaddingTokens | None = None  # of a model with learned positions


class Stop:
    """A request to end a pass early. llama.cpp looks at it between any two nodes of the graph."""

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        self.address = ctypes.addressof(self._text)

    def request(self) -> None:
        """End the pass that was given this object, or will be."""
        self._text[0] = b"x"


class Context:
    """One llama context, for one pass at a time, and the buffer that its rows are copied to."""

    def __init__(self, loaded: SharedWeights, tokens: int, texts: int, rows: int) -> None:
        """Make room for passes of so many tokens and texts, and for so many wanted rows (no fewer than texts).

        rows: counts for a causal model only. All tokens of an encoder are outputs.
        """
        api, arch = loaded.lib.api, loaded.arch
        self._loaded, self._lib, self._causal = loaded, loaded.lib, arch.causal
        self.task: str | None = None  # whose adapter it has
        capacity = -(-tokens // 256) * 256
        _check_room(loaded, capacity, rows if self._causal else 0 if loaded.embeddings else capacity)
        # Flash attention takes 16-bit steps; without it the scores of long texts fill the memory.
        plain = _plain(loaded, capacity)
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = capacity
        # An encoder needs the whole pass in one ubatch; n_ubatch below n_seq_max aborts with some poolings.
        params.n_ubatch = _ubatch(tokens, even=loaded.exact and not plain) if self._causal else capacity
        params.n_seq_max = texts
        params.n_outputs_max = rows if self._causal else capacity
        params.pooling_type = api.LLAMA_POOLING_TYPE_RANK if arch.labels else api.LLAMA_POOLING_TYPE_NONE
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED if plain else api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = _F32 if loaded.exact else _F16
        params.kv_unified = True
        params.embeddings = not self._causal
        params.n_threads = params.n_threads_batch = loaded.threads
        self._callback = api.ggml_backend_sched_eval_callback(self._watch)
        if self._causal:
            params.cb_eval = self._callback
        clear_log()
        self._ctx = api.llama_init_from_model(loaded.model, params)
        if not self._ctx:
            raise EngineError(
                f"llama.cpp made no context for {capacity} tokens: {logged_reason()}. If memory is short, lower "
                "max_length or use smaller weights."
            )
        self._memory = api.llama_get_memory(self._ctx)
        self._caught: list[NDArray[np.float32]] = []
        self._failure: BaseException | None = None
        self._threads = loaded.threads
        self._given_back = 0

    def run(self, batch: TokenBatch, threads: int, task: str | None, stop: Stop) -> NDArray[np.float32]:
        """Run one pass: (n_rows, width) float32. Raises EngineError if `stop` was requested."""
        api = self._lib.api
        if task != self.task:
            self._loaded.adapters.put_on(self._ctx, task)
            self.task = task
        if threads != self._threads:
            api.llama_set_n_threads(self._ctx, threads, threads)
            self._threads = threads
        if self._memory:
            api.llama_memory_clear(self._memory, False)
        embeddings = self._loaded.embeddings(batch.ids) if self._loaded.embeddings else None
        if self._loaded.padding:
            positions, embeddings = self._loaded.padding.place(batch, embeddings)
        else:
            positions = _places(batch)
        native, _keep = _native(api, batch, positions, embeddings, all_rows=not self._causal)
        self._caught.clear()
        self._failure = None
        api.llama_set_abort_callback(self._ctx, self._lib.is_stopped, stop.address)
        code = api.llama_decode(self._ctx, native)
        if code == _STOPPED:
            raise EngineError(f"a pass of {len(batch.ids)} tokens was stopped before its end.")
        if code:
            raise EngineError(
                f"llama.cpp refused a pass of {len(batch.ids)} tokens (code {code}): {logged_reason()}."
            )
        if self._failure:
            raise self._failure
        rows = self._result(batch)
        if rows.shape != (len(batch.rows), self._loaded.arch.width):
            raise EngineError(f"llama.cpp returned {rows.shape[0]} rows instead of {len(batch.rows)}.")
        if self._memory and not np.isfinite(rows).all():
            api.llama_memory_clear(self._memory, True)
        if not self._causal and not self._loaded.embeddings and len(batch.ids) > self._given_back:
            self._give_back_logits(len(batch.ids))
        return rows

    def _give_back_logits(self, tokens: int) -> None:
        """Return the pages of a buffer that an encoder never uses to the operating system.

        llama.cpp keeps, and clears, room for the vocabulary's logits of every output, and an encoder's outputs are
        all its tokens: 0.5 MB each for nano. The pages stay mapped and read as the zeros they hold now.
        """
        start = ctypes.cast(self._lib.api.llama_get_logits(self._ctx), ctypes.c_void_p).value
        if start:
            give_back(start, 4 * self._loaded.arch.vocab * tokens)
        self._given_back = tokens

    def free(self) -> None:
        """Free the context; harmless if it is freed already."""
        if self._ctx:
            self._lib.api.llama_free(self._ctx)
            self._ctx = None

    def _watch(self, tensor: int, ask: bool, _user_data: object) -> bool:
        """Called by the engine for every node. Asks for `result_norm` alone, and stops the graph after it."""
        if ask:
            return bool(self._lib.get_name(tensor) == b"result_norm")
        try:
            hidden = self._loaded.arch.hidden
            rows = np.empty((self._lib.nbytes(tensor) // 4 // hidden, hidden), np.float32)
            self._lib.tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
            self._caught.append(rows)
        except BaseException as error:  # ctypes would print it and go on; `run` raises it
            self._failure = error
        return False

    def _result(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The result of the last pass: (n_rows, width) float32, a copy."""
        if self._causal:
            return np.concatenate(self._caught)
        api, arch, n_texts = self._lib.api, self._loaded.arch, len(batch.starts) - 1
        if arch.labels:
            results = [api.llama_get_embeddings_seq(self._ctx, text) for text in range(n_texts)]
        else:
            results = [api.llama_get_embeddings(self._ctx)]
        if not all(results):
            raise EngineError(f"llama.cpp has no result of a pass of {len(batch.ids)} tokens: {logged_reason()}.")
        if arch.labels:
            return np.stack([np.ctypeslib.as_array(logits, (arch.width,)) for logits in results])
        states: NDArray[np.float32] = np.ctypeslib.as_array(results[0], (len(batch.ids), arch.width))
        return states[batch.rows]  # indexed by an array, so a copy


def _plain(loaded: SharedWeights, capacity: int) -> bool:
    """Whether attention runs without the flash kernel, to keep 32 bits throughout.

    With it, rows of a 32-bit Qwen3 were off by up to 5e-4 beyond 512 tokens; without, by 1e-6.
    """
    return loaded.exact and capacity <= (_PLAIN_CAUSAL if loaded.arch.causal else _PLAIN_TOKENS)


def _ubatch(tokens: int, *, even: bool) -> int:
    """Tokens in an ubatch of a causal model. `even`: as few ubatches as possible, of equal size.

    Flash attention rounds more if it has fewer than 64 queries: with ubatches of 512 and 24 tokens, the last rows of
    a 32-bit file were off by 2e-3. Smaller files do not show it, and have the same bits in contexts of any size.
    """
    return -(-tokens // -(-tokens // _UBATCH)) if even else min(tokens, _UBATCH)


def _places(batch: TokenBatch) -> NDArray[np.int32]:
    """(n_tokens,) each token's place in its own text."""
    starts = np.repeat(batch.starts[:-1], np.diff(batch.starts))
    return (np.arange(len(batch.ids)) - starts).astype(np.int32)


def _native(
    api: Any,
    batch: TokenBatch,
    positions: NDArray[np.int32],
    embeddings: NDArray[np.float32] | None,
    *,
    all_rows: bool,
) -> tuple[Any, list[object]]:
    """The batch as the C struct, and the arrays that it points into, which have to outlive the call.

    positions: (n_tokens,).
    embeddings: (n_tokens, hidden), in the place of the ids.
    all_rows: mark every token as an output, not only the wanted ones.
    """
    n = len(batch.ids)
    lengths = np.diff(batch.starts)
    ids = np.ascontiguousarray(batch.ids, np.int32)
    ones = np.ones(n, np.int32)
    texts = np.arange(len(lengths), dtype=np.int32)
    owners = (texts.ctypes.data + 4 * np.repeat(texts.astype(np.uint64), lengths)).astype(np.uint64)
    wanted = np.full(n, all_rows, np.int8)
    wanted[batch.rows] = 1
    int32, int8 = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int8)
    native = api.llama_batch(
        n_tokens=n,
        token=None if embeddings is not None else ids.ctypes.data_as(int32),
        embd=None if embeddings is None else embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        pos=positions.ctypes.data_as(int32),
        n_seq_id=ones.ctypes.data_as(int32),
        seq_id=owners.ctypes.data_as(ctypes.POINTER(int32)),
        logits=wanted.ctypes.data_as(int8),
    )
    return native, [ids, embeddings, positions, ones, texts, owners, wanted]


def _check_room(loaded: SharedWeights, tokens: int, outputs: int) -> None:
    """Raise EngineError if a context for so many tokens cannot fit: the system would kill the process.

    outputs: the number of tokens whose logits get room, although nobody reads them.

    Measured with llama-cpp-python 0.3.36: an encoder's buffers grow with its pass; a causal model's grow with one
    ubatch, whose mask spans the cache, and the causal graph has room for the logits once more.
    """
    arch = loaded.arch
    step, ways, logits, cache = tokens, "Lower max_length", 4 * arch.vocab * outputs, 0
    if arch.causal:
        step, ways = min(tokens, _UBATCH), "Lower max_length (of a reranker: max_doc_length, or block_size)"
        logits *= 2
        cache = tokens * arch.layers * 2 * arch.kv_heads * arch.head_dim * (4 if loaded.exact else 2)
    scores = 4 * arch.heads * step * tokens if _plain(loaded, tokens) else 0
    needed = cache + logits + scores + step * (2 * tokens + 4 * (6 * arch.hidden + 3 * arch.intermediate))
    free = available_memory()
    if free is not None and needed > free:
        raise EngineError(
            f"a pass of {tokens} tokens takes llama.cpp about {needed / 1e9:.1f} GB beside the weights, and "
            f"{free / 1e9:.1f} GB are free. {ways}, or use the mlx backend."
        )
