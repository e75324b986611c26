"""llama.cpp as the converter needs it: quantise a file, look into one forward pass, and nothing on the terminal."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jina_local.errors import EngineError, EngineMissing, OutputError

_ERROR = 4  # enum ggml_log_level in ggml.h; llama_cpp's own comment has it as 3, from an older version
_BUFFER = 256 << 20  # bytes of rows that llama_model_quantize may hold; the default is 8 GiB
_KV_INT, _KV_STR = 0, 3  # enum llama_model_kv_override_type
_F32 = 0  # enum ggml_type
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def engine() -> Any:
    """The llama_cpp module, its backends started. Raises EngineMissing with the command that installs it."""
    try:
        import llama_cpp
    except ImportError as error:
        raise EngineMissing("writing GGUF needs llama-cpp-python: pip install 'jina_local[convert]'.") from error
    with heard():
        llama_cpp.llama_backend_init()
    return llama_cpp


@contextmanager
def heard(on_text: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Take the engine's log for the time of a block; yields the list that its error lines are put into.

    `on_text` gets every piece of log. What it raises is raised when the block ends: an exception cannot
    pass through native code. The log belongs to the process; whoever had it before has it again afterwards.
    """
    import llama_cpp

    errors: list[str] = []
    raised: list[BaseException] = []

    def hear(level: int, text: bytes, _: object) -> None:
        try:
            line = text.decode(errors="replace")
            if level == _ERROR:
                errors.append(line.strip())
            if on_text and not raised:
                on_text(line)
        except BaseException as error:
            raised.append(error)

    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    kept = llama_cpp.llama_log_callback(hear)
    llama_cpp.llama_log_set(kept, ctypes.c_void_p(0))
    # Ctrl-C may come between the call and the `try` of `hear`; what leaves a callback is only reported, then lost.
    dropped, sys.unraisablehook = (
        sys.unraisablehook,
        lambda lost: raised.append(lost.exc_value or KeyboardInterrupt()),
    )
    try:
        yield errors
    finally:
        sys.unraisablehook = dropped
        llama_cpp.llama_log_set(before, data)
    if raised:
        raise raised[0]


