"""What speed.py measures for v3 (late chunking) and for the rerankers (pairs per second), beside other programs.

python -m tests.bench.speed reranker-v2 --torch float32
python -m tests.bench.speed reranker-v3 --torch float32
python -m tests.bench.speed v3
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from jina_local import Embedder, load
from jina_local.reranking.listwise import prompt
from jina_local.reranking.reranker import Reranker
from tests.oracle import Oracle

QUERY = 12  # tokens
CHUNK = 128  # tokens of one chunk of a long document


def rerank(
    path: Path, checkpoint: Path, documents: list[str], query: str, *, torch: Sequence[str], threads: int | None
) -> dict[str, Callable[[list[str]], object]]:
    """jina_local first, then pair by pair, then transformers.

    llama-cpp-python's own Llama.embed is no rival: it cannot be given a pair, and reads no marks.
    """
    model = load(path, threads=threads)
    assert isinstance(model, Reranker)
    runs: dict[str, Callable[[list[str]], object]] = {"jina_local": lambda texts: model.rerank(query, texts)}
    if model.spec.scoring == "pairwise":
        runs["the same, pair by pair"] = lambda texts: [model.rerank(query, [text]) for text in texts]
    for dtype in torch:
        name, run = _torch(model, checkpoint, query, dtype, threads)
        runs[name] = run
    return runs


def _torch(
    model: Reranker, checkpoint: Path, query: str, dtype: str, threads: int | None
) -> tuple[str, Callable[[list[str]], object]]:
    """transformers on the same weights: the same prompt in one pass, or sorted batches of 32 pairs."""
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    tok = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    if model.spec.scoring == "listwise":
        states = Oracle(checkpoint, None).model.to(getattr(torch, dtype))

        def listwise(texts: list[str]) -> object:
            ids = tok.encode(prompt(query, texts), add_special_tokens=False).ids
            with torch.inference_mode():
                return states(input_ids=torch.tensor([ids])).last_hidden_state

        return f"transformers {dtype}, the prompt at once", listwise
    from tests.parity.test_rerankers import Pairwise

    judge = Pairwise(checkpoint).model.to(getattr(torch, dtype))

    def pairwise(texts: list[str]) -> object:
        rows = sorted((tok.encode(query, text).ids for text in texts), key=len)
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            longest = max(map(len, part))
            ids = torch.tensor([row + [1] * (longest - len(row)) for row in part])
            with torch.inference_mode():
                judge(input_ids=ids, attention_mask=(ids != 1).long())
        return None

    return f"transformers {dtype}, sorted batches of 32", pairwise


def chunking(
    path: Path, words: list[str], chunks: int, threads: int | None
) -> tuple[dict[str, Callable[[list[str]], object]], list[str], int]:
    """(late chunking and chunk by chunk, the chunks of one document, tokens of the document)."""
    model = load(path, task="retrieval.passage", threads=threads)
    assert isinstance(model, Embedder)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, CHUNK)) for _ in range(chunks)]
    tokens = len(model.tokenize([" ".join(texts)], task="retrieval.passage")[0])
    runs: dict[str, Callable[[list[str]], object]] = {
        "late chunking, one pass": lambda parts: model.encode(parts, late_chunking=True),
        "each chunk for itself": lambda parts: model.encode(parts, task="retrieval.passage"),
    }
    return runs, texts, tokens
