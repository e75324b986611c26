"""The llama.cpp library, loaded once and silenced: the few calls that llama-cpp-python does not bind, too."""

from __future__ import annotations

import collections
import ctypes
import functools
import os
import threading
from pathlib import Path
from typing import Any

from ...errors import EngineError, EngineMissing

_FLOOR = (0, 3, 36)
_recent: collections.deque[str] = collections.deque(maxlen=40)
_log_lock = threading.Lock()


class Library:
    """`api`: the llama_cpp module. The rest: functions of libggml-base that read a tensor."""

    def __init__(self, api: Any) -> None:
        self.api = api
        base = self._base = _ggml_base(Path(api.__file__).parent)
        self.get_name = base.ggml_get_name
        self.get_name.argtypes, self.get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
        self.nbytes = base.ggml_nbytes
        self.nbytes.argtypes, self.nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
        self.tensor_get = base.ggml_backend_tensor_get
        self.tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.tensor_get.restype = None
        self._log = api.llama_log_callback(_remember)
        api.llama_log_set(self._log, ctypes.c_void_p(0))
        api.llama_backend_init()

    def unpack(self, kind: str, source: int, target: int, count: int) -> None:
        """Weights of a quantised type, as "Q6_K", at one address -> `count` float32 at the other."""
        function = self._base[f"dequantize_row_{kind.lower().replace('_k', '_K')}"]
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        function(source, target, count)

    def system_info(self) -> str:
        """llama.cpp's own list of build features, `NAME = 0 or 1` parted by `|`."""
        return str(self.api.llama_print_system_info().decode(errors="replace"))

    def has(self, feature: str) -> bool:
        """Whether a feature, such as AMX_INT8, is built in and there on this machine."""
        return f"{feature} = 1" in self.system_info()


@functools.cache
def library() -> Library:
    """Load llama.cpp. Raises EngineMissing where it is absent, too old, or cannot be loaded."""
    # On a failed assertion ggml forks a debugger first; the death of a process should not take half a second.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissing(
            f"llama-cpp-python cannot be loaded ({error}). Install it: pip install 'jina_local[llama]'."
        ) from error
    version = tuple(int(part) for part in llama_cpp.__version__.split(".")[:3])
    if version < _FLOOR:
        raise EngineMissing(
            f"llama-cpp-python {llama_cpp.__version__} is too old; {'.'.join(map(str, _FLOOR))} or newer is "
            "needed (eurobert, jina-v5-nano, loader fixes): pip install -U 'jina_local[llama]'."
        )
    return Library(llama_cpp)


def last_words() -> str:
    """What llama.cpp logged as warnings and errors of late, in one line."""
    with _log_lock:
        return " ".join(line for line in (text.strip() for text in _recent) if line)[-500:] or "no reason was logged"


def forget_words() -> None:
    """Drop what was logged so far, before a call whose reasons are wanted."""
    with _log_lock:
        _recent.clear()


def _remember(level: int, text: bytes, _user_data: object) -> None:
    if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR (ggml.h)
        with _log_lock:
            _recent.append(text.decode(errors="replace"))


def _ggml_base(package: Path) -> ctypes.CDLL:
    for folder in (package / "lib", package):
        for path in sorted(folder.glob("*ggml-base*")):
            if path.suffix in (".so", ".dylib", ".dll"):
                return ctypes.CDLL(str(path))
    raise EngineError(
        f"{package}: libggml-base was not found beside llama.cpp. Reinstall: pip install --force-reinstall "
        "llama-cpp-python."
    )
