"""The texts of a run: a mix and short texts in bulk, and one text of each length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..embedding.request import resolve
from ..inference.loaded import open_tokenizer
from ..spec import ModelFiles
from . import texts

MIX, SHORT = "mix", "short"
_SHORT_TEXTS, _SHORT_TOKENS = 64, 8
_QUERY_WORDS = 12


@dataclass(frozen=True)
class Work:
    """All texts. Those of a reranker are documents, and their tokens are the documents' own."""

    query: str | None  # of a reranker
    bulk: dict[str, list[str]]  # workload -> texts
    units: dict[str, int]  # workload -> its tokens, or its pairs
    tokens: int  # of the mix
    single: dict[int, str]  # tokens -> a text of so many


def make(files: ModelFiles, task: str, count: int, lengths: Sequence[int]) -> Work:
    """Texts for the model in `files`.

    count: texts of the mix. lengths: tokens of single texts; those that the model cannot read are left out, and
    those that a prompt leaves no word of.
    """
    tokenizer = open_tokenizer(files)
    vocabulary = texts.words(tokenizer)
    ranks = files.model.scoring is not None
    prefix = "" if ranks else resolve(files.model, task=task).prefix

    def tokens(some: Sequence[str]) -> list[int]:
        if ranks:
            return [len(ids) for ids in tokenizer.plain(some)]
        return [len(tokenizer.ids(prefix + text)) for text in some]

    around = tokens([vocabulary[0]])[0] - 1
    query = " ".join(np.random.default_rng(1).choice(vocabulary, _QUERY_WORDS)) if ranks else None
    room = files.model.max_tokens - (0 if query is None else 2 * len(tokenizer.ids(query)))
    bulk = {MIX: texts.texts_of(texts.mix(count, room), around, vocabulary)}
    if not ranks:
        bulk[SHORT] = texts.texts_of([_SHORT_TOKENS] * _SHORT_TEXTS, around, vocabulary)
    counted = {name: sum(tokens(some)) for name, some in bulk.items()}
    fitting = [length for length in lengths if around < length <= room]
    return Work(
        query=query,
        bulk=bulk,
        units={name: len(some) for name, some in bulk.items()} if ranks else counted,
        tokens=counted[MIX],
        single=dict(zip(fitting, texts.texts_of(fitting, around, vocabulary, seed=2), strict=True)),
    )
