"""Questions to small indexes: modes, what goes missing, filters, scores and their parts, factors of code."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest

from jina_local.errors import UsageError
from jina_local.search import nearest, query, ranking, words
from jina_local.search.database import Database
from jina_local.search.query import Question, related, search
from jina_local.search.writer import writing

from .made_index import Made, Passage, opened, write

DIM = 64
TEXTS = {
    "router.md": "To reset the router, hold the button for ten seconds.",
    "cake.md": "A cake needs flour, eggs and an oven.",
    "garden/roses.md": "Roses are pruned in March.",
    "garden/router_table.py": "def reset(router): return router.table.clear()",
}


def embed(texts):
    """A text's vector is the sum of its words' random vectors, so that texts with common words are near."""

    def of(word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).standard_normal(DIM)

    rows = np.stack([sum(of(w) for w in text.lower().split()) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embed_one(text):
    return embed([text])[0]


def made(texts):
    for n, (path, text) in enumerate(texts.items()):
        yield Made(path, "python" if path.endswith(".py") else "markdown", [Passage(text)], mtime_ns=1000 + n)


@pytest.fixture
def database(tmp_path):
    with opened(tmp_path / "index.sqlite", made(TEXTS), embed) as found:
        yield found


def names(answer):
    return [os.path.relpath(hit.document.path, b"/made").decode() for hit in answer.hits]


def test_hybrid_finds_by_words_and_vectors(database):
    answer = search(database, Question("reset the router"), embed_one)
    assert answer.mode == "hybrid"
    assert answer.missing == ()
    assert answer.chunks == 4
    assert names(answer)[0] == "router.md"
    best = answer.hits[0]
    assert best.bm25 > 0
    assert best.cosine == pytest.approx(embed_one("reset the router") @ embed([TEXTS["router.md"]])[0], abs=1e-3)
    roses = answer.hits[names(answer).index("garden/roses.md")]
    assert roses.bm25 is None
    assert roses.cosine is not None


def test_the_score_is_the_sum_of_both_standardised_scores(database):
    text = "pruned roses eggs"
    answer = search(database, Question(text), embed_one)
    found = dict(zip(names(answer), answer.hits, strict=True))
    bm25 = np.array([found[name].bm25 or 0 for name in TEXTS])
    cosine = np.array([found[name].cosine for name in TEXTS])
    expected = sum(part * (x - x.mean()) / x.std() for part, x in ((1, bm25), (0.8, cosine)))
    factors = np.array([sum(found[name].factors.values()) for name in TEXTS])
    assert np.array([found[name].score for name in TEXTS]) - factors == pytest.approx(expected, abs=0.02)


def test_lexical_needs_no_model(database):
    answer = search(database, Question("oven", mode="lexical"))
    assert (answer.mode, answer.missing, names(answer)) == ("lexical", (), ["cake.md"])
    assert answer.hits[0].score == answer.hits[0].bm25
    assert answer.hits[0].cosine is None
    assert search(database, Question("qwertz", mode="lexical")).hits == ()


def test_vector_has_every_passage(database):
    answer = search(database, Question("roses march", mode="vector"), embed_one)
    assert answer.mode == "vector"
    assert len(answer.hits) == 4
    assert names(answer)[0] == "garden/roses.md"
    assert answer.hits[0].score == answer.hits[0].cosine
    assert answer.hits[0].bm25 is None


def test_a_question_without_words_is_asked_by_its_vector(database):
    answer = search(database, Question("?!"), embed_one)
    assert len(answer.hits) == 4
    assert all(np.isfinite(hit.score) for hit in answer.hits)


@pytest.mark.parametrize("mode", ["hybrid", "vector"])
def test_without_a_model_words_answer_and_it_is_said(database, mode):
    answer = search(database, Question("oven", mode=mode))
    assert answer.mode == "lexical"
    assert answer.missing == ("No model was given: words alone answered.",)
    assert names(answer) == ["cake.md"]
    told = search(database, Question("oven", mode=mode), missing=["The model is damaged."])
    assert told.missing == ("The model is damaged.",)


def test_without_vectors_words_answer_and_it_is_said(tmp_path):
    with opened(tmp_path / "index.sqlite", made(TEXTS), None) as database:
        answer = search(database, Question("oven"), embed_one)
    assert answer.mode == "lexical"
    assert names(answer) == ["cake.md"]
    assert answer.missing == ("4 of 4 passages have no vector yet: run `index` to go on.",)


def test_passages_without_a_vector_are_found_by_their_words(tmp_path):
    path = tmp_path / "index.sqlite"
    write(path, made(TEXTS), embed)
    with writing(path, "test") as writer, writer.transaction():
        document, chunk = next(writer.documents()), next(writer.chunks())
        writer.add(replace(document, path=b"/made/new.md"), [replace(chunk, text="the newest router of all")])
    with Database(path) as database:
        answer = search(database, Question("newest router"), embed_one)
    assert answer.mode == "hybrid"
    assert names(answer)[0] == "new.md"
    assert answer.hits[0].cosine is None
    assert answer.hits[0].bm25 > 0
    assert answer.missing == ("1 of 5 passages have no vector yet: run `index` to go on.",)


def test_a_slow_kernel_is_said(database, monkeypatch):
    monkeypatch.setattr(nearest, "kernel", lambda: "numpy")
    assert search(database, Question("oven"), embed_one).missing == ()
    monkeypatch.setattr(query, "_SLOW_WITHOUT_KERNEL", 3)
    [said] = search(database, Question("oven"), embed_one).missing
    assert "pip install 'jina_local[search]'" in said


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"languages": ("python",)}, {"garden/router_table.py"}),
        ({"paths": ("*.md",)}, {"router.md", "cake.md", "garden/roses.md"}),
        ({"paths": ("garden",)}, {"garden/roses.md", "garden/router_table.py"}),
        ({"paths": ("garden/*.md", "cake.md")}, {"garden/roses.md", "cake.md"}),
        ({"since_ns": 1002}, {"garden/roses.md", "garden/router_table.py"}),
        ({"since_ns": 1002, "languages": ("markdown",)}, {"garden/roses.md"}),
        ({"paths": ("nowhere/*",)}, set()),
    ],
)
def test_filters_narrow_the_answer_and_change_no_score(database, filters, expected):
    text = "reset the router in March"
    whole = {hit.chunk.id: hit for hit in search(database, Question(text), embed_one).hits}
    answer = search(database, Question(text, **filters), embed_one)
    assert set(names(answer)) == expected
    assert [hit.cosine for hit in answer.hits] == [whole[hit.chunk.id].cosine for hit in answer.hits]
    assert [hit.bm25 for hit in answer.hits] == [whole[hit.chunk.id].bm25 for hit in answer.hits]


def test_k_and_min_score(database):
    hits = search(database, Question("the router"), embed_one).hits
    assert len(search(database, Question("the router", k=2), embed_one).hits) == 2
    least = hits[1].score
    assert search(database, Question("the router", min_score=least), embed_one).hits == hits[:2]


def test_a_reranker_decides_the_order(database):
    asked = []

    def rerank(text, passages):
        asked.append((text, list(passages)))
        return [-len(passage) for passage in passages]

    answer = search(database, Question("reset the router", k=2), embed_one, rerank)
    assert names(answer) == ["garden/roses.md", "cake.md"]
    assert [hit.score for hit in answer.hits] == [hit.reranked for hit in answer.hits]
    assert answer.hits[0].reranked == -len(TEXTS["garden/roses.md"])
    assert asked[0][0] == "reset the router"
    assert set(asked[0][1]) == set(TEXTS.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": " "}, "empty"),
        ({"mode": "fuzzy"}, "hybrid, vector, lexical"),
        ({"k": 0}, "from 1"),
        ({"k": True}, "k True"),
    ],
)
def test_wrong_questions_are_refused(database, given, message):
    with pytest.raises(UsageError, match=message):
        search(database, Question(**{"text": "router", **given}), embed_one)


def test_related_passages(database):
    with database.reader() as reader:
        ids = {chunk.text: chunk.id for chunk in reader.chunks()}
    own = ids[TEXTS["router.md"]]
    answer = related(database, own, Question("", k=2))
    assert len(answer.hits) == 2
    assert own not in {hit.chunk.id for hit in answer.hits}
    expected = embed([TEXTS["router.md"]]) @ embed(list(TEXTS.values())).T
    assert answer.hits[0].cosine == pytest.approx(np.sort(expected[0])[-2], abs=1e-3)


def test_related_says_if_there_is_no_vector(tmp_path):
    with (
        opened(tmp_path / "index.sqlite", made(TEXTS), None) as database,
        pytest.raises(UsageError, match="no vector"),
    ):
        related(database, 1, Question(""))


def test_a_hit_says_whether_its_file_is_as_it_was(tmp_path):
    path = tmp_path / "index.sqlite"
    write(path, made(TEXTS), None)
    file = tmp_path / "kept.md"
    file.write_text("an oven")
    now = file.stat()
    with writing(path, "test") as writer, writer.transaction():
        document, chunk = next(writer.documents()), next(writer.chunks())
        fresh = replace(
            document, path=os.fsencode(file), root=os.fsencode(tmp_path), size=now.st_size, mtime_ns=now.st_mtime_ns
        )
        writer.add(fresh, [replace(chunk, text="an oven")])
    with Database(path) as database:
        states = {hit.document.path: hit.state for hit in search(database, Question("oven")).hits}
        assert states == {os.fsencode(file): "", b"/made/cake.md": "gone"}
        file.write_text("no more")
        os.utime(file, ns=(1, 1))
        assert [h.state for h in search(database, Question("oven")).hits if h.document.path == os.fsencode(file)] == [
            "changed"
        ]


def test_common_words_decide_nothing_and_their_rows_are_bounded(tmp_path, monkeypatch):
    """With limits as small as the index; the word `number` is in every passage, `blue` in a third of them."""
    monkeypatch.setattr(words, "SCORED", 20)
    monkeypatch.setattr(words, "ADDED", 60)
    texts = [f"the number {n}{' blue' * (n % 3 == 1)}{' oven' * (n < 3)}" for n in range(100)]
    with opened(
        tmp_path / "index.sqlite", [Made("a.txt", "text", [Passage(text) for text in texts])], None
    ) as database:
        answer = search(database, Question("blue oven number", k=100, mode="lexical"))
        assert sorted(hit.chunk.text.split()[2] for hit in answer.hits) == ["0", "1", "2"]
        assert answer.hits[0].chunk.text == "the number 1 blue oven"
        assert answer.missing == ()
        common = search(database, Question("number", k=100, mode="lexical"))
        assert {int(hit.chunk.text.split()[2]) for hit in common.hits} == set(range(80, 100))
        assert common.missing == ("The question's words are all common: 20 of the passages with them were compared.",)


ADD = "def add_item(cart, item): cart.append(item)"
CODE = [
    Made("shop/cart.py", "python", [Passage(ADD, "add_item", ("add_item",))]),
    Made("shop/use.py", "python", [Passage("add_item(cart, add_item(cart, item), add_item)"), Passage("other()")]),
    Made("tests/test_cart.py", "python", [Passage("def test_it(): assert add_item([], item)", "", ("test_it",))]),
    Made("vendor/cart.py", "python", [Passage(ADD, "add_item", ("add_item",))]),
    *(Made(f"rest/{n}.py", "python", [Passage(f"number = {n}")]) for n in range(20)),
]


@pytest.fixture
def code(tmp_path):
    with opened(tmp_path / "code.sqlite", CODE, None) as found:
        yield found


def test_a_definition_is_before_its_uses_and_tests_and_vendored_files_are_last(code):
    answer = search(code, Question("add_item", mode="lexical"))
    assert names(answer)[0] == "shop/cart.py"
    by_name = dict(zip(names(answer), answer.hits, strict=True))
    assert by_name["shop/cart.py"].factors["defined"] > 0
    assert by_name["tests/test_cart.py"].factors["test"] < 0
    assert by_name["vendor/cart.py"].factors["vendored"] < 0
    for hit in answer.hits:
        assert hit.score == pytest.approx(hit.bm25 + sum(hit.factors.values()))


def test_a_question_for_tests_gets_them(code):
    answer = search(code, Question("test of add_item", mode="lexical"))
    by_name = dict(zip(names(answer), answer.hits, strict=True))
    assert "test" not in by_name["tests/test_cart.py"].factors


def test_more_passages_of_a_definition_lose_a_share_each(tmp_path):
    many = Made("a.py", "python", [Passage(f"reset {'x ' * n}", "Router") for n in range(3)])
    with opened(tmp_path / "index.sqlite", [many, *CODE], None) as database:
        hits = search(database, Question("reset", mode="lexical")).hits
    losses = [hit.factors.get("repeated", 0) for hit in hits]
    assert losses[0] == 0
    assert losses[1] < 0
    assert losses[2] == pytest.approx(2 * losses[1])


def test_prose_has_no_factors(tmp_path):
    notes = [Made(f"tests/{n}.md", "markdown", [Passage("reset"), Passage("reset now")]) for n in range(3)]
    with opened(tmp_path / "index.sqlite", notes, None) as database:
        assert all(not hit.factors for hit in search(database, Question("reset", mode="lexical")).hits)


@pytest.mark.parametrize(
    ("question", "path", "defines", "factors"),
    [
        ("add_item", "shop/cart.py", ["Cart.add_item"], {"defined"}),
        ("where is AddItem", "shop/cart.py", ["Cart.add_item"], {"defined"}),
        ("adding items", "shop/cart.py", ["Cart.add_item"], {"defines"}),
        ("empty the cart", "shop/cart.py", ["a"], {"file"}),
        ("unrelated", "shop/cart.py", ["Cart.add_item"], set()),
        ("unrelated", "shop/cart.py", ["LIMIT"], {"inside"}),
        ("unrelated", "shop/tests/cart.py", ["a"], {"test"}),
        ("unrelated", "third_party/cart.py", ["a"], {"vendored"}),
    ],
)
def test_factors(question, path, defines, factors):
    assert set(ranking.factors(ranking.Asked.of(question), path, "python", defines)) == factors
