"""Texts -> ids with prompts, and epochs cut into batches of like lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tokenizers

from . import vocabulary
from .settings import Settings, Stage

_POOL = 64  # batches that are drawn together and sorted by length


class Reader:
    """Tokenizes once and puts the prompt's ids before the text's."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._end = vocabulary.end_of(tokenizer)
        self._prompts = settings.prompts

    def ids(self, texts: Sequence[str], *, query: bool, longest: int) -> list[list[int]]:
        """Prompt, text and end token, cut to `longest` tokens with the end token kept.

        The prompt is tokenized with the text: the space at its end belongs to the first word's token.
        """
        prompt = self._prompts[query]
        encoded = self._tokenizer.encode_batch_fast([prompt + text for text in texts], add_special_tokens=False)
        return [[*one.ids[: longest - 1], self._end] for one in encoded]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts' ids without prompt and end, after a space, as they stand behind a prompt."""
        encoded = self._tokenizer.encode_batch_fast([" " + text for text in texts], add_special_tokens=False)
        return [one.ids for one in encoded]


def forever(
    count: int, length: Callable[[int], int], stage: Stage, generator: np.random.Generator
) -> Iterator[list[int]]:
    """Batches of indices below `count`, epoch after epoch, of about `stage.tokens` tokens by `length`."""
    while True:
        order = generator.permutation(count)
        for start in range(0, count, _POOL * stage.texts):
            pool = sorted(order[start : start + _POOL * stage.texts].tolist(), key=length)
            batches: list[list[int]] = []
            while pool:
                most = min(stage.texts, max(1, stage.tokens // length(pool[-1])))
                batches.append(pool[-most:])
                del pool[-most:]
            batches = [batch for batch in batches if len(batch) >= 16]
            generator.shuffle(batches)  # type: ignore[arg-type]
            yield from batches
