"""The words that FTS5 gets, and that each question finds the texts that hold its words."""

from __future__ import annotations

import sqlite3
import time

import pytest

from jina_local.search import words
from jina_local.search.words import TOKENIZER, match_of, parts_of, terms_of, words_of


def found(text: str, question: str) -> bool:
    """Whether FTS5 finds the text by any word of the question."""
    database = sqlite3.connect(":memory:")
    database.execute(f"create virtual table words using fts5(text, content='', tokenize=\"{TOKENIZER}\")")
    database.execute("insert into words(rowid, text) values (1, ?)", (words_of(text),))
    match = " OR ".join(terms_of(question))
    return bool(database.execute("select rowid from words where words match ?", (match,)).fetchall())


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_words_of(text, expected):
    assert words_of(text) == expected


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


@pytest.mark.parametrize(
    ("name", "parts"),
    [("readFile", ["read", "file"]), ("_read_file2", ["read", "file2"]), ("HTTPError", ["http", "error"]), ("_", [])],
)
def test_parts_of(name, parts):
    assert parts_of(name) == parts


COUNTS = {"router": 30, "reset": 900, "device": 15_000, "press": 40_000, "page": 90_000, "file": 700_000}


def matched(question, counts=COUNTS, rows=1_000_000):
    return match_of(question, lambda term, _: counts.get(term.strip('"'), 0), rows)


def test_rare_words_bring_the_rows_and_common_words_add_to_them():
    match = matched("reset router press file")
    assert match.expression == '("router" OR "reset") AND ("router" OR "reset" OR "press")'
    assert match.most is None


def test_all_words_of_a_small_index_bring_rows():
    match = matched("reset router press file", {**COUNTS, "file": 15_000, "press": 16_000}, rows=19_000)
    assert match.expression == '"router" OR "reset" OR "file" OR "press"'


def test_a_question_of_common_words_is_asked_with_the_rarest_in_bounded_rows():
    assert matched("file page press").expression == '("press") AND ("press" OR "page")'
    assert matched("file page press").most == words.SCORED
    assert matched("file").expression == '"file"'


def test_the_rows_that_a_question_brings_are_bounded():
    counts = {f"w{n}": 3_000 for n in range(50)}
    match = matched(" ".join(counts), counts)
    rare = match.expression.partition(")")[0]
    assert rare.count("OR") + 1 == words.SCORED // 3_000


def test_words_that_ask_are_left_out_unless_there_are_no_others():
    counts = {"how": 5, "do": 5, "i": 5, "reset": 50}
    assert matched("How do I reset?", counts).expression == '"reset"'
    assert matched("How do I?", counts).expression == '"how" OR "do" OR "i"'


def test_a_question_whose_words_stand_nowhere_has_no_match():
    assert matched("qwertz") is None
    assert matched("?!") is None


def test_the_weight_of_a_question_counts_absent_words_but_no_absent_pairs():
    alone, with_absent = matched("router"), matched("router qwertz")
    assert with_absent.expression == alone.expression
    assert with_absent.weight > 2 * alone.weight
    assert matched("router 路由器").weight == alone.weight
    # Twice the rare words, once the common one, as BM25 counts them.
    both = matched("router press")
    assert 2 * alone.weight < both.weight < 2.5 * alone.weight


def test_an_expression_scores_rows_as_it_promises():
    """Each row of the rare words is found, whether or not it has the common word, and one with it is better."""
    database = sqlite3.connect(":memory:")
    database.execute(f"create virtual table words using fts5(text, content='', tokenize=\"{TOKENIZER}\")")
    texts = ["router press", "router other", "press only", "nothing here"] + ["filler text"] * 20
    database.executemany("insert into words(rowid, text) values (?, ?)", enumerate(texts, 1))
    sql = "select rowid, -bm25(words) from words where words match ?"
    found = dict(database.execute(sql, ('("router") AND ("router" OR "press")',)))
    assert set(found) == {1, 2}
    router, press = (dict(database.execute(sql, (term,))) for term in ('"router"', '"press"'))
    assert found[2] == pytest.approx(2 * router[2])
    assert found[1] == pytest.approx(2 * router[1] + press[1])
