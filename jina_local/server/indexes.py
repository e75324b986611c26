"""The indexes in service: each is asked with the model in service whose vectors it has."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import registry
from ..embedding.embedder import Embedder
from ..errors import EngineMissing, IndexNotFound, ModelNotFound, UsageError
from ..inference.queue import Call
from ..search import filters, passages
from ..search.index import Index
from ..search.model import words_of
from ..spec import Reranking
from .dialects.calls import FoundPassage, FoundPassages, IndexInfo, SearchCall
from .faults import IndexUnknown, Refused
from .service import Service
from .settings import Settings


class Indexes:
    """All indexes of a server. Its methods block, and are called from many threads."""

    def __init__(self, settings: Settings, paths: Sequence[Path]) -> None:
        """Raises UsageError if two of them have the same name."""
        self._settings = settings
        self._paths = {path.stem: path for path in paths}
        if len(self._paths) < len(paths):
            raise UsageError(f"two indexes have the same name: {', '.join(map(str, paths))}.")
        for path in paths:
            if {"{", "}"} & {*path.stem}:
                raise UsageError(f"{path}: a server's paths cannot have the braces of its name; give it another.")
        self._open: dict[str, tuple[Index, tuple[int, int]]] = {}
        self._services: list[Service] = []
        self._own: list[Service] = []  # of models that are open for an index alone
        self._words: Mapping[str, Any] = {}
        # Whoever holds the second may wait for an index's own lock, whose holder may wait for the first.
        self._choosing, self._lock = threading.Lock(), threading.Lock()

    @property
    def names(self) -> Sequence[str]:
        """In the order in which they were given."""
        return tuple(self._paths)

    @property
    def own(self) -> Sequence[Service]:
        """The models that are open for indexes alone."""
        return tuple(self._own)

    def open(self, services: Sequence[Service], words: Mapping[str, Any]) -> None:
        """Open all indexes, and the models that they need beside those in service.

        words: of `load` for these models, beside what their index says of them.
        Raises IndexDamaged, IndexMismatch, ModelDamaged.
        """
        self._services, self._words = list(services), words
        for name in self._paths:
            self._model(self._index(name), "hybrid")

    def close(self) -> None:
        """Close all, after the calls that are under way."""
        with self._lock:
            for index, _ in self._open.values():
                index.close()
            self._open.clear()
            for service in self._own:
                service.model.close()

    def borrow(self, name: str) -> Index:
        """An index for a caller who closes it; its model is the one in service and stays open."""
        path = self._paths[name]
        return Index(path, loading={"offline": True}, borrow=self._borrow)

    def infos(self) -> list[IndexInfo]:
        """What a client may want to know of each."""
        found = []
        for name in self._paths:
            status = self._index(name).status()
            counts = status.counts
            found.append(IndexInfo(name, counts.documents, counts.chunks, counts.vectors, status.model, status.dim))
        return found

    def search(self, call: SearchCall, ticket: Call, reranker: Service | None) -> FoundPassages:
        """The passages that answer a question. Raises IndexUnknown, Refused, UsageError, SearchIndexError."""
        name = self._named(call.index)
        if call.k > self._settings.max_inputs:
            raise Refused(422, "too_many_inputs", f"k {call.k}; {self._settings.max_inputs} are allowed.", "k")
        index = self._index(name)
        with self.admitted(index, call.query, call.mode, ticket) as cut:
            answer = index.search(
                call.query,
                call.k,
                mode=call.mode,
                languages=filters.languages(call.lang, "lang"),
                paths=call.path,
                since_ns=None if call.since is None else filters.since(call.since, time.time(), "since"),
                min_score=call.min_score,
                reranker=None if reranker is None else _Admitted(reranker, ticket),
            )
            found = passages.found(index, answer, context=call.context, max_tokens=call.max_tokens)
        notes = [*found.notes, *(["The question was cut; its end was not read."] if cut else [])]
        hits = [FoundPassage(passages.record(one), one.path, one.start_line, one.end_line) for one in found.passages]
        return FoundPassages(name, found.mode, notes, hits, [0] if cut else [])

    @contextmanager
    def admitted(self, index: Index, question: str, mode: str, ticket: Call) -> Iterator[bool]:
        """Let a question in, as `PassQueue.admit` does, and give whether its end is not read. Raises Refused."""
        if len(question) > (most := self._settings.max_question):
            raise Refused(422, "input_too_long", f"the question has more than {most} characters.", "query")
        service, words = self._model(index, mode)
        if service is None:
            yield False
            return
        ids = service.embedder.prepare([question], **words).ids
        with service.queue.admit(ticket, int(ids.counts[0])):
            yield bool(ids.truncated[0])

    def _named(self, name: str | None) -> str:
        if name is None and len(self._paths) == 1:
            return next(iter(self._paths))
        names = f"In service: {', '.join(self._paths)}." if self._paths else "None is: see serve --index."
        if name is None:
            raise IndexUnknown(f"no index is named. {names}")
        if name not in self._paths:
            near = registry.near_match(name, self._paths)
            raise IndexUnknown(f"the index {name[:100]!r} is not in service here{near}. {names}")
        return name

    def _index(self, name: str) -> Index:
        """The index, opened anew if another file has its place."""
        with self._lock:
            path = self._paths[name]
            try:
                status = os.stat(path)
            except FileNotFoundError:
                raise IndexNotFound(f"the index {name} is gone. Make it again: `index FOLDER`.") from None
            file = status.st_dev, status.st_ino
            if name in self._open and self._open[name][1] != file:
                self._open.pop(name)[0].close()
            if name not in self._open:
                self._open[name] = self.borrow(name), file
            return self._open[name][0]

    def _model(self, index: Index, mode: str) -> tuple[Service | None, Any]:
        """The model that turns a question into a vector, and its words; None if words alone answer."""
        words = None if mode == "lexical" else index.words("query")
        if words is None:
            return None, None
        try:
            embedder = index.embedder()
        except (ModelNotFound, EngineMissing):
            return None, None  # `Index.search` says it, or raises it if vectors have to answer
        return next(one for one in (*self._services, *self._own) if one.model is embedder), words

    def _borrow(self, space: Mapping[str, str] | None, request: Mapping[str, Any]) -> Embedder:
        """The model in service that has these vectors; else the index's own, opened once for all indexes."""
        with self._choosing:
            for service in (*self._services, *self._own):
                if isinstance(service.model, Embedder) and _fits(service.model, space, request):
                    return service.model
            own = {key: request.get(key) for key in ("weights", "task")}
            named = {"name_or_path": request["model"], "backend": request.get("backend", "auto")}
            service = Service.open(self._settings, {**self._words, **named, **own, "offline": True})
            if not isinstance(service.model, Embedder):
                service.model.close()
                raise UsageError(f"{service.name} ranks documents; an index needs a model for vectors.")
            self._own.append(service)
            return service.model


def _fits(model: Embedder, space: Mapping[str, str] | None, request: Mapping[str, Any]) -> bool:
    """Whether a model gives the vectors of an index."""
    try:
        own = model.space(**words_of(request))
    except UsageError:
        return False  # it has no such task or width
    if space is not None:
        return own == space
    origin = model.spec.origin
    try:
        same = registry.lookup(request["model"]).spec.name == model.spec.name
    except UsageError:
        return False  # a path
    wanted = request.get("backend"), request.get("weights")
    return (
        same
        and origin is not None
        and all(word in (None, has) for word, has in zip(wanted, (origin.backend, origin.weights), strict=True))
    )


class _Admitted:
    """A reranker in service, as an index asks it: through its queue."""

    def __init__(self, service: Service, ticket: Call) -> None:
        self._service, self._ticket = service, ticket

    def rerank(self, query: str, documents: list[str], /, *, show_progress: bool | None) -> Reranking:
        """See `Reranker.rerank`."""
        del show_progress  # a server shows none
        return self._service.rank(self._service.reranker.prepare(query, documents), self._ticket)
