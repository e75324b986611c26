"""jina-embeddings-v3, jina-reranker-v3 and jina-reranker-v2 in numpy and float64, every tensor name written out.

Nothing of jina_local or of convert is imported, and no rule is taken over from them: files are read byte by byte, and
each step follows the published code of the model. One text at a time, no padding.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_ROWS = 512  # queries that attend at a time, so that the scores of a long prompt stay small


def tensors(folder: Path) -> dict[str, Floats]:
    """Every tensor of model.safetensors: an 8-byte length, a JSON header, then the data."""
    raw = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    out = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + size + place for place in entry["data_offsets"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            data = (np.frombuffer(raw[start:end], "<u2").astype("<u4") << 16).view("<f4")
        else:
            data = np.frombuffer(raw[start:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        out[name] = data.astype(np.float64).reshape(entry["shape"])
    return out


def tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer.json of a folder through the library alone."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def digest(tok: tokenizers.Tokenizer) -> str:
    """sha256 over what the ids come from: vocabulary with scores, merges, added tokens, the kinds of the other parts.

    The layout of the file is left out, because the library changes it from version to version.
    """
    body = json.loads(tok.to_str())
    added = [[one["id"], one["content"], one["lstrip"], one["normalized"]] for one in body["added_tokens"]]
    kinds = [(body[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "post_processor")]
    ids = [body["model"]["vocab"], body["model"].get("merges"), added, kinds]
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


class CrossEncoder:
    """jina-reranker-v2: XLM-R with learned positions, and a classifier on the first token."""

    def __init__(self, folder: Path) -> None:
        self.held = tensors(folder)
        self.heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]

    def score(self, ids: Sequence[int]) -> float:
        """The sigmoid of the logit of one pair of texts, special tokens included."""
        held = self.held
        x = held["roberta.embeddings.word_embeddings.weight"][list(ids)]
        x = x + held["roberta.embeddings.position_embeddings.weight"][position_ids(ids)]
        x = x + held["roberta.embeddings.token_type_embeddings.weight"][0]
        x = _layer_norm(x, held["roberta.emb_ln.weight"], held["roberta.emb_ln.bias"])
        layer = 0
        while f"roberta.encoder.layers.{layer}.norm1.weight" in held:
            x = _post_norm_block(x, held, f"roberta.encoder.layers.{layer}.", self.heads, None)
            layer += 1
        first = np.tanh(held["classifier.dense.weight"] @ x[0] + held["classifier.dense.bias"])
        logit = held["classifier.out_proj.weight"] @ first + held["classifier.out_proj.bias"]
        return 1 / (1 + math.exp(-logit[0]))


def position_ids(ids: Sequence[int]) -> list[int]:
    """XLM-R's rows of positions: 1, the padding id, for every padding id; the others count up from 2 without them."""
    out, last = [], 1
    for token in ids:
        if token == 1:
            out.append(1)
        else:
            last += 1
            out.append(last)
    return out


class RotaryEncoder:
    """jina-embeddings-v3 with the adapter of one task merged: W + 0.25 B A, of a table W + 0.25 A B."""

    BASE = 20000.0
    SCALE = 0.25  # alpha 1, rank 4

    def __init__(self, folder: Path, task: str | None) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.heads = config["num_attention_heads"]
        which = None if task is None else config["lora_adaptations"].index(task)
        self.held: dict[str, Floats] = {}
        stored = tensors(folder)
        for name, weight in stored.items():
            if name.endswith(".parametrizations.weight.original"):
                stem = name.removesuffix(".parametrizations.weight.original")
                if which is not None:
                    a = stored[f"{stem}.parametrizations.weight.0.lora_A"][which]
                    b = stored[f"{stem}.parametrizations.weight.0.lora_B"][which]
                    weight = weight + self.SCALE * (a @ b if "_embeddings" in stem else b @ a)
                self.held[f"{stem}.weight"] = weight
            elif ".parametrizations." not in name:
                self.held[name] = weight

    def states(self, ids: Sequence[int]) -> Floats:
        """(n_tokens, hidden)."""
        held = self.held
        x = held["roberta.embeddings.word_embeddings.weight"][list(ids)]
        x = x + held["roberta.embeddings.token_type_embeddings.weight"][0]
        x = _layer_norm(x, held["roberta.emb_ln.weight"], held["roberta.emb_ln.bias"])
        layer = 0
        while f"roberta.encoder.layers.{layer}.norm1.weight" in held:
            x = _post_norm_block(x, held, f"roberta.encoder.layers.{layer}.", self.heads, self.BASE)
            layer += 1
        return x


