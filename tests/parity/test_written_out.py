"""v3 and both rerankers, whole calls, against a forward pass that is written out by hand and shares no code with us.

The models are small and their weights random; lengths, limits and defaults are the published ones. Where a number
stands in an expectation, it was worked out on paper.
"""

from __future__ import annotations

import functools
import logging

import numpy as np
import pytest

from jina_local import Embedder, load
from jina_local.reranking.reranker import Reranker
from tests import tiny
from tests.parity import written_out
from tests.parity.written_out import CrossEncoder, ListwiseRanker, RotaryEncoder

_SMALL = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 96}
_CONFIGS = {
    "reranker-v3": {**_SMALL, "num_key_value_heads": 1, "head_dim": 32},
    "reranker-v2": {**_SMALL, "max_position_embeddings": 1026},
    "v3": {**_SMALL, "max_position_embeddings": 8194},
}
_DIGESTS = {
    "reranker-v3": "807e5567d335565eb0c646b2320a73987505b86d25bf1375635ebd3edf60b25f",
    "reranker-v2": "330ef6132c43eaf09e9fcb27b70c2a63b98110613c76a4b3fe49479ab604114a",
    "v3": "330ef6132c43eaf09e9fcb27b70c2a63b98110613c76a4b3fe49479ab604114a",
}
ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("mlx", "onnx", "llama")]
# llama.cpp looks GELU up in a table of half-precision numbers; Qwen3 has none.
LISTWISE, PAIRWISE = 2e-5, {"mlx": 2e-5, "onnx": 2e-5, "llama": 2e-3}
COSINE = {"mlx": 0.9999999, "onnx": 0.9999999, "llama": 0.99999}
E, R = "<|embed_token|>", "<|rerank_token|>"
QUERY = "Which planet is red?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function: kind of model -> its published checkpoint, written once."""
    root = tmp_path_factory.mktemp("checkpoints")
    return functools.cache(lambda kind: tiny.write(root / kind, kind, config=_CONFIGS[kind]))


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    """A function: (kind, engine) -> the open model, of 32 bits: the checkpoint, or a GGUF that is made of it."""
    opened = {}

    def make(kind: str, engine: str) -> Reranker | Embedder:
        if (kind, engine) not in opened:
            place = folder(kind)
            if engine == "llama":
                pytest.importorskip("gguf", reason="the converter needs it: pip install 'jina_local[convert]'")
                from convert.gguf.files import to_gguf

                place = tmp_path_factory.mktemp("gguf") / kind
                tasks = ["retrieval.passage", "separation"] if kind == "v3" else ["rerank"]
                to_gguf(folder(kind), place, tasks=tasks, types=["F32"])
            opened[kind, engine] = load(place, backend=engine)
        return opened[kind, engine]

    yield make
    for one in opened.values():
        one.close()


def scores(ranking) -> np.ndarray:
    """In the order of the documents."""
    return np.array([one.score for one in sorted(ranking, key=lambda one: one.index)])


@pytest.mark.parametrize("kind", _CONFIGS)
def test_the_tokenizers_are_the_ones_that_the_numbers_were_worked_out_with(folder, kind):
    assert written_out.digest(written_out.tokenizer(folder(kind))) == _DIGESTS[kind]


@pytest.fixture(scope="module")
def of_130(folder):
    """130 documents and their scores; the first prompt goes far beyond 1,024 positions."""
    published = ListwiseRanker(folder("reranker-v3"))
    documents = [f"Mars {n}" for n in range(130)]
    expected = published.rerank(QUERY, documents)
    mark = published.tok.token_to_id(E)
    assert [(ids.count(mark), len(ids)) for ids in published.prompts] == [(125, 4615), (5, 623)]
    assert np.ptp(expected) > 1000 * LISTWISE
    return documents, expected


@pytest.mark.sampled
@pytest.mark.parametrize("engine", ENGINES)
def test_130_documents_are_a_block_of_125_and_one_of_5(model, of_130, engine):
    documents, expected = of_130
    found = model("reranker-v3", engine).rerank(QUERY, documents)
    np.testing.assert_allclose(scores(found), expected, atol=LISTWISE)


