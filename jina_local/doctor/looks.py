"""What `doctor` looks at in child processes: `python -m` this module, the name of a look, and its arguments."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

_SIZE = 256  # of a product of two square matrices, 34 MFLOP: about 7 ms with the reference BLAS, 0.3 ms with OpenBLAS


def main() -> None:
    """Print the answer as JSON in the last line, because libraries may print as well."""
    name, *arguments = sys.argv[1:]
    print(json.dumps(_LOOKS[name](*arguments)))


def _numpy() -> dict[str, object]:
    a = _matrix()
    whole = (100 * a).astype(np.int32)
    blas, loops = _gflops(lambda: a @ a, lambda: whole @ whole)
    return {"blas": blas, "loops": loops}


def _mlx() -> dict[str, object]:
    from ..backends.mlx import blas

    blas.put_in_front()
    import mlx.core as mx

    a = _matrix()
    b = mx.array(a)
    mlx, numpy = _gflops(lambda: mx.eval(b @ b), lambda: a @ a)
    gpu = mx.default_device() == mx.Device(mx.gpu)
    info = mx.device_info() if gpu and hasattr(mx, "device_info") else {}
    return {
        "gpu": gpu,
        "name": str(info.get("device_name", "")),
        "blas": mlx,
        "numpy": numpy,
        "library": blas.library(),
    }


def _llama() -> dict[str, object]:
    import llama_cpp

    return {
        "info": llama_cpp.llama_print_system_info().decode(errors="replace"),
        "offload": bool(llama_cpp.llama_supports_gpu_offload()),
    }


def _onnx() -> dict[str, object]:
    from ..backends.onnx import runtime

    return {"version": runtime().__version__}


def _vectors(engine: str) -> dict[str, object]:
    from .. import self_check

    told = self_check.of_package(engine)
    return {"ok": told.ok, "text": told.text}


def _matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((_SIZE, _SIZE), np.float32)


def _gflops(*products: Callable[[], object]) -> list[float]:
    """The speed of each product in its best run; they take turns, so that a busy moment slows them alike."""
    best = [1e9] * len(products)
    for _ in range(8):
        for n, product in enumerate(products):
            start = time.perf_counter()
            product()
            best[n] = min(best[n], time.perf_counter() - start)
    return [2e-9 * _SIZE**3 / seconds for seconds in best]


_LOOKS: dict[str, Callable[..., dict[str, object]]] = {
    "numpy": _numpy,
    "mlx": _mlx,
    "llama": _llama,
    "onnx": _onnx,
    "vectors": _vectors,
}

if __name__ == "__main__":
    main()
