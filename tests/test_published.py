"""The published weights against published numbers: `pytest -m weights`, on a machine with the hub or its cache.

About 3 GB are fetched at the pinned revisions on the first run. `HF_HUB_OFFLINE=1` uses what is there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jina_local import load
from jina_local.backends import installed
from jina_local.formats.files import sha256
from tests.oracle import cosines

pytestmark = pytest.mark.weights
GOLDEN = json.loads((Path(__file__).parent / "golden" / "published.json").read_text(encoding="utf-8"))
NANO, SMALL = "jina-embeddings-v5-text-nano", "jina-embeddings-v5-text-small"


def needs(backend):
    if not installed(backend):
        pytest.skip(f"the engine {backend} is not installed: pip install 'jina_local[{backend}]'")


def test_nano_q8_0_is_the_published_file_with_its_published_vectors():
    needs("llama")
    golden = GOLDEN["nano Q8_0"]
    with load(NANO, backend="llama", weights="Q8_0", task="retrieval") as m:
        assert m.spec.origin is not None
        assert sha256(m.spec.origin.path) == golden["file_sha256"]
        for prompt in ("query", "document"):
            vector = m.encode(golden[prompt]["text"], task="retrieval", prompt_name=prompt)
            difference = np.abs(vector[:16] - golden[prompt]["first"]).max()
            assert difference <= golden["largest_difference"], prompt


@pytest.mark.parametrize(
    ("backend", "weights", "tolerance"), [("mlx", None, 0.005), ("llama", "F16", 0.005), ("llama", "Q8_0", 0.01)]
)
def test_small_gives_the_cosines_of_its_card(backend, weights, tolerance):
    needs(backend)
    golden = GOLDEN["small"]
    with load(SMALL, backend=backend, weights=weights, task="retrieval") as m:
        query = m.encode_query(golden["query"], task="retrieval")
        documents = m.encode_document(golden["documents"], task="retrieval")
        found = m.similarity(query, documents)[0]
    np.testing.assert_allclose(found, golden["cosines"], atol=tolerance)


@pytest.mark.parametrize("name", [NANO, SMALL])
@pytest.mark.parametrize("task", ["retrieval", "text-matching", "clustering", "classification"])
def test_both_engines_give_the_same_vectors_from_what_is_published(name, task):
    """The GGUF files and the checkpoint are two publications of one model; F16 rounding is all that parts them."""
    needs("mlx")
    needs("llama")
    texts = [*GOLDEN["small"]["documents"], "naïve café", "日本語のテキスト", "x"]
    with load(name, backend="mlx", task=task) as a, load(name, backend="llama", weights="F16", task=task) as b:
        assert a.tokenize(texts)[1].tolist() == b.tokenize(texts)[1].tolist()
        assert cosines(a.encode(texts, task=task), b.encode(texts, task=task)).min() >= 0.9995
