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
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bulk.cache import VectorCache, digest_of
from ..embedding import vectors
from ..text import splitter
from .database import ChunkRow, DocumentRow, SkippedRow
from .documents import Document, NotText, places
from .extract import extract, most_bytes
from .folder import FileSeen, Skipped, Unreadable, read_stable
from .writer import Writer

if TYPE_CHECKING:
    from ..spec import Embedded
    from ..text.tokenizer import Tokenizer

CHUNK_TOKENS = 240  # of a chunk; with prompt and special tokens it fits into one pass of the engines
_COMMIT_SECONDS = 0.5
_FIRST, _MOST = 64, 1024  # chunks a batch: few at first, then more, because larger batches fill passes better
_BATCH_SECONDS = 4.0  # what is lost if a run is stopped
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


class Embed(Protocol):
    """Texts -> float32 vectors of unit length, and the tokens of each."""

    def __call__(self, texts: list[str]) -> Embedded: ...


def take_in_words(
    writer: Writer,
    found: Iterable[FileSeen | Skipped],
    tokenizer: Callable[[], Tokenizer],
    tell: Callable[[Progress], object],
    done: Updated,
) -> None:
    """Bring documents, chunks and words in line with the files that were found."""
    documents = {row.path: row for row in writer.documents()}
    skipped = {row.path: row for row in writer.skipped()}
    fresh, refused = [], []
    for one in found:
        if isinstance(one, Skipped):
            done.skipped += 1
            old = skipped.pop(one.path, None)
            if old is None or old.reason != one.reason:
                refused.append(one)
            continue
        before = documents.pop(one.path, None)
        refusal = skipped.pop(one.path, None)
        if _unchanged(one, before):
            done.unchanged += 1
        elif _unchanged(one, refusal):
            done.skipped += 1
        else:
            fresh.append((one, before))
    fresh.sort(key=lambda pair: -pair[0].mtime_ns)
    gone = {path: row for path, row in documents.items() if not _out_of_reach(path)}
    if not (fresh or refused or gone or skipped):
        return
    intake = _Intake(writer, tokenizer() if fresh else None, gone, done)
    work = iter([*refused, *fresh])
    total, taken, more = len(refused) + len(fresh), 0, True
    while more:
        with writer.transaction():
            until = time.monotonic() + _COMMIT_SECONDS
            more = False
            for job in work:
                intake.skip(job) if isinstance(job, Skipped) else intake.take(*job)
                taken += 1
                if time.monotonic() > until:
                    more = True
                    break
            if not more:
                for path in (*intake.gone, *skipped):
                    writer.remove(path)
        tell(Progress("words", taken, total))
    done.removed += len(intake.gone)


def add_vectors(
    writer: Writer,
    space: str,
    embed: Embed,
    cache: VectorCache | None,
    tell: Callable[[Progress], object],
    done: Updated,
) -> None:
    """Give a vector to every chunk that has none."""
    pending = writer.without_vector()
    start, size = 0, _FIRST
    while start < len(pending):
        began = time.monotonic()
        chunks = {chunk.id: chunk for chunk in writer.chunks(pending[start : start + size])}
        _add_batch(writer, list(chunks.values()), space, embed, cache, done)
        start += size
        rate = done.tokens / done.seconds if done.seconds else 0.0
        tell(Progress("vectors", min(start, len(pending)), len(pending), rate))
        if time.monotonic() - began < _BATCH_SECONDS / 2:
            size = min(2 * size, _MOST)


def fed(chunk: ChunkRow) -> str:
    """What the model reads of a chunk."""
    return splitter.fed(chunk.text, splitter.Piece(0, len(chunk.text), chunk.context))


def _add_batch(
    writer: Writer,
    chunks: Sequence[ChunkRow],
    space: str,
    embed: Embed,
    cache: VectorCache | None,
    done: Updated,
) -> None:
    known: dict[bytes, NDArray[np.float32]] = {}
    if cache is not None:
        digests = [chunk.digest for chunk in chunks]
        known = {digests[place]: vector for place, vector in cache.get(space, digests).items()}
    texts = {chunk.digest: fed(chunk) for chunk in chunks if chunk.digest not in known}
    done.cached += len(chunks) - sum(chunk.digest in texts for chunk in chunks)
    if texts:
        began = time.monotonic()
        answer = embed(list(texts.values()))
        done.seconds += time.monotonic() - began
        done.tokens += int(answer.token_counts.sum())
        done.cut += int(answer.truncated.sum())
        usable = [place for place in range(len(texts)) if place not in answer.failed]
        digests = [digest for place, digest in enumerate(texts) if place not in answer.failed]
        made = np.asarray(answer.vectors[usable], np.float32)
        known |= dict(zip(digests, made, strict=True))
        if cache is not None:
            cache.put(space, digests, made)
    ready = [chunk for chunk in chunks if chunk.digest in known]
    done.failed += [chunk.id for chunk in chunks if chunk.digest not in known]
    if ready:
        rows = np.stack([known[chunk.digest] for chunk in ready])
        codes = np.asarray(vectors.quantise(rows, "int8"), np.int8)
        with writer.transaction():
            writer.add_vectors([chunk.id for chunk in ready], codes, rows.astype(np.float16))
        done.vectors += len(ready)


class _Intake:
    """Takes files in, one by one, in the transaction of the caller. `gone` are documents without a file so far."""

    def __init__(
        self, writer: Writer, tokenizer: Tokenizer | None, gone: dict[bytes, DocumentRow], done: Updated
    ) -> None:
        self._writer, self._tokenizer, self._done = writer, tokenizer, done
        self.gone = gone
        self._by_digest = {(row.digest, _suffix(path)): path for path, row in gone.items()}

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
        assert self._tokenizer is not None
        self._writer.add(row, chunks_of(document, self._tokenizer))
        if before is None:
            self._done.added += 1
        else:
            self._done.changed += 1

    def _moved(self, row: DocumentRow) -> DocumentRow | None:
        """The document that had this content at a path that is gone."""
        path = self._by_digest.pop((row.digest, _suffix(row.path)), None)
        self._done.moved += path is not None
        return None if path is None else self.gone.pop(path)


def chunks_of(document: Document, tokenizer: Tokenizer) -> list[ChunkRow]:
    """The chunks of a document, ready to be stored."""
    text = document.text
    pieces = splitter.split(text, document.language, tokenizer, CHUNK_TOKENS)
    where = places(document, [(piece.start, piece.end) for piece in pieces])
    return [
        ChunkRow(
            0, 0, n, piece.start, piece.end, place.start_byte, place.end_byte, place.start_line, place.end_line,
            piece.context, "\n".join(piece.defines), text[piece.start : piece.end],
            digest_of(splitter.fed(text, piece)),
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
