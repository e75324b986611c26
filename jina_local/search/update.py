"""One run over the folders of an index: first the words of all files go in, then vectors, newest files first.

Words are committed every fraction of a second, vectors batch by batch. A run that is stopped has lost the batch at
hand; the next run goes on with the rest.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..bulk.cache import VectorCache, digest_of
from ..embedding import vectors
from ..errors import NonFiniteError
from ..text import splitter
from .database import ChunkRow, DocumentRow, SkippedRow
from .documents import Document, NotText, places
from .extract import extract, most_bytes
from .folder import FileSeen, Skipped, Unreadable, read_stable
from .writer import Writer

if TYPE_CHECKING:
    from ..spec import Embedded
    from ..text.tokenizer import Tokenizer

CHUNK_TOKENS = 512  # of a chunk at most; the splitter aims at fewer characters, so that a function stays whole
_COMMIT_SECONDS = 0.25
_FIRST, _MOST = 64, 1024  # chunks a batch: few at first, then more, because larger batches fill passes better
_BATCH_SECONDS = 8.0  # about what is lost if a run is stopped
# A file may be written again within the same tick of its time stamp.
_TICK, _COARSE_TICK = 50_000_000, 2_000_000_000  # nanoseconds; the second is that of stamps in whole seconds


@dataclass
class Updated:
    """What a run did."""

    added: int = 0  # files
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: int = 0  # all files without text, also those of earlier runs
    vectors: int = 0  # chunks that got one
    cached: int = 0  # of these, found in the cache
    tokens: int = 0  # that the model read
    seconds: float = 0.0  # that the model took
    cut: int = 0  # chunks that the model did not read to their end
    failed: list[int] = field(default_factory=list)  # chunks for which the model gave no usable vector


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    phase: str  # "words" | "vectors"
    done: int  # files, or chunks
    total: int
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class Model:
    """The document's side of an open model."""

    space: str  # all that its vectors depend on
    tokenizer: Tokenizer
    embed: Callable[[list[str]], Embedded]
    # Late chunking: (document, spans) -> (n_spans, dim); None if the model has none.
    embed_parts: Callable[[str, list[tuple[int, int]]], NDArray[np.float32]] | None = None


Tell = Callable[[Progress], object]


def take_in_words(
    writer: Writer, found: Iterable[FileSeen | Skipped], model: Callable[[], Model], tell: Tell, done: Updated
) -> None:
    """Bring documents, chunks and words in line with the files that were found. `model` is opened if it is needed."""
    documents = {row.path: row for row in writer.documents()}
    skipped = {row.path: row for row in writer.skipped()}
    refused: list[Skipped] = []
    fresh: list[tuple[FileSeen, DocumentRow | None]] = []
    for one in found:
        refusal = skipped.pop(one.path, None)
        if isinstance(one, Skipped):
            done.skipped += 1
            if refusal is None or refusal.reason != one.reason:
                refused.append(one)
            continue
        before = documents.pop(one.path, None)
        if _unchanged(one, before):
            done.unchanged += 1
        elif _unchanged(one, refusal):
            done.skipped += 1
        else:
            fresh.append((one, before))
    gone = {path: row for path, row in documents.items() if not _out_of_reach(path)}
    if fresh or refused or gone or skipped:
        fresh.sort(key=lambda pair: -pair[0].mtime_ns)
        intake = _Intake(writer, model() if fresh else None, gone, done)
        intake.run(refused, fresh, tell)
        if intake.gone or skipped:
            with writer.transaction():  # last, because a file that moved keeps its document
                for path in (*intake.gone, *skipped):
                    writer.remove(path)
        done.removed += len(intake.gone)


