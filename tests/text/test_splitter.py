"""Documents cut into pieces: nothing lost, nothing too long, cut where a reader would."""

from __future__ import annotations

import re
import time
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("semantic_text_splitter")
pytest.importorskip("tree_sitter")

from jina_local.errors import UsageError
from jina_local.text import definitions
from jina_local.text.splitter import CODE_SIZE, TEXT_SIZE, Piece, fed, split
from jina_local.text.tokenizer import Tokenizer

GRAPHEMES = [
    "a",
    "é",
    "e\u0301",
    "\r\n",
    "🇩🇪",
    "👩‍👩‍👧‍👦",
    "각",
    "\u1112\u1161\u11ab",
    "नि",
    "x\u0300\u0301\u0302",
    "日",
    "。",
    "\u200b",
    "👍🏽",
    "\n",
    " ",
    ". ",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(Path(str(resources.files("jina_local"))) / "bundled_models/pico/gguf/tokenizer.json")


def covered(text: str, pieces: list[Piece]) -> None:
    """Every character that is not white space lies in exactly one piece."""
    at = 0
    for piece in pieces:
        assert at <= piece.start < piece.end <= len(text)
        assert not text[at : piece.start].strip()
        at = piece.end
    assert not text[at:].strip()


def most_tokens(text: str, pieces: list[Piece], tokenizer: Tokenizer) -> int:
    return max((len(ids) for ids in tokenizer.plain([fed(text, piece) for piece in pieces])), default=0)


WORDS = st.sampled_from([
    "# A\n", "## Bé\n", "Title\n=====\n", "---\n", "```\n", "~~~py\n", "- item\n", "    code\n", "| a |\n|---|\n",
    "word ", "Sentence one. ", "\n", "\n\n", "\t", "日本語の文章。", "\u0301", "\u200d", "🇩🇪",
    "\r\n", "\x0c", "\x1c", "\ufeff", "x" * 300, "<|endoftext|>", "def f(x):\n", "    return 1\n", "class A:\n",
    "@d\n", "# c\n", "{", "}", "'", '"""',
    "function g(a) { return a }\n", "func (r *R) M() {}\n", "fn f() {}\n",
])  # fmt: skip
LANGUAGES = [None, "markdown", *sorted(definitions.PARSED)]


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=60), st.sampled_from(LANGUAGES), st.sampled_from([32, 64, 300]))
@example(["# " + "long " * 500, "\n", "text"], "markdown", 32)
@example(["# " + "日" * 80, "\n", "語" * 2000], "markdown", 32)
@example(["x" + "\u0301" * 3000], None, 32)
@example([" " * 3000 + "x"], "python", 32)
@example(["def f(): pass", "\u0301\n", "def g(): pass"], "python", 32)
def test_nothing_is_lost_and_no_piece_is_too_long(tokenizer, parts, language, most):
    text = "".join(parts)
    pieces = split(text, language, tokenizer, most)
    covered(text, pieces)
    assert most_tokens(text, pieces, tokenizer) <= most
    assert pieces == split(text, language, tokenizer, most)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(GRAPHEMES), max_size=400), st.sampled_from([None, "markdown", "python"]))
@example(["a"] * 95 + ["👩‍👩‍👧‍👦"] * 40, None)
@example([" ", "x\u0300\u0301\u0302"] * 200, None)
def test_no_piece_begins_or_ends_inside_a_grapheme(tokenizer, parts, language):
    text = "".join(parts)
    edges, at = {0}, 0
    for part in parts:
        at += len(part)
        edges.add(at)
    for piece in split(text, language, tokenizer, 32):
        assert {piece.start, piece.end} <= edges | {n + 1 for n, c in enumerate(text) if c in ". \n"}


def test_markdown_is_cut_at_headings_and_carries_their_path(tokenizer):
    text = (
        "---\ntitle: x\n---\n\nBefore.\n\n# Guide\n\n## Install ##\n\nRun it.\n\n```sh\n# no heading\n```\n\n"
        "Use\n---\n\n- a\n---\n### Deep\n\nBody.\n\n# End\n"
    )
    found = [(piece.context, text[piece.start : piece.end]) for piece in split(text, "markdown", tokenizer, 200)]
    assert found == [
        ("", "---\ntitle: x\n---\n\nBefore."),
        ("Guide > Install", "# Guide\n\n## Install ##\n\nRun it.\n\n```sh\n# no heading\n```"),
        ("Guide > Use", "Use\n---\n\n- a\n---"),
        ("Guide > Use > Deep", "### Deep\n\nBody."),
        ("End", "# End"),
    ]


