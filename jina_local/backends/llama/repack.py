"""Whether llama.cpp may repack weights for this processor: faster for some types, a crash with some builds.

On x86 with AMX, builds by GCC 12 die at the first decode of any quantised file, because the compiler drops the stores
that fill the tile configuration (ggml-org/llama.cpp issue 20824). There the fast path is tried in a child process
first, once for each library and file type, and is used only if the child survives.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from ...children import command, same_modules
from ...errors import EngineError, UsageError
from .library import Library

_PLAIN = ("F32", "F16", "BF16")
# Measured on x86 (tokens per second, repacked against plain): the types that gain from each kind of buffer.
_REPACK_GAINS = ("Q4_0", "IQ4_NL")
AMX_GAINS = ("Q8_0", "Q4_0", "Q4_K_M", "Q4_K_S")
_SECONDS = 120
SWITCH = "JINA_LOCAL_AMX"
NOT_FINITE = 3  # the canary's exit code for a decode that ends with NaN
_CRASHES = {-number for number in (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)}
_CRASHES |= {-signal.SIGBUS} if os.name == "posix" else set()


def use_extra_buffers(lib: Library, path: Path, weights: str) -> tuple[bool, str]:
    """Decide for one file. The second value is the reason, in one sentence. Raises UsageError for a bad switch."""
    return decide(platform.machine().lower(), lib.has("AMX_INT8"), weights, lambda: survives(path, weights))


def decide(machine: str, amx: bool, weights: str, ask: Callable[[], bool | None]) -> tuple[bool, str]:
    """The rule, free of the machine it runs on. `ask`: see `survives`; called only if the fast path would pay."""
    if machine not in ("x86_64", "amd64"):
        return True, "weights may be repacked: this is not x86, where repacking is always safe and faster"
    if weights in _PLAIN:
        return True, f"{weights} weights are run as they are; repacking does not concern them"
    if amx:
        if weights not in AMX_GAINS:
            return False, f"weights are not repacked: {weights} is faster without, and AMX crashes with some builds"
        if switched_off():
            return False, f"weights are not repacked: {SWITCH}=off"
        verdict = ask()
        if verdict:
            return True, "AMX is on: a decode in a child process survived"
        if verdict is None:
            return False, "AMX is off: whether it crashes here could not be tried in a child process"
        return False, "AMX is off: a decode in a child process died (a known fault of builds by GCC 12)"
    if weights in _REPACK_GAINS:
        return True, f"weights are repacked: {weights} is faster so"
    return False, f"weights are not repacked: {weights} is faster without on x86"


def switched_off() -> bool:
    """Whether the environment forbids AMX. Raises UsageError for a word that is not known."""
    word = os.environ.get(SWITCH) or "auto"
    if word not in ("auto", "off"):
        raise UsageError(f"{SWITCH}={word!r} is not known; possible: auto (the default), off.")
    return word == "off"


def survives(path: Path, weights: str) -> bool | None:
    """Whether a child process survives a decode with repacked weights; None if the trial says nothing.

    A verdict is kept for this library. A file that cannot be loaded, or a child that cannot be started, gives none.
    """
    verdict = kept_verdict(weights)
    if verdict is None:
        verdict = _verdict(_exit_code_of_child(path))
        if verdict is not None:
            _write(_record_path(), {**_read(_record_path()), _key(weights): verdict})
    return verdict


def kept_verdict(weights: str) -> bool | None:
    """The verdict of an earlier trial with this library and file type, or None. Does not import the library."""
    return _read(_record_path()).get(_key(weights))


def _exit_code_of_child(path: Path) -> int | None:
    try:
        child = subprocess.run(
            command("jina_local.backends.llama.canary", os.path.abspath(path)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
            cwd="/",
            env={**os.environ, **same_modules(), "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,  # a Ctrl-C in the terminal is for this process, and is no crash of the child
        )
    except (OSError, ValueError, EngineError, subprocess.TimeoutExpired):
        return None  # no interpreter, no room for a process, or no answer: nothing is known about AMX
    return child.returncode


def _verdict(code: int | None) -> bool | None:
    if code == 0:
        return True
    return False if code == NOT_FINITE or code in _CRASHES else None


@functools.cache
def _key(weights: str) -> str:
    found = importlib.util.find_spec("llama_cpp")
    file = Path(found.origin if found and found.origin else "")
    # In a frozen app there is no such file, only the libraries.
    built = max((p.stat().st_mtime_ns for p in [file, *file.parent.glob("lib/*")] if p.exists()), default=0)
    cpu = platform.processor() or platform.machine()
    return hashlib.sha256(f"{file} {built} {cpu} {weights}".encode()).hexdigest()[:32]


def _record_path() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "jina_local" / "extra_buffers.json"


def _read(record: Path) -> dict[str, bool]:
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}  # no verdict yet, or a file that cannot be read: the child is asked again
    return {str(k): v for k, v in found.items() if isinstance(v, bool)} if isinstance(found, dict) else {}


def _write(record: Path, known: dict[str, bool]) -> None:
    temp = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        temp.write_text(json.dumps(known, sort_keys=True))
        temp.replace(record)
    except OSError:
        temp.unlink(missing_ok=True)  # a cache that cannot be written costs one child per load, nothing else
