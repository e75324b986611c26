"""A text's tokens, one by one, with their places in it."""

from __future__ import annotations

from itertools import accumulate

from ..text.tokenizer import Tokenizer
from .dialects.calls import Token


def tokens_of(tokenizer: Tokenizer, text: str, *, template: bool) -> list[Token]:
    """The tokens of a text. template: with those that the model's template puts around it."""
    at = [0, *accumulate(len(char.encode()) for char in text)]
    own = [Token(one, text[start:end], at[start], at[end]) for one, start, end in tokenizer.spans(text)]
    around = (tokenizer.opening, tokenizer.closing) if template else ((), ())
    before, after = ([Token(one, tokenizer.decode([one])) for one in some] for some in around)
    return [*before, *own, *after]
