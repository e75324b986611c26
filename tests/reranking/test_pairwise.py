"""pairwise: the template, the windows of the published rule, and the cut of tokenizers' own truncation."""

from __future__ import annotations

import lzma

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_local.errors import ModelDamaged, UsageError
from jina_local.reranking.pairwise import longest_first, truncated, windowed, windows
from jina_local.text.tokenizer import PairTemplate, Tokenizer
from tests import tiny

needs_shared = pytest.mark.skipif(not tiny.SHARED.exists(), reason=f"the test data is not at {tiny.SHARED}")
WORDS = [f"w{i}" for i in range(400)]


def library(pair: str | None = "<s> $A </s> </s> $B </s>") -> tokenizers.Tokenizer:
    """One token a word, XLM-R's special tokens and template: lengths in a test are what they look like."""
    vocab = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", *WORDS])}
    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tok.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    if pair is not None:
        tok.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return tok


THEIRS = library()
OURS = Tokenizer(THEIRS.to_str(), "tiny")


def text(n: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(n))


def ids(words: str) -> list[int]:
    return THEIRS.encode(words, add_special_tokens=False).ids


def test_the_template_is_read_off_the_tokenizer():
    assert OURS.pair() == PairTemplate([0], [2, 2], [2])
    assert OURS.pair().tokens == 4
    other = Tokenizer(library("$B </s> $A").to_str(), "other")
    with pytest.raises(ModelDamaged, match="other: its template does not put special tokens around a pair"):
        other.pair()
    assert Tokenizer(library("$A </s> $B <s>").to_str(), "x").pair() == PairTemplate([], [2], [0])
    assert Tokenizer(tiny.tokenizer("small").to_str(), "x").pair() == PairTemplate([], [], [])


@needs_shared
def test_pairs_of_the_real_tokenizer_are_the_librarys():
    path = tiny.SHARED / "tokenizers" / "xlm-roberta" / "tokenizer.json.xz"
    raw = lzma.decompress(path.read_bytes()).decode()
    ours, theirs = Tokenizer(raw, "real"), tokenizers.Tokenizer.from_str(raw)
    theirs.no_truncation()
    assert ours.pair() == PairTemplate([0], [2, 2], [2])
    query, documents = "Hautpflege für empfindliche Haut?", ["針对敏感肌 ﬁ\t x", "", " ", "</s> <mask> a"]
    for found, document in zip(truncated(ours, query, documents, max_length=1024).ids, documents, strict=True):
        assert found.tolist() == theirs.encode(query, document).ids


# The rule read once more, as a loop over places.
def by_hand(length, room, overlap):
    if length <= room:
        return [(0, length)]
    out, start = [], 0
    while True:
        if start + room >= length:
            return [*out, (length - room, length)]
        out.append((start, start + room))
        start += room - overlap


@given(st.integers(0, 300), st.integers(1, 60), st.integers(0, 100))
def test_windows_are_the_published_ones(length, room, asked):
    overlap = min(asked, room // 4)
    found = windows(length, room, overlap)
    assert found == by_hand(length, room, overlap)
    assert found[-1] == (max(0, length - room), length)
    assert {place for start, end in found for place in range(start, end)} == set(range(length))
    assert all(end - start == min(room, length) for start, end in found)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (10, [(0, 10)]),
        (11, [(0, 10), (1, 11)]),
        (18, [(0, 10), (8, 18)]),
        (19, [(0, 10), (8, 18), (9, 19)]),
        (26, [(0, 10), (8, 18), (16, 26)]),
    ],
)
def test_the_last_window_is_the_last_tokens(length, expected):
    assert windows(length, 10, 2) == expected


def test_windowed_pairs():
    query, documents = text(3, 300), [text(6), text(30), "", text(7)]
    pairs = windowed(OURS, query, documents, max_length=14, max_query_length=7, overlap_tokens=80)
    # Room: 14 - 4 special tokens - 3 of the query = 7, overlap 7 // 4 = 1.
    expected = [(0, 0, 6), *((1, s, s + 7) for s in (0, 6, 12, 18)), (1, 23, 30), (2, 0, 0), (3, 0, 7)]
    assert pairs.owner.tolist() == [i for i, _, _ in expected]
    for found, (i, start, end) in zip(pairs.ids, expected, strict=True):
        assert found.tolist() == [0, *ids(query), 2, 2, *ids(documents[i])[start:end], 2]
    assert pairs.lengths == [len(found) for found in pairs.ids]
    assert max(pairs.lengths) == 14
    assert (pairs.cut, pairs.query_cut) == ((), False)


