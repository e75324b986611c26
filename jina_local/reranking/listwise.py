"""The listwise reranker's prompt: a query and a block of documents -> one text whose marks are read.

The wording is the contract of the trained weights (jina-reranker-v3, modeling.py of the published repository). Each
document is followed by one mark, the query, said a second time at the end, by another; the states at the marks are
all that is read. The model looks back only, so the prompt ends at the query's mark: what the published one has after
it costs tokens and changes nothing.

The marks are removed from what the user gives. Other special tokens that are spelled out there become those tokens,
as in the published code: `<|im_end|>` in a document ends the turn for the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ModelDamaged
from ..inference.batching import lay_out
from ..spec import MARKS, TokenBatch
from ..text.tokenizer import Tokenizer

DOCUMENT_MARK, QUERY_MARK = MARKS

_HEAD = (
    "<|im_start|>system\n"
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. "
    "If not, try to analyze the intent of the query and assess how well each passage satisfies the intent. "
    "If an instruction is provided, you should follow the instruction when determining the ranking."
    "<|im_end|>\n<|im_start|>user\n"
    "I will provide you with {n} passages, each indicated by a numerical identifier. "
    "Rank the passages based on their relevance to query: {query}\n"
)


@dataclass(frozen=True)
class Part:
    """A text as it goes into a prompt."""

    text: str
    tokens: int  # of the text alone, after the cut
    cut: bool


def clean(text: str) -> str:
    """The text without the marks, also where taking one out joins the ends of another."""
    once = text.replace(DOCUMENT_MARK, "").replace(QUERY_MARK, "")
    if DOCUMENT_MARK not in once and QUERY_MARK not in once:
        return once
    # Marks within marks, by intent: every end of one is looked at once, so that no nesting takes long.
    end = b"|>"
    openings = [mark.encode().removesuffix(end) for mark in (DOCUMENT_MARK, QUERY_MARK)]
    first, *rest = text.encode().split(end)
    out = bytearray(first)
    for piece in rest:
        opening = next((opening for opening in openings if out.endswith(opening)), None)
        if opening is None:
            out += end
        else:
            del out[-len(opening) :]
        out += piece
    return out.decode()


def shorten(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> list[Part]:
    """Clean every text and cut it to `limit` of its own tokens.

    As published, what has at least that many is the text that those tokens decode to.
    """
    cleaned = [clean(text) for text in texts]
    parts: list[Part] = []
    for text, ids in zip(cleaned, tokenizer.plain(cleaned, limit), strict=True):
        # What is decoded once more is cleaned once more: no way to a mark is known, and none shall be found.
        kept = clean(tokenizer.decode(ids[:limit])) if len(ids) >= limit else text
        parts.append(Part(kept, min(len(ids), limit), len(ids) > limit))
    return parts


def prompt(query: str, documents: Sequence[str], instruction: str | None = None) -> str:
    """The text of one block, up to and including the query's mark. The query and the documents are clean."""
    passages = "\n".join(
        f'<passage id="{i}">\n{document}{DOCUMENT_MARK}\n</passage>' for i, document in enumerate(documents)
    )
    wish = "" if instruction is None else f"<instruct>\n{clean(instruction)}\n</instruct>\n"
    head = _HEAD.format(n=len(documents), query=query)
    return f"{head}{wish}{passages}\n<query>\n{query}{QUERY_MARK}"


class Prompter:
    """Blocks -> passes for one tokenizer, which has to have both marks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look the marks up by name. Raises ModelDamaged."""
        ids = {mark: tokenizer.token_id(mark) for mark in (DOCUMENT_MARK, QUERY_MARK)}
        if absent := [mark for mark, i in ids.items() if i is None]:
            raise ModelDamaged(
                f"{tokenizer.where}: has no token {' and no '.join(absent)}, which a listwise reranker reads its "
                "scores at. Put the tokenizer.json of the published jina-reranker-v3 beside the weights."
            )
        self.tokenizer = tokenizer
        self._marks = [i for i in ids.values() if i is not None]

    def batch(self, query: str, documents: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """One block as one text. Wanted rows: the mark of each document in order, then the query's.

        Raises ModelDamaged where the tokenizer does not take the marks as whole tokens.
        """
        (found,) = self.tokenizer.plain([prompt(query, documents, instruction)])
        ids = np.array(found, np.int32)
        rows = np.flatnonzero(np.isin(ids, self._marks)).astype(np.int32)
        if ids[rows].tolist() != [*[self._marks[0]] * len(documents), self._marks[1]]:
            raise ModelDamaged(
                f"{self.tokenizer.where}: does not keep {DOCUMENT_MARK} and {QUERY_MARK} whole, so the rows of "
                f"{len(documents)} documents cannot be found. Take the tokenizer.json of the published repository."
            )
        return lay_out([ids], [rows])

    def overhead(self, instruction: str | None = None) -> int:
        """Tokens of a block of one document beside that document and the two queries."""
        return len(self.batch("", [""], instruction).ids)


def first_block(lengths: Sequence[int], capacity: int, max_doc_length: int, block_size: int) -> int:
    """How many documents, at least one, the next block takes from the front of `lengths`, as published.

    A block ends when it has `block_size` documents, or when no more than `max_doc_length` is left of the capacity:
    the limit of the model less the query, twice. What the prompt says around the documents is not counted.
    """
    for n, length in enumerate(lengths[:block_size], 1):
        capacity -= length
        if capacity <= max_doc_length:
            return n
    return min(len(lengths), block_size)


@dataclass(frozen=True)
class Block:
    """Documents `start` to `end` of the call, and the pass that scores them."""

    start: int
    end: int
    batch: TokenBatch


def blocks(
    prompter: Prompter,
    query: Part,
    documents: Sequence[Part],
    *,
    instruction: str | None,
    max_length: int,
    max_doc_length: int,
    block_size: int,
) -> list[Block]:
    """Cut the documents into blocks in their order, none longer than `max_length` tokens, its prompt included.

    That is the published rule (see `first_block`); where it would run over `max_length`, for it does not count the
    prompt, later documents go to the next block. A document that alone is too long stays a block of its own.
    """
    lengths = [part.tokens for part in documents]
    capacity = max_length - 2 * query.tokens
    out: list[Block] = []
    start = 0

    def taken(count: int) -> TokenBatch:
        return prompter.batch(query.text, [part.text for part in documents[start : start + count]], instruction)

    while start < len(documents):
        count = first_block(lengths[start : start + block_size], capacity, max_doc_length, block_size)
        batch = taken(count)
        if len(batch.ids) > max_length and count > 1:
            fits, over = 1, count
            while over - fits > 1:
                middle = (fits + over) // 2
                fits, over = (middle, over) if len(taken(middle).ids) <= max_length else (fits, middle)
            count, batch = fits, taken(fits)
        out.append(Block(start, start + count, batch))
        start += count
    return out
