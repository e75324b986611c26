"""Every form against transformers (float32, merged adapters), through the public API, all tasks, many lengths."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tokenizers

from jina_local import load
from tests import made, tiny
from tests.oracle import Oracle, cosines

pytestmark = [pytest.mark.reference, pytest.mark.slow]

# The least cosine to float32 that each form must reach; random weights are the worst case.
FLOORS = {
    "F32": 0.999999, "F16": 0.9999, "BF16": 0.999, "Q8_0": 0.999, "Q6_K": 0.99, "Q5_K_M": 0.975, "Q4_K_M": 0.92,
    32: 0.999999, 16: 0.9999, 8: 0.999, 6: 0.99, 5: 0.97, 4: 0.92,
}  # fmt: skip
TEXTS = (
    "", " ", "x", "Which planet is known as the Red Planet?", "naïve café, e\u0301tude, Ångström",
    "日本語のテキスト、中文也可以。", "العربية من اليمين إلى اليسار", "हिन्दी में एक वाक्य", "русский и ελληνικά",
    "👩‍👩‍👧‍👦 emoji 🏳️‍🌈", "def f(x):\n\treturn x + 1\n", "<|endoftext|> <|end_of_text|>", "a" * 300,
    "\r\n" * 20 + "x",
    *(" ".join(f"word{i % 37}" for i in range(n)) for n in (3, 9, 31, 32, 33, 60, 400)),
)  # fmt: skip

ENGINES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("mlx", "onnx", "llama")]


@functools.cache
def expected(kind: str, task: str, prompt: str = "Document: ") -> np.ndarray:
    """Unit vectors by transformers: the library's own tokenizer and truncation, last token, L2."""
    folder = made.checkpoint(kind)
    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tok.enable_truncation(tiny.SIZES[kind]["max_position_embeddings"])
    oracle = Oracle(folder, task)
    rows = np.stack([oracle.states(np.array(tok.encode(prompt + text).ids))[-1] for text in TEXTS])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_some_text_is_over_the_limit():
    for kind in ("small", "nano"):
        with load(made.checkpoint(kind), backend="mlx") as m:
            assert 1 <= m.embed(list(TEXTS)).truncated.sum() <= 3


@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("task", tiny.TASKS)
@pytest.mark.parametrize("backend", ENGINES)
def test_all_tasks_in_32_bits(kind, task, backend):
    path = made.gguf_all(kind) if backend == "llama" else made.checkpoint(kind)
    with load(path, backend=backend, weights="F32" if backend == "llama" else None, task=task) as m:
        vectors = m.encode(list(TEXTS), task=task)
        assert cosines(vectors, expected(kind, task)).min() >= 0.999999
        short = [i for i, text in enumerate(TEXTS) if len(text) < 120]
        alone = np.stack([m.encode(TEXTS[i], task=task) for i in short])
        assert np.abs(alone - vectors[short]).max() <= 2e-5
        queries = m.encode_query(list(TEXTS[:12]), task=task)
    assert cosines(queries, expected(kind, task, "Query: ")[:12]).min() >= 0.999999


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("label", ["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"])
def test_gguf_types(kind, label):
    with load(made.gguf(kind), weights=label) as m:
        vectors = m.encode(list(TEXTS))
    assert cosines(vectors, expected(kind, "retrieval")).min() >= FLOORS[label]


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("bits", [32, 16, 8, 6, 5, 4])
def test_mlx_widths(kind, bits):
    with load(made.mlx(kind, bits)) as m:
        vectors = m.encode(list(TEXTS))
    assert cosines(vectors, expected(kind, "retrieval")).min() >= FLOORS[bits]


@pytest.mark.onnx
@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_onnx_widths(kind, bits):
    with load(made.onnx(kind, bits)) as m:
        vectors = m.encode(list(TEXTS))
    assert cosines(vectors, expected(kind, "retrieval")).min() >= {32: 0.999999, 16: 0.9999, 8: 0.999}[bits]


@pytest.mark.mlx
@pytest.mark.llama
@pytest.mark.parametrize("kind", ["small", "nano"])
def test_the_two_engines_agree(kind):
    with load(made.mlx(kind, 32)) as a, load(made.gguf(kind), weights="F32") as b:
        assert cosines(a.encode(list(TEXTS)), b.encode(list(TEXTS))).min() >= 0.999999


@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("form", ["mlx", "onnx", "F32", "F16", "BF16", "Q8_0", "Q4_K_M"])
def test_three_hundred_mixed_texts_in_any_order(kind, form):
    pytest.importorskip({"mlx": "mlx.core", "onnx": "onnxruntime"}.get(form, "llama_cpp"))
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(1.0, 0.9, 300)).astype(int), 1, 60)
    texts = [" ".join(rng.choice(["planet", "fox", "Größe", "日本", "3.14", "x"], n)) for n in lengths]
    folders = {"mlx": lambda: made.mlx(kind, 32), "onnx": lambda: made.onnx(kind, 32)}
    path, label = (folders[form](), None) if form in folders else (made.gguf(kind), form)
    floor = {"Q8_0": 0.9995, "Q4_K_M": 0.9995}.get(form, 0.999999)
    with load(path, weights=label) as m:
        together = m.encode(texts)
        order = rng.permutation(300)
        shuffled = m.encode([texts[i] for i in order])
        some = order[:40]
        alone = m.encode([texts[i] for i in some], deterministic=True)
        np.testing.assert_array_equal(m.encode([texts[i] for i in reversed(some)], deterministic=True)[::-1], alone)
    assert cosines(shuffled, together[order]).min() >= floor
    assert cosines(alone, together[some]).min() >= floor
    if form in (*folders, "F32"):
        assert np.abs(alone - together[some]).max() <= 2e-5
        assert np.abs(shuffled - together[order]).max() <= 2e-5
    if form not in folders:
        with load(path, weights=label, threads=1) as m:
            assert cosines(m.encode(texts), together).min() >= floor
