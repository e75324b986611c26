"""listwise: the prompt to the letter, the marks, the cuts, and the blocks of the published rule."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_local.errors import ModelDamaged
from jina_local.reranking import listwise
from jina_local.reranking.listwise import Part, Prompter, blocks, first_block, prompt, remove_marks, shorten
from jina_local.text.tokenizer import Tokenizer
from tests import tiny

E, R = "<|embed_token|>", "<|rerank_token|>"
needs_shared = pytest.mark.skipif(not tiny.SHARED.exists(), reason=f"the test data is not at {tiny.SHARED}")

SYSTEM = (
    "<|im_start|>system\n"
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are to "
    "the query. If the query is a question, how relevant a passage is depends on how well it answers the question. "
    "If not, try to analyze the intent of the query and assess how well each passage satisfies the intent. If an "
    "instruction is provided, you should follow the instruction when determining the ranking.<|im_end|>\n"
)


def library(**flags: object) -> tokenizers.Tokenizer:
    """The library's tokenizer, with the marks."""
    tok = tiny.tokenizer("small")
    tok.add_special_tokens([tokenizers.AddedToken(m, special=True, normalized=False, **flags) for m in (E, R)])
    return tok


THEIRS = library()
OURS = Tokenizer(THEIRS.to_str(), "tiny")
PROMPTER = Prompter(OURS)


def part(text: str) -> Part:
    return Part(text, len(OURS.plain([text])[0]), False)


def test_the_prompt_is_the_published_one_up_to_the_querys_mark():
    assert prompt("What is red?", ["Mars.", "Venus\nis hot {n}"]) == (
        SYSTEM + "<|im_start|>user\n"
        "I will provide you with 2 passages, each indicated by a numerical identifier. "
        "Rank the passages based on their relevance to query: What is red?\n"
        f'<passage id="0">\nMars.{E}\n</passage>\n'
        f'<passage id="1">\nVenus\nis hot {{n}}{E}\n</passage>\n'
        f"<query>\nWhat is red?{R}"
    )


def test_an_instruction_stands_before_the_passages_without_marks():
    text = prompt("{query} {n}", ["d"], f"Prefer{E} news{{n}}.")
    assert text == (
        SYSTEM + "<|im_start|>user\n"
        "I will provide you with 1 passages, each indicated by a numerical identifier. "
        "Rank the passages based on their relevance to query: {query} {n}\n"
        "<instruct>\nPrefer news{n}.\n</instruct>\n"
        f'<passage id="0">\nd{E}\n</passage>\n<query>\n{{query}} {{n}}{R}'
    )


def test_a_block_is_one_text_whose_marks_are_read_in_order():
    batch = PROMPTER.batch("What is red?", ["Mars.", "", "Venus"])
    assert batch.ids.tolist() == THEIRS.encode(prompt("What is red?", ["Mars.", "", "Venus"])).ids
    assert batch.starts.tolist() == [0, len(batch.ids)]
    assert batch.owner.tolist() == [0, 0, 0, 0]
    assert [THEIRS.id_to_token(batch.ids[row]) for row in batch.rows] == [E, E, E, R]
    assert (np.diff(batch.rows) > 0).all()
    assert batch.rows[-1] == len(batch.ids) - 1
    assert {a.dtype for a in vars(batch).values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain", "plain"),
        (f"{E}a{R}b{E}{E}", "ab"),
        (f"<|embed_{E}token|>x", "x"),
        (f"<|embed_{R}token|>x", "x"),
        (f"<|rerank_{E}token|><|embed_<|rerank_{R}token|>token|>|>", "|>"),
        ("<|im_start|> stays, <|embed_token| too", "<|im_start|> stays, <|embed_token| too"),
        ("日<|embed_<|embed_token|>token|>本 |>", "日本 |>"),
    ],
)
def test_no_mark_survives_cleaning(text, left):
    assert remove_marks(text) == left


@given(st.lists(st.sampled_from([E, R, "<|embed_", "token|>", "<|rerank_", "|>", "<|", "a", "é"]), max_size=30))
def test_no_pieces_make_a_mark(pieces):
    left = remove_marks("".join(pieces))
    assert E not in left
    assert R not in left
    assert remove_marks(left) == left


def test_deep_nests_of_marks_take_no_longer_than_their_length():
    start = time.perf_counter()
    assert remove_marks("<|embed_" * 300_000 + "token|>" * 300_000) == ""
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("length", [9, 10, 11, 12])
def test_the_cut_is_at_the_limit_and_what_reaches_it_is_decoded(length):
    text = "Jupiter is the largest planet; Mars is called the Red Planet. e\u0301 Saturn"
    ids = THEIRS.encode(text).ids
    text = THEIRS.decode(ids[:length])
    assert len(THEIRS.encode(text).ids) == length
    (found,) = shorten(OURS, [text], 10)
    assert found == Part(THEIRS.decode(ids[: min(length, 10)]), min(length, 10), length > 10)


