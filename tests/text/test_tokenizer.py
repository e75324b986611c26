"""tokens: ids equal to the tokenizer library's own, truncation that keeps the closing token, exact long cuts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_local import registry
from jina_local.embedding.request import resolve
from jina_local.errors import ModelDamaged, TextError, UsageError
from jina_local.inference.batching import pack
from jina_local.text import gate
from jina_local.text.tokenizer import Tokenizer
from tests import tiny

needs_shared = pytest.mark.skipif(not tiny.SHARED.exists(), reason=f"the test data is not at {tiny.SHARED}")
MODEL = registry.lookup("v5-nano").spec
SPEC = resolve(MODEL)
BARE = replace(SPEC, prefix="")
_cache: dict[str, tuple[Tokenizer, tokenizers.Tokenizer]] = {}


def both(kind: str, real: bool = False) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    key = f"{kind}{real}"
    if key not in _cache:
        text = tiny.real_tokenizer(kind) if real else tiny.tokenizer(kind).to_str()
        _cache[key] = Tokenizer(text, key), tokenizers.Tokenizer.from_str(text)
    return _cache[key]


def nasty() -> list[str]:
    texts = json.loads((tiny.SHARED / "nasty" / "blns.json").read_text(encoding="utf-8"))
    for item in json.loads((tiny.SHARED / "nasty" / "unicode.json").read_text(encoding="utf-8"))["texts"]:
        text = item["text"] if "text" in item else "".join(map(chr, item["codepoints"]))
        texts.append(text)
    return texts


def valid(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("kind", ["small", "nano"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_ids_are_the_librarys(kind, text):
    ours, theirs = both(kind)
    assert ours.encode(["Document: " + text], BARE).ids[0].tolist() == theirs.encode("Document: " + text).ids


@needs_shared
@pytest.mark.parametrize("kind", ["small", "nano"])
def test_ids_are_the_librarys_on_naughty_strings(kind):
    ours, theirs = both(kind, real=True)
    texts = [t for t in nasty() if valid(t)]
    assert len(texts) > 500
    for text, ids in zip(texts, ours.encode(texts, replace(SPEC, max_tokens=10**6)).ids, strict=True):
        assert ids.tolist() == theirs.encode("Document: " + text).ids, repr(text)[:80]


@needs_shared
@pytest.mark.parametrize(("kind", "key", "closing"), [("small", "qwen3", []), ("nano", "llama3", [128001])])
def test_ids_are_the_published_ones(kind, key, closing):
    ours, _ = both(kind, real=True)
    fixtures = json.loads((tiny.SHARED / "tokenizers" / "fixtures.json").read_text(encoding="utf-8"))[key]
    assert len(fixtures) == 47
    for case in fixtures:
        if case["text"] or closing:
            assert ours.encode([case["text"]], BARE).ids[0].tolist() == case["ids"] + closing


def test_nano_closes_every_text_and_small_none():
    nano, small = both("nano")[0], both("small")[0]
    assert (nano.opening, nano.closing) == ([], [nano.ids("")[-1]])
    assert (small.opening, small.closing) == ([], [])


def test_small_normalises_and_nano_does_not():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    small, nano = both("small")[0], both("nano")[0]
    assert small.ids(composed) == small.ids(decomposed)
    assert nano.ids(composed) != nano.ids(decomposed)


@pytest.mark.parametrize("limit", [1, 2, 7, 8])
def test_truncation_keeps_the_closing_token(limit):
    ours, theirs = both("nano")
    text = "The quick brown fox jumps over the lazy dog"
    if limit == 1:
        with pytest.raises(UsageError, match="max_length 1 leaves no room beside 1 special tokens"):
            ours.encode([text], replace(BARE, max_tokens=1))
        return
    encoded = ours.encode([text, "x"], replace(BARE, max_tokens=limit))
    whole = theirs.encode(text).ids
    assert encoded.ids[0].tolist() == whole[: limit - 1] + whole[-1:]
    assert encoded.truncated.tolist() == [True, False]
    theirs.enable_truncation(limit)
    assert encoded.ids[0].tolist() == theirs.encode(text).ids
    theirs.no_truncation()


def test_a_text_that_just_fits_is_not_marked():
    ours, theirs = both("nano")
    n = len(theirs.encode("hello world out there").ids)
    assert not ours.encode(["hello world out there"], replace(BARE, max_tokens=n)).truncated[0]
    assert ours.encode(["hello world out there"], replace(BARE, max_tokens=n - 1)).truncated[0]


def test_overflow_error_names_the_text_and_the_limit():
    with pytest.raises(TextError, match=r"text 1: has more than the 4 tokens that are allowed") as error:
        both("nano")[0].encode(["a", "many words in this one"], replace(BARE, max_tokens=4, overflow="error"))
    assert error.value.index == 1


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize(
    "text",
    [
        "word " * 50000,
        "a" * 300000,
        " " * 300000,
        "\n" * 100000 + "x" * 1000,
        "日本語" * 60000,
        "e\u0301" * 90000,
        "👩‍👩‍👧‍👦" * 20000,
        "1234567890" * 20000,
        "".join(chr(32 + i * 7 % 900) for i in range(200000)),
    ],
    ids=["words", "one word", "spaces", "newlines", "kana", "combining", "emoji", "digits", "mixed"],
)
def test_a_long_text_is_cut_where_the_whole_would_be(kind, text):
    ours, theirs = both(kind)
    room = 512 - len(ours.closing)
    expected = theirs.encode(text, add_special_tokens=False).ids[:room] + ours.closing
    encoded = ours.encode([text], replace(BARE, max_tokens=512))
    assert encoded.ids[0].tolist() == expected
    assert encoded.truncated[0]


PIECES = [
    "a", "the", "Straße", "e\u0301", "\u0301", "\u0345", "\u0d4e", "日本", "한국", "é", "²", "_", "'s", "'S", "12",
    "<", ">", ".", "…", "\u200d", "\u00a0", "\u2003", "\u0085", "\x1c", " ", "  ", "\n", "\r\n", "\t", "\ufeff",
    "\u0600", "👩\u200d👧", "\x00", "<|endoftext|>", "<|end_of_text|>", "<|mask|>", "<mask>", "<s>", "</s>",
    "Document", "Query:", "Ⅳ", "x" * 70,
]  # fmt: skip


def gated(kind, real=False):
    """A tokenizer as `from_file` reads it."""
    key = f"{kind}{real} gated"
    if key not in _cache:
        text = tiny.real_tokenizer(kind) if real else tiny.tokenizer(kind).to_str()
        _cache[key] = Tokenizer(text, key, gate.check_body(json.loads(text), key)), None
    return _cache[key][0]


def assert_counts_alone(ours, texts, prefix, most=10**6):
    spec = replace(SPEC, prefix=prefix, max_tokens=most)
    encoded = ours.encode(texts, spec)
    around = len(ours.opening) + len(ours.closing)
    expected = [
        min(len(body) + around, count)
        for body, count in zip(ours.plain(texts, most), encoded.counts.tolist(), strict=True)
    ]
    assert ours.counts_alone(texts, encoded, spec) == expected


@pytest.mark.parametrize("kind", ["small", "nano", "v3"])
@settings(max_examples=400, deadline=None)
@given(
    texts=st.lists(st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=80))),
    prefix=st.sampled_from(["Document: ", "Query: ", "x", "\u0301", "<s", " \n"]),
    most=st.sampled_from([8, 40, 10**6]),
)
def test_a_text_is_counted_without_its_prompt_as_if_it_had_none(kind, texts, prefix, most):
    assert_counts_alone(gated(kind), texts, prefix, most)


@needs_shared
@pytest.mark.parametrize("kind", ["small", "nano", "v3"])
def test_naughty_strings_are_counted_without_their_prompt(kind):
    ours, texts = gated(kind, real=True), [t for t in nasty() if valid(t)]
    for prefix in ("Document: ", "Represent the query for retrieving evidence documents: "):
        for before in ("", "a ", "the 1st ", "café "):
            assert_counts_alone(ours, [before + text for text in texts], prefix)


def test_only_the_first_word_is_tokenised_again(monkeypatch):
    ours, seen = gated("nano"), []
    encoded = ours.encode(["many words follow"], SPEC)
    batch = ours._batch
    monkeypatch.setattr(ours, "_batch", lambda texts: (seen.extend(texts), batch(texts))[1])
    ours.counts_alone(["many words follow"], encoded, SPEC)
    assert seen == ["many", "Document: many"]
    open_to_all, _ = both("nano")  # nothing is known of its splits
    assert open_to_all._head("many words follow") is None


def test_without_room_the_front_of_a_text_is_one_token():
    ours, theirs = both("small")
    text = "many words " * 1000
    assert ours.plain([text, ""], 0) == [theirs.encode(text, add_special_tokens=False).ids[:1], []]


def test_ten_megabytes_on_one_line_cost_what_the_limit_costs():
    import time
    import tracemalloc

    text = "lorem ipsum " * 900_000
    ours = both("nano")[0]
    tracemalloc.start()
    start = time.perf_counter()
    ours.encode([text], replace(SPEC, max_tokens=8192))
    assert time.perf_counter() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\ud800c", r"text 2: invalid surrogate U\+D800 at character 2"),
        (b"bytes", "text 2: is bytes, expected str"),
        (None, "text 2: is NoneType, expected str"),
    ],
)
def test_what_is_no_text_is_named_by_its_place(text, message):
    with pytest.raises(TextError, match=message):
        both("nano")[0].encode(["fine", "fine", text], SPEC)


def test_the_place_is_right_beyond_the_first_block():
    with pytest.raises(TextError, match="text 2500: invalid surrogate"):
        both("nano")[0].encode(["x"] * 2500 + ["\udfff"], SPEC)


def test_empty_text_is_the_prompt_and_without_one_it_is_refused_where_nothing_is_left():
    small, nano = both("small")[0], both("nano")[0]
    assert len(small.encode([""], SPEC).ids[0]) > 0
    assert nano.encode([""], BARE).ids[0].tolist() == nano.closing
    with pytest.raises(TextError, match="text 0: gives no tokens"):
        small.encode([""], BARE)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"model": 5}'])
def test_a_damaged_file_is_our_error(raw):
    with pytest.raises(ModelDamaged, match="where: is not a usable tokenizer"):
        Tokenizer(raw, "where")


def test_the_files_own_truncation_and_padding_are_dropped():
    tok = tiny.tokenizer("nano")
    tok.enable_truncation(3)
    tok.enable_padding(length=50)
    ours = Tokenizer(tok.to_str(), "x")
    assert len(ours.encode(["one two three four five six"], BARE).ids[0]) > 6
    assert len(ours.encode(["one"], BARE).ids[0]) < 10


def test_fingerprints_tell_tokenizers_apart():
    prints = {both(kind)[0].fingerprint() for kind in ("small", "nano")}
    assert len(prints) == 2
    assert Tokenizer(tiny.tokenizer("nano").to_str(), "again").fingerprint() in prints


@pytest.mark.parametrize(
    ("pooling", "rows", "owner"),
    [
        ("last", [2, 3, 7], [0, 1, 2]),
        ("first", [0, 3, 4], [0, 1, 2]),
        ("mean", list(range(8)), [0, 0, 0, 1, 2, 2, 2, 2]),
    ],
)
def test_pack(pooling, rows, owner):
    from jina_local.text.tokenizer import Encoded

    ids = [np.array(x, np.int32) for x in ([9, 9], [1, 2, 3], [4], [5, 6, 7, 8])]
    batch = pack(Encoded(ids, np.zeros(4, bool)), [1, 2, 3], pooling)
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.starts.tolist() == [0, 3, 4, 8]
    assert (batch.rows.tolist(), batch.owner.tolist()) == (rows, owner)
    assert {a.dtype for a in vars(batch).values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("kind", ["v3", "nano"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200).filter(valid))
def test_located_tokens_are_the_librarys_and_begin_within_the_text_in_order(kind, text):
    ours, theirs = both(kind)
    ids, starts = ours.located(text)
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert (np.diff(starts) >= 0).all()
    assert ((starts >= 0) & (starts <= len(text))).all()


def test_a_token_that_brings_its_space_along_begins_at_the_word():
    tok = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("\u2581ab", -1.0), ("\u2581", -1.0)], 0, False)
    )
    tok.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tok.post_processor = tokenizers.processors.TemplateProcessing("$A", "$A $B", [])
    text = "ab  ab "
    assert [text[a:b] for a, b in tok.encode(text).offsets] == ["ab", " ", " ab", " "]
    ids, starts = Tokenizer(tok.to_str(), "x").located(text)
    assert ids.tolist() == [1, 2, 1, 2]
    assert starts.tolist() == [0, 2, 4, 6], "white space alone begins where it stands"
