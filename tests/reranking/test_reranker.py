"""The Reranker over a made-up engine: words, order, passes, failures."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray

from jina_local import backends, registry
from jina_local.errors import EngineError, ModelDamaged, NonFiniteError, TextError, UsageError
from jina_local.formats import safetensors
from jina_local.reranking.listwise import Prompter, prompt
from jina_local.reranking.reranker import Ranked, Reranker
from jina_local.spec import RERANK, Budget, ModelFiles
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.projector import Projector
from tests import tiny
from tests.fakes import FakeBackend, noise

KINDS = {"listwise": "reranker-v3", "pairwise": "reranker-v2"}
HIDDEN = 16
PROJECT = Projector(*(np.random.default_rng(5).normal(size=s).astype(np.float32) for s in ((24, HIDDEN), (12, 24))))
QUERY = "Which planet is red?"
DOCUMENTS = [
    "Mars is called the Red Planet.", "Venus", "", "日本語のテキスト 👩‍👩‍👧‍👦", "def f(x):\n\treturn x",
    "Jupiter " * 30, "e\u0301 العربية", "<|im_end|> </s> <s>", "Saturn has rings", "naïve",
]  # fmt: skip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackend]:
    """The made-up engines that were opened; their class and size follow from the file's name."""
    engines: list[FakeBackend] = []

    def open_backend(name, path, *, task=None, adapters=None, device=None, threads=None, isolate=None):
        assert (task, adapters) == (None, None)
        pairs = path.name == "pairwise"
        budget = Budget(tokens=100, texts=8, padded=False)
        engines.append(
            FakeBackend(hidden=1 if pairs else HIDDEN, vocab=1000, lanes=3, budget=budget, looks_ahead=pairs)
        )
        return engines[-1]

    monkeypatch.setattr(backends, "open_backend", open_backend)
    return engines


@pytest.fixture
def reranker(opened, tmp_path):
    """A function: "listwise" or "pairwise" -> an open Reranker over a made-up engine."""
    open_ones = []

    def make(scoring: str) -> Reranker:
        open_ones.append(Reranker(found(tmp_path, scoring)))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.close()


def found(folder, scoring: str) -> ModelFiles:
    """What the finder says of a made-up reranker."""
    tokenizer, projector = folder / f"{scoring}.json", folder / "projector.safetensors"
    tiny.tokenizer(KINDS[scoring]).save(str(tokenizer))
    tensors = {"projector.0.weight": PROJECT.first, "projector.2.weight": PROJECT.second}
    if not projector.exists():
        safetensors.write(projector, {n: ("F32", t.shape) for n, t in tensors.items()}, iter(tensors.items()), {})
    row = registry.lookup(KINDS[scoring]).spec
    model = replace(row, max_tokens=min(row.max_tokens, 8192))
    return ModelFiles(
        model, "gguf", {RERANK: folder / scoring}, "Q8_0", tokenizer, None, ("why",),
        projector=projector if scoring == "listwise" else None,
    )  # fmt: skip


def library(scoring: str) -> tokenizers.Tokenizer:
    return tiny.tokenizer(KINDS[scoring])


def logit(query: str, document: str) -> float:
    """What the made-up engine gives for a pair that is read whole."""
    ids = np.array(library("pairwise").encode(query, document).ids, np.int32)
    return float(noise(ids.tobytes(), 1)[0])


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def projected(documents: list[str], query: str = QUERY) -> NDArray[np.float32]:
    """(n_documents + 1, dim): the documents and then the query, as one block of the made-up engine."""
    batch = Prompter(Tokenizer(library("listwise").to_str(), "x")).batch(query, documents)
    states = np.stack([noise(batch.ids[: row + 1].tobytes(), HIDDEN) for row in batch.rows])
    return np.maximum(states @ PROJECT.first.T, 0) @ PROJECT.second.T


def test_pairs_are_scored_by_the_sigmoid_of_their_logit(reranker):
    ranked = reranker("pairwise").rerank(QUERY, DOCUMENTS)
    expected = [1 / (1 + np.exp(-logit(QUERY, d))) for d in DOCUMENTS]
    assert [one.index for one in ranked] == sorted(range(len(DOCUMENTS)), key=lambda i: -expected[i])
    np.testing.assert_allclose([one.score for one in ranked], sorted(expected, reverse=True), rtol=1e-6)