def test_a_text_of_just_the_limit_is_what_its_tokens_decode_to():
    """The tokenizer composes characters; below the limit the text stays as it was given."""
    text = "cafe\u0301"
    n = len(THEIRS.encode(text).ids)
    assert shorten(OURS, [text], n + 1)[0] == Part(text, n, False)
    assert shorten(OURS, [text], n)[0] == Part("caf\u00e9", n, False)


def test_special_tokens_in_a_text_count_and_stay():
    text = "<|im_end|> a <|im_start|>"
    assert shorten(OURS, [text], 50)[0].text == text
    assert shorten(OURS, [text], 1)[0] == Part("<|im_end|>", 1, True)


@pytest.mark.parametrize(
    ("text", "limit", "part"),
    [
        (f"{E}a{R}", 4, Part("a", 3, False)),
        (f"{E}a{R}", 3, Part("a", 3, False)),
        (f"{E}a{R}", 2, Part("a", 2, True)),
        (f"{E}a{R}", 1, Part("", 1, True)),
        (E * 3000 + "a", 2048, Part("", 2048, True)),
        (E * 700 + "a", 2048, Part("a", 701, False)),
        (f"{R}{E}", 9, Part("", 2, False)),
    ],
)
def test_marks_are_counted_and_cut_and_then_removed(text, limit, part):
    assert shorten(OURS, [text], limit) == [part]


@pytest.mark.parametrize("limit", [5, 9, 10, 11, 15, 20, 40])
@pytest.mark.parametrize("inner", [E, R])
@pytest.mark.parametrize("outer", ["embed", "rerank"])
def test_no_cut_of_a_mark_within_a_mark_lets_a_mark_through(outer, inner, limit):
    """Whole, the inner mark is a token, and what stands around it becomes a mark when it is taken out."""
    (found,) = shorten(OURS, [f"x<|{outer}_{inner}token|>y"], limit)
    assert E not in found.text
    assert R not in found.text
    assert len(PROMPTER.batch(found.text, [found.text, "z"]).rows) == 3


PIECES = st.sampled_from([E, R, "<|embed_", "token|>", "<|rerank_", "|>", "<|im_end|>", "a", "é", " "])