MARKED = {
    "cut before the marks are gone": (QUERY, [E * 30 + "Mars is red", "Venus is hot", "Jupiter"]),
    "cut within the text": (QUERY, [E * 15 + "Mars is called the Red Planet", R * 3 + "Venus", "x"]),
    "marks in the middle": (QUERY, ["Mars " + (E + " planet ") * 9, "Venus", E]),
    "in the query": (R * 12 + "Which planet is the largest?", ["Mars", "Jupiter is the largest planet", "Saturn"]),
    "the query is marks alone": (R + E, ["Mars is red", "Venus"]),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", MARKED)
def test_marks_in_a_text_count_for_its_cut_and_are_removed_after_it(folder, model, engine, case):
    query, documents = MARKED[case]
    limits = {"max_doc_length": 20, "max_query_length": 16}
    expected = ListwiseRanker(folder("reranker-v3")).rerank(query, documents, **limits)
    found = model("reranker-v3", engine).rerank(query, documents, **limits)
    np.testing.assert_allclose(scores(found), expected, atol=LISTWISE)
    assert np.ptp(expected) > 100 * LISTWISE


@pytest.mark.parametrize("engine", ENGINES)
def test_marks_in_a_text_fill_a_block(folder, model, engine):
    """Of 2048, the query takes 2 x 4. The documents leave 2040 - 702 - 400 - 137 = 801, and the fourth leaves 800."""
    published = ListwiseRanker(folder("reranker-v3"))
    query = "a planet planet planet"
    documents = [E * 700 + "Mars", "a" + " planet" * 399, "a" + " planet" * 136, "a", "Venus", "Saturn has rings"]
    counts = [len(published.tok.encode(text).ids) for text in (query, *documents[:4])]
    assert counts == [4, 702, 400, 137, 1]
    expected = published.rerank(query, documents, longest=2048, max_doc_length=800)
    mark = published.tok.token_to_id(E)
    assert [ids.count(mark) for ids in published.prompts] == [4, 2]
    found = model("reranker-v3", engine).rerank(query, documents, max_length=2048, max_doc_length=800)
    np.testing.assert_allclose(scores(found), expected, atol=LISTWISE)


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_tokens_in_a_text_are_tokens_like_others_to_the_listwise_model(folder, model, engine):
    """Its positions are rotations by place, and its padding token, <|endoftext|>, is masked in no text."""
    published = ListwiseRanker(folder("reranker-v3"))
    documents = ["Mars <|endoftext|><|endoftext|> is red", "Mars is red", "<pad> Mars <pad>", "<|endoftext|>"]
    assert published.tok.encode(documents[3]).ids == [published.tok.token_to_id("<|endoftext|>")]
    for query in (QUERY, "<|endoftext|>Which planet<pad>?"):
        expected = published.rerank(query, documents)
        np.testing.assert_allclose(
            scores(model("reranker-v3", engine).rerank(query, documents)), expected, atol=LISTWISE
        )
        assert abs(expected[0] - expected[1]) > 20 * LISTWISE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("query", ["", " \n"])
def test_an_empty_query_is_scored_and_logged(folder, model, engine, query, caplog):
    documents = ["Mars is red", "Venus", "", "Saturn has rings"]
    with caplog.at_level(logging.WARNING, "jina_local"):
        listwise = model("reranker-v3", engine).rerank(query, documents)
        pairwise = model("reranker-v2", engine).rerank(query, documents)
    assert caplog.messages == ["the query is empty, so the order of the documents means little"] * 2
    expected = ListwiseRanker(folder("reranker-v3")).rerank(query, documents)
    np.testing.assert_allclose(scores(listwise), expected, atol=LISTWISE)
    published, tok = CrossEncoder(folder("reranker-v2")), written_out.tokenizer(folder("reranker-v2"))
    expected = [published.score(tok.encode(query, document).ids) for document in documents]
    np.testing.assert_allclose(scores(pairwise), expected, atol=PAIRWISE[engine])
    assert np.ptp(expected) > 20 * PAIRWISE[engine]


def test_the_positions_of_a_text_with_padding_tokens():
    """Worked out on paper: the padding id 1 has the row 1, and the others go on as though it were not there."""
    assert written_out.position_ids([0, 5, 1, 1, 6, 2, 2, 1, 7, 2]) == [2, 3, 1, 1, 4, 5, 6, 1, 7, 8]
    assert written_out.position_ids([1, 5]) == [1, 2]


PADDED = {
    "once": (QUERY, "Mars <pad> is red"),
    "many, side by side": (QUERY, "<pad><pad> Mars <pad> is <pad><pad><pad> red"),
    "at the end": (QUERY, "Mars is red <pad>"),
    "nothing else": (QUERY, "<pad> <pad>"),
    "in the query": ("<pad> Which <pad><pad> planet?", "Mars is red"),
    "without any": (QUERY, "Mars is red"),
    "to the last position": (QUERY, " ".join(["Mars <pad> planet"] * 336)),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_tokens_in_a_pair_are_read_and_not_counted(folder, model, engine):
    """Each pair alone, and all documents of one query together, where some have padding tokens and some have none."""
    ours, published = model("reranker-v2", engine), CrossEncoder(folder("reranker-v2"))
    tok = written_out.tokenizer(folder("reranker-v2"))
    expected = {case: published.score(tok.encode(*pair).ids) for case, pair in PADDED.items()}
    for case, (query, document) in PADDED.items():
        found = ours.rerank(query, [document])[0].score
        assert found == pytest.approx(expected[case], abs=PAIRWISE[engine]), case
    together = {case: document for case, (query, document) in PADDED.items() if query == QUERY}
    found = scores(ours.rerank(QUERY, list(together.values())))
    np.testing.assert_allclose(found, [expected[case] for case in together], atol=PAIRWISE[engine])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_of_1024_positions_is_read(folder, model, engine):
    """4 special tokens, 5 of the query and 1015 words are 1024; a word more is a second window."""
    ours, published = model("reranker-v2", engine), CrossEncoder(folder("reranker-v2"))
    tok = written_out.tokenizer(folder("reranker-v2"))
    words = ["Mars", "Venus", "Jupiter", "Saturn", "largest"] * 203
    ids = tok.encode("the planet the planet the", " ".join(words)).ids
    assert len(ids) == 1024
    assert written_out.position_ids(ids)[-1] == 1025, "the last row of the table"
    found = ours.rerank("the planet the planet the", [" ".join(words)])
    assert found.tokens == 1024
    assert found[0].score == pytest.approx(published.score(ids), abs=PAIRWISE[engine])
    # The last 1015 of 1016 words, and the first; the better one counts.
    two = [[*ids[:8], *body, 2] for body in (ids[8:-1], [*ids[9:-1], ids[8]])]
    found = ours.rerank("the planet the planet the", [" ".join([*words, "Mars"])])
    assert found.tokens == 2048
    assert found[0].score == pytest.approx(max(map(published.score, two)), abs=PAIRWISE[engine])


@pytest.mark.sampled
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["separation", "retrieval.passage"])
def test_a_text_of_v3_far_beyond_1024_tokens(folder, model, engine, task):
    prompt = {"separation": "", "retrieval.passage": "Represent the document for retrieval: "}[task]
    tok = written_out.tokenizer(folder("v3"))
    text = "Mars Venus <pad> Jupiter " * 400
    ids = tok.encode(prompt + text).ids
    assert len(ids) > 1600
    mean = RotaryEncoder(folder("v3"), task).states(ids).mean(axis=0)
    found = model("v3", engine).encode(text, task=task)
    assert found @ mean / np.linalg.norm(mean) > COSINE[engine]


WORDS = (["Mars", "Venus", "Jupiter", "Saturn", "planet", "the", "largest", "brown"] * 5)[:40]
# max_length 18 leaves room for 16 words beside <s> and </s>; windows share 6. Words of a window, then its chunks:
# number of the chunk -> its rows in the window, where row 0 is <s> and row 1 the first word. The chunks are the words
# 0 to 8, 8 to 15, 15 to 30 and 30 to 40. Each word is taken from the window in whose middle it lies: up to word 13
# from the first window, to 23 from the second, to 30 from the third.
WINDOWS = [
    ((0, 16), {0: (0, 9), 1: (9, 14)}),
    ((10, 26), {1: (4, 6), 2: (6, 14)}),
    ((20, 36), {2: (4, 11)}),
    ((24, 40), {3: (7, 18)}),
]
CHUNKS = [(0, 8), (8, 15), (15, 30), (30, 40)]


@pytest.mark.parametrize("engine", ENGINES)
def test_late_chunking_in_windows_worked_out_by_hand(folder, model, engine):
    tok, published = written_out.tokenizer(folder("v3")), RotaryEncoder(folder("v3"), "separation")
    document = " ".join(WORDS)
    words = tok.encode(document, add_special_tokens=False).ids
    assert len(words) == 40, "one token a word"
    sums, counts = np.zeros((4, 128)), np.zeros(4)
    for (start, end), parts in WINDOWS:
        states = published.states([0, *words[start:end], 2])
        for chunk, (first, last) in parts.items():
            sums[chunk] += states[first:last].sum(axis=0)
            counts[chunk] += last - first
    assert counts.tolist() == [9, 7, 15, 11], "with <s> in the first chunk and </s> in the last"
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    places = [sum(len(word) + 1 for word in WORDS[:n]) for n in range(41)]
    spans = [(places[a], places[b] - 1) for a, b in CHUNKS]
    found = model("v3", engine).encode_chunks(document, spans, task="separation", max_length=18, overlap_tokens=6)
    assert (np.sum(found * expected, axis=1) > COSINE[engine]).all()


@pytest.mark.sampled
@pytest.mark.parametrize("engine", ENGINES)
def test_late_chunking_in_one_pass_far_beyond_1024_tokens(folder, model, engine):
    """1600 words of one token. The prompt belongs to the first chunk, </s> to the last."""
    prompt = "Represent the document for retrieval: "
    tok, published = written_out.tokenizer(folder("v3")), RotaryEncoder(folder("v3"), "retrieval.passage")
    pieces = [" ".join(WORDS * 10), " ".join(WORDS * 20), " ".join(WORDS * 10)]
    before = len(tok.encode(prompt, add_special_tokens=False).ids)
    ids = tok.encode(prompt + " ".join(pieces)).ids
    assert (before, len(ids)) == (23, 1625)
    states = published.states(ids)
    ranges = [(0, 424), (424, 1224), (1224, 1625)]
    expected = np.stack([states[a:b].mean(axis=0) for a, b in ranges])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = model("v3", engine).encode(pieces, task="retrieval.passage", late_chunking=True)
    assert (np.sum(found * expected, axis=1) > COSINE[engine]).all()
    alone = model("v3", engine).encode(pieces[1], task="retrieval.passage")
    assert alone @ expected[1] < 0.9999, "read alone, the chunk has another vector"


@pytest.mark.reference
def test_what_is_written_out_is_what_transformers_computes(folder):
    """On ids that no rule of ours had a part in, padding ids among them, and beyond 1,024 places."""
    import torch

    from tests.oracle_v3_and_reranker_v2 import OracleV3
    from tests.parity.test_rerankers import Listwise, Pairwise

    rng = np.random.default_rng(4)
    ids = rng.integers(3, 500, 1500)
    listwise = ListwiseRanker(folder("reranker-v3"))
    with torch.no_grad():
        theirs = Listwise(folder("reranker-v3")).model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
    np.testing.assert_allclose(listwise.states(ids), theirs.numpy(), atol=1e-5)  # transformers' angles are of 32 bits
    for task in (None, "separation", "retrieval.query"):
        theirs = OracleV3(folder("v3"), task).states(ids)
        np.testing.assert_allclose(RotaryEncoder(folder("v3"), task).states(ids), theirs, atol=1e-5)
    pair = [0, *rng.integers(3, 600, 1022).tolist(), 2]
    mine, theirs = CrossEncoder(folder("reranker-v2")), Pairwise(folder("reranker-v2"))
    for places in ((), (5,), range(1, 1000, 3), (1023,)):
        padded = [1 if n in places else token for n, token in enumerate(pair)]
        assert mine.score(padded) == pytest.approx(theirs.score(padded), abs=1e-7)
