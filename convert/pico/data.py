"""The corpus with the teacher's answers: every text once, and each view of it as rows of that one table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import teacher
from .corpus import Corpus, Item, Labelled, Pair


class Data:
    """All views, drawn in one order so that a seed fixes them, and the teacher's vector of every text in them."""

    def __init__(self, corpus: Path, cache: Path, seed: int) -> None:
        """Read the corpus. What the teacher answered before is read from `cache`."""
        source = Corpus(corpus, seed)
        self._cache = cache
        self.items: list[Item] = source.distilled()
        self.pairs: list[Pair] = source.pairs()
        self.questions: list[Pair] = source.questions(self.pairs)
        self.matches: list[tuple[str, str]] = source.matches()
        self.labelled: list[Labelled] = source.labelled()

    def targets(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """The teacher's unit vectors for items of the distillation: (n_items, teacher.WIDTH)."""
        rows, vectors = self._targets
        return vectors[[rows[item.target] for item in items]].astype(np.float32)

    def taught(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The teacher's unit vectors of texts that occur in any view: (n_texts, teacher.WIDTH)."""
        out = np.empty((len(texts), teacher.WIDTH), np.float32)
        for i, text in enumerate(texts):
            for rows, vectors in (self._targets, self._others):
                if text in rows:
                    out[i] = vectors[rows[text]]
                    break
            else:
                rows, vectors = self._asked_for
                out[i] = vectors[rows[text]]
        return out

    @cached_property
    def _targets(self) -> tuple[dict[str, int], NDArray[np.float16]]:
        return self._asked([item.target for item in self.items])

    @cached_property
    def _others(self) -> tuple[dict[str, int], NDArray[np.float16]]:
        texts = [text for pair in self.pairs for text in (pair.query, pair.document)]
        texts += [text for match in self.matches for text in match]
        texts += [row.text for row in self.labelled]
        return self._asked([text for text in texts if text not in self._targets[0]])

    @cached_property
    def _asked_for(self) -> tuple[dict[str, int], NDArray[np.float16]]:
        return self._asked([pair.query for pair in self.questions])

    def _asked(self, texts: Sequence[str]) -> tuple[dict[str, int], NDArray[np.float16]]:
        unique = list(dict.fromkeys(texts))
        return {text: i for i, text in enumerate(unique)}, teacher.vectors(unique, self._cache)
