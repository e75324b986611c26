"""The test checkpoints themselves: the small character map works, real ids are the real ones, adapters matter."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers

from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny, tiny_v3_and_rerankers, unigram


def test_every_rule_of_the_character_map_is_applied():
    tok = tiny.tokenizer("v3")
    for given, expected in unigram.rules().items():
        assert tok.normalizer.normalize_str(given) == expected
        assert tok.normalizer.normalize_str(f"a {given} b") == f"a {expected} b"
    assert tok.normalizer.normalize_str("日本 x\U0001f600") == "日本 x\U0001f600"
    assert [tok.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert tok.token_to_id("<mask>") == tok.get_vocab_size() - 1


@pytest.mark.skipif(not tiny.SHARED.is_dir(), reason="needs shared/data/tokenizers")
def test_the_real_vocabulary_has_the_marks_at_their_published_ids():
    tok = tokenizers.Tokenizer.from_str(tiny.real_tokenizer("reranker-v3"))
    ids = [tok.token_to_id(f"<|{mark}|>") for mark in ("im_start", "im_end", "embed_token", "rerank_token")]
    assert ids == [151644, 151645, 151670, 151671]


def test_every_adapter_changes_every_table_and_layer_by_a_share():
    with Checkpoint(made.checkpoint("v3")) as checkpoint:
        base = dict(checkpoint.merged(None))
        for task in tiny_v3_and_rerankers.V3_TASKS:
            for name, merged in checkpoint.merged(task):
                share = np.linalg.norm(merged - base[name]) / np.linalg.norm(base[name])
                if name.endswith(".bias") or "norm" in name or "emb_ln" in name:
                    assert share == 0
                else:
                    assert 0.1 < share < 3
