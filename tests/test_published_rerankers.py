"""The published rerankers against published scores: `pytest -m weights`, on a machine with the hub or its cache.

About 0.6 GB are fetched at the pinned revision on the first run. `HF_HUB_OFFLINE=1` uses what is there. Of
jina-reranker-v3 no scores are published.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jina_local import load
from jina_local.backends import installed

pytestmark = pytest.mark.weights
GOLDEN = json.loads((Path(__file__).parent / "golden" / "rerankers.json").read_text(encoding="utf-8"))
V2 = "jina-reranker-v2-base-multilingual"


@pytest.mark.parametrize(("backend", "window"), [("mlx", True), ("mlx", False), ("llama", True)])
def test_v2_gives_the_scores_of_its_card(backend, window, tmp_path):
    if not all(installed(engine) for engine in {"mlx", backend}):
        pytest.skip(f"needs the engine mlx for the published checkpoint, and {backend}")
    golden, place = GOLDEN["reranker-v2"], V2
    if backend == "llama":
        # No GGUF of it is published; the checkpoint is converted.
        from convert.gguf.files import to_gguf

        with load(V2, backend="mlx") as m:
            place = str(tmp_path / "gguf")
            to_gguf(m.spec.origin.path, Path(place), tasks=["rerank"], types=["F16"], source_name=V2)
    with load(place) as m:
        ranked = m.rerank(golden["query"], golden["documents"], window=window)
    order = [one.index for one in ranked]
    assert order == sorted(range(10), key=lambda i: -golden["scores"][i])
    found = [one.score for one in ranked]
    np.testing.assert_allclose(found, np.array(golden["scores"])[order], atol=golden["largest_difference"])
