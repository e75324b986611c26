"""An index made of given documents, for benches and tests: a real file of the real writer, without a walk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local.embedding import vectors
from jina_local.search.database import ChunkRow, Database, DocumentRow
from jina_local.search.writer import writing

ROOT = b"/made"
# What the model reads of passages -> unit vectors, (n, dim) float32; None for an index without vectors
Embed = Callable[[list[str]], NDArray[np.float32]] | None


@dataclass(frozen=True)
class Passage:
    """A passage of a document, without the spans that nobody asks for here."""

    text: str
    context: str = ""
    defines: tuple[str, ...] = ()
    first_line: int = 1
    last_line: int = 1


@dataclass(frozen=True)
class Made:
    """A document: its path below ROOT, its language and its passages."""

    path: str
    language: str | None
    passages: Sequence[Passage]
    mtime_ns: int = 0


def write(path: Path, documents: Iterable[Made], embed: Embed) -> None:
    """Write an index."""
    with writing(path, "bench") as writer:
        with writer.transaction():
            for made in documents:
                writer.add(document_row(made), [chunk_row(n, passage) for n, passage in enumerate(made.passages)])
        if embed:
            chunks = list(writer.chunks())
            found = embed([f"{one.context}\n{one.text}" if one.context else one.text for one in chunks])
            with writer.transaction():
                codes = np.asarray(vectors.quantise(found, "int8"), np.int8)
                writer.add_vectors([one.id for one in chunks], codes, found.astype(np.float16))


@contextmanager
def opened(path: Path, documents: Iterable[Made], embed: Embed) -> Iterator[Database]:
    """Write an index, and open it."""
    write(path, documents, embed)
    with Database(path) as database:
        yield database


def document_row(made: Made) -> DocumentRow:
    """As the writer takes it."""
    path = ROOT + b"/" + made.path.encode()
    return DocumentRow(0, path, ROOT, 0, made.mtime_ns, 0, 0, hashlib.sha256(path).digest(), made.language)


def chunk_row(ordinal: int, one: Passage) -> ChunkRow:
    """As the writer takes it."""
    lines = one.first_line, one.last_line
    return ChunkRow(
        0, 0, ordinal, 0, len(one.text), 0, len(one.text.encode()), *lines, one.context, "\n".join(one.defines),
        one.text, hashlib.sha256(one.text.encode()).digest(),
    )  # fmt: skip