def add_vectors(writer: Writer, model: Model, cache: VectorCache, tell: Tell, done: Updated) -> None:
    """Give a vector to every chunk that has none."""
    pending = writer.without_vector()
    start, size = 0, _FIRST
    while start < len(pending):
        began = time.monotonic()
        _add_batch(writer, list(writer.chunks(pending[start : start + size])), model, cache, done)
        start += size
        rate = done.tokens / done.seconds if done.seconds else 0.0
        tell(Progress("vectors", min(start, len(pending)), len(pending), rate))
        if time.monotonic() - began < _BATCH_SECONDS / 2:
            size = min(2 * size, _MOST)


def fed(chunk: ChunkRow) -> str:
    """What the model reads of a chunk."""
    return splitter.fed(chunk.text, splitter.Piece(0, len(chunk.text), chunk.context))


def _add_batch(writer: Writer, chunks: Sequence[ChunkRow], model: Model, cache: VectorCache, done: Updated) -> None:
    digests = [chunk.digest for chunk in chunks]
    known = {digests[place]: vector for place, vector in cache.get(model.space, digests).items()}
    lacking = {chunk.digest: chunk for chunk in chunks if chunk.digest not in known}
    done.cached += len(known)
    if lacking:
        began = time.monotonic()
        late = _embedded_late(writer, lacking.values(), model, done) if model.embed_parts else {}
        made = _embedded([chunk for digest, chunk in lacking.items() if digest not in late], model, done)
        made |= {digest: vector for digest, vector in late.items() if vector is not None}
        done.seconds += time.monotonic() - began
        if made:
            cache.put(model.space, list(made), np.stack(list(made.values())))
        known |= made
    ready = [chunk for chunk in chunks if chunk.digest in known]
    done.failed += [chunk.id for chunk in chunks if chunk.digest not in known]
    if ready:
        rows = np.stack([known[chunk.digest] for chunk in ready])
        codes = np.asarray(vectors.quantise(rows, "int8"), np.int8)
        with writer.transaction():
            writer.add_vectors([chunk.id for chunk in ready], codes, rows.astype(np.float16))
        done.vectors += len(ready)


def _embedded(chunks: Sequence[ChunkRow], model: Model, done: Updated) -> dict[bytes, NDArray[np.float32]]:
    """Digest -> vector; without the chunks for which the model gave none."""
    if not chunks:
        return {}
    answer = model.embed([fed(chunk) for chunk in chunks])
    done.tokens += int(answer.token_counts.sum())
    done.cut += int(answer.truncated.sum())
    rows = np.asarray(answer.vectors, np.float32)
    return {chunk.digest: rows[n] for n, chunk in enumerate(chunks) if n not in answer.failed}


def _embedded_late(
    writer: Writer, chunks: Iterable[ChunkRow], model: Model, done: Updated
) -> dict[bytes, NDArray[np.float32] | None]:
    """Digest -> vector of all chunks of the documents that have several; None where the model gave none.

    The model reads each document as a whole.
    """
    assert model.embed_parts is not None
    made: dict[bytes, NDArray[np.float32] | None] = {}
    for document in dict.fromkeys(chunk.document for chunk in chunks):
        parts = writer.chunks_of(document)
        if len(parts) == 1:
            continue
        ends = [0, *(part.end_char for part in parts)]
        # Only white space lies between the parts.
        text = "".join("\n" * (part.start_char - end) + part.text for part, end in zip(parts, ends, strict=False))
        done.tokens += len(model.tokenizer.plain([text])[0])
        try:
            rows = list(model.embed_parts(text, [(part.start_char, part.end_char) for part in parts]))
        except NonFiniteError:
            rows = [None] * len(parts)
        made |= {part.digest: row for part, row in zip(parts, rows, strict=True)}
    return made


