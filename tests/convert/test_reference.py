"""The numpy reference against transformers: theta, epsilon, norms, head layout and mask pinned from outside."""

from __future__ import annotations

import numpy as np
import pytest

from convert.verify.reference import hidden_states
from jina_local.weights.checkpoint import Checkpoint
from tests import tiny
from tests.oracle import Oracle, cosines

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("kind", ["small", "nano"])
def test_equals_transformers_for_every_task(kind, tmp_path):
    folder = tiny.write(tmp_path / kind, kind)
    rng = np.random.default_rng(1)
    for task in tiny.TASKS:
        oracle = Oracle(folder, task)
        with Checkpoint(folder) as checkpoint:
            weights = dict(checkpoint.merged(task))
            for n in (1, 2, 7, 64, 200):
                ids = rng.integers(0, checkpoint.arch.vocab, n)
                mine, theirs = hidden_states(checkpoint.arch, weights, ids), oracle.states(ids)
                assert cosines(mine, theirs).min() > 0.9999999
                assert np.abs(mine - theirs).max() < 2e-4


def test_adapters_change_the_result(tmp_path):
    folder = tiny.write(tmp_path / "nano", "nano")
    ids = np.arange(20)
    with Checkpoint(folder) as checkpoint:
        rows = [hidden_states(checkpoint.arch, dict(checkpoint.merged(t)), ids)[-1] for t in (None, *tiny.TASKS)]
    for i, a in enumerate(rows):
        for b in rows[i + 1 :]:
            assert cosines(a, b) < 0.99