def test_a_block_is_scored_by_cosines_of_the_projected_marks(reranker):
    ranked = reranker("listwise").rerank(QUERY, DOCUMENTS)
    rows = projected(DOCUMENTS)
    expected = [cosine(row, rows[-1]) for row in rows[:-1]]
    assert [one.index for one in ranked] == sorted(range(len(DOCUMENTS)), key=lambda i: -expected[i])
    np.testing.assert_allclose([one.score for one in ranked], sorted(expected, reverse=True), atol=1e-6)


def test_several_blocks_share_one_query(reranker, opened):
    model = reranker("listwise")
    ranked = model.rerank(QUERY, DOCUMENTS, block_size=4, return_embeddings=True)
    parts = [projected(DOCUMENTS[start : start + 4]) for start in (0, 4, 8)]
    best = [max((1 + cosine(row, part[-1])) / 2 for row in part[:-1]) for part in parts]
    query = sum(w * part[-1].astype(np.float64) for w, part in zip(best, parts, strict=True)) / sum(best)
    rows = np.concatenate([part[:-1] for part in parts])
    scores = [cosine(row, query) for row in rows]
    assert [one.index for one in ranked] == sorted(range(len(DOCUMENTS)), key=lambda i: -scores[i])
    for one in ranked:
        assert one.score == pytest.approx(scores[one.index], abs=1e-6)
        np.testing.assert_allclose(one.embedding, rows[one.index] / np.linalg.norm(rows[one.index]), atol=1e-6)
        assert (one.embedding.dtype, one.embedding.shape) == (np.float32, (12,))
    assert [len(batch.starts) for batch in opened[0].batches] == [2, 2, 2]


@pytest.mark.parametrize(
    ("n", "block_size", "sizes"),
    [(1, None, [1]), (125, None, [125]), (130, None, [125, 5]), (125, 125, [125]), (130, 64, [64, 64, 2])],
)
def test_125_documents_are_read_together_unless_fewer_are_asked_for(reranker, opened, n, block_size, sizes):
    ranked = reranker("listwise").rerank(QUERY, ["x"] * n, block_size=block_size)
    assert [len(batch.rows) - 1 for batch in opened[0].batches] == sizes
    assert sorted(one.index for one in ranked) == list(range(n))


def test_a_result_is_plain_and_has_the_callers_own_document(reranker):
    documents = [np.str_("Mars"), "Venus" * 400]
    for scoring in KINDS:
        ranked = reranker(scoring).rerank(
            QUERY, documents, **({"max_doc_length": 9} if scoring == "listwise" else {})
        )
        for one in ranked:
            assert (type(one), type(one.index), type(one.score)) == (Ranked, int, float)
            assert one.document is documents[one.index]
            assert one.embedding is None


@pytest.mark.parametrize("top_n", [1, 3, 10, 99])
def test_top_n_is_the_front_of_the_whole_answer(reranker, top_n):
    for scoring in KINDS:
        model = reranker(scoring)
        assert tuple(model.rerank(QUERY, DOCUMENTS, top_n=top_n)) == model.rerank(QUERY, DOCUMENTS)[:top_n]


def test_equal_scores_keep_the_callers_order(reranker):
    ranked = reranker("pairwise").rerank(QUERY, ["b", "a", "b", "a", "b"])
    by_score = [[one.index for one in ranked if one.document == word] for word in "ab"]
    assert by_score == [[1, 3], [0, 2, 4]]


def test_pairs_do_not_know_their_company(reranker, opened):
    model = reranker("pairwise")
    scores = {one.index: one.score for one in model.rerank(QUERY, DOCUMENTS)}
    grouped = len(opened[0].batches)
    opened[0].batches.clear()
    assert {one.index: one.score for one in model.rerank(QUERY, DOCUMENTS, deterministic=True)} == scores
    assert [len(batch.starts) for batch in opened[0].batches] == [2] * len(DOCUMENTS)
    assert grouped < len(DOCUMENTS)
    for i, document in enumerate(DOCUMENTS):
        assert model.rerank(QUERY, [document])[0].score == scores[i]


