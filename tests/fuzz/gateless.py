"""Damaged files with the gate off: an engine in a process of its own opens them, and its death must not be ours.

Nothing in this process reads a damaged file: the model is found by its undamaged files, and then the engine is given
the damaged ones. One process runs all cases, and has to answer as before at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

from . import farm, gateless_worker
from .bases import Base, put

KINDS = ("gguf", "safetensors", "adapter")  # what an engine reads
DIED, ENDED = "the engine's process died", "the engine's process was ended"
RIGHT = (farm.SAME, farm.REFUSED, farm.CHANGED, DIED, ENDED)
_LIMIT = 10.0  # seconds for the engine's process to open a model, or to run a pass
_LATE = 60.0  # seconds after which a case counts as hung


class Forked:
    """A subprocess.Popen for EngineProcess that costs a tenth of a new Python: a fork, which has imported all."""

    def __init__(self, command: list[str], *, stdout: int, pass_fds: list[int], cwd: str, env: dict[str, str],
                 **_: object) -> None:  # fmt: skip
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(stdout, descriptor)
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                if descriptor > 2 and descriptor not in pass_fds:
                    with suppress(OSError):
                        os.close(descriptor)
            os.chdir(cwd)
            os.environ |= env
            sys.argv = command[2:]
            gateless_worker.main()
        finally:
            os._exit(1)

    def poll(self) -> int | None:
        """As subprocess.Popen.poll."""
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As subprocess.Popen.wait."""
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            time.sleep(0.001)
        return code

    def kill(self) -> None:
        """As subprocess.Popen.kill."""
        os.kill(self.pid, signal.SIGKILL)


def run(
    found: list[Base], kind: str, numbers: range, seed: int, room: Path, start: str
) -> Iterator[tuple[str, str, str]]:
    """(case, what became of it, what was done) for each number. start: "spawn" or "fork" of an engine's process."""
    from jina_local import backends
    from jina_local.backends import process

    real, backends.open_backend = backends.open_backend, _open_backend
    if start == "fork":
        process.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": Forked})
    try:
        answers = [_answer(base, base.folder) for base in found]
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for number in numbers:
            at, name = number % len(found), f"{kind}:{seed}:{number}"
            yield (name, *case(found[at], answers[at], name, room))
        if [_answer(base, base.folder) for base in found] != answers:
            raise AssertionError("after the damaged files, undamaged ones have other vectors")
        # One more of each may be on its way out.
        if threading.active_count() > threads + 1 or len(os.listdir("/proc/self/fd")) > descriptors + 1:
            raise AssertionError("threads or descriptors were left behind")
    finally:
        backends.open_backend, process.subprocess = real, subprocess


def case(base: Base, answer: str, seed: str, room: Path) -> tuple[str, str]:
    """(what became of it, what was done) for one seed."""
    rng = Random(seed)
    changed, what, _ = base.damage(rng, (base.folder / base.subject).read_bytes())
    folder = room / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder, copy_function=os.link)
    (folder / base.subject).unlink()
    (folder / base.subject).write_bytes(changed)
    start = time.monotonic()
    became = _answer(base, folder)
    if len(became) == 64 and " " not in became:
        became = farm.SAME if became == answer else farm.CHANGED
    if time.monotonic() - start > _LATE:
        became = f"{farm.HANG} over {_LATE:g} s: {became}"
    return became, f"{base.name}: {what}"


def _answer(base: Base, folder: Path) -> str:
    """The digest of what the model in `folder` answers, or what came instead."""
    from jina_local.embedding.embedder import Embedder
    from jina_local.errors import EngineCrashed
    from jina_local.reranking.reranker import Reranker

    os.environ |= {gateless_worker.DAMAGED: str(folder), gateless_worker.WHOLE: str(base.folder)}
    files = _files(base)

    def there(path: Path) -> Path:
        return folder / Path(path).relative_to(base.folder)

    files = replace(files, files={task: there(path) for task, path in files.files.items()},
                    adapters={task: there(path) for task, path in files.adapters.items()})  # fmt: skip
    try:
        if files.model.scoring is None:
            model = Embedder(files, task=base.task, threads=1, isolate="process")
        else:
            model = Reranker(files, threads=1, isolate="process")
        with model:
            return farm.digest(put(model, base.task))
    except EngineCrashed as error:
        kind = error.cause.split(":")[0]
        return f"{DIED} by {kind}: {error.cause}" if kind.startswith("SIG") else f"{ENDED}: {error.cause}"
    except Exception as error:
        return farm.named(error)


@cache
def _files(base: Base) -> object:
    from jina_local.store.find import find

    return find(base.folder, backend=base.backend, tasks=base.task and [base.task], offline=True)


def _open_backend(name: str, path: Path, *, isolate: str | None = None, **words: object) -> object:
    from jina_local.backends.jobs import Limits
    from jina_local.backends.remote import RemoteBackend

    if isolate != "process":
        raise AssertionError("a damaged file was to be opened in this process")
    limits = Limits(open_seconds=_LIMIT, pass_seconds=_LIMIT, token_seconds=0.1, silent_seconds=_LIMIT)
    return RemoteBackend(name, path, **words, limits=limits, worker=gateless_worker.__name__)
