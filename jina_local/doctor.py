"""What this machine has and lacks: one Check a finding, each with a next step. Never opens a socket.

Engines are looked at in child processes: importing one may be slow, or kill the process that does it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import backends, registry
from .errors import EngineMissing, JinaError, ModelNotFound


@dataclass(frozen=True)
class Check:
    """One finding. `ok`: True fine, False something does not work, None it works but could be better."""

    label: str
    ok: bool | None
    detail: str
    next_step: str | None = None


# distribution -> the least version, the extra that brings it (None: always needed). As in pyproject.toml.
PACKAGES: Mapping[str, tuple[str, str | None]] = {
    "numpy": ("1.26", None),
    "tokenizers": ("0.20", None),
    "huggingface_hub": ("0.34", None),
    "tqdm": ("4.66", None),
    "mlx": ("0.31.2", "mlx"),
    "llama-cpp-python": ("0.3.36", "llama"),
    "pyarrow": ("17", "parquet"),
    "gguf": ("0.19", "convert"),
}
_SECONDS = 60  # for one child process
_GEMM = 256  # a product of this size is 34 MFLOP: about 10 ms with MLX's reference BLAS
_SLOW = 15.0  # GFLOP/s; the reference BLAS gives 4 to 6, an optimised one 50 and more on any current core
# A race between two connections that write or checkpoint at once, 3.7.0 to 3.51.2: sqlite.org/wal.html
_SQLITE_FLOOR = (3, 51, 3)

_MLX = f"""
import json, time
import mlx.core as mx
a, b = mx.random.normal((2, {_GEMM}, {_GEMM}))
mx.eval(a @ b)
best = 1e9
for _ in range(3):
    start = time.perf_counter()
    mx.eval(a @ b)
    best = min(best, time.perf_counter() - start)
gpu = mx.default_device() == mx.Device(mx.gpu)
info = mx.device_info() if gpu and hasattr(mx, "device_info") else {{}}
print(json.dumps({{"gpu": gpu, "name": str(info.get("device_name", "")), "gflops": 2e-9 * {_GEMM}**3 / best}}))
"""
_LLAMA = """
import json, llama_cpp
print(json.dumps({"info": llama_cpp.llama_print_system_info().decode(errors="replace"),
                  "offload": bool(llama_cpp.llama_supports_gpu_offload())}))
"""


def checks() -> list[Check]:
    """Look at everything, in the order in which a fault would bite."""
    return [
        _python(),
        _platform(),
        *(_package(name) for name in PACKAGES),
        *_engines(),
        _numpy_blas(),
        _sqlite(),
        _network(),
        *_places(),
        _model(),
        _reranker(),
    ]


def _python() -> Check:
    version = platform.python_version()
    ok = sys.version_info >= (3, 10)
    return Check("python", ok, f"{version} ({sys.executable})", None if ok else "Use Python 3.10 or newer.")


def _platform() -> Check:
    from .backends.machine import physical_cores

    libc, libc_version = platform.libc_ver()
    detail = f"{platform.system()} {platform.machine()}, {physical_cores()} cores"
    # mlx's Linux wheels carry the tag manylinux_2_35.
    if libc == "glibc":
        detail += f", glibc {libc_version}"
        if release(libc_version) < (2, 35):
            return Check(
                "platform", None, detail, "MLX needs glibc 2.35; use llama.cpp: pip install 'jina_local[llama]'."
            )
    return Check("platform", True, detail)


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.31.2.dev1" -> (0, 31, 2)."""
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[^\d.]", version, maxsplit=1)[0]))


def _package(name: str) -> Check:
    least, extra = PACKAGES[name]
    what = f"jina_local[{extra}]" if extra else f"{name}>={least}"
    step = f"pip install -U '{what}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, None if extra else False, "not installed", step)
    if release(version) < release(least):
        return Check(name, False, f"{version}, and {least} is needed", step)
    return Check(name, True, version)


def _engines() -> list[Check]:
    looks: dict[str, tuple[str, Callable[[dict[str, object]], list[Check]]]] = {
        "mlx": (_MLX, _mlx),
        "llama": (_LLAMA, _llama),
    }
    found = []
    for name, (code, read) in looks.items():
        label = f"engine {name}"
        if not backends.installed(name):
            found.append(Check(label, None, "not installed", f"pip install 'jina_local[{name}]'"))
            continue
        answer = _child(code)
        if isinstance(answer, str):
            found.append(Check(label, False, answer, f"pip install --force-reinstall 'jina_local[{name}]'"))
        else:
            found += [Check(label, True, "imports and runs"), *read(answer)]
    try:
        found.append(Check("engine used", True, f"{backends.preferred()}, where both could read the files"))
    except EngineMissing as error:
        found.append(Check("engine used", False, "none", str(error)))
    return found