def quantize(
    source: Path,
    out: Path,
    file_type: int,
    *,
    threads: int,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    notes: Mapping[str, str | int] | None = None,
    whole: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `out`, a F32 GGUF in another type (enum llama_ftype); the bytes do not depend on `threads`.

    `imatrix`: weight name -> (row length,) importance of each column. `notes`: more keys for the header, texts
    shorter than 128 bytes. `whole`: regular expressions of weights that stay float32 in every type below 16 bits.
    `progress(tensors done, tensors)`. Raises EngineError with the engine's reason.
    """
    llama = engine()
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.max_buf_size = threads, file_type, _BUFFER
    kept = [np.ascontiguousarray(values, np.float32) for values in (imatrix or {}).values()]
    if imatrix is not None:
        params.imatrix = _imatrix(llama, list(imatrix), kept)
    if notes:
        params.kv_overrides = _overrides(llama, notes)
    if whole:
        params.tt_overrides = _whole(llama, whole)

    def follow(text: str) -> None:
        if progress and (step := _STEP.match(text)):
            progress(int(step[1]), int(step[2]))

    with heard(follow) as errors:
        failed = llama.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if failed:
        reason = _reason(errors)
        if "iostream error" in reason:
            raise OutputError(f"{out.name}: could not be written to the end; the disk is full, or a quota is met.")
        raise EngineError(f"llama.cpp could not write {out.name}: {reason}.")


def _reason(errors: list[str]) -> str:
    """The error lines as one sentence, without banners and the name of the function that logs them."""
    text = re.sub(r"\w+: failed to quantize:|={5,}", " ", " ".join(errors))
    return " ".join(text.split()) or "it gave no reason"


def _imatrix(llama: Any, names: list[str], rows: list[NDArray[np.float32]]) -> Any:
    """llama_model_imatrix_data[], ended by an entry without a name. The caller keeps `rows` alive."""
    entries = (llama.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name, values in zip(entries, names, rows, strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _overrides(llama: Any, notes: Mapping[str, str | int]) -> Any:
    """llama_model_kv_override[], ended by an entry with an empty key."""
    entries = (llama.llama_model_kv_override * (len(notes) + 1))()
    for entry, (key, value) in zip(entries, notes.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag, entry.value.val_str = _KV_STR, value.encode()
        else:
            entry.tag, entry.value.val_i64 = _KV_INT, value
    return entries


def _whole(llama: Any, patterns: Sequence[str]) -> Any:
    """llama_model_tensor_override[] to float32, ended by an entry without a pattern."""
    entries = (llama.llama_model_tensor_override * (len(patterns) + 1))()
    for entry, pattern in zip(entries, patterns, strict=False):
        entry.pattern, entry.type = pattern.encode(), _F32
    return entries


class Tensor(ctypes.Structure):
    """struct ggml_tensor as ggml.h of llama-cpp-python 0.3.36 has it; `Reader` checks it before use."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class Reader:
    """Reads the engine's tensors. Raises EngineError where this build lays them out in another way."""

    def __init__(self) -> None:
        self._base = _ggml_base()
        self.product = self._check()

    def rows(self, address: int) -> NDArray[np.float32]:
        """(rows, columns) float32, a copy of a F32 tensor whose rows are whole."""
        t = Tensor.from_address(address)
        columns, rows, *rest = t.ne
        if t.type != 0 or list(t.nb[:2]) != [4, 4 * columns] or rest != [1, 1]:
            raise EngineError(f"llama.cpp: tensor {t.name!r} is not plain rows of float32 (shape {list(t.ne)}).")
        out = np.empty((rows, columns), np.float32)
        self._base.ggml_backend_tensor_get(address, out.ctypes.data, 0, out.nbytes)
        return out

    def _check(self) -> int:
        """Build a product of two tensors and find its parts where they are expected; the number of the op."""
        ggml = self._base
        context = ggml.ggml_init(_InitParams(1 << 16, None, True))
        try:
            a, b = ggml.ggml_new_tensor_2d(context, 0, 32, 5), ggml.ggml_new_tensor_2d(context, 0, 32, 7)
            ggml.ggml_set_name(a, b"blk.0.check")
            c = ggml.ggml_mul_mat(context, a, b)
            first, product = Tensor.from_address(a), Tensor.from_address(c)
            size = ggml.ggml_tensor_overhead() - ctypes.sizeof(Tensor)
            fits = (
                0 < size <= 64  # what is left is struct ggml_object
                and ggml.ggml_get_name(a) == a + Tensor.name.offset
                and (first.name, list(first.ne), list(first.nb[:2])) == (b"blk.0.check", [32, 5, 1, 1], [4, 128])
                and list(product.src[:3]) == [a, b, None]
                and ggml.ggml_op_name(product.op) == b"MUL_MAT"
            )
            if not fits:
                raise EngineError(
                    "this build of llama.cpp lays its tensors out in another way than 0.3.36 of llama-cpp-python, so "
                    "no importance matrix can be collected. Install that version, or convert without --imatrix."
                )
            return int(product.op)
        finally:
            ggml.ggml_free(context)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def _ggml_base() -> Any:
    """libggml-base, from beside the libllama that is loaded, with the signatures that are used here."""
    loaded = Path(engine().llama_cpp._lib._name)
    try:
        library = ctypes.CDLL(str(loaded.with_name(loaded.name.replace("llama", "ggml-base"))))
    except OSError as error:
        raise EngineError(f"llama.cpp: libggml-base cannot be opened beside {loaded} ({error}).") from error
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_tensor_overhead", size, []),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_get_name", pointer, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Passes:
    """One F32, F16 or BF16 GGUF, opened on the CPU to look into its forward passes; one text a pass.

    `watch(tensor address, ask)` is llama.cpp's cb_eval: asked True for the tensors that it wants to see, False
    once they are computed, and answers whether to go on. What it raises is raised by `run`.
    """

    def __init__(self, path: Path, *, tokens: int, threads: int, watch: Callable[[int, bool], bool]) -> None:
        self._llama = llama = engine()
        self._raised: list[BaseException] = []
        self._model = self._context = None
        params = llama.llama_model_default_params()
        # Extra buffers crash on AMX machines with some compilers, and repacked weights cannot be recognised.
        params.use_extra_bufts, params.n_gpu_layers, params.check_tensors = False, 0, True
        self._no_devices = (ctypes.c_void_p * 1)()
        params.devices = ctypes.cast(self._no_devices, ctypes.c_void_p)
        with heard() as errors:
            self._model = llama.llama_model_load_from_file(os.fsencode(path), params)
            if not self._model:
                raise EngineError(f"llama.cpp cannot open {path}: {_reason(errors)}.")
            settings = llama.llama_context_default_params()
            settings.n_ctx = settings.n_batch = settings.n_ubatch = self.tokens = tokens
            settings.n_seq_max, settings.pooling_type, settings.embeddings = 1, 0, False
            settings.n_threads = settings.n_threads_batch = threads
            settings.op_offload = settings.offload_kqv = False
            self._watch = settings.cb_eval = llama.ggml_backend_sched_eval_callback(self._guarded(watch))
            self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            self.close()
            raise EngineError(f"llama.cpp cannot run {path}: {_reason(errors)}.")
        self._vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def run(self, ids: NDArray[np.int32]) -> None:
        """One pass over one text, every token's output wanted. Raises EngineError."""
        # llama.cpp ends the process on a text that is too long, so nothing is left to it to find out.
        if not 1 <= len(ids) <= self.tokens or ids.min() < 0 or ids.max() >= self._vocab:
            raise EngineError(f"a pass of {len(ids)} ids up to {ids.max(initial=0)} does not fit the model.")
        llama = self._llama
        memory = llama.llama_get_memory(self._context)
        if memory:
            llama.llama_memory_clear(memory, False)
        kept = np.ascontiguousarray(ids, np.int32), np.ones(len(ids), np.int8)
        batch = llama.llama_batch(n_tokens=len(ids))
        batch.token = kept[0].ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.logits = kept[1].ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        with heard() as errors:
            code = llama.llama_decode(self._context, batch)
        if self._raised:
            raise self._raised.pop()
        if code:
            raise EngineError(f"llama.cpp failed at a pass of {len(ids)} tokens ({code}): {_reason(errors)}.")

    def close(self) -> None:
        """Free the model; closing twice is harmless."""
        with heard():
            if self._context:
                self._llama.llama_free(self._context)
            if self._model:
                self._llama.llama_model_free(self._model)
        self._model = self._context = None

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _guarded(self, watch: Callable[[int, bool], bool]) -> Callable[[int, bool, object], bool]:
        def guarded(tensor: int, ask: bool, _: object) -> bool:
            try:
                if not self._raised:
                    return watch(tensor, ask)
            except BaseException as error:
                self._raised.append(error)
            return ask  # asks for the data of the next tensor, and stops the pass there

        return guarded