def test_long_documents_are_read_in_windows_and_the_best_counts(reranker, opened):
    model, tok = reranker("pairwise"), library("pairwise")
    document = " ".join(f"planet{i} Mars" for i in range(60))
    body, query = (tok.encode(text, add_special_tokens=False).ids for text in (document, QUERY))
    room = 64 - 4 - len(query)
    ends = [*range(room, len(body), room - room // 4), len(body)]
    expected = max(
        float(noise(np.array([0, *query, 2, 2, *body[end - room : end], 2], np.int32).tobytes(), 1)[0])
        for end in ends
    )
    result = model.rerank(QUERY, ["x", document], max_length=64, max_query_length=32)
    long = next(one for one in result.results if one.index == 1)
    assert long.score == pytest.approx(1 / (1 + np.exp(-expected)), rel=1e-6)
    assert sum(len(batch.starts) - 1 for batch in opened[0].batches) == 1 + len(ends)
    assert result.tokens == 64 * len(ends) + 4 + len(query) + len(tok.encode("x", add_special_tokens=False).ids)
    assert (result.cut, result.query_cut, result.failed) == ((), False, ())


def test_without_windows_the_pair_is_cut(reranker, caplog):
    model = reranker("pairwise")
    tok = library("pairwise")
    tok.enable_truncation(40)
    ids = np.array(tok.encode(QUERY, DOCUMENTS[5]).ids, np.int32)
    result = model.rerank(QUERY, DOCUMENTS[4:6], max_length=40, window=False)
    caplog.clear()
    assert (result.cut, result.query_cut) == ((1,), False)
    expected = 1 / (1 + np.exp(-float(noise(ids.tobytes(), 1)[0])))
    assert next(one.score for one in result.results if one.index == 1) == pytest.approx(expected, rel=1e-6)
    with caplog.at_level(logging.WARNING, "jina_local"):
        model.rerank(QUERY * 9, DOCUMENTS[4:6], max_length=40, window=False)
    assert caplog.messages == ["the query was cut; its end was not read", "1 of 2 documents were cut (index 1)"]


def test_what_a_listwise_cut_leaves_is_what_is_read(reranker, opened, caplog):
    model, tok = reranker("listwise"), library("listwise")
    long = "Jupiter is the largest planet"
    with caplog.at_level(logging.WARNING, "jina_local"):
        ranked = model.rerank("red planet or not", [long, "x"], max_doc_length=3, max_query_length=2)
    cut = [tok.decode(tok.encode(text).ids[:n]) for text, n in ((long, 3), ("red planet or not", 2))]
    assert tok.decode(opened[0].batches[0].ids.tolist(), skip_special_tokens=False) == prompt(cut[1], [cut[0], "x"])
    assert {one.document for one in ranked} == {long, "x"}
    assert caplog.messages == ["the query was cut; its end was not read", "1 of 2 documents were cut (index 0)"]
    result = model.rerank("red planet or not", [long, "x"], max_doc_length=3, max_query_length=2)
    assert (result.cut, result.query_cut) == ((0,), True)
    assert result.tokens == len(opened[0].batches[0].ids)


EMPTY = [("both", ""), ("both", " \n\t"), ("listwise", "<|embed_token|> <|rerank_token|>")]


@pytest.mark.parametrize(("whose", "query"), EMPTY)
def test_an_empty_query_is_scored_and_logged_as_empty(reranker, opened, caplog, whose, query):
    for scoring in KINDS if whose == "both" else [whose]:
        model = reranker(scoring)
        caplog.clear()
        ranked = model.rerank(query, DOCUMENTS)
        assert caplog.messages == ["the query is empty, so the order of the documents means little"]
        assert caplog.records[0].levelno == logging.WARNING
        if scoring == "pairwise":
            expected = [1 / (1 + np.exp(-logit(query, document))) for document in DOCUMENTS]
        else:
            rows = projected(DOCUMENTS, query.replace("<|embed_token|>", "").replace("<|rerank_token|>", ""))
            expected = [cosine(row, rows[-1]) for row in rows[:-1]]
        assert {one.index: one.score for one in ranked} == pytest.approx(dict(enumerate(expected)), abs=1e-6)
    caplog.clear()
    reranker("pairwise").rerank("<|embed_token|>", DOCUMENTS)
    assert caplog.messages == [], "to the pairwise model a mark is a text like others"


def test_a_text_is_cut_with_its_marks_and_read_without_them(reranker, opened, caplog):
    mark, model, tok = "<|embed_token|>", reranker("listwise"), library("listwise")
    documents = [mark * 50 + "Mars", mark * 20 + "Venus", mark]
    with caplog.at_level(logging.WARNING, "jina_local"):
        result = model.rerank(f"{mark}red", documents, max_doc_length=30)
    (batch,) = opened[0].batches
    assert tok.decode(batch.ids.tolist(), skip_special_tokens=False) == prompt("red", ["", "Venus", ""])
    assert result.cut == (0,)
    assert caplog.messages == ["1 of 3 documents were cut (index 0)"]


def test_an_instruction_is_part_of_the_prompt(reranker, opened):
    model, tok = reranker("listwise"), library("listwise")
    model.rerank(QUERY, ["x"], instruction="Prefer the news.")
    text = tok.decode(opened[0].batches[0].ids.tolist(), skip_special_tokens=False)
    assert text == prompt(QUERY, ["x"], "Prefer the news.")
    assert "<instruct>\nPrefer the news.\n</instruct>" in text


def test_a_small_max_length_makes_more_blocks_and_changes_no_document(reranker, opened):
    model = reranker("listwise")
    documents = [f"{word} " * 20 for word in ("Mars", "Venus", "Saturn", "Jupiter", "Earth")]
    ranked = model.rerank(QUERY, documents, max_length=650, max_doc_length=100)
    assert len(opened[0].batches) > 1
    assert max(len(batch.ids) for batch in opened[0].batches) <= 650
    assert sorted(one.index for one in ranked) == [0, 1, 2, 3, 4]


def test_a_pair_without_a_score_is_tried_alone_and_then_named(reranker, opened, caplog):
    model = reranker("pairwise")
    opened[0].poison = frozenset(library("pairwise").encode("ß", add_special_tokens=False).ids[-1:])
    documents = ["a", "Größe ß", "b", "c ß"]
    result = model.rerank(QUERY, documents)
    assert result.failed == (1, 3)
    assert sorted(one.index for one in result.results) == [0, 2]
    assert [len(batch.starts) for batch in opened[0].batches[-2:]] == [2, 2]
    assert caplog.messages == ["2 of 4 documents have no score (index 1, 3)"]
    with pytest.raises(
        NonFiniteError, match=r"no usable score for 2 of 2 documents \(index 0, 1\).*run alone"
    ) as error:
        model.rerank(QUERY, ["Größe ß", "ß"])
    assert error.value.indices == (0, 1)


def test_an_infinite_logit_is_no_score(reranker, opened, monkeypatch):
    model, forward = reranker("pairwise"), opened[0].forward

    def overflows(batch, sharers=1, task=None):
        rows = forward(batch, sharers, task)
        rows[batch.starts[1:] - batch.starts[:-1] > 40] = np.inf
        return rows

    monkeypatch.setattr(opened[0], "forward", overflows)
    assert model.rerank(QUERY, ["a", "planet " * 60, "b"]).failed == (1,)


def test_a_window_without_a_score_fails_its_document(reranker, opened):
    model = reranker("pairwise")
    opened[0].poison = frozenset(library("pairwise").encode("ß", add_special_tokens=False).ids[-1:])
    result = model.rerank(QUERY, ["planet " * 80 + "ß", "x"], max_length=64, max_query_length=32)
    assert result.failed == (0,)


def test_a_block_fails_as_a_whole_and_the_others_are_scored(reranker, opened):
    model = reranker("listwise")
    opened[0].poison = frozenset(library("listwise").encode("日").ids[-1:])
    documents = ["a", "b", "日", "c", "d"]
    result = model.rerank(QUERY, documents, block_size=2)
    assert result.failed == (2, 3)
    assert sorted(one.index for one in result.results) == [0, 1, 4]
    assert all(-1 <= one.score <= 1 for one in result.results)
    with pytest.raises(NonFiniteError, match=r"2 of 2 documents \(index 0, 1\).*documents of a block together"):
        model.rerank(QUERY, ["日", "c"], block_size=2)


def test_many_threads_get_what_one_gets(reranker):
    for scoring in KINDS:
        model = reranker(scoring)
        expected = [model.rerank(f"{QUERY} {n}", DOCUMENTS) for n in range(6)]
        got: dict[int, list[Ranked]] = {}
        threads = [
            threading.Thread(target=lambda n=n: got.update({n: model.rerank(f"{QUERY} {n}", DOCUMENTS)}))  # noqa: B023
            for n in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [got[n] for n in range(6)] == expected


def test_the_bar_is_shown_on_request(reranker, capsys):
    for scoring in KINDS:
        reranker(scoring).rerank(QUERY, ["x"], show_progress=True)
        assert "100%" in capsys.readouterr().err
        reranker(scoring).rerank(QUERY, ["x"])
        assert capsys.readouterr() == ("", "")


def test_a_closed_model_says_so(reranker, opened):
    with reranker("pairwise") as model:
        assert repr(model) == "<Reranker jina-reranker-v2-base-multilingual Q8_0 on llama>"
        assert model.spec.origin.reasons == ("why", "it is a fake")
    assert opened[0].closed
    with pytest.raises(EngineError, match="this model is closed"):
        model.rerank(QUERY, ["x"])


WRONG = [
    ("both", {"query": ["a"]}, "the query is list, expected str"),
    ("both", {"query": "a\ud800"}, r"the query: invalid surrogate U\+D800 at character 1"),
    ("both", {"documents": []}, "no documents were given"),
    ("both", {"documents": "text"}, "documents are one str"),
    ("both", {"documents": b"text"}, "documents are bytes; expected a sequence of str"),
    ("both", {"documents": {"a": "b"}}, "documents are dict; expected a sequence of str"),
    ("both", {"documents": iter(["a"])}, "documents are list_iterator; expected a sequence of str"),
    ("both", {"documents": {"a"}}, "documents are set; expected a sequence of str"),
    ("both", {"documents": ["a", None]}, "text 1: is NoneType, expected str"),
    ("both", {"documents": ["a", {"text": "b"}]}, r"text 1: is a dict.*\[d\['text'\] for d in documents\]"),
    ("both", {"documents": ["a", "\udfff"]}, r"text 1: invalid surrogate U\+DFFF"),
    ("both", {"top_n": 0}, "top_n 0 is out of range; expected a whole number from 1"),
    ("both", {"top_n": True}, "top_n True is out of range"),
    ("both", {"top_n": 1.0}, r"top_n 1\.0 is out of range"),
    ("both", {"max_length": 10**6}, r"max_length 1000000 is out of range; expected a whole number from 1 to \d+"),
    ("both", {"max_query_length": "9"}, "max_query_length '9' is out of range"),
    ("both", {"return_embeddings": 1}, "return_embeddings is 1; expected True or False"),
    ("both", {"window": 0}, "window is 0; expected True or False"),
    ("listwise", {"window": False}, "window is for a pairwise reranker, which reads one document at a time"),
    ("listwise", {"overlap_tokens": 0}, "overlap_tokens is for a pairwise reranker.*jina-reranker-v3 is listwise"),
    ("listwise", {"block_size": 126}, "block_size 126 is out of range; expected a whole number from 1 to 125"),
    ("listwise", {"max_doc_length": 0}, "max_doc_length 0 is out of range"),
    ("listwise", {"instruction": ""}, "the instruction is empty"),
    ("listwise", {"instruction": 5}, "the instruction is int, expected str"),
    ("listwise", {"instruction": "\ud800"}, "the instruction: invalid surrogate"),
    ("listwise", {"max_length": 1500}, r"max_length 1500 is too small for a block of one document, which takes \d+ "
     r"tokens: \d+ of the prompt, \d+ of the query, twice, and 2048 of max_doc_length\. Lower .*at most 8192"),
    ("listwise", {"instruction": "x " * 9000}, "too small for a block.*the prompt and its instruction"),
    ("pairwise", {"instruction": "x"}, "instruction is for a listwise reranker, which reads all documents together"),
    ("pairwise", {"block_size": 1}, "block_size is for a listwise reranker"),
    ("pairwise", {"max_doc_length": 9}, "max_doc_length is for a listwise reranker"),
    ("pairwise", {"return_embeddings": True}, "return_embeddings is for a listwise reranker"),
    ("pairwise", {"overlap_tokens": -1}, "overlap_tokens -1 is out of range; expected a whole number from 0"),
    ("pairwise", {"max_length": 1000}, r"max_length 1000 is less than twice max_query_length 512.*=500 or less"),
    ("pairwise", {"max_query_length": 2}, "max_query_length 2 leaves no room for the query beside 2 special tokens"),
    ("pairwise", {"max_length": 4, "window": False}, "max_length 4 leaves no room beside 4 special tokens"),
    ("pairwise", {"window": False, "overlap_tokens": 9}, "overlap_tokens 9 is for windows, and window=False"),
    ("pairwise", {"window": False, "max_query_length": 9}, "max_query_length 9 is for windows"),
]  # fmt: skip


@pytest.mark.parametrize(("whose", "words", "message"), WRONG)
def test_what_cannot_be_honoured_is_refused(reranker, opened, whose, words, message):
    for scoring in KINDS if whose == "both" else [whose]:
        if "window" in words and whose == "both" and scoring == "listwise":
            continue
        with pytest.raises(UsageError, match=message) as error:
            reranker(scoring).rerank(**{"query": QUERY, "documents": ["x"], **words})
        if "text 1" in message:
            assert isinstance(error.value, TextError)
        assert not opened[-1].batches


@pytest.mark.parametrize("longest", [1, 4, 7, 40])
@pytest.mark.parametrize("scoring", KINDS)
def test_a_model_without_room_for_a_document_says_so(opened, tmp_path, scoring, longest):
    files = found(tmp_path, scoring)
    model = Reranker(replace(files, model=replace(files.model, max_tokens=longest)))
    if scoring == "pairwise" and longest > 4:
        assert len(model.rerank(QUERY, DOCUMENTS)) == len(DOCUMENTS)
        return
    with pytest.raises(
        UsageError, match=r"is too small for a block of one document|leaves no room|is less than twice"
    ):
        model.rerank(QUERY, DOCUMENTS)


def test_defaults_may_be_given_by_name(reranker):
    listwise = {"max_doc_length": 2048, "max_query_length": 512, "block_size": 125, "return_embeddings": False}
    pairwise = {"max_length": 1024, "max_query_length": 512, "overlap_tokens": 80, "window": True}
    for scoring, words in (("listwise", listwise), ("pairwise", pairwise)):
        model = reranker(scoring)
        assert model.rerank(QUERY, DOCUMENTS, **words) == model.rerank(QUERY, DOCUMENTS)


def test_files_that_do_not_belong_together_are_refused_when_opened(opened, tmp_path):
    good = found(tmp_path, "listwise")
    plain = tmp_path / "plain.json"
    tiny.tokenizer("small").save(str(plain))
    with pytest.raises(ModelDamaged, match=r"plain\.json: has no token <\|embed_token\|> and no <\|rerank_token\|>"):
        Reranker(replace(good, tokenizer=plain))
    with pytest.raises(ModelDamaged, match="without its projector"):
        Reranker(replace(good, projector=None))
    assert opened[-1].closed
    large = tiny.tokenizer("reranker-v3")
    large.add_tokens([f"<new{i}>" for i in range(1000)])
    large.save(str(plain))
    with pytest.raises(ModelDamaged, match="the model's table 1000 rows"):
        Reranker(replace(good, tokenizer=plain))
    assert all(engine.closed for engine in opened)