def _child(code: str) -> dict[str, object] | str:
    """What the code prints as JSON, or how its process ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "MLX_DISABLE_COMPILE": "1"},
        )
    except subprocess.TimeoutExpired:
        return f"gave no answer in {_SECONDS} seconds"
    if done.returncode < 0:
        return f"killed its process with signal {-done.returncode}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
    answer: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _mlx(answer: dict[str, object]) -> list[Check]:
    speed = float(str(answer["gflops"]))
    if answer["gpu"]:
        tf32 = os.environ.get("MLX_ENABLE_TF32", "1") != "0"
        return [
            Check("mlx device", True, f"Metal, {answer['name'] or 'Apple GPU'}; 16-bit floats"),
            Check(
                "mlx TF32",
                None if tf32 else True,
                "on: float32 products may be rounded to 10 bits" if tf32 else "off",
                "Set MLX_ENABLE_TF32=0 where float32 has to be float32." if tf32 else None,
            ),
        ]
    found = [
        Check("mlx device", True, "CPU; float32, quantised weights are widened at load"),
        Check("mlx TF32", True, "not used on a CPU"),
    ]
    slow = speed < _SLOW
    detail = f"{speed:.1f} GFLOP/s in float32" + (": the reference BLAS that comes with the wheel" if slow else "")
    step = (
        "Install OpenBLAS (Debian: libopenblas0) and start with LD_PRELOAD=libopenblas.so.0: about 20 times faster. "
        "Or use --backend llama."
    )
    return [*found, Check("mlx BLAS", None if slow else True, detail, step if slow else None)]


def _llama(answer: dict[str, object]) -> list[Check]:
    info = str(answer["info"])
    features = [name for name, value in re.findall(r"(\w+) = (\d+)", info) if value != "0"]
    found = [Check("llama.cpp build", True, ", ".join(features) or "no features reported")]
    if platform.system() == "Darwin" and not answer["offload"]:
        step = "Reinstall with Metal: CMAKE_ARGS=-DGGML_METAL=on pip install --force-reinstall llama-cpp-python"
        found.append(Check("llama.cpp device", None, "CPU only", step))
    if "AMX_INT8" in features:
        off = os.environ.get("JINA_LOCAL_AMX", "auto") == "off"
        detail = (
            "AMX_INT8 is built in; builds by GCC 12 crash with it. "
            + ("It is never tried: JINA_LOCAL_AMX=off." if off else "It is used only where a decode in a child ")
            + ("" if off else "process survived, and only for the file types that gain from it.")
        )
        found.append(Check("llama.cpp AMX", True, detail, None if off else "JINA_LOCAL_AMX=off never tries it."))
    return found


def _numpy_blas() -> Check:
    import time

    import numpy as np

    a = np.random.default_rng(0).standard_normal((2 * _GEMM, 2 * _GEMM), np.float32)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    speed = 2e-9 * len(a) ** 3 / min(times)
    slow = speed < _SLOW
    step = "Install numpy from PyPI or conda, which bring an optimised BLAS." if slow else None
    return Check("numpy BLAS", None if slow else True, f"{speed:.0f} GFLOP/s in float32", step)


def _sqlite() -> Check:
    version = sqlite3.sqlite_version
    if release(version) >= _SQLITE_FLOOR:
        return Check("sqlite", True, version)
    floor = ".".join(map(str, _SQLITE_FLOOR))
    return Check(
        "sqlite",
        None,
        f"{version}: before {floor} two connections that write at once can damage a WAL file",
        f"Let one process write an index at a time, or use a Python built with SQLite {floor} or newer.",
    )


def _network() -> Check:
    from .store import hub

    names = ("JINA_LOCAL_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    if hub.offline(None):
        held = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
        return Check("network", True, f"never used ({held})")
    try:
        return Check("network", True, f"used for models that are not here, from {hub.endpoint()}")
    except JinaError as error:
        return Check("network", False, str(error), "Unset HF_ENDPOINT.")


def _places() -> list[Check]:
    """Where models are, and how much room those of ours take."""
    from .store import hub_cache, local_store, places

    there = [place for row in registry.PUBLISHED for place in places.of(row)]
    found = []
    for where, folder in ((places.CACHE, hub_cache.cache_folder()), (places.STORE, local_store.root())):
        sizes = [place.size for place in there if place.where == where]
        count = (
            f"{len(sizes)} {'folder' if len(sizes) == 1 else 'folders'} of these models, {sum(sizes) / 1e6:,.0f} MB"
        )
        found.append(Check(where, True, f"{folder}: {count if folder.is_dir() else 'not there yet'}"))
    if broken := local_store.converted()[1]:
        step = "Convert again with --force, or delete the folder."
        found.append(Check("conversions", False, "; ".join(broken), step))
    return found


def _model() -> Check:
    """What `embed` would load."""
    return _found("model", "MODEL", "WEIGHTS", registry.DEFAULT_MODEL)


def _reranker() -> Check:
    """What `rerank` would load; that none is here is worth a remark only where one was chosen."""
    check = _found("reranker", "RERANK_MODEL", "RERANK_WEIGHTS", registry.DEFAULT_RERANKER)
    if check.ok is not None or os.environ.get("JINA_LOCAL_RERANK_MODEL"):
        return check
    return Check("reranker", True, f"none is here; `rerank` would fetch {registry.DEFAULT_RERANKER}")


def _found(name: str, variable: str, label_variable: str, default: str) -> Check:
    from .store import find

    wanted = os.environ.get(f"JINA_LOCAL_{variable}") or default
    backend = os.environ.get("JINA_LOCAL_BACKEND") or "auto"
    label = os.environ.get(f"JINA_LOCAL_{label_variable}") or None
    try:
        found = find.find(wanted, backend=backend, weights=label, revision=None, offline=True)
    except ModelNotFound as error:
        return Check(name, None, str(error), f"jina-local models pull {wanted}")
    except JinaError as error:
        step = f"jina-local models verify, or choose another with JINA_LOCAL_{variable}."
        return Check(name, False, str(error), step)
    ranks = registry.lookup(default).spec.scoring is not None
    if (found.model.scoring is not None) != ranks:
        what = "embeds texts and ranks none" if ranks else "ranks documents and has no vectors"
        step = f"Choose another with JINA_LOCAL_{variable}."
        return Check(name, False, f"{found.model.name} in {wanted} {what}", step)
    where = ", ".join(sorted({str(path) for path in found.files.values()}))
    return Check(
        name, True, f"{found.model.name}, {found.label} on {found.backend}: {where}. {' '.join(found.reasons)}"
    )