def test_a_long_heading_path_keeps_its_inner_headings(tokenizer):
    text = "".join(f"{'#' * n} {'outer' * 16}{n}\n\n" for n in range(1, 6)) + "###### inner\n\ntext"
    (piece,) = split(text, "markdown", tokenizer, 1000)
    assert piece.context.endswith(" > inner")
    assert len(piece.context) <= 200


def test_paragraphs_and_sentences_stay_whole(tokenizer):
    paragraphs = [" ".join(f"Sentence {n} of {m}." for n in range(12)) for m in range(9)]
    text = "\n\n".join(paragraphs)
    pieces = [text[piece.start : piece.end] for piece in split(text, None, tokenizer, 1000)]
    assert len(pieces) > 1
    assert all(len(piece) <= TEXT_SIZE for piece in pieces)
    assert [part for piece in pieces for part in piece.split("\n\n")] == paragraphs
    line = " ".join(paragraphs)
    for piece in split(line, None, tokenizer, 1000):
        assert re.fullmatch(r"Sentence .*\.", line[piece.start : piece.end])


CODE = '''"""A module."""
import os

LIMIT = 3

# Says so.
@decorated
def top(a):
    return a


class Router:
    """Routes."""

    def reset(self):
{body}
    def add(self, way):
        """Add a way."""
        self.ways.append(way)
'''.replace("{body}", "        self.ways = []  # all of them\n" * 50)


def test_code_is_cut_at_definitions_with_qualified_names(tokenizer):
    pieces = split(CODE, "python", tokenizer, 500)
    covered(CODE, pieces)
    first, second, *middle, last = pieces
    assert (first.context, first.defines) == ("", ("LIMIT", "top"))
    assert CODE[first.start : first.end].endswith("return a")
    assert (second.context, second.defines) == ("Router", ("Router",))
    assert [piece.context for piece in middle] == ["Router.reset"] * len(middle)
    assert [piece.defines for piece in middle] == [("Router.reset",)] + [()] * (len(middle) - 1)
    assert (last.context, last.defines) == ("Router.add", ("Router.add",))
    lines = [CODE[piece.start : piece.end] for piece in pieces]
    assert all(len(line) <= CODE_SIZE for line in lines)
    assert lines[2].startswith("    def reset")  # with its indentation
    assert max(map(len, lines[2:-1])) - min(map(len, lines[2:-1])) < CODE_SIZE / 3


def test_a_piece_too_long_in_tokens_is_cut_into_equal_parts(tokenizer):
    text = "Wort für Wort geht es voran. " * 30
    wide = split(text, None, tokenizer, 2000)
    narrow = split(text, None, tokenizer, 120)
    assert len(wide) == 1
    sizes = [piece.end - piece.start for piece in narrow]
    assert most_tokens(text, narrow, tokenizer) <= 120
    assert max(sizes) < 2 * min(sizes)


def test_a_context_that_would_take_the_room_is_left_out(tokenizer):
    text = "# " + "日本語" * 25 + "\n\n" + "Some words of text. " * 10
    assert all(piece.context for piece in split(text, "markdown", tokenizer, 1000))
    pieces = split(text, "markdown", tokenizer, 32)
    assert most_tokens(text, pieces, tokenizer) <= 32
    assert not any(piece.context for piece in pieces)


def test_nothing_visible_is_no_piece(tokenizer):
    assert split("", None, tokenizer, 100) == []
    assert split(" \n\t\r\n\u3000", "markdown", tokenizer, 100) == []


@pytest.mark.parametrize("most", [31, 0, -1, 100.0, True, "100"])
def test_a_budget_that_cannot_be_kept_is_refused(tokenizer, most):
    with pytest.raises(UsageError, match="whole number from 32"):
        split("text", None, tokenizer, most)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "ab " * 100_000,
        "日本語" * 30_000,
        "a. " * 60_000,
        "#" * 200_000,
        "# " + " " * 200_000 + "x",
        "> " * 50_000,
        "[" * 100_000,
        "👩‍" * 20_000,
        "e" + "\u0301" * 50_000,
    ],
    ids=["word", "words", "japanese", "sentences", "hashes", "spaces", "quotes", "brackets", "joined", "marks"],
)
@pytest.mark.parametrize("language", [None, "markdown", "python"])
def test_nasty_texts_take_a_bounded_time(tokenizer, text, language):
    start = time.process_time()
    pieces = split(text, language, tokenizer, 256)
    assert time.process_time() - start < 10
    covered(text, pieces)
