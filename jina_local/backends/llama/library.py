"""The llama.cpp library, loaded once and silenced, with the few calls that llama-cpp-python does not bind."""

from __future__ import annotations

import collections
import ctypes
import os
import threading
from pathlib import Path
from typing import Any

from ...errors import EngineError, EngineMissing

_LEAST_VERSION = (0, 3, 36)
_WARNING, _ERROR = 3, 4  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR (ggml.h)
_log: collections.deque[str] = collections.deque(maxlen=40)
_loading = threading.Lock()
_library: Library | None = None


class Library:
    """`api`: the llama_cpp module. The other attributes are functions of libggml-base that read a tensor."""

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
        # llama.cpp asks its abort callback between any two nodes of a graph. C's own strlen answers for a text of no
        # or one character, without the interpreter's lock: empty is false, and goes on; "x" is true, and stops.
        self.is_stopped = api.ggml_abort_callback(_address_of_strlen())
        self._log_callback = api.llama_log_callback(_remember)
        api.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        api.llama_backend_init()

    def unpack(self, kind: str, source: int, target: int, count: int) -> None:
        """Unpack weights of a quantised type, such as "Q6_K": `count` values at `source` -> float32 at `target`."""
        function = self._base[f"dequantize_row_{kind.lower().replace('_k', '_K')}"]
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        function(source, target, count)

    def system_info(self) -> str:
        """llama.cpp's own list of build features: `NAME = 0 or 1`, separated by `|`."""
        return str(self.api.llama_print_system_info().decode(errors="replace"))

    def has(self, feature: str) -> bool:
        """Whether a feature, such as AMX_INT8, is built in and present on this machine."""
        return f"{feature} = 1" in self.system_info()


def library() -> Library:
    """Load llama.cpp. Raises EngineMissing if it is absent, too old, or cannot be loaded."""
    global _library
    with _loading:  # a second Library would take the log callback away from the first
        if _library is None:
            _library = Library(_import())
        return _library


def _import() -> Any:
    # On a failed assertion ggml forks a debugger first; the death of a process should not take half a second.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissing(
            f"llama-cpp-python cannot be loaded ({error}). Install it: pip install 'jina_local[llama]'."
        ) from error
    version = tuple(int(part) for part in llama_cpp.__version__.split(".")[:3])
    if version < _LEAST_VERSION:
        raise EngineMissing(
            f"llama-cpp-python {llama_cpp.__version__} is too old; {'.'.join(map(str, _LEAST_VERSION))} or newer is "
            "needed (eurobert, jina-v5-nano, loader fixes): pip install -U 'jina_local[llama]'."
        )
    return llama_cpp


def logged_reason() -> str:
    """The latest warnings and errors that llama.cpp logged, in one line."""
    return " ".join(line for line in (text.strip() for text in _log.copy()) if line)[-500:] or "no reason was logged"


def clear_log() -> None:
    """Forget what was logged so far. Call it before a call whose reasons are wanted."""
    _log.clear()


def _remember(level: int, text: bytes, _user_data: object) -> None:
    if level in (_WARNING, _ERROR):
        _log.append(text.decode(errors="replace"))


def _address_of_strlen() -> int:
    address = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
    assert address
    return address


def _ggml_base(package: Path) -> ctypes.CDLL:
    for folder in (package / "lib", package):
        for path in sorted(folder.glob("*ggml-base*")):
            if path.suffix in (".so", ".dylib", ".dll"):
                return ctypes.CDLL(str(path))
    raise EngineError(
        f"{package}: libggml-base was not found beside llama.cpp. Reinstall: pip install --force-reinstall "
        "llama-cpp-python."
    )
