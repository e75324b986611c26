"""Blocks of texts -> blocks of vectors: in order, in constant memory, whatever single texts do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..embedding import vectors
from ..embedding.request import Words
from ..errors import TextError, UsageError
from ..records.readers import Item, Reading, listed
from ..records.source import blocks
from ..records.writers import UNUSABLE, Block
from ..spec import Embedded
from .cache import VectorCache, digest_of

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder

T = TypeVar("T")
_Call = Callable[[list[str]], Embedded]
# Texts per block: few at first, so that the first vectors come early. Characters bound what a block holds.
_FIRST, _MOST, _CHARS = 64, 1024, 4_000_000


@dataclass
class Tally:
    """What happened to the texts so far, and the first text that each thing happened to."""

    max_tokens: int  # to which a text is cut
    total: int = 0
    cut: int = 0
    failed: int = 0  # the model gave no usable vector
    bad: int = 0  # rows without a text that can be embedded
    first_cut: Item | None = None
    first_failed: Item | None = None
    first_bad: Item | None = None

    def count(self, rows: Sequence[Item], block: Block) -> None:
        """Count one block and the rows that it was made of."""
        cut = [item for item, was_cut in zip(rows, block.truncated, strict=True) if was_cut]
        bad = [item for item in rows if item.fault is not None]
        failed = [rows[i] for i in sorted(block.failed) if rows[i].fault is None]
        self.first_cut = self.first_cut or next(iter(cut), None)
        self.first_failed = self.first_failed or next(iter(failed), None)
        self.first_bad = self.first_bad or next(iter(bad), None)
        self.total += len(rows)
        self.cut += len(cut)
        self.failed += len(failed)
        self.bad += len(bad)


class Known(NamedTuple):
    """What the model has said of a text before."""

    vector: NDArray[np.generic]  # (width,)
    truncated: bool


class Memory(Protocol):
    """Vectors of earlier calls with the same request."""

    def get(self, texts: Sequence[str]) -> list[Known | None]:
        """What is known of each text."""
        ...

    def put(self, texts: Sequence[str], answer: Embedded) -> None:
        """Keep the answer to a call with the texts that the last `get` did not know."""
        ...


class Cached:
    """The cache that all runs share, as a Memory of float32. It says of no text that it was cut, and keeps none."""

    def __init__(self, cache: VectorCache, space: str) -> None:
        self._cache, self._space = cache, space

    def get(self, texts: Sequence[str]) -> list[Known | None]:
        """What is known of each text."""
        found = self._cache.get(self._space, [digest_of(text) for text in texts])
        return [Known(found[i], False) if i in found else None for i in range(len(texts))]

    def put(self, texts: Sequence[str], answer: Embedded) -> None:
        """Keep the usable vectors of texts that were read to their end."""
        kept = [i for i in range(len(texts)) if i not in answer.failed and not answer.truncated[i]]
        self._cache.put(
            self._space, [digest_of(texts[i]) for i in kept], np.asarray(answer.vectors[kept], np.float32)
        )


class Shard(NamedTuple):
    """Every `of`-th item, from the `number`-th on; the first is 1."""

    number: int = 1
    of: int = 1

    def indices(self, first: int, n: int) -> range:
        """The places of n items among those of all shards, from the shard's own place `first` on."""
        return range(self.number - 1 + first * self.of, self.number - 1 + (first + n) * self.of, self.of)


WHOLE = Shard()


def embed(
    embedder: Embedder,
    items: Iterable[Item],
    words: Words,
    tally: Tally,
    *,
    reading: Reading,
    keep: Mapping[str, str] | None = None,
    shard: Shard = WHOLE,
    cache: Memory | None = None,
    journal: Memory | None = None,
    deterministic: bool = False,
) -> Iterator[Block]:
    """Embed the items of a shard; each block is yielded before the next is read, and counted in `tally`.

    reading: its `skip` says whether a bad row is an error, or a row without a vector.
    keep: name in the output -> field of the records, whose values go along; under "id" each record has to have one.
    journal, cache: asked in this order before the model is, the journal for vectors of the precision that is asked
        for, the cache for float32. Not for late chunking, whose vectors are not of a text alone.
    Raises UsageError, which names the text's place in its input, EngineError, and what reading raises.
    """
    call = _model(embedder, words, cache, deterministic)
    if journal is not None:
        call = _remembering(call, journal)
    items = islice(items, shard.number - 1, None, shard.of)
    late = bool(words.get("late_chunking"))
    cut_up = _document(items) if late else blocks(items, first=_FIRST, most=_MOST, chars=_CHARS)
    for block in cut_up:
        if keep and not tally.total:
            _check_fields(block, keep)
        rows = [_identified(item, keep["id"], reading) if keep and "id" in keep else item for item in block]
        answer, used = call_with_good_rows(rows, reading, call)
        made = _block(answer, rows, used, shard.indices(tally.total, len(rows)), keep or {})
        tally.count(rows, made)
        yield made