class _Intake:
    """Takes files in, one by one. `gone` are the documents whose file was not found, and is not found elsewhere."""

    def __init__(self, writer: Writer, model: Model | None, gone: dict[bytes, DocumentRow], done: Updated) -> None:
        self._writer, self._model, self._done = writer, model, done
        self.gone = gone
        self._by_digest = {(row.digest, _suffix(path)): path for path, row in gone.items()}

    def run(
        self, refused: Sequence[Skipped], fresh: Sequence[tuple[FileSeen, DocumentRow | None]], tell: Tell
    ) -> None:
        """Take in all of them, in transactions of a fraction of a second."""
        jobs: list[Callable[[], None]] = [partial(self.skip, one) for one in refused]
        jobs += [partial(self.take, *pair) for pair in fresh]
        taken = 0
        while taken < len(jobs):
            with self._writer.transaction():
                until = time.monotonic() + _COMMIT_SECONDS
                while taken < len(jobs) and time.monotonic() < until:
                    jobs[taken]()
                    taken += 1
            tell(Progress("words", taken, len(jobs)))

    def skip(self, one: Skipped) -> None:
        self._writer.skip(SkippedRow(one.path, one.root, 0, 0, 0, 0, one.reason))
        self.gone.pop(one.path, None)

    def take(self, file: FileSeen, before: DocumentRow | None) -> None:
        now = time.time_ns()
        try:
            data, stat = read_stable(file.path, most_bytes(file.path))
            row = DocumentRow(
                0, file.path, file.root, stat.st_size, stat.st_mtime_ns, stat.st_ino, now,
                hashlib.sha256(data).digest(), None, "line",
            )  # fmt: skip
            same = before if before is not None and before.digest == row.digest else self._moved(row)
            if same is not None:
                self._done.unchanged += same is before
                self._writer.update(same, replace(row, language=same.language, unit=same.unit))
                return
            document = extract(file.path, data)
        except (Unreadable, NotText) as error:
            self._done.skipped += 1
            self._writer.skip(SkippedRow(file.path, file.root, file.size, file.mtime_ns, file.inode, now, str(error)))
            return
        row = replace(row, language=document.language, unit=document.unit)
        assert self._model is not None
        self._writer.add(row, chunks_of(document, self._model.tokenizer, late=self._model.embed_parts is not None))
        if before is None:
            self._done.added += 1
        else:
            self._done.changed += 1

    def _moved(self, row: DocumentRow) -> DocumentRow | None:
        """The document that had this content at a path that is gone."""
        path = self._by_digest.pop((row.digest, _suffix(row.path)), None)
        self._done.moved += path is not None
        return None if path is None else self.gone.pop(path)


def chunks_of(document: Document, tokenizer: Tokenizer, *, late: bool = False) -> list[ChunkRow]:
    """The chunks of a document, ready to be stored. late: their vectors depend on the whole document."""
    text = document.text
    pieces = splitter.split(text, document.language, tokenizer, CHUNK_TOKENS)
    whole = digest_of(text).hex() if late and len(pieces) > 1 else ""
    where = places(document, [(piece.start, piece.end) for piece in pieces])
    return [
        ChunkRow(
            0, 0, n, piece.start, piece.end, place.start_byte, place.end_byte, place.start_line, place.end_line,
            piece.context, "\n".join(piece.defines), text[piece.start : piece.end],
            digest_of(f"{whole} {piece.start} {piece.end}" if whole else splitter.fed(text, piece)),
        )
        for n, (piece, place) in enumerate(zip(pieces, where, strict=True))
    ]  # fmt: skip


def _unchanged(seen: FileSeen, before: DocumentRow | SkippedRow | None) -> bool:
    if before is None or (seen.size, seen.mtime_ns, seen.inode) != (before.size, before.mtime_ns, before.inode):
        return False
    if seen.root != before.root or (isinstance(before, SkippedRow) and "pip install" in before.reason):
        return False
    tick = _TICK if seen.mtime_ns % 1_000_000_000 else _COARSE_TICK
    return before.mtime_ns + tick < before.seen_ns


def _out_of_reach(path: bytes) -> bool:
    """Whether a file that was not found may still be there: its folder cannot be read at present."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return False


def _suffix(path: bytes) -> bytes:
    return os.path.splitext(path)[1]
