"""What is open of a model: its tokenizer, and one backend for all tasks, or without adapters one for each task."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import backends
from ..backends import Backend
from ..errors import EngineError, ModelDamaged
from ..formats import gguf
from ..spec import NO_TASK, Origin, Weights
from ..text.gguf_vocabulary import tokenizer_json
from ..text.tokenizer import Tokenizer

_RESIDENT = 2  # merged tasks whose weights stay open; a third closes the one used longest ago


class Resident:
    """Opens a task's backend on first use and lends it out; at most _RESIDENT stay open while none is in use."""

    def __init__(
        self, found: Weights, *, merge: str | None = None, device: str | None = None, threads: int | None = None
    ) -> None:
        """`merge`: the task to open first, where the adapters of a published checkpoint are to be merged at load, one
        task at a time, and not to run beside it. The only task of one is merged anyway: there is nothing to share.
        """
        self._found, self._device, self._threads = found, device, threads
        self._merge = merge
        self._merges = merges(found) and (merge is not None or len(found.files) == 1)
        self.shared = bool(found.adapters) and not self._merges
        self._backends: OrderedDict[str, Backend] = OrderedDict()
        self._users: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    @property
    def reasons(self) -> tuple[str, ...]:
        """How the adapters are applied and why, in one sentence; empty where the files are merged."""
        tasks = ", ".join(self._found.adapters)
        if self.shared:
            why = "no single task was given" if merges(self._found) else "the files are a base and adapters"
            return (f"one base serves {tasks}, its adapters beside it at a cost per token, as {why}",)
        if self._merges:
            one = "a task was given; other tasks reload it" if len(self._found.files) > 1 else "there is no other"
            if self._merge == NO_TASK:
                return (f"the base is run without an adapter, as {one}",)
            return (f"the adapter is merged into the base at load, as {one}",)
        return ()

    @contextmanager
    def lease(self, task: str) -> Iterator[tuple[Backend, str | None]]:
        """The backend that serves a task, open until the block ends, and what its `forward` takes as `task`."""
        key, adapter = ("", task) if self.shared else (task, None)
        with self._changed:
            if self._closed:
                raise EngineError("this model is closed.")
            if key not in self._backends:
                self._make_room()
                self._backends[key] = self._open(task)
            self._backends.move_to_end(key)
            self._users[key] = self._users.get(key, 0) + 1
            backend = self._backends[key]
        try:
            yield backend, adapter
        finally:
            with self._changed:
                self._users[key] -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Close what is open, after the calls that are under way."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not any(self._users.values()))
            while self._backends:
                self._backends.popitem()[1].close()

    def _open(self, task: str) -> Backend:
        found = self._found
        return backends.open_backend(
            found.backend,
            found.files[task],
            task=task if self._merges else None,
            adapters=found.adapters if self.shared else None,
            device=self._device,
            threads=self._threads,
        )

    def _make_room(self) -> None:
        idle = [key for key in self._backends if not self._users.get(key)]
        while len(self._backends) >= _RESIDENT and idle:
            self._backends.pop(idle.pop(0)).close()


def merges(found: Weights) -> bool:
    """Whether adapters can be merged at load: a published checkpoint is float, a converted base may be codes."""
    return found.form == "checkpoint" and bool(found.adapters)


def open_tokenizer(found: Weights) -> Tokenizer:
    """The tokenizer of the files, or the one rebuilt from a GGUF's own vocabulary."""
    if found.tokenizer is not None:
        return Tokenizer.from_file(found.tokenizer)
    path = next(iter(found.files.values()))
    return Tokenizer(tokenizer_json(gguf.read_header(path)), f"the vocabulary in {path}")


def check_vocabulary(tokenizer: Tokenizer, engine: Backend) -> None:
    """Raise ModelDamaged where the tokenizer has ids that the model's table has no rows for."""
    if tokenizer.vocab_size > engine.vocab:
        raise ModelDamaged(
            f"{tokenizer.where} has {tokenizer.vocab_size} tokens, the model's table {engine.vocab} rows: the "
            "tokenizer is another model's."
        )


def origin(found: Weights, task: str, engine: Backend, adapters: tuple[str, ...]) -> Origin:
    """What was opened and why; `adapters`: Resident.reasons."""
    return Origin(
        path=Path(found.files[task]),
        form=found.form,
        backend=found.backend,
        weights=found.label,
        device=engine.device,
        dtype=engine.dtype,
        threads=engine.threads,
        revision=found.revision,
        reasons=(*found.reasons, *adapters, *engine.reasons),
    )