def _model(embedder: Embedder, words: Words, cache: Memory | None, deterministic: bool) -> _Call:
    """The model's answer to texts, or the cache's."""

    def call(asked: Words, texts: list[str]) -> Embedded:
        return embedder.embed(texts, **asked, show_progress=False, deterministic=deterministic)

    if cache is None:
        return partial(call, words)
    cached = _remembering(partial(call, {**words, "precision": "float32"}), cache)
    precision = words.get("precision", "float32")

    def quantised(texts: list[str]) -> Embedded:
        answer = cached(texts)
        made = vectors.quantise(answer.vectors, precision)  # type: ignore[arg-type]  # they are float32
        return replace(answer, vectors=made, spec=replace(answer.spec, precision=precision))

    return quantised


def _remembering(call: _Call, memory: Memory) -> _Call:
    """`call`, made with the texts alone that the memory does not know."""

    def remembering(texts: list[str]) -> Embedded:
        known = memory.get(texts)
        new = [i for i, one in enumerate(known) if one is None]
        try:
            answer = call([texts[i] for i in new])
        except TextError as error:
            raise TextError(new[error.index], error.reason) from error
        memory.put([texts[i] for i in new], answer)
        n = len(texts)
        made = np.empty((n, answer.vectors.shape[1]), answer.vectors.dtype)
        counts, cut = np.zeros(n, np.int32), np.empty(n, np.bool_)  # no token of a known text was run
        made[new], counts[new], cut[new] = answer.vectors, answer.token_counts, answer.truncated
        for i, one in enumerate(known):
            if one is not None:
                made[i], cut[i] = one
        return Embedded(made, counts, cut, tuple(new[i] for i in answer.failed), answer.spec)

    return remembering


def _document(items: Iterable[Item]) -> Iterator[list[Item]]:
    """All items as one block: the pieces of a document are read together."""
    pieces: list[Item] = []
    size = 0
    for item in items:
        pieces.append(item)
        size += len(item.text)
        if size > _CHARS:
            raise UsageError(
                f"{item.place}: more than {_CHARS} characters so far, and late chunking reads the whole input as one "
                "document. Split the input."
            )
    if pieces:
        yield pieces


def _check_fields(block: Sequence[Item], keep: Mapping[str, str]) -> None:
    """Raise UsageError for a field that no record of the first block has: a misspelled one would keep nothing."""
    records = [item.record for item in block if item.record is not None]
    for field in keep.values():
        if records and not any(field in record for record in records):
            raise UsageError(
                f"none of the first {len(records)} records has {field!r}. They have: {listed(records[0])}."
            )


def _identified(item: Item, field: str, reading: Reading) -> Item:
    """The item, which is a bad row if it has no id."""
    found = (item.record or {}).get(field)
    if item.fault is None and (isinstance(found, bool) or not isinstance(found, str | int)):
        fault = f"--id {field}: expected a string or a whole number, not {found!r:.40}."
        return reading.bad_row(item._replace(fault=fault))
    return item


def call_with_good_rows(rows: list[Item], reading: Reading, call: Callable[[list[str]], T]) -> tuple[T, list[int]]:
    """Call with the texts of the rows that have one; returns the answer and the places of these rows.

    A text that the call refuses turns its row into a bad one, in `rows`, and the call is made again without it.
    """
    while True:
        used = [i for i, item in enumerate(rows) if item.fault is None]
        try:
            return call([rows[i].text for i in used]), used
        except TextError as error:
            # The text's place in the call says nothing to the caller; its place in the input does.
            at = used[error.index]
            rows[at] = reading.bad_row(rows[at]._replace(fault=error.reason))


def _block(
    answer: Embedded, rows: Sequence[Item], used: Sequence[int], indices: range, keep: Mapping[str, str]
) -> Block:
    """The block to write. Whatever the engine says, nothing that is not finite passes."""
    made = np.zeros((len(rows), answer.vectors.shape[1]), answer.vectors.dtype)
    counts, cut = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.bool_)
    made[used], counts[used], cut[used] = answer.vectors, answer.token_counts, answer.truncated
    failed = {i: item.fault for i, item in enumerate(rows) if item.fault is not None}
    failed.update((used[i], UNUSABLE) for i in answer.failed)
    if np.issubdtype(made.dtype, np.floating):
        odd = np.flatnonzero(~np.isfinite(made).all(axis=1))
        failed.update((int(i), UNUSABLE) for i in odd)
        made[odd] = 0
    kept = {name: [(item.record or {}).get(field) for item in rows] for name, field in keep.items()}
    return Block(indices, made, counts, cut, failed, kept)
