"""The pairwise reranker's input: a query and documents -> pairs of ids, long documents as several windows.

The special tokens around and between the two texts are read off the model's own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..inference.batching import lay_out
from ..spec import TokenBatch
from ..text.tokenizer import PairTemplate, Tokenizer


@dataclass(frozen=True)
class Pairs:
    """The pairs of one call, and the document that each pair belongs to."""

    ids: list[NDArray[np.int32]]
    owner: NDArray[np.int32]  # (n_pairs,), ascending
    cut: tuple[int, ...]  # documents with a part that is in no pair
    query_cut: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each pair."""
        return [len(ids) for ids in self.ids]

    def batch(self, group: Sequence[int]) -> TokenBatch:
        """The pairs of a group end to end; the first token of each is read."""
        return lay_out([self.ids[i] for i in group], "first")


def windows(length: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """The start and end of each window over a document of `length` tokens: the published rule.

    A window is `room` tokens long and shares `overlap` tokens with the next one. The last window is the last `room`
    tokens. A document that fits is one window.
    """
    if length <= room:
        return [(0, length)]
    starts = range(0, length - room, room - overlap)
    return [*((start, start + room) for start in starts), (length - room, length)]


def windowed(
    tokenizer: Tokenizer,
    query: str,
    documents: Sequence[str],
    *,
    max_length: int,
    max_query_length: int,
    overlap_tokens: int,
) -> Pairs:
    """Pairs of at most `max_length` tokens that together hold every token of every document.

    The query is cut to `max_query_length` tokens, counted with the special tokens of a text by itself. Windows share
    `overlap_tokens`, at most a quarter of their room. Raises UsageError if there is no room for a document.
    """
    template = tokenizer.pair()
    alone = len(tokenizer.opening) + len(tokenizer.closing)
    if max_query_length <= alone:
        raise UsageError(
            f"max_query_length {max_query_length} leaves no room for the query beside {alone} special tokens."
        )
    (of_query,) = tokenizer.plain([query], max_query_length - alone)
    kept = of_query[: max_query_length - alone]
    room = max_length - template.tokens - len(kept)
    if room < 1:
        raise UsageError(
            f"max_length {max_length} leaves no room for a document beside {len(kept)} tokens of the query and "
            f"{template.tokens} special tokens. Raise max_length, or lower max_query_length."
        )
    overlap = min(overlap_tokens, room // 4)
    ids: list[NDArray[np.int32]] = []
    owner: list[int] = []
    for i, document in enumerate(documents):
        (body,) = tokenizer.plain([document])
        for start, end in windows(len(body), room, overlap):
            ids.append(_joined(template, kept, body[start:end]))
            owner.append(i)
    return Pairs(ids, np.array(owner, np.int32), (), len(kept) < len(of_query))


def truncated(tokenizer: Tokenizer, query: str, documents: Sequence[str], *, max_length: int) -> Pairs:
    """One pair a document. The longer of its two texts is cut first, as transformers does with truncation=True."""
    template = tokenizer.pair()
    room = max_length - template.tokens
    if room < 1:
        raise UsageError(f"max_length {max_length} leaves no room beside {template.tokens} special tokens.")
    (of_query,) = tokenizer.plain([query])
    # The longer text keeps an odd token, so a document's ids are needed up to the length of the query.
    bodies = tokenizer.plain(documents, max(room, len(of_query)))
    ids: list[NDArray[np.int32]] = []
    cut: list[int] = []
    query_cut = False
    for i, body in enumerate(bodies):
        first, second = longest_first(len(of_query), len(body), room)
        ids.append(_joined(template, of_query[:first], body[:second]))
        query_cut = query_cut or first < len(of_query)
        if second < len(body):
            cut.append(i)
    return Pairs(ids, np.arange(len(ids), dtype=np.int32), tuple(cut), query_cut)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept in `room`: the longer text is cut until both are equal, then both are.

    An odd token stays with the longer text, or with the second of two equal texts (LongestFirst of tokenizers).
    """
    if first + second <= room:
        return first, second
    shorter, half = min(first, second), room // 2
    kept = (shorter, room - shorter) if shorter <= half else (half, room - half)
    return kept if first <= second else (kept[1], kept[0])


def _joined(template: PairTemplate, query: list[int], document: list[int]) -> NDArray[np.int32]:
    parts = (template.opening, query, template.between, document, template.closing)
    return np.array([token for part in parts for token in part], np.int32)
