"""Which model an index has: asked for, opened, and held against the space of the vectors that are there."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from .. import registry
from ..embedding.embedder import Embedder
from ..embedding.request import Words
from ..errors import IndexMismatch, UsageError
from ..spec import Embedded
from .update import Model


class Loading(TypedDict, total=False):
    """How the model is opened, as `load` has it."""

    backend: str
    weights: str | None
    device: str | None
    threads: int | None
    offline: bool | None
    show_progress: bool | None


# (the space of the index, or None if it has no vector yet; how its model is asked for) -> a model that is open and
# stays so.
Borrow = Callable[[Mapping[str, str] | None, Mapping[str, Any]], Embedder]


class IndexModel:
    """The model of one index, opened when it is first needed. The header has what it was made with."""

    def __init__(
        self,
        index: Path,
        model: str | os.PathLike[str] | Embedder | None,
        task: str | None,
        truncate_dim: int | None,
        loading: Loading,
        borrow: Borrow | None = None,
    ) -> None:
        self._borrow = borrow
        self._index, self._asked, self._task, self._dim, self._loading = index, model, task, truncate_dim, loading
        self._embedder = None if model is None or isinstance(model, str | os.PathLike) else model
        self._fitting = ""  # the space that was found to be the model's
        self._lock = threading.Lock()

    def request(self, header: Mapping[str, str]) -> dict[str, Any]:
        """What was asked for when the index was made, and now: the latter counts."""
        before: dict[str, Any] = json.loads(header.get("request", "{}"))
        asked: dict[str, Any] = {"task": self._task, "truncate_dim": self._dim}
        asked |= {key: self._loading.get(key) for key in ("backend", "weights")}
        if isinstance(self._asked, str | os.PathLike):
            name = os.path.expanduser(self._asked)
            asked["model"] = os.path.abspath(name) if os.path.lexists(name) else name
        elif self._asked is not None:
            asked |= {"model": self._asked.spec.name, **names_of(self._asked)}
        if asked.get("model", before.get("model")) != before.get("model"):
            before = {}
        given = {key: value for key, value in asked.items() if value is not None and value != "auto"}
        return {"model": registry.DEFAULT_MODEL} | before | given

    def open(self, header: Mapping[str, str]) -> Embedder:
        """The model, open. Raises IndexMismatch if its space is not that of the index."""
        with self._lock:
            request = self.request(header)
            if self._borrow is not None:
                if self._embedder is None or header.get("space", self._fitting) != self._fitting:
                    self._embedder = self._borrow(json.loads(header.get("space", "null")), request)
            elif self._embedder is None:
                self._embedder = self._load(request)
            if header.get("space", self._fitting) != self._fitting:
                _check_space(self._index, json.loads(header["space"]), self._embedder.space(**words_of(request)))
                self._fitting = header["space"]
            return self._embedder

    def documents(self, header: Mapping[str, str]) -> Model:
        """The document's side of the model, open."""
        embedder, words = self.open(header), self.words(header, "document")

        def embed(texts: list[str]) -> Embedded:
            return embedder.embed(texts, show_progress=False, **words)

        def embed_parts(document: str, spans: list[tuple[int, int]]) -> NDArray[np.float32]:
            rows = embedder.encode_chunks(
                document,
                spans,
                prompt_name="document",
                task=words["task"],
                truncate_dim=words["truncate_dim"],
                show_progress=False,
            )
            return np.asarray(rows, np.float32)

        late = embedder.spec.late_chunking
        return Model(
            json.dumps(embedder.space(**words), sort_keys=True),
            embedder.tokenizer,
            embed,
            embed_parts if late else None,
        )

    def words(self, header: Mapping[str, str], side: str) -> Words:
        """The words of `Embedder.embed` for a side, "document" or "query"."""
        return {**words_of(self.request(header)), "prompt_name": side}

    def close(self) -> None:
        """Close the model, if it was opened here."""
        with self._lock:
            if self._embedder is not None and self._embedder is not self._asked and self._borrow is None:
                self._embedder.close()
            self._embedder = None

    def _load(self, request: Mapping[str, Any]) -> Embedder:
        from ..loading import load

        own: dict[str, Any] = {key: request.get(key) for key in ("weights", "task")}
        settings = {**self._loading, **own, "backend": request.get("backend", "auto"), "isolate": "auto"}
        opened = load(request["model"], **settings)
        if opened.spec.scoring is not None:
            opened.close()
            raise UsageError(f"{opened.spec.name} ranks documents; an index needs a model for vectors.")
        return cast(Embedder, opened)


def words_of(request: Mapping[str, Any]) -> Words:
    """The words of `Embedder.space` for the documents of an index, from how its model is asked for."""
    return {"prompt_name": "document", "task": request.get("task"), "truncate_dim": request.get("truncate_dim")}


def names_of(embedder: Embedder) -> dict[str, Any]:
    """By which names the model of an Embedder is opened again."""
    origin = embedder.spec.origin
    assert origin is not None
    return {"backend": origin.backend, "weights": origin.weights}


def _check_space(path: Path, stored: Mapping[str, str], asked: Mapping[str, str]) -> None:
    differences = [
        f"{key}: {_short(stored.get(key))} in the index, {_short(asked.get(key))} asked for"
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
    ]
    if differences:
        raise IndexMismatch(
            f"{path}: was made with other vectors ({'; '.join(differences)}). Leave the model out, or make the index "
            "again with `index --rebuild`."
        )


def _short(value: object) -> str:
    """A value as it is, the first characters of a digest."""
    text = str(value)
    return f"{text[:12]}..." if len(text) > 40 else text
