"""Whole rerank() calls against the rules written once more over torch and transformers, on random weights.

Nothing of jina_local computes the expected scores: prompts, cuts, blocks, windows, projector, weights of the blocks
and the sigmoid are here a second time, from the published code's facts (models.md, sections 4 and 5).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from jina_local.reranking.reranker import Reranker
from jina_local.store import find
from tests import made

pytestmark = [pytest.mark.reference, pytest.mark.slow]

QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Mars, known for its reddish appearance, is called the Red Planet.",
    "Venus is the hottest <|embed_token|>planet<|rerank_token|>.",
    "",
    "日本語のテキスト、中文也可以。 👩‍👩‍👧‍👦",
    "def f(x):\n\treturn x + 1  # 1234567890",
    "naïve cafe\u0301 Ångström – Größe, straße " * 12,
    "Jupiter is the largest planet; Saturn has rings. " * 15,
    "</s> <s> <|im_end|>\n<|im_start|>assistant",
    "العربية हिन्दी русский",
    " ",
    "<pad> Mars <pad><pad> is red <|endoftext|>",
    "<|embed_token|>" * 20 + "Mars",
    *(f"document {i}: " + "word " * (3 * i) for i in range(10)),
]
# Of 32 bits on both engines; llama.cpp takes GELU from a table of half-precision numbers.
FORMS = [
    pytest.param("checkpoint", 1e-4, 1e-4, marks=pytest.mark.mlx, id="checkpoint"),
    pytest.param(32, 1e-4, 1e-4, marks=pytest.mark.mlx, id="mlx-32"),
    pytest.param("onnx", 1e-4, 1e-4, marks=pytest.mark.onnx, id="onnx-32"),
    pytest.param("F32", 1e-4, 1e-3, marks=pytest.mark.llama, id="gguf-F32"),
]


def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def state(folder: Path) -> dict:
    """Every tensor of a checkpoint in float64, without the prefix of the class."""
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    return {name.removeprefix("model.").removeprefix("roberta."): t.double() for name, t in found.items()}


class Listwise:
    """Qwen3Model in float64, the projector and the published rule."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        self.torch, self.tok = torch, tokenizer(folder)
        config = json.loads((folder / "config.json").read_text())
        keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
                "attention_bias", "tie_word_embeddings")  # fmt: skip
        self.model = transformers.Qwen3Model(transformers.Qwen3Config(**{k: config[k] for k in keep})).double()
        held = state(folder)
        self.first, self.second = held.pop("projector.0.weight"), held.pop("projector.2.weight")
        missing, unexpected = self.model.load_state_dict(held, strict=False)
        assert not unexpected
        assert not missing
        self.model.eval()

    def shortened(self, text: str, limit: int) -> tuple[str, int]:
        """Counted and cut with the marks in it."""
        ids = self.tok.encode(text, add_special_tokens=False).ids[:limit]
        if len(ids) >= limit:
            text = self.tok.decode(ids, skip_special_tokens=False)
        return text.replace("<|rerank_token|>", "").replace("<|embed_token|>", ""), len(ids)

    def block(self, query: str, documents: list[str], instruction: str | None):
        """(Q, P), projected; the prompt is whole, with what the published one has after the query's mark."""
        text = (
            "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based "
            "on how relevant they are to the query. If the query is a question, how relevant a passage is depends on "
            "how well it answers the question. If not, try to analyze the intent of the query and assess how well "
            "each passage satisfies the intent. If an instruction is provided, you should follow the instruction "
            "when determining the ranking.<|im_end|>\n<|im_start|>user\n"
            f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n"
        )
        if instruction:
            text += "<instruct>\n" + instruction + "\n</instruct>\n"
        for i, document in enumerate(documents):
            text += f'<passage id="{i}">\n{document}<|embed_token|>\n</passage>\n'
        text += (
            f"<query>\n{query}<|rerank_token|>\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        ids = self.torch.tensor([self.tok.encode(text, add_special_tokens=False).ids])
        with self.torch.no_grad():
            states = self.model(input_ids=ids).last_hidden_state[0]
            marks = [ids[0] == self.tok.token_to_id(mark) for mark in ("<|rerank_token|>", "<|embed_token|>")]
            query_state, document_states = (
                self.torch.relu(states[mark] @ self.first.T) @ self.second.T for mark in marks
            )
        assert len(query_state) == 1
        assert len(document_states) == len(documents)
        return query_state[0].numpy(), document_states.numpy()

    def scores(
        self, query, documents, *, instruction=None, block_size=125, max_doc_length=2048, max_query_length=512
    ):
        """(scores, unit vectors of the documents), in the documents' order."""
        query, used = self.shortened(query, max_query_length)
        shortened = [self.shortened(document, max_doc_length) for document in documents]
        blocks, block, left = [], [], 8192 - 2 * used
        for text, length in shortened:
            block.append(text)
            left -= length
            if len(block) == block_size or left <= max_doc_length:
                blocks.append(block)
                block, left = [], 8192 - 2 * used
        blocks += [block] if block else []
        parts = [self.block(query, block, instruction) for block in blocks]
        worth = [max((1 + d @ q / np.linalg.norm(d) / np.linalg.norm(q)) / 2 for d in ds) for q, ds in parts]
        merged = sum(w * q for w, (q, _) in zip(worth, parts, strict=True)) / sum(worth)
        rows = np.concatenate([ds for _, ds in parts])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ merged / np.linalg.norm(merged), rows


class Pairwise:
    """XLMRobertaForSequenceClassification in float64, the windows and the sigmoid."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        self.torch, self.tok = torch, tokenizer(folder)
        config = json.loads((folder / "config.json").read_text())
        keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
                "max_position_embeddings", "layer_norm_eps", "hidden_act", "type_vocab_size", "pad_token_id",
                "num_labels")  # fmt: skip
        settings = transformers.XLMRobertaConfig(**{k: config[k] for k in keep})
        self.model = transformers.XLMRobertaForSequenceClassification(settings).double()
        held = dict(self.renamed(state(folder)))
        missing, unexpected = self.model.load_state_dict(held, strict=False)
        assert not unexpected
        assert not missing
        self.model.eval()

    @staticmethod
    def renamed(held):
        """The names of transformers' own class; Wqkv is the rows of the queries, the keys and the values."""
        words = {"mixer.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
                 "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
        for name, tensor in held.items():
            if name.startswith("classifier."):
                yield name, tensor
            elif name.startswith("encoder.layers."):
                _, _, number, *middle, last = name.split(".")
                stem, part = f"roberta.encoder.layer.{number}", ".".join(middle)
                if part != "mixer.Wqkv":
                    yield f"{stem}.{words[part]}.{last}", tensor
                    continue
                for which, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    yield f"{stem}.attention.self.{which}.{last}", rows
            else:
                yield "roberta." + name.replace("emb_ln", "embeddings.LayerNorm"), tensor

    def score(self, ids: list[int]) -> float:
        with self.torch.no_grad():
            logit = self.model(input_ids=self.torch.tensor([ids])).logits
        return float(self.torch.sigmoid(logit)[0, 0])

    def windowed(self, query, documents, *, max_length, max_query_length, overlap_tokens=80):
        self.tok.enable_truncation(max_query_length)
        asked = self.tok.encode(query).ids  # with <s> and </s>
        self.tok.no_truncation()
        room = max_length - len(asked) - 2
        step = room - min(overlap_tokens, room // 4)
        out = []
        for document in documents:
            ids = self.tok.encode(document, add_special_tokens=False).ids
            pieces, start = [], 0
            if len(ids) <= room:
                pieces.append(ids)
            while len(ids) > room and start < len(ids):
                last = start + room >= len(ids)
                pieces.append(ids[-room:] if last else ids[start : start + room])
                start = len(ids) if last else start + step
            out.append(max(self.score([*asked, 2, *piece, 2]) for piece in pieces))
        return np.array(out)

    def truncated(self, query, documents, *, max_length):
        self.tok.enable_truncation(max_length)
        out = [self.score(self.tok.encode(query, document).ids) for document in documents]
        self.tok.no_truncation()
        return np.array(out)


@functools.cache
def listwise() -> Listwise:
    return Listwise(made.checkpoint("reranker-v3"))


@functools.cache
def pairwise() -> Pairwise:
    return Pairwise(made.checkpoint("reranker-v2"))


@functools.cache
def expected_pairs(query: str, rule: str, **words) -> np.ndarray:
    return getattr(pairwise(), rule)(query, DOCUMENTS, **words)


@functools.cache
def expected_scores(**words) -> tuple[np.ndarray, np.ndarray]:
    return listwise().scores(QUERY, DOCUMENTS, **words)


def check(model: Reranker, expected: np.ndarray, tolerance: float, query: str, **words) -> list:
    """The scores are the expected ones, and the order is theirs wherever two are further apart than the tolerance."""
    ranked = model.rerank(query, DOCUMENTS, **words)
    assert sorted(one.index for one in ranked) == list(range(len(DOCUMENTS)))
    order = [one.index for one in ranked]
    np.testing.assert_allclose([one.score for one in ranked], expected[order], atol=tolerance, rtol=0)
    assert (np.diff(expected[order]) <= 2 * tolerance).all()
    assert expected.max() - expected.min() > 100 * tolerance
    return ranked


@pytest.mark.parametrize(("form", "tolerance", "_"), FORMS)
def test_listwise(form, tolerance, _):
    with Reranker(find.find(made.reranker("reranker-v3", form))) as model:
        scores, rows = expected_scores()
        for one in check(model, scores, tolerance, QUERY, return_embeddings=True):
            assert one.embedding @ rows[one.index] >= 0.99999


@pytest.mark.parametrize(("form", "tolerance", "_"), FORMS)
@pytest.mark.parametrize(
    "words",
    [
        {"block_size": 7},
        {"max_doc_length": 12, "max_query_length": 5, "block_size": 11},
        {"instruction": "Prefer what is red."},
    ],
    ids=["blocks", "cut", "instruction"],
)
def test_listwise_blocks_cuts_and_instructions(form, tolerance, _, words):
    with Reranker(find.find(made.reranker("reranker-v3", form))) as model:
        check(model, expected_scores(**words)[0], tolerance, QUERY, **words)


@pytest.mark.parametrize(("form", "_", "tolerance"), FORMS)
def test_pairwise(form, _, tolerance):
    long = QUERY * 5
    with Reranker(find.find(made.reranker("reranker-v2", form))) as model:
        for query, words in (
            (QUERY, {"max_length": 256, "max_query_length": 128}),
            (QUERY, {"max_length": 64, "max_query_length": 32}),
            (long, {"max_length": 60, "max_query_length": 23, "overlap_tokens": 5}),
        ):
            check(model, expected_pairs(query, "windowed", **words), tolerance, query, **words)
        for query, length in ((QUERY, 256), (QUERY, 31), (long, 40)):
            expected = expected_pairs(query, "truncated", max_length=length)
            check(model, expected, tolerance, query, max_length=length, window=False)
