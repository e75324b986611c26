"""Synthetic texts of known token counts: words that the model's own tokenizer has as one token each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from ..errors import UsageError
from ..text.tokenizer import Tokenizer

_WORD = re.compile("[Ġ▁][a-z]{3,8}")  # after a space, as byte-level and sentencepiece vocabularies write it
_MANY = 1000
_MEDIAN, _SIGMA, _LEAST, _MOST = 60, 0.8, 3, 500  # tokens of a text of the mix


def words(tokenizer: Tokenizer) -> list[str]:
    """Plain words of one token; of a large vocabulary every seventh. Raises UsageError if there are none."""
    found = sorted(token[1:] for token in tokenizer.vocabulary() if _WORD.fullmatch(token))
    if not found:
        raise UsageError(f"{tokenizer.where}: has no plain words to make texts of.")
    return found[:: 7 if len(found) > _MANY else 1]


def mix(count: int, most: int = _MOST, seed: int = 0) -> list[int]:
    """Token counts as those of paragraphs: lognormal, with a median of 60, from 3 to `most`."""
    drawn = np.exp(np.random.default_rng(seed).normal(math.log(_MEDIAN), _SIGMA, count))
    return np.clip(drawn, _LEAST, min(_MOST, most)).astype(int).tolist()  # type: ignore[no-any-return]


def texts_of(lengths: Sequence[int], around: int, vocabulary: Sequence[str], seed: int = 0) -> list[str]:
    """A text for each token count, of at least one word. around: the tokens of a text of the first word, less one.

    All texts begin with the first word, because a word without a space before it may be several tokens.
    """
    rng = np.random.default_rng(seed)
    first = vocabulary[0]
    return [" ".join([first, *rng.choice(vocabulary, max(0, length - around - 1))]) for length in lengths]