class ListwiseRanker:
    """jina-reranker-v3: Qwen3, two matrices with a ReLU between them on the states at the marks, and `rerank()`."""

    BASE = 1000000.0
    EPS = 1e-6

    def __init__(self, folder: Path) -> None:
        self.held, self.tok = tensors(folder), tokenizer(folder)
        config = json.loads((folder / "config.json").read_text())
        self.heads, self.pairs = config["num_attention_heads"], config["num_key_value_heads"]
        self.size = config["head_dim"]
        self.longest = json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
        self.prompts: list[list[int]] = []  # the ids of each block of the last call

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        max_doc_length: int = 2048,
        max_query_length: int = 512,
        block_size: int = 125,
        longest: int | None = None,
    ) -> Floats:
        """The scores in the documents' order. `longest`: the model_max_length of the tokenizer."""
        self.prompts = []
        kept, lengths = [], []
        for document in documents:
            ids = self._ids(document)[:max_doc_length]
            kept.append(self._text(ids) if len(ids) >= max_doc_length else document)
            lengths.append(len(ids))
        ids = self._ids(query)[:max_query_length]
        asked = self._text(ids) if len(ids) >= max_query_length else query
        room = (longest or self.longest) - 2 * len(ids)
        blocks: list[list[str]] = []
        block: list[str] = []
        left = room
        for text, length in zip(kept, lengths, strict=True):
            block.append(text)
            left -= length
            if len(block) >= block_size or left <= max_doc_length:
                blocks.append(block)
                block, left = [], room
        if block:
            blocks.append(block)
        queries, weights, rows = [], [], []
        for block in blocks:
            of_query, of_documents = self._block(asked, block)
            queries.append(of_query)
            rows.append(of_documents)
            weights.append(((1 + _cosines(of_query, of_documents)) / 2).max())
        return _cosines(np.average(queries, axis=0, weights=weights), np.concatenate(rows))

    def _ids(self, text: str) -> list[int]:
        return list(self.tok.encode(text).ids)

    def _text(self, ids: list[int]) -> str:
        return str(self.tok.decode(ids, skip_special_tokens=False))

    def _block(self, query: str, documents: Sequence[str]) -> tuple[Floats, Floats]:
        """The projected query, (dim,), and documents, (n, dim), of one prompt."""
        query, *documents = (
            text.replace("<|rerank_token|>", "").replace("<|embed_token|>", "") for text in (query, *documents)
        )
        prompt = (
            "<|im_start|>system\nYou are a search relevance expert who can determine a ranking of the passages based "
            "on how relevant they are to the query. If the query is a question, how relevant a passage is depends on "
            "how well it answers the question. If not, try to analyze the intent of the query and assess how well "
            "each passage satisfies the intent. If an instruction is provided, you should follow the instruction "
            f"when determining the ranking.<|im_end|>\n<|im_start|>user\nI will provide you with {len(documents)} "
            "passages, each indicated by a numerical identifier. Rank the passages based on their relevance to "
            f"query: {query}\n"
        )
        for number, document in enumerate(documents):
            prompt += f'<passage id="{number}">\n{document}<|embed_token|>\n</passage>\n'
        prompt += f"<query>\n{query}<|rerank_token|>\n</query><|im_end|>\n<|im_start|>assistant\n"
        prompt += "<think>\n\n</think>\n\n"
        ids = self._ids(prompt)
        self.prompts.append(ids)
        states = self.states(ids)
        projected = [
            np.maximum(states[np.array(ids) == self.tok.token_to_id(mark)] @ self.held["projector.0.weight"].T, 0)
            @ self.held["projector.2.weight"].T
            for mark in ("<|rerank_token|>", "<|embed_token|>")
        ]
        assert [len(rows) for rows in projected] == [1, len(documents)]
        return projected[0][0], projected[1]

    def states(self, ids: Sequence[int]) -> Floats:
        """(n_tokens, hidden), after the last norm."""
        held = self.held
        x = held["model.embed_tokens.weight"][list(ids)]
        layer = 0
        while (start := f"model.layers.{layer}.") + "input_layernorm.weight" in held:
            normed = _rms_norm(x, held[start + "input_layernorm.weight"], self.EPS)
            q = self._heads(normed @ held[start + "self_attn.q_proj.weight"].T, self.heads)
            k = self._heads(normed @ held[start + "self_attn.k_proj.weight"].T, self.pairs)
            v = self._heads(normed @ held[start + "self_attn.v_proj.weight"].T, self.pairs)
            q = _rotated(_rms_norm(q, held[start + "self_attn.q_norm.weight"], self.EPS), self.BASE)
            k = _rotated(_rms_norm(k, held[start + "self_attn.k_norm.weight"], self.EPS), self.BASE)
            k, v = (np.repeat(y, self.heads // self.pairs, axis=0) for y in (k, v))
            x = x + _attended(q, k, v, causal=True) @ held[start + "self_attn.o_proj.weight"].T
            normed = _rms_norm(x, held[start + "post_attention_layernorm.weight"], self.EPS)
            gate = normed @ held[start + "mlp.gate_proj.weight"].T
            up = normed @ held[start + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ held[start + "mlp.down_proj.weight"].T
            layer += 1
        return _rms_norm(x, held["model.norm.weight"], self.EPS)

    def _heads(self, x: Floats, count: int) -> Floats:
        """(n, count x size) -> (count, n, size)."""
        return x.reshape(len(x), count, self.size).transpose(1, 0, 2)


def _post_norm_block(x: Floats, held: dict[str, Floats], start: str, heads: int, base: float | None) -> Floats:
    """One block of the flash implementation of XLM-R. `base`: of the rotation, None where positions are learned."""
    n, hidden = x.shape
    fused = x @ held[start + "mixer.Wqkv.weight"].T + held[start + "mixer.Wqkv.bias"]
    q, k, v = fused.reshape(n, 3, heads, hidden // heads).transpose(1, 2, 0, 3)
    if base is not None:
        q, k = _rotated(q, base), _rotated(k, base)
    mixed = _attended(q, k, v, causal=False)
    mixed = mixed @ held[start + "mixer.out_proj.weight"].T + held[start + "mixer.out_proj.bias"]
    x = _layer_norm(x + mixed, held[start + "norm1.weight"], held[start + "norm1.bias"])
    wide = x @ held[start + "mlp.fc1.weight"].T + held[start + "mlp.fc1.bias"]
    wide = wide / 2 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
    narrow = wide @ held[start + "mlp.fc2.weight"].T + held[start + "mlp.fc2.bias"]
    return _layer_norm(x + narrow, held[start + "norm2.weight"], held[start + "norm2.bias"])


def _attended(q: Floats, k: Floats, v: Floats, *, causal: bool) -> Floats:
    """(heads, n, size) each -> (n, heads x size)."""
    heads, n, size = q.shape
    out = np.empty((n, heads, size))
    for start in range(0, n, _ROWS):
        end = min(start + _ROWS, n)
        seen = end if causal else n
        scores = q[:, start:end] @ k[:, :seen].transpose(0, 2, 1) / math.sqrt(size)
        if causal:
            scores[:, np.arange(seen)[None, :] > np.arange(start, end)[:, None]] = -np.inf
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        out[start:end] = (scores / scores.sum(axis=2, keepdims=True) @ v[:, :seen]).transpose(1, 0, 2)
    return out.reshape(n, heads * size)


def _rotated(x: Floats, base: float) -> Floats:
    """(heads, n, size): number i of a head turns with number i + size / 2, by place / base ** (2 i / size)."""
    _, n, size = x.shape
    angles = np.arange(n)[:, None] / base ** (np.arange(0, size, 2) / size)
    first, second = x[..., : size // 2], x[..., size // 2 :]
    turned = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.concatenate(turned, axis=-1)


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def _layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5) * weight + bias


def _cosines(query: Floats, rows: Floats) -> Floats:
    return rows @ query / np.linalg.norm(query) / np.linalg.norm(rows, axis=1)
