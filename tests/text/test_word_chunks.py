"""Spans of a number of words: nothing is lost, none is too long, and they overlap as asked."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from jina_local.text import word_chunks

TEXT = "One two three. Four five six seven! Eight nine ten eleven. A b. C d e f g h i j k l m n. End."


@pytest.mark.parametrize(
    ("cut", "size", "overlap", "expected"),
    [
        (
            word_chunks.of_words,
            10,
            5,
            [
                "One two three. Four five six seven! Eight nine ten",
                "six seven! Eight nine ten eleven. A b. C d",
                "eleven. A b. C d e f g h i",
                "e f g h i j k l m n",
                "j k l m n. End.",
            ],
        ),
        (
            word_chunks.of_sentences,
            8,
            0,
            [
                "One two three. Four five six seven!",
                "Eight nine ten eleven. A b.",
                "C d e f g h i j",
                "h i j k l m n. End.",
            ],
        ),
        (
            word_chunks.of_sentences,
            8,
            1,
            [
                "One two three. Four five six seven!",
                "Four five six seven! Eight nine ten eleven.",
                "Eight nine ten eleven. A b.",
                "A b. C d e f g h",
                "f g h i j k l m",
                "k l m n. End.",
            ],
        ),
        (word_chunks.of_sentences, 100, 1, [TEXT]),
        (word_chunks.of_words, 100, 50, [TEXT]),
    ],
)
def test_cuts(cut, size, overlap, expected):
    assert [TEXT[start:end] for start, end in cut(TEXT, size, overlap)] == expected


@pytest.mark.parametrize("text", ["", " ", "...", " a "])
def test_a_text_without_two_words_is_one_span(text):
    assert word_chunks.of_words(text, 10, 5) == word_chunks.of_sentences(text, 20, 1) == [(0, len(text))]


def test_nothing_is_lost_and_no_span_is_too_long():
    rng = random.Random(1)
    parts = ["a ", "bc. ", "\n", "火", "。", "... ", "x-y ", " ", "Z! ", "it's "]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randint(0, 60)))
        size = rng.randint(2, 12)
        for cut, most in ((word_chunks.of_words, size // 2), (word_chunks.of_sentences, 1)):
            spans = cut(text, size, rng.randint(0, most))
            covered = set()
            for start, end in spans:
                covered |= set(range(start, end))
                assert len(word_chunks._WORD.findall(text[start:end])) <= size
            assert all(text[at].isspace() for at in set(range(len(text))) - covered)
            assert all(a < c and b < d for (a, b), (c, d) in pairwise(spans))