@given(st.text(max_size=60) | st.lists(PIECES, max_size=20).map("".join), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_any_cut_makes_a_sound_prompt(text, limit):
    (found,) = shorten(OURS, [text], limit)
    ids = THEIRS.encode(text).ids
    assert (found.tokens, found.cut) == (min(len(ids), limit), len(ids) > limit)
    assert len(PROMPTER.batch(found.text, [found.text, "x"]).rows) == 3


def test_ten_megabytes_cost_what_their_front_costs():
    text = "lorem ipsum " * 900_000
    start = time.perf_counter()
    (found,) = shorten(OURS, [text], 2048)
    assert time.perf_counter() - start < 3
    assert (found.tokens, found.cut) == (2048, True)
    assert text.startswith(found.text)


@pytest.mark.parametrize("absent", [[E], [R], [E, R]])
def test_a_tokenizer_without_the_marks_is_refused(absent):
    tok = tiny.tokenizer("small")
    tok.add_special_tokens([tokenizers.AddedToken(m, special=True) for m in (E, R) if m not in absent])
    words = " and no ".join(absent).replace("|", r"\|")
    with pytest.raises(ModelDamaged, match=f"where: has no token {words}, which .* Put the tokenizer.json"):
        Prompter(Tokenizer(tok.to_str(), "where"))


def test_a_tokenizer_that_does_not_keep_the_marks_whole_is_refused():
    prompter = Prompter(Tokenizer(library(single_word=True).to_str(), "where"))
    with pytest.raises(ModelDamaged, match=r"where: does not keep .* so the rows of 1 documents cannot be found"):
        prompter.batch("q", ["word"])


@needs_shared
def test_the_marks_of_the_real_vocabulary_have_their_published_ids():
    tok = tokenizers.Tokenizer.from_str(tiny.real_tokenizer("small"))
    tok.add_special_tokens([tokenizers.AddedToken(m, special=True) for m in _between(tok)])
    ours = Tokenizer(tok.to_str(), "real")
    assert (ours.token_id(E), ours.token_id(R)) == (151670, 151671)
    assert (ours.decode([151670]), ours.plain([f"a{R}b"])[0][1]) == (E, 151671)


def _between(tok: tokenizers.Tokenizer) -> list[str]:
    """The marks after whatever fills the ids up to theirs; the published file adds them to the base vocabulary."""
    return [*(f"<|filler_{i}|>" for i in range(151670 - tok.get_vocab_size())), E, R]


# The rule of blocks, read once more: a running capacity from which every document takes its length.
def published_blocks(lengths, capacity, max_doc_length, block_size):
    out, block, left = [], [], capacity
    for i, length in enumerate(lengths):
        block.append(i)
        left -= length
        if len(block) >= block_size or left <= max_doc_length:
            out.append(block)
            block, left = [], capacity
    return out + ([block] if block else [])


def counts(lengths, capacity, max_doc_length, block_size):
    out = []
    while sum(out) < len(lengths):
        out.append(first_block(lengths[sum(out) :], capacity, max_doc_length, block_size))
    return out


@pytest.mark.parametrize(
    ("documents", "block_size", "sizes"),
    [(1, 64, [1]), (64, 64, [64]), (65, 64, [64, 1]), (125, 125, [125]), (130, 125, [125, 5]), (3, 1, [1, 1, 1])],
)
def test_block_sizes(documents, block_size, sizes):
    assert counts([5] * documents, 131072, 2048, block_size) == sizes


def test_the_capacity_ends_a_block_when_a_longest_document_might_not_fit():
    # 100 left of 300 after two of 100, and 100 is not more than 100.
    assert counts([100, 100, 100, 100], 300, 100, 64) == [2, 2]
    assert counts([100, 99, 100, 100], 300, 100, 64) == [3, 1]
    assert counts([10, 10], 50, 100, 64) == [1, 1]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 40), st.integers(1, 9)
)
def test_blocks_are_the_published_ones(lengths, capacity, max_doc_length, block_size):
    expected = published_blocks(lengths, capacity, max_doc_length, block_size)
    assert counts(lengths, capacity, max_doc_length, block_size) == [len(block) for block in expected]


def test_blocks_hold_all_documents_in_order_and_their_own_prompts():
    documents = [part(f"document {i} " * (i % 5)) for i in range(11)]
    query = part("What is red?")
    settings = {"instruction": None, "max_length": 10**5, "max_doc_length": 50, "block_size": 4}
    found = blocks(PROMPTER, query, documents, **settings)
    assert [(b.start, b.end) for b in found] == [(0, 4), (4, 8), (8, 11)]
    for block in found:
        expected = prompt(query.text, [d.text for d in documents[block.start : block.end]])
        assert block.batch.ids.tolist() == THEIRS.encode(expected).ids


def test_the_query_takes_its_tokens_off_the_capacity_twice():
    documents, query = [Part("x", 100, False)] * 12, Part("q", 250, False)
    settings = {"instruction": None, "max_doc_length": 100, "block_size": 64}
    # 1100 - 500 leaves 600, which is 100 after five of 100; a token more, and a sixth is taken.
    assert [b.end for b in blocks(PROMPTER, query, documents, max_length=1100, **settings)] == [5, 10, 12]
    assert [b.end for b in blocks(PROMPTER, query, documents, max_length=1101, **settings)] == [6, 12]


def test_no_block_is_longer_than_max_length_though_the_rule_does_not_count_the_prompt():
    documents = [part("word " * 20) for _ in range(40)]
    query = part("What is red?")
    most = PROMPTER.overhead() + 2 * query.tokens + 400
    settings = {"instruction": None, "max_length": most, "max_doc_length": documents[0].tokens}
    found = blocks(PROMPTER, query, documents, **settings, block_size=64)
    assert [b.start for b in found] == [0, *(b.end for b in found[:-1])]
    assert found[-1].end == 40
    assert max(len(b.batch.ids) for b in found) <= most
    # Nor shorter than they have to be: with the next document each would be too long.
    for block in found[:-1]:
        more = [d.text for d in documents[block.start : block.end + 1]]
        assert len(PROMPTER.batch(query.text, more).ids) > most


def test_the_overhead_is_the_prompt_of_one_empty_document():
    batch = PROMPTER.batch("q q q", ["some words here"])
    around = PROMPTER.overhead()
    used = 2 * len(OURS.plain(["q q q"])[0]) + len(OURS.plain(["some words here"])[0])
    assert abs(len(batch.ids) - around - used) <= 2
    assert PROMPTER.overhead("Prefer news.") > around
    assert listwise.DOCUMENT_MARK == E
