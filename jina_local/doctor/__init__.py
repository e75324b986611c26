"""The state of this machine: one Check for each finding, with a next step if something can be done. Opens no socket.

Engines are looked at in child processes, because an import may be slow, or kill its process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .. import backends, registry
from ..children import command, same_modules
from ..errors import EngineError, EngineMissing, JinaError, ModelNotFound, UsageError


@dataclass(frozen=True)
class Check:
    """One finding. `ok`: True if all is well, False if something does not work, None if it could be better."""

    label: str
    ok: bool | None
    detail: str
    next_step: str | None = None


# Distribution -> the least version, and the extra that brings it (None: always needed). pyproject.toml has the same.
PACKAGES: Mapping[str, tuple[str, str | None]] = {
    "numpy": ("1.26", None),
    "tokenizers": ("0.20", None),
    "huggingface_hub": ("0.34", None),
    "tqdm": ("4.66", None),
    "mlx": ("0.31.2", "mlx"),
    "llama-cpp-python": ("0.3.36", "llama"),
    "onnxruntime": ("1.24", "onnx"),
    "pyarrow": ("17", "parquet"),
    "gguf": ("0.19", "convert"),
}
_LOOKS = "jina_local.doctor.looks"
_SECONDS = 60  # for one child process
# A BLAS is called slow only in comparison with another way to the same product, in the same moment and process: on a
# busy machine both are slow. On one core the reference BLAS gives 4 to 6 GFLOP/s, an optimised one 50 and more, and
# numpy's own loops, which do products of whole numbers, about 1.
_SLOW = 15.0
_TIMES_AS_FAST = 4.0  # numpy's BLAS, if MLX's is slow
_TIMES_THE_LOOPS = 12.0  # numpy's BLAS, if it is not slow
_SEARCH = "pip install 'jina_local[search]'"
_WAL_FIXED = (3, 51, 3)
_ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_NUM_THREADS"), "1"
)


def checks() -> list[Check]:
    """Look at everything, in the order in which a fault would bite."""
    return [
        _python(),
        _platform(),
        *(_package(name) for name in PACKAGES),
        *_engines(),
        _numpy_blas(),
        *_search(),
        _network(),
        *_places(),
        _default_weights(),
        *_vectors(),
        _model(),
        _reranker(),
    ]


def _python() -> Check:
    version = platform.python_version()
    ok = sys.version_info >= (3, 10)
    return Check("python", ok, f"{version} ({sys.executable})", None if ok else "Use Python 3.10 or newer.")


def _platform() -> Check:
    from ..backends.machine import physical_cores

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
    wanted = f"jina_local[{extra}]" if extra else f"{name}>={least}"
    step = f"pip install -U '{wanted}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, None if extra else False, "not installed", step)
    if release(version) < release(least):
        return Check(name, False, f"{version}, but {least} or newer is needed", step)
    return Check(name, True, version)


def _engines() -> list[Check]:
    readers: dict[str, Callable[[dict[str, object]], list[Check]]] = {"mlx": _mlx, "llama": _llama, "onnx": _onnx}
    found = []
    for name, read in readers.items():
        label = f"engine {name}"
        if not backends.installed(name):
            found.append(Check(label, None, "not installed", f"pip install 'jina_local[{name}]'"))
            continue
        answer = _child(name)
        if isinstance(answer, str):
            found.append(Check(label, False, answer, f"pip install --force-reinstall 'jina_local[{name}]'"))
        else:
            found += [Check(label, True, "imports and runs"), *read(answer)]
    try:
        found.append(Check("engine used", True, f"{backends.preferred()}, if several can read the files of a model"))
    except EngineMissing as error:
        found.append(Check("engine used", False, "none", str(error)))
    return found


def _child(*look: str) -> dict[str, object] | str:
    """A look of `looks`, in a process with one thread: its answer, or a sentence on how the process ended."""
    try:
        done = subprocess.run(
            command(_LOOKS, *look),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            cwd="/",
            env={**os.environ, **same_modules(), **_ONE_THREAD, "GGML_NO_BACKTRACE": "1", "MLX_DISABLE_COMPILE": "1"},
        )
    except EngineError as error:
        return str(error)
    except subprocess.TimeoutExpired:
        return f"gave no answer in {_SECONDS} seconds"
    if done.returncode < 0:
        return f"killed its process with signal {-done.returncode}"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
    answer: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _mlx(answer: dict[str, object]) -> list[Check]:
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
        Check("mlx device", True, "CPU, in float32; quantised weights are widened when they are loaded"),
        Check("mlx TF32", True, "not used on a CPU"),
    ]
    speed, numpy = float(str(answer["blas"])), float(str(answer["numpy"]))
    by = answer["library"] or "the BLAS of its own wheel"
    detail = f"{by}: {speed:.1f} GFLOP/s in float32 on one core"
    if speed >= _SLOW or numpy < _TIMES_AS_FAST * speed:
        return [*found, Check("mlx BLAS", True, detail)]
    detail += f", and numpy's {numpy:.0f} in the same moment"
    step = (
        "Install OpenBLAS (Debian, Ubuntu: apt install libopenblas0): it is found, and is some 15 times as fast. "
        "Or use --backend llama."
    )
    return [*found, Check("mlx BLAS", None, detail, step)]


def _onnx(answer: dict[str, object]) -> list[Check]:
    return [Check("onnx device", True, f"CPU; ONNX Runtime {answer['version']}")]


def _llama(answer: dict[str, object]) -> list[Check]:
    info = str(answer["info"])
    features = [name for name, value in re.findall(r"(\w+) = (\d+)", info) if value != "0"]
    found = [Check("llama.cpp build", True, ", ".join(features) or "no features reported")]
    if platform.system() == "Darwin" and not answer["offload"]:
        step = "Reinstall with Metal: CMAKE_ARGS=-DGGML_METAL=on pip install --force-reinstall llama-cpp-python"
        found.append(Check("llama.cpp device", None, "CPU only", step))
    if "AMX_INT8" in features:
        found.append(_amx())
    return found


def _amx() -> Check:
    """What is known about AMX, which crashes with builds by GCC 12: the verdicts of earlier trials."""
    from ..backends.llama import repack

    try:
        if repack.switched_off():
            return Check("llama.cpp AMX", True, f"built in, and never used ({repack.SWITCH}=off)")
    except UsageError as error:
        return Check("llama.cpp AMX", False, str(error), f"Unset {repack.SWITCH}.")
    verdicts = {weights: repack.kept_verdict(weights) for weights in repack.AMX_GAINS}
    died = [weights for weights, verdict in verdicts.items() if verdict is False]
    if died:
        detail = f"not used for {', '.join(died)}: this build crashed with it in a child process"
        step = (
            "Rebuild llama-cpp-python with another compiler than GCC 12 to have it tried again, or take Q4_K_M or "
            "Q6_K, which are fast without AMX."
        )
        return Check("llama.cpp AMX", None, detail, step)
    if survived := [weights for weights, verdict in verdicts.items() if verdict]:
        return Check("llama.cpp AMX", True, f"used for {', '.join(survived)}: a trial in a child process survived")
    detail = (
        f"built in, and not tried yet. Builds by GCC 12 crash with it, so the first load of a file in "
        f"{', '.join(verdicts)} tries it in a child process"
    )
    return Check("llama.cpp AMX", True, detail, f"{repack.SWITCH}=off never tries it.")


def _numpy_blas() -> Check:
    answer = _child("numpy")
    if isinstance(answer, str):
        return Check("numpy BLAS", False, answer, "pip install --force-reinstall numpy")
    speed, loops = float(str(answer["blas"])), float(str(answer["loops"]))
    detail = f"{speed:.0f} GFLOP/s in float32 on one core"
    if speed >= _SLOW or speed >= _TIMES_THE_LOOPS * loops:
        return Check("numpy BLAS", True, detail)
    detail += f", only {speed / loops:.0f} times as fast as numpy without one"
    return Check("numpy BLAS", None, detail, "Install numpy from PyPI or conda, which bring an optimised BLAS.")


def _search() -> list[Check]:
    """What `index` and `search` rest on; nothing if there is no index, and the extra is not installed."""
    import sqlite3

    from ..store import local_store

    indexes = sorted(local_store.indexes().glob("*.sqlite"))
    extra = importlib.util.find_spec("semantic_text_splitter") is not None
    if not indexes and not extra:
        return []
    detail = f"SQLite {sqlite3.sqlite_version}; {len(indexes)} {'index' if len(indexes) == 1 else 'indexes'}"
    found = [Check("search", True, detail) if extra else Check("search", None, detail, _SEARCH)]
    if importlib.util.find_spec("numkong") is None:
        found.append(Check("search kernel", None, "numpy, which is slower than numkong", _SEARCH))
    if sqlite3.sqlite_version_info < _WAL_FIXED:
        # https://sqlite.org/wal.html: two connections that write and checkpoint at once. Here one process does both.
        found.append(
            Check("SQLite's log", True, "older than 3.51.3: only the writer of an index moves its log into the file")
        )
    return found


def _network() -> Check:
    from ..store import hub

    names = ("JINA_LOCAL_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    if hub.offline(None):
        switches = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
        return Check("network", True, f"never used ({switches})")
    try:
        return Check("network", True, f"used to fetch models that are not on this machine, from {hub.endpoint()}")
    except JinaError as error:
        return Check("network", False, str(error), "Unset HF_ENDPOINT.")


def _places() -> list[Check]:
    """Where models are, and how much room those of ours take."""
    from ..store import hub_cache, local_store, places

    there = [place for row in registry.PUBLISHED for place in places.of(row)]
    found = []
    for where, folder in ((places.CACHE, hub_cache.cache_folder()), (places.STORE, local_store.root())):
        sizes = [place.size for place in there if place.where == where]
        count = f"{len(sizes)} {'folder' if len(sizes) == 1 else 'folders'} of these models"
        detail = f"{count}, {sum(sizes) / 1e6:,.0f} MB" if folder.is_dir() else "does not exist yet"
        found.append(Check(where, True, f"{folder}: {detail}"))
    if broken := local_store.converted()[1]:
        step = "Convert again with --force, or delete the folder."
        found.append(Check("conversions", False, "; ".join(broken), step))
    return found


def _default_weights() -> Check:
    """The type of GGUF weights that is fetched if none is asked for."""
    from ..store import default_weights

    default = default_weights.of(registry.lookup(registry.DEFAULT_MODEL).spec)
    return Check("default weights", True, f"{default.label}, if none are here, because {default.why}")


def _vectors() -> list[Check]:
    """Whether each engine gives the vectors that are known for the model in the package."""
    found = []
    for name in backends.BACKENDS:
        if not backends.installed(name):
            continue
        answer, label = _child("vectors", name), f"vectors {name}"
        if isinstance(answer, str):
            found.append(Check(label, False, answer, f"pip install --force-reinstall 'jina_local[{name}]'"))
            continue
        step = "Do not use this engine on this machine, and report what `jina-local doctor` prints."
        ok = answer["ok"] is True
        found.append(Check(label, ok, f"pico, {answer['text']}", None if ok else step))
    return found


def _model() -> Check:
    """The model that `embed` would load."""
    return _found("model", "MODEL", "WEIGHTS", registry.DEFAULT_MODEL)


def _reranker() -> Check:
    """The model that `rerank` would load. That it is absent is a finding only if it was chosen."""
    check = _found("reranker", "RERANK_MODEL", "RERANK_WEIGHTS", registry.DEFAULT_RERANKER)
    if check.ok is not None or os.environ.get("JINA_LOCAL_RERANK_MODEL"):
        return check
    return Check("reranker", True, f"none is on this machine; `rerank` would fetch {registry.DEFAULT_RERANKER}")


def _found(name: str, variable: str, label_variable: str, default: str) -> Check:
    from ..store import find

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
        does = "embeds texts and ranks none" if ranks else "ranks documents and has no vectors"
        step = f"Choose another with JINA_LOCAL_{variable}."
        return Check(name, False, f"{found.model.name} in {wanted} {does}", step)
    where = ", ".join(sorted({str(path) for path in found.files.values()}))
    return Check(
        name, True, f"{found.model.name}, {found.label} on {found.backend}: {where}. {' '.join(found.reasons)}"
    )
