"""Spans: sentences, fixed sizes, what is refused, characters to tokens, windows."""

from __future__ import annotations

import numpy as np
import pytest

from jina_local.errors import UsageError
from jina_local.text import chunks
from jina_local.text.chunks import Window


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("Berlin is big. It is old!  Is it? Yes", ["Berlin is big.", "It is old!", "Is it?", "Yes"]),
        ('He said "no." (Really?) Then he left.', ['He said "no."', "(Really?)", "Then he left."]),
        ("a line\n\n  another line  \r\nthird", ["a line", "another line", "third"]),
        ("日本語です。次の文！「はい。」終わり", ["日本語です。", "次の文！", "「はい。」", "終わり"]),
        ("3.14 is pi, v5.0 is not", ["3.14 is pi, v5.0 is not"]),
        ("Wait... what", ["Wait...", "what"]),
        ("  \n\u200b\n \t", []),
        ("", []),
    ],
)
def test_sentences_are_the_text_between_marks_and_line_ends(document, expected):
    assert [document[a:b] for a, b in chunks.sentences(document)] == expected


def test_sentences_pass_the_check():
    document = "One. Two!\nThree? " * 50
    spans = chunks.sentences(document)
    assert chunks.checked(spans, len(document)) == spans
    assert len(spans) == 150


def test_spans_of_so_many_tokens_are_the_whole_text():
    starts = [2, 5, 9, 14, 20, 21]
    assert chunks.of_size(starts, 30, 2) == [(0, 9), (9, 20), (20, 30)]
    assert chunks.of_size(starts, 30, 4) == [(0, 20), (20, 30)]
    assert chunks.of_size(starts, 30, 6) == chunks.of_size(starts, 30, 100) == [(0, 30)]
    assert chunks.of_size([], 30, 3) == []
    # Two tokens that begin at one character cannot be told apart by characters.
    assert chunks.of_size([3, 3, 3, 8, 8, 9], 10, 1) == [(0, 8), (8, 9), (9, 10)]
    for size in (0, -1, True, 2.0):
        with pytest.raises(UsageError, match="expected a whole number from 1"):
            chunks.of_size(starts, 30, size)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([], "no chunks were given"),
        (7, "chunks are int; expected"),
        ("abc", r"chunk 0 is 'a'; expected \(start, end\)"),
        ([(0, 2), (1, 2, 3)], r"chunk 1 is \(1, 2, 3\); expected"),
        ([(0, 2.0)], r"chunk 0 is \(0, 2\.0\); expected"),
        ([(0, True)], r"chunk 0 is \(0, True\); expected"),
        ([(0, 5), (5, 5)], r"chunk 1, \(5, 5\), is empty; expected 0 <= start < end <= 10"),
        ([(5, 3)], r"chunk 0, \(5, 3\), is empty"),
        ([(0, 11)], r"chunk 0, \(0, 11\), is not within the 10 characters"),
        ([(-1, 4)], r"chunk 0, \(-1, 4\), is not within the 10 characters"),
        ([(0, 3), (5, 8), (3, 5)], r"chunk 2, \(3, 5\), begins before chunk 1, \(5, 8\)\. Sort the chunks"),
    ],
)
def test_spans_that_cannot_be_are_refused(spans, message):
    with pytest.raises(UsageError, match=message):
        chunks.checked(spans, 10)


def test_spans_may_overlap_leave_gaps_and_come_from_numpy():
    assert chunks.checked([(0, 6), (2, 4), (4, 10)], 10) == [(0, 6), (2, 4), (4, 10)]
    found = chunks.checked(np.array([[0, 3], [5, 10]]), 10)
    assert found == [(0, 3), (5, 10)]
    assert type(found[0][0]) is int
    assert chunks.checked((span for span in [[0, 10]]), 10) == [(0, 10)]


def test_a_token_belongs_where_it_begins():
    starts = [0, 3, 3, 7, 12]
    assert chunks.of_tokens([(0, 5), (5, 12), (12, 20), (0, 20), (4, 7)], starts) == [
        (0, 3), (3, 4), (4, 5), (0, 5), (3, 3),
    ]  # fmt: skip


def test_what_fits_is_one_window():
    assert chunks.windows(10, 10, 4) == chunks.windows(10, 10, 0) == [Window(0, 10, 0, 10)]
    assert chunks.windows(0, 10, 4) == [Window(0, 0, 0, 0)]


def test_windows_overlap_and_share_in_the_middle():
    assert chunks.windows(25, 10, 4) == [
        Window(0, 10, 0, 8), Window(6, 16, 8, 14), Window(12, 22, 14, 18), Window(15, 25, 18, 25),
    ]  # fmt: skip
    assert chunks.windows(20, 10, 0) == [Window(0, 10, 0, 10), Window(10, 20, 10, 20)]


@pytest.mark.parametrize("tokens", [11, 12, 19, 20, 21, 100, 1001])
@pytest.mark.parametrize("overlap", [0, 1, 4, 5, 9, 1000])
def test_every_token_is_taken_once_and_from_well_within_a_window(tokens, overlap):
    found = chunks.windows(tokens, 10, overlap)
    assert [t for w in found for t in range(w.first, w.last)] == list(range(tokens))
    shared = min(overlap, 5)
    assert len(found) <= 1 + -(-(tokens - 10) // (10 - shared))
    for n, window in enumerate(found):
        assert window.end - window.start == 10
        assert window.start <= window.first <= window.last <= window.end
        inner = window.first if n else None, window.last if n < len(found) - 1 else None
        assert inner[0] is None or inner[0] - window.start >= shared // 2
        assert inner[1] is None or window.end - inner[1] >= shared // 2
