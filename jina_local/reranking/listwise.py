"""The listwise reranker's prompt: a query and a block of documents -> one text whose marks are read.

The trained weights expect this wording to the letter (jina-reranker-v3, modeling.py of the published repository). A
mark follows each document, and another mark follows the query where it is said again at the end. The states at the
marks are all that is read. The prompt ends at the query's mark: the model looks back only, so the rest of the
published prompt costs tokens and changes nothing.

Marks in a caller's text are counted and cut with the text, and are removed after the cut, as in the published code.
Other special tokens that a text spells out become those tokens: `<|im_end|>` in a document ends the model's turn.
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

    text: str  # without marks
    tokens: int  # after the cut, the marks that were removed included
    cut: bool


def remove_marks(text: str) -> str:
    """The text without the marks, and without those that appear when a mark is taken out of another.

    The published code looks once, so that a mark within a mark gets through. Texts without such nests come out alike.
    """
    once = text.replace(QUERY_MARK, "").replace(DOCUMENT_MARK, "")
    if DOCUMENT_MARK not in once and QUERY_MARK not in once:
        return once
    # Marks are nested, so this is no accident. Every end of a mark is looked at once: no nesting takes long.
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
    """Cut every text to `limit` of its own tokens, then remove its marks.

    As published, a text of `limit` tokens or more becomes the text that its first tokens decode to, and marks are
    tokens like others until the cut is done.
    """
    parts: list[Part] = []
    for text, ids in zip(texts, tokenizer.plain(texts, limit), strict=True):
        kept = tokenizer.decode(ids[:limit]) if len(ids) >= limit else text
        parts.append(Part(remove_marks(kept), min(len(ids), limit), len(ids) > limit))
    return parts


def prompt(query: str, documents: Sequence[str], instruction: str | None = None) -> str:
    """The text of one block, up to and including the query's mark. The query and the documents have no marks."""
    passages = "\n".join(
        f'<passage id="{i}">\n{document}{DOCUMENT_MARK}\n</passage>' for i, document in enumerate(documents)
    )
    wish = "" if instruction is None else f"<instruct>\n{remove_marks(instruction)}\n</instruct>\n"
    head = _HEAD.format(n=len(documents), query=query)
    return f"{head}{wish}{passages}\n<query>\n{query}{QUERY_MARK}"


class Prompter:
    """Blocks -> passes, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Look both marks up by name. Raises ModelDamaged if the tokenizer lacks one."""
        ids = {mark: tokenizer.token_id(mark) for mark in (DOCUMENT_MARK, QUERY_MARK)}
        if absent := [mark for mark, i in ids.items() if i is None]:
            raise ModelDamaged(
                f"{tokenizer.where}: has no token {' and no '.join(absent)}, which a listwise reranker reads its "
                "scores at. Put the tokenizer.json of the published jina-reranker-v3 beside the weights."
            )
        self.tokenizer = tokenizer
        self._marks = [i for i in ids.values() if i is not None]

    def batch(self, query: str, documents: Sequence[str], instruction: str | None = None) -> TokenBatch:
        """One block as one text. Wanted rows: the mark of each document in order, then the query's mark.

        Raises ModelDamaged if the tokenizer splits the marks.
        """
        (tokens,) = self.tokenizer.plain([prompt(query, documents, instruction)])
        ids = np.array(tokens, np.int32)
        rows = np.flatnonzero(np.isin(ids, self._marks)).astype(np.int32)
        if ids[rows].tolist() != [*[self._marks[0]] * len(documents), self._marks[1]]:
            raise ModelDamaged(
                f"{self.tokenizer.where}: does not keep {DOCUMENT_MARK} and {QUERY_MARK} whole, so the rows of "
                f"{len(documents)} documents cannot be found. Take the tokenizer.json of the published repository."
            )
        return lay_out([ids], [rows])

    def overhead(self, instruction: str | None = None) -> int:
        """Tokens of a block of one document, without the document and without the two queries."""
        return len(self.batch("", [""], instruction).ids)


def first_block(lengths: Sequence[int], capacity: int, max_doc_length: int, block_size: int) -> int:
    """How many documents, at least one, the next block takes from the front of `lengths`: the published rule.

    A block ends when it has `block_size` documents, or when no more than `max_doc_length` is left of `capacity`, the
    model's limit minus two queries. The words of the prompt around the documents are not counted.
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
    """Cut the documents into blocks, in order. No block is longer than `max_length` tokens, its prompt included.

    The published rule (see `first_block`) does not count the prompt. If its block is too long, the last documents of
    the block go to the next one. A document that is too long by itself stays a block of its own.
    """
    lengths = [part.tokens for part in documents]
    capacity = max_length - 2 * query.tokens
    out: list[Block] = []
    start = 0

    def first(count: int) -> TokenBatch:
        """The next `count` documents as one block."""
        return prompter.batch(query.text, [part.text for part in documents[start : start + count]], instruction)

    while start < len(documents):
        count = first_block(lengths[start : start + block_size], capacity, max_doc_length, block_size)
        batch = first(count)
        if len(batch.ids) > max_length and count > 1:
            fits, over = 1, count
            while over - fits > 1:
                middle = (fits + over) // 2
                fits, over = (middle, over) if len(first(middle).ids) <= max_length else (fits, middle)
            count, batch = fits, first(fits)
        out.append(Block(start, start + count, batch))
        start += count
    return out
