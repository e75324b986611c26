"""Index: folders that are searched. Made and brought up to date by `update`, read by everything else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..bulk.cache import VectorCache
from ..embedding.embedder import Embedder
from ..embedding.request import Words
from ..errors import EngineMissing, IndexMismatch, IndexNotFound, ModelNotFound, NonFiniteError, UsageError
from ..store import local_store
from ..text import splitter
from . import extract, places, words
from .database import Counts, Database, DocumentRow, SkippedRow
from .excerpt import Passage, passage
from .folder import walk
from .lock import held
from .model import Borrow, IndexModel, Loading, names_of
from .nearest import NONE
from .query import Answer, Embed, Question, Ranks, related, search
from .update import CHUNK_TOKENS, Model, Progress, Updated, add_vectors, take_in_words
from .verify import faults
from .writer import Writer, delete, writing


@dataclass(frozen=True)
class Status:
    """What an index holds."""

    path: Path
    name: str
    folders: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    model: str | None  # None: no chunk has been given a vector yet
    dim: int | None
    counts: Counts
    bytes: int
    skipped: tuple[SkippedRow, ...]

    @property
    def without_vector(self) -> int:
        """Chunks that only their words find."""
        return self.counts.chunks - self.counts.vectors


class Index:
    """An index of folders, in one file. Reads are safe from several threads. Close it, or use it in a `with`."""

    def __init__(
        self,
        path: Path,
        *,
        model: str | os.PathLike[str] | Embedder | None = None,
        task: str | None = None,
        truncate_dim: int | None = None,
        loading: Loading | None = None,
        borrow: Borrow | None = None,
    ) -> None:
        """See `open`. borrow: opens the index's own model in place of `load`, and closes it too."""
        self.path = path
        self._model = IndexModel(path, model, task, truncate_dim, loading or {}, borrow)
        self._database: Database | None = None
        own = (path, local_store.vector_cache())
        self._own = tuple(os.fsencode(os.path.realpath(file)) for file in own)
        self._vectors = NONE  # as they were at the last question
        self._lock = threading.RLock()
        self._closed = False

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | Embedder | None = None,
        task: str | None = None,
        truncate_dim: int | None = None,
        **loading: Any,
    ) -> Index:
        """Open an index by its name or its path. If it is not there, `update` makes it.

        model: a name or path as `load` takes it, or an Embedder, which stays open; None takes the index's own, for a
            new index the default. It is opened when it is first needed.
        task: of the vectors; the document's side of it. truncate_dim: their width. Both default to the model's.
        loading: `backend`, `weights`, `device`, `threads`, `offline`, `show_progress`, as `load` has them.
        Raises IndexDamaged, IndexMismatch.
        """
        unknown = loading.keys() - Loading.__annotations__.keys()
        if unknown:
            raise TypeError(f"Index.open() got an unexpected keyword argument {sorted(unknown)[0]!r}")
        index = cls(
            places.named(name_or_path),
            model=model,
            task=task,
            truncate_dim=truncate_dim,
            loading=cast(Loading, loading),
        )
        if index.path.exists():
            index.database()
        return index

    def update(
        self,
        *folders: str | os.PathLike[str],
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        rebuild: bool = False,
        wait: float = 0,
        command: str = "Index.update",
        progress: Callable[[Progress], object] | None = None,
    ) -> Updated:
        """Bring the index in line with its folders: words first, then vectors, newest files first.

        folders: join those that the index has. include, exclude: patterns of file names, which replace those of
        earlier runs. rebuild: everything is made again, with the same model if no other is given; vectors of
            unchanged text come from the cache.
        wait: seconds to wait for another writer. command: what the lock says of this one.
        A run that is interrupted keeps all but the batch at hand, and the next run goes on.
        Raises UsageError, Locked, IndexDamaged, IndexMismatch, OutputError, and what `load` raises.
        """
        done, tell = Updated(), progress or (lambda _: None)
        if not self.path.exists():
            _roots({}, folders)  # nothing is made if they are refused
        with writing(self.path, command, wait, rebuild=rebuild) as writer:
            header = self._settled_header(writer, folders, include, exclude)
            model = partial(self._document_side, writer, header)
            seen = walk(places.folders_of(header), _patterns(header, "include"), _patterns(header, "exclude"))
            take_in_words(writer, (one for one in seen if not self.wrote(one.path)), model, tell, done)
            counts = writer.counts()
            if counts.vectors < counts.chunks:
                with VectorCache(local_store.vector_cache()) as cache:
                    add_vectors(writer, model(), cache, tell, done)
        return done

    def search(
        self,
        question: str,
        k: int = 10,
        *,
        mode: str = "hybrid",
        languages: Sequence[str] = (),
        paths: Sequence[str] = (),
        since_ns: int | None = None,
        min_score: float | None = None,
        reranker: Ranks | None = None,
    ) -> Answer:
        """The passages that answer a question, best first; `.missing` of the answer says what had no part in it.

        mode: "hybrid", "vector" or "lexical". Words alone answer if there are no vectors yet, or if the model of the
            index cannot be opened; with "vector" the latter is an error. The other words are those of `Question`.
        Raises UsageError, IndexNotFound, IndexDamaged, IndexMismatch, EngineError.
        """
        asked = Question(question, k, mode, tuple(languages), tuple(paths), since_ns, min_score)
        embed, missing = (None, ()) if mode == "lexical" else self._query_side(mode)
        answer = search(
            self.database(),
            asked,
            embed,
            None if reranker is None else _scores_of(reranker),
            vectors=self._vectors,
            missing=missing,
        )
        self._vectors = answer.vectors
        return answer

    def related(self, path: str | os.PathLike[str], line: int = 1, k: int = 10) -> Answer:
        """The passages nearest to the passage at a line of a file of the index."""
        document = self.document(path)
        with self.database().reader() as reader:
            chunks = reader.chunks_of(document.id)
        if not chunks:
            raise UsageError(f"{os.fspath(path)}: has no text.")
        nearest = min(chunks, key=lambda chunk: max(chunk.start_line - line, line - chunk.end_line, 0))
        answer = related(self.database(), nearest.id, Question("", k), vectors=self._vectors)
        self._vectors = answer.vectors
        return answer

    def get(self, path: str | os.PathLike[str], line: int = 1, count: int | None = None) -> Passage:
        """Lines of a file of the index, as the file is now. No other file can be read.

        count: lines, or what `Passage.unit` says; None takes all to the end.
        """
        if line < 1 or (count is not None and count < 1):
            raise UsageError(f"line {line} and count {count}: both count from 1.")
        return passage(self.document(path), line, count)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has for the index's model, without special tokens and prompt."""
        tokenizer = self.embedder().tokenizer
        own = len(tokenizer.ids(""))
        return [len(tokenizer.ids(text)) - own for text in texts]

    def document(self, path: str | os.PathLike[str]) -> DocumentRow:
        """A file of the index: by its path, or by the path below the folder that was given. Raises UsageError."""
        given = os.fsencode(path)
        with self.database().reader() as reader:
            roots = places.folders_of(reader.header())
            for candidate in (os.path.abspath(given), *(os.path.join(root, given) for root in roots)):
                for spelled in dict.fromkeys((candidate, os.path.realpath(candidate))):
                    if (found := reader.document(spelled)) is not None:
                        return found
        raise UsageError(f"{os.fspath(path)}: is not in the index {places.name_of(self.path)}.")

    def wrote(self, path: bytes) -> bool:
        """Whether a file is written by the index itself, which may lie in a folder that it covers."""
        return path.startswith(self._own)

    def database(self) -> Database:
        """The file of the index, open for reading. Raises IndexNotFound, IndexDamaged, IndexMismatch."""
        with self._lock:
            if self._closed:
                raise IndexNotFound(f"{self.path}: this index is closed.")
            if self._database is None:
                self._database = Database(self.path)
            return self._database

    def embedder(self) -> Embedder:
        """The model of the index, open and checked. Raises IndexMismatch if it gives vectors of another space."""
        with self._lock:
            with self.database().reader() as reader:
                header = reader.header()
            return self._model.open(header)

    def words(self, side: str) -> Words | None:
        """The words of `Embedder.embed` for a side, "document" or "query"; None if there is no vector yet."""
        with self.database().reader() as reader:
            header = reader.header()
        return self._model.words(header, side) if "space" in header else None

    def status(self) -> Status:
        """What the index holds."""
        with self.database().reader() as reader:
            header, counts, skipped = reader.header(), reader.counts(), tuple(reader.skipped())
        space = json.loads(header.get("space", "{}"))
        files = (self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal"))
        return Status(
            path=self.path,
            name=places.name_of(self.path),
            folders=tuple(os.fsdecode(root) for root in places.folders_of(header)),
            include=_patterns(header, "include"),
            exclude=_patterns(header, "exclude"),
            model=space.get("model"),
            dim=int(space["dim"]) if space else None,
            counts=counts,
            bytes=sum(file.stat().st_size for file in files if file.exists()),
            skipped=tuple(sorted(skipped, key=lambda row: row.path)),
        )

    def verify(self, *, wait: float = 0) -> list[str]:
        """Read all of the index and compare every checksum; the faults as sentences, none if all is well."""
        if not self.path.exists():
            raise IndexNotFound(f"{self.path}: there is no index here.")
        with writing(self.path, "Index.verify", wait) as writer:
            return list(faults(writer))

    def remove(self, *, wait: float = 0) -> None:
        """Delete the index; the folders stay as they are. It can be made again with `update`."""
        if not self.path.exists():
            raise IndexNotFound(f"{self.path}: there is no index here.")
        with held(self.path, "Index.remove", wait):
            self._close_database()
            delete(self.path)
            self.path.with_name(self.path.name + ".lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, and the model if the index opened it."""
        with self._lock:
            self._close_database()
            self._closed = True
            self._model.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Index {places.name_of(self.path)}>"

    def _query_side(self, mode: str) -> tuple[Embed | None, tuple[str, ...]]:
        """What turns a question into a vector; or None, and why there is nothing."""
        with self.database().reader() as reader:
            header = reader.header()
        if "space" not in header:
            return None, ("No passage has a vector yet: run `index` to go on.",)
        try:
            embedder = self._model.open(header)
        except (ModelNotFound, EngineMissing) as error:
            if mode == "vector":
                raise
            return None, (f"The model cannot be opened, so words alone answered: {error}",)
        asked = self._model.words(header, "query")

        def embed(question: str) -> NDArray[np.float32]:
            answer = embedder.embed([question], show_progress=False, **asked)
            if answer.failed:
                raise NonFiniteError(answer.failed, 1, of="questions")
            return np.asarray(answer.vectors[0], np.float32)

        return embed, ()

    def _settled_header(
        self,
        writer: Writer,
        folders: Sequence[str | os.PathLike[str]],
        include: Sequence[str] | None,
        exclude: Sequence[str] | None,
    ) -> dict[str, str]:
        """The header with what was asked for now, stored. Raises UsageError, IndexMismatch."""
        header = writer.header()
        _check_versions(self.path, header)
        asked = dict(_VERSIONS)
        asked["folders"] = json.dumps([os.fsdecode(root) for root in _roots(header, folders)])
        for key, patterns in (("include", include), ("exclude", exclude)):
            if patterns is not None:
                asked[key] = json.dumps(list(patterns))
        if "space" in header:
            asked["request"] = json.dumps(self._model.request(header))
            if asked["request"] != header["request"]:
                self._model.open(header)  # which refuses another space
        if any(header.get(key) != value for key, value in asked.items()):
            with writer.transaction():
                writer.set_header(asked)
        return header | asked

    def _document_side(self, writer: Writer, header: dict[str, str]) -> Model:
        """The model, open; from now on it is the index's."""
        model = self._model.documents(header)
        if "space" not in header:
            request = self._model.request(header) | names_of(self._model.open(header))
            header |= {"space": model.space, "request": json.dumps(request)}
            with writer.transaction():
                writer.set_header(header)
        return model

    def _close_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _scores_of(reranker: Ranks) -> Callable[[str, Sequence[str]], list[float]]:
    def scores(question: str, passages: Sequence[str]) -> list[float]:
        ranked = reranker.rerank(question, list(passages), show_progress=False)
        if ranked.failed:
            raise NonFiniteError(ranked.failed, len(passages), what="score", of="passages")
        return [one.score for one in sorted(ranked, key=lambda one: one.index)]

    return scores


_VERSIONS = {
    "words": words.VERSION,
    "splitter": f"{splitter.VERSION}, {CHUNK_TOKENS} tokens",
    "extractor": str(extract.VERSION),
}


def _roots(header: Mapping[str, str], folders: Sequence[str | os.PathLike[str]]) -> list[bytes]:
    """The folders of the index, with those given now. Raises UsageError for a folder that is not there."""
    roots = list(dict.fromkeys([*places.folders_of(header), *map(places.absolute, folders)]))
    if not roots:
        raise UsageError("the index has no folder yet: give at least one.")
    for root in roots:
        if not os.path.isdir(root):
            raise UsageError(
                f"{os.fsdecode(root)}: is no folder. If it is gone for good, remove the index and make it without it."
            )
    inner = [(a, b) for a in roots for b in roots if a != b and a.startswith(b.rstrip(b"/") + b"/")]
    if inner:
        raise UsageError(f"{os.fsdecode(inner[0][0])} lies in {os.fsdecode(inner[0][1])}: give the outer one alone.")
    return roots


def _patterns(header: Mapping[str, str], key: str) -> tuple[str, ...]:
    return tuple(json.loads(header.get(key, "[]")))


def _check_versions(path: Path, header: Mapping[str, str]) -> None:
    for key, value in _VERSIONS.items():
        if header.get(key, value) != value:
            raise IndexMismatch(
                f"{path}: its {key} is of version {header[key]!r}, and this jina_local has {value!r}. Make the "
                "index again with `index --rebuild`; vectors of unchanged text are kept."
            )
