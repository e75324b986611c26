"""A loaded model: its tokenizer, its open backends, and where it came from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from .. import backends
from ..backends import Backend
from ..errors import EngineError, ModelDamaged
from ..formats import gguf, manifest
from ..spec import NO_TASK, ModelFiles, Origin
from ..text.fingerprint import check_fingerprint, check_own_vocabulary
from ..text.tokenizer import Tokenizer
from .queue import PassQueue

_MOST_OPEN = 2  # merged tasks whose weights stay open; a third one closes the task that was used longest ago


class LoadedModel:
    """Opens the backend of a task on first use and lends it out. At most _MOST_OPEN idle backends stay open.

    A base with adapters beside it has one backend for all tasks; merged weights have one for each task.
    """

    def __init__(
        self,
        files: ModelFiles,
        task: str,
        *,
        merge: bool = False,
        device: str | None = None,
        threads: int | None = None,
        isolate: Literal["process"] | None = None,
        queue: PassQueue | None = None,
    ) -> None:
        """Open the tokenizer and the backend that serves `task`.

        merge: the adapters of a published checkpoint are merged at load, one task at a time, and do not run beside
        it. The only task of a checkpoint is merged in any case, because there is nothing to share. ONNX Runtime does
        not merge if there are several, so that a server, which serves all of them, has the same bits.
        isolate: "process" runs every backend in a process of its own, see backends.open_backend.
        queue: what the passes of all callers go through, to share them.
        Raises ModelDamaged, EngineMissing, UsageError.
        """
        self.files = files
        self.tokenizer = open_tokenizer(files)
        self._device, self._threads, self._isolate, self._queue = device, threads, isolate, queue
        mergeable = files.form == "checkpoint" and bool(files.adapters)  # a converted base may be codes
        mergeable = mergeable and (files.backend != "onnx" or len(files.files) == 1)
        self._merged = mergeable and (merge or len(files.files) == 1)
        self._shared = bool(files.adapters) and not self._merged
        self._backends: OrderedDict[str, Backend] = OrderedDict()
        self._users: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        try:
            with self.lease(task) as (engine, _):
                _check_vocabulary(self.tokenizer, engine)
                self.origin = self._origin(task, engine, mergeable)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def lease(self, task: str) -> Iterator[tuple[Backend, str | None]]:
        """The backend that serves a task, open until the block ends, and the `task` that its `forward` takes."""
        key, adapter = ("", task) if self._shared else (task, None)
        with self._changed:
            if self._closed:
                raise EngineError("this model is closed.")
            if key not in self._backends:
                self._close_idle()
                self._backends[key] = self._open(task)
            self._backends.move_to_end(key)
            self._users[key] = self._users.get(key, 0) + 1
            backend = self._backends[key]
        try:
            yield (backend if self._queue is None else self._queue.lend(backend)), adapter
        finally:
            with self._changed:
                self._users[key] -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Close all backends after the calls that are under way."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not any(self._users.values()))
            while self._backends:
                self._backends.popitem()[1].close()

    def digest(self, task: str | None = None) -> str:
        """A digest of the files that serve a task, or all tasks."""
        served = self.files.files if task is None else [task]
        paths = [path for one in served for path in (self.files.files[one], self.files.adapters.get(one))]
        return "+".join(manifest.digest_of(path) for path in dict.fromkeys(paths) if path is not None)

    def _open(self, task: str) -> Backend:
        backend = backends.open_backend(
            self.files.backend,
            self.files.files[task],
            task=task if self._merged else None,
            adapters=self.files.adapters if self._shared else None,
            device=self._device,
            threads=self._threads,
            isolate=self._isolate,
        )
        return backend if self._queue is None else self._queue.wrap(backend)

    def _close_idle(self) -> None:
        idle = [key for key in self._backends if not self._users.get(key)]
        while len(self._backends) >= _MOST_OPEN and idle:
            self._backends.pop(idle.pop(0)).close()

    def _origin(self, task: str, engine: Backend, mergeable: bool) -> Origin:
        files = self.files
        return Origin(
            path=Path(files.files[task]),
            form=files.form,
            backend=files.backend,
            weights=files.label,
            device=engine.device,
            dtype=engine.dtype,
            threads=engine.threads,
            revision=files.revision,
            reasons=(*files.reasons, *self._adapter_reasons(task, mergeable), *engine.reasons),
        )

    def _adapter_reasons(self, task: str, mergeable: bool) -> tuple[str, ...]:
        """How the adapters are applied and why, in one sentence; empty if the files are merged."""
        if self._shared:
            why = "no single task was given" if mergeable else "the files are a base and adapters"
            tasks = ", ".join(self.files.adapters)
            return (f"one base serves {tasks}, its adapters beside it at a cost per token, because {why}",)
        if self._merged:
            why = "a task was given; other tasks reload it" if len(self.files.files) > 1 else "there is no other"
            if task == NO_TASK:
                return (f"the base is run without an adapter, because {why}",)
            return (f"the adapter is merged into the base at load, because {why}",)
        return ()


def open_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of the files, or the one rebuilt from a GGUF's own vocabulary, found to be the model's.

    Raises ModelDamaged.
    """
    if files.tokenizer is not None:
        tokenizer = Tokenizer.from_file(files.tokenizer, files.model.tokenizer)
    else:
        tokenizer = Tokenizer.from_gguf(gguf.read_header(next(iter(files.files.values()))), files.model.tokenizer)
    if files.fingerprint is not None:
        check_fingerprint(tokenizer, files.fingerprint, "the manifest")
    for path in dict.fromkeys(files.vocabularies):
        check_own_vocabulary(tokenizer, gguf.read_header(path))
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, engine: Backend) -> None:
    if tokenizer.rows > engine.vocab:
        raise ModelDamaged(
            f"{tokenizer.where} has ids up to {tokenizer.rows - 1}, the model's table {engine.vocab} rows: the "
            "tokenizer is another model's."
        )
