"""The words that FTS5 gets, and that each question finds the texts that hold its words."""

from __future__ import annotations

import sqlite3
import time

import pytest

from jina_local.search.words import TOKENIZER, terms_of, words_of


def found(text: str, question: str) -> bool:
    """Whether FTS5 finds the text by any word of the question."""
    database = sqlite3.connect(":memory:")
    database.execute(f"create virtual table words using fts5(text, content='', tokenize=\"{TOKENIZER}\")")
    database.execute("insert into words(rowid, text) values (1, ?)", (words_of(text),))
    match = " OR ".join(terms_of(question))
    return bool(database.execute("select rowid from words where words match ?", (match,)).fetchall())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain words, 12 of them", "plain words, 12 of them"),
        ("readFile(x)", "readFile read File(x)"),
        ("read_file", "readfile read file"),
        ("HTTPServerError", "HTTPServerError HTTP Server Error"),
        ("SHA256Sum float16 NASA __init__ _own", "SHA256Sum SHA256 Sum float16 NASA __init__ _own"),
        ("x_max", "xmax max"),
        ("Größe_ändern", "Größeändern Größe ändern"),
        ("路由器 a", " 路由 由器 器  a"),
        ("リセット", " リセ セッ ット ト "),
        ("한국어를", " 한국 국어 어를 를 "),
        ("ｶﾅ ﬁle", " カナ ナ  file"),
        ("مُحَمَّد", "محمد"),
    ],
)
def test_words_of(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("def encode_chunks(self):", "encodeChunks"),
        ("def encodeChunks() {", "encode_chunks"),
        ("class HTTPServerError", "server"),
        ("running the servers", "Server run"),
        ("café", "CAFE\u0301"),
        ("重置路由器", "路由器"),
        ("重置路由器", "器"),
        ("重置路由器", "重"),
        ("ร้านกาแฟไทย", "กาแฟ"),
        ("हिन्दी भाषा", "भाषा"),
        ("مُحَمَّد", "محمد"),
        ("ｶﾀｶﾅ", "カタ"),
        ('say "hello" NOT', 'hello" NEAR('),
    ],
)
def test_a_question_finds_the_text(text, question):
    assert found(text, question)


@pytest.mark.parametrize(
    ("text", "question"),
    [("重置路由器", "由重"), ("read_file", "write"), ("हिन्दी", "हद")],
)
def test_a_question_does_not_find_another_text(text, question):
    assert not found(text, question)


def test_terms_of_a_question_are_words_whatever_it_holds():
    assert terms_of('a AND "b" OR (c* ^d) -e text:f a') == [
        f'"{word}"' for word in ["a", "and", "b", "or", "c", "d", "e", "text", "f"]
    ]
    assert terms_of("器") == ['"器"*']
    assert terms_of("encode_chunks") == ['"encodechunks"', '"encode"', '"chunks"']
    assert terms_of(" ?!_ ") == []


@pytest.mark.parametrize("piece", ["a", "aB", "a_", "A", "_", "器", "ั", "\u0301"])
def test_a_long_word_takes_linear_time(piece):
    start = time.perf_counter()
    words_of(piece * 200_000)
    assert time.perf_counter() - start < 2
