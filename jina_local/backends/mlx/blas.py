"""The BLAS that MLX multiplies with on Linux: an OpenBLAS that is installed comes before the one in MLX's wheel.

The wheel brings the reference BLAS: 5 GFLOP/s on one core, where OpenBLAS has 65 (512 x 768 x 3072 in float32, on a
busy Intel Xeon). libmlx calls `cblas_sgemm` by its plain name, so the first library that has it decides.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

# As distributions and conda install it, with 32-bit indices. numpy's own OpenBLAS has other names and 64-bit indices.
_NAME = "libopenblas.so.0"
_FUNCTION = "cblas_sgemm"


class _Place(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def put_in_front() -> None:
    """Load OpenBLAS for all libraries to come; nothing if there is none, or if MLX is loaded already.

    It gets one thread, as MLX itself has. One that another library has loaded before keeps its threads.
    """
    if platform.system() != "Linux" or "mlx.core" in sys.modules or library() is not None:
        return
    for path in (_NAME, os.path.join(sys.prefix, "lib", _NAME)):
        try:
            before = _loaded(path)
            opened = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError:
            continue  # it is not installed there, or not for this processor
        if not before and hasattr(opened, "openblas_set_num_threads"):
            opened.openblas_set_num_threads(1)
        return


def library() -> str | None:
    """The file of the BLAS that comes before that of MLX's wheel, if one does."""
    everywhere = ctypes.CDLL(None)
    if not hasattr(everywhere, _FUNCTION):
        return None
    place = _Place()
    address = ctypes.cast(getattr(everywhere, _FUNCTION), ctypes.c_void_p)
    if not everywhere.dladdr(address, ctypes.byref(place)) or not place.file:
        return None
    return os.path.realpath(os.fsdecode(place.file))


def _loaded(path: str) -> bool:
    try:
        ctypes.CDLL(path, os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True