def test_the_overlap_is_a_quarter_of_the_room_at_most():
    def starts(overlap):
        pairs = windowed(OURS, text(2, 300), [text(50)], max_length=22, max_query_length=11, overlap_tokens=overlap)
        return [ids(text(50)).index(found[5]) for found in pairs.ids]

    assert starts(80) == starts(4) == [0, 12, 24, 34]  # room 16
    assert starts(0) == [0, 16, 32, 34]
    assert starts(3) == [0, 13, 26, 34]


@pytest.mark.parametrize(("words", "kept"), [(9, 9), (10, 10), (11, 10), (300, 10)])
def test_the_query_is_cut_with_its_special_tokens_counted(words, kept):
    pairs = windowed(OURS, text(words), ["a"], max_length=24, max_query_length=12, overlap_tokens=80)
    assert pairs.ids[0].tolist() == [0, *ids(text(words))[:kept], 2, 2, ids("a")[0], 2]
    assert pairs.query_cut == (words > kept)


def test_no_room_is_said_with_the_numbers():
    with pytest.raises(UsageError, match="max_query_length 2 leaves no room for the query beside 2 special tokens"):
        windowed(OURS, "a", ["b"], max_length=100, max_query_length=2, overlap_tokens=0)
    with pytest.raises(
        UsageError, match="max_length 12 leaves no room for a document beside 8 tokens of the query and 4"
    ):
        windowed(OURS, text(20), ["b"], max_length=12, max_query_length=10, overlap_tokens=0)
    with pytest.raises(UsageError, match="max_length 4 leaves no room beside 4 special tokens"):
        truncated(OURS, "a", ["b"], max_length=4)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(5, 40))
@settings(max_examples=300, deadline=None)
def test_the_plain_cut_is_the_librarys(query, document, max_length):
    THEIRS.enable_truncation(max_length, strategy="longest_first")
    expected = THEIRS.encode(text(query), text(document, 50)).ids
    THEIRS.no_truncation()
    pairs = truncated(OURS, text(query), [text(document, 50)], max_length=max_length)
    assert pairs.ids[0].tolist() == expected
    first, second = longest_first(query, document, max_length - 4)
    assert pairs.query_cut == (first < query)
    assert pairs.cut == ((0,) if second < document else ())


@pytest.mark.parametrize(("query", "document"), [(40, 700), (700, 40), (700, 700), (700, 701)])
@pytest.mark.parametrize("max_length", [31, 32])
def test_very_long_texts_are_cut_as_the_library_cuts_them(query, document, max_length):
    """Of 700 words of 3 or 4 letters only the front is tokenised: 16 characters for each token that is kept."""
    THEIRS.enable_truncation(max_length)
    expected = THEIRS.encode(text(query), text(document, 50)).ids
    THEIRS.no_truncation()
    assert truncated(OURS, text(query), [text(document, 50)], max_length=max_length).ids[0].tolist() == expected


@pytest.mark.reference
def test_transformers_cuts_pairs_in_that_way(tmp_path):
    """truncation=True, as compute_score of the published code and sentence-transformers call it."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=THEIRS, pad_token="<pad>")
    for query, document in ((3, 50), (50, 3), (30, 30), (31, 30), (5, 5)):
        for max_length in (20, 21):
            found = theirs([[text(query), text(document, 50)]], truncation=True, max_length=max_length)["input_ids"][
                0
            ]
            ours = truncated(OURS, text(query), [text(document, 50)], max_length=max_length)
            assert ours.ids[0].tolist() == found
    THEIRS.no_truncation()


def test_a_group_is_a_pass_that_reads_the_first_tokens():
    pairs = windowed(OURS, "a", [text(3), text(9), "b"], max_length=12, max_query_length=6, overlap_tokens=0)
    batch = pairs.batch([3, 0])
    assert batch.ids.tolist() == [*pairs.ids[3], *pairs.ids[0]]
    assert batch.starts.tolist() == [0, 6, 14]
    assert (batch.rows.tolist(), batch.owner.tolist()) == ([0, 6], [0, 1])
    assert {a.dtype for a in vars(batch).values()} == {np.dtype(np.int32)}
