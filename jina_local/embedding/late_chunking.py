"""Late chunking: the model reads a document as a whole, and the mean over a chunk's tokens is the chunk's vector.

Source: jina-ai/late-chunking (chunked_pooling, and tests/test_api.py, which compares it with Jina's API). The task's
prompt comes first. The opening token and the prompt belong to the chunk with the document's first token. The closing
token belongs to the chunk with its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends import Backend
from ..errors import NonFiniteError, TextError, UsageError
from ..inference import batching, passes
from ..spec import Embedded, EmbeddingSpec
from ..text import chunks
from ..text.chunks import Span, Window
from ..text.tokenizer import Tokenizer, checked
from . import vectors


@dataclass(frozen=True)
class Pass:
    """One forward pass, and which of its rows belong to which chunk."""

    ids: NDArray[np.int32]  # (n_tokens,)
    owner: NDArray[np.int64]  # (n_parts,): chunks, ascending
    starts: NDArray[np.int64]  # (n_parts,): the first token of the chunk's part of this pass
    ends: NDArray[np.int64]  # (n_parts,): one past the last


@dataclass(frozen=True)
class Plan:
    """All passes over one document."""

    passes: tuple[Pass, ...]
    counts: NDArray[np.int32]  # (n_chunks,): the tokens of each chunk, prompt and special tokens included

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """(n_chunks,) False for all: late chunking cuts nothing."""
        return np.zeros(len(self.counts), np.bool_)


@dataclass(frozen=True)
class _Around:
    """What stands before and after a document's own tokens in every pass."""

    before: NDArray[np.int32]
    after: NDArray[np.int32]

    def room(self, spec: EmbeddingSpec) -> int:
        """The document's own tokens that one pass takes."""
        room = spec.max_tokens - len(self.before) - len(self.after)
        if room < 1:
            raise UsageError(
                f"max_length {spec.max_tokens} leaves no room beside {len(self.before) + len(self.after)} tokens of "
                "the prompt and the template."
            )
        return room


def of_document(
    tokenizer: Tokenizer, document: str, spans: Sequence[Span], spec: EmbeddingSpec, overlap: int
) -> Plan:
    """Plan the passes over a document for chunks of its characters. Raises UsageError for a chunk without a token."""
    ids, places = tokenizer.located(spec.prefix + document)
    own = int(np.searchsorted(places, len(spec.prefix)))  # the first token of the document itself
    around = _Around(_ids(tokenizer.opening, ids[:own]), _ids(tokenizer.closing))
    parts = chunks.of_tokens(spans, (places[own:] - len(spec.prefix)).tolist())
    for n, (start, end) in enumerate(parts):
        if start == end:
            a, b = spans[n]
            raise UsageError(
                f"chunk {n}, ({a}, {b}), has no token of its own to take a vector from: {_shown(document[a:b])} is "
                "white space, or lies within a token that begins before it. Leave it out, or join it to another."
            )
    return _plan(ids[own:], parts, around, chunks.windows(len(ids) - own, around.room(spec), overlap))


def of_texts(tokenizer: Tokenizer, texts: Sequence[str], spec: EmbeddingSpec) -> Plan:
    """Plan the one pass over texts that are the pieces of a document, in order. Each is tokenised by itself.

    Raises TextError for a text without tokens, and UsageError for too many tokens.
    """
    given = [checked(n, text) for n, text in enumerate(texts)]
    # The prompt and the first text are one string to the tokenizer, as they are to `encode`.
    ids, places = tokenizer.located(spec.prefix + given[0])
    own = int(np.searchsorted(places, len(spec.prefix)))
    around = _Around(_ids(tokenizer.opening, ids[:own]), _ids(tokenizer.closing))
    room = around.room(spec)
    bodies = [ids[own:].tolist(), *tokenizer.plain(given[1:], room)]
    for n, body in enumerate(bodies):
        if not body:
            raise TextError(n, "has no token of its own, and so no vector in late chunking. Leave it out.")
    ends = np.cumsum([len(body) for body in bodies])
    if ends[-1] > room:
        more = "more than " if any(len(body) > room for body in bodies[1:]) else ""
        raise UsageError(
            f"the {len(texts)} texts have {more}{ends[-1] + spec.max_tokens - room} tokens together, prompt and "
            f"special tokens included; late chunking reads them in one pass of at most {spec.max_tokens}. Give fewer "
            "at a time; from Python, `encode_chunks` reads a longer document in windows."
        )
    parts = [(int(end) - len(body), int(end)) for body, end in zip(bodies, ends, strict=True)]
    return _plan(_ids(*bodies), parts, around, chunks.windows(int(ends[-1]), room, 0))


def run(
    engine: Backend, adapter: str | None, plan: Plan, *, show_progress: bool | None = None
) -> NDArray[np.float32]:
    """The mean over each chunk's tokens: (n_chunks, hidden) float32. Memory holds the rows of one pass at a time."""
    sums = np.zeros((len(plan.counts), engine.hidden), np.float64)
    with passes.bar(sum(len(one.ids) for one in plan.passes), show_progress) as advance:
        for one in plan.passes:
            wanted = np.zeros(len(one.ids), np.bool_)
            for start, end in zip(one.starts, one.ends, strict=True):
                wanted[start:end] = True
            rows = np.flatnonzero(wanted).astype(np.int32)
            states = engine.forward(batching.lay_out([one.ids], [rows]), 1, adapter)
            # A chunk's tokens are all wanted, so their rows follow each other.
            sums[one.owner] += vectors.sums(
                states, np.searchsorted(rows, one.starts), np.searchsorted(rows, one.ends)
            )
            advance(len(one.ids))
    return np.asarray(sums / plan.counts[:, None], np.float32)


def require_all(result: Embedded) -> NDArray[np.generic]:
    """The vectors of chunks. Raises NonFiniteError unless all have one."""
    if result.failed:
        company = "and the chunks of a document are read together."
        raise NonFiniteError(result.failed, len(result.vectors), of="chunks", company=company)
    return result.vectors


def _plan(body: NDArray[np.int32], parts: Sequence[Span], around: _Around, windows: Sequence[Window]) -> Plan:
    """The passes over `body` for the windows that have rows of some chunk; `parts`: the tokens of each chunk."""
    before, after = len(around.before), len(around.after)
    counts = np.zeros(len(parts), np.int32)
    passes: list[Pass] = []
    for window in windows:
        ids = _ids(around.before, body[window.start : window.end], around.after)
        starts, ends = np.clip(np.array(parts).T, window.first, window.last)
        owner = np.flatnonzero(starts < ends)
        starts, ends = (bounds[owner] - window.start + before for bounds in (starts, ends))
        if window.start == 0:
            starts[starts == before] = 0
        if window.end == len(body):
            ends[ends == len(ids) - after] = len(ids)
        if len(owner):
            counts[owner] += (ends - starts).astype(np.int32)
            passes.append(Pass(ids, owner, starts, ends))
    return Plan(tuple(passes), counts)


def _ids(*parts: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
