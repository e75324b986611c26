"""Whether llama.cpp may repack weights for this processor: faster for some types, a crash on some builds.

On x86 with AMX, builds by GCC 12 die at the first decode of any quantised file (the compiler drops the stores
that fill the tile configuration; ggml-org/llama.cpp issue 20824). There the fast path is tried in a child
process first, once per library and file type, and used only if the child lives.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .library import Library

_PLAIN = ("F32", "F16", "BF16")
# Measured on x86 (tokens per second, repacked against plain): what gains from each kind of buffer.
_REPACK_GAINS = ("Q4_0", "IQ4_NL")
_AMX_GAINS = ("Q8_0", "Q4_0", "Q4_K_M", "Q4_K_S")
_SECONDS = 120


def use_extra_buffers(lib: Library, path: Path, weights: str) -> tuple[bool, str]:
    """Decide for one file; the second value says why, in one sentence."""
    return decide(platform.machine().lower(), lib.has("AMX_INT8"), weights, lambda: canary(path, weights))


def decide(machine: str, amx: bool, weights: str, survives: Callable[[], bool]) -> tuple[bool, str]:
    """The rule, free of the machine it runs on. `survives` is asked only where the fast path would pay."""
    if machine not in ("x86_64", "amd64"):
        return True, "weights may be repacked: this is not x86, where repacking is always safe and faster"
    if weights in _PLAIN:
        return True, f"{weights} weights are run as they are; repacking does not concern them"
    if amx:
        if weights not in _AMX_GAINS:
            return False, f"weights are not repacked: {weights} is faster without, and AMX crashes on some builds"
        if os.environ.get("JINA_LOCAL_AMX", "auto") == "off":
            return False, "weights are not repacked: JINA_LOCAL_AMX=off"
        if survives():
            return True, "AMX is on: a decode in a child process survived"
        return False, "AMX is off: a decode in a child process died (a known fault of builds by GCC 12)"
    if weights in _REPACK_GAINS:
        return True, f"weights are repacked: {weights} is faster so"
    return False, f"weights are not repacked: {weights} is faster without on x86"


def canary(path: Path, weights: str) -> bool:
    """Decode a few tokens with repacked weights in a child process. Its verdict is kept for this library."""
    record = _record_path()
    key = _key(weights)
    known = _read(record)
    if key in known:
        return known[key]
    command = [sys.executable, "-m", "jina_local.backends.llama.canary", str(path)]
    child = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_SECONDS,
        check=False,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    known[key] = child.returncode == 0
    _write(record, known)
    return known[key]


def _key(weights: str) -> str:
    import llama_cpp

    file = Path(llama_cpp.__file__)
    built = max(p.stat().st_mtime_ns for p in [file, *file.parent.glob("lib/*")])
    cpu = platform.processor() or platform.machine()
    return hashlib.sha256(f"{file} {built} {llama_cpp.__version__} {cpu} {weights}".encode()).hexdigest()[:32]


def _record_path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jina_local" / "extra_buffers.json"


def _read(record: Path) -> dict[str, bool]:
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}  # no verdict yet, or one that cannot be read: the child is asked again
    return {str(k): v for k, v in found.items() if isinstance(v, bool)} if isinstance(found, dict) else {}


def _write(record: Path, known: dict[str, bool]) -> None:
    temp = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temp.write_text(json.dumps(known, sort_keys=True))
        temp.replace(record)
    except OSError:
        temp.unlink(missing_ok=True)  # a cache that cannot be written costs one child per load, nothing else
