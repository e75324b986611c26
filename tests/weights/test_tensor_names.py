"""names: every weight has one GGUF name, and the GGUF shapes are the checkpoint's but for one table."""

from __future__ import annotations

import pytest

from jina_local.weights import architecture, tensor_names
from tests import tiny, tiny_v3_and_rerankers

CONFIGS = {
    **{kind: {**tiny.CONFIGS[kind], **tiny.FULL[kind]} for kind in tiny.SIZES},
    **{
        kind: {**tiny_v3_and_rerankers.CONFIGS[kind], **tiny_v3_and_rerankers.FULL[kind]}
        for kind in tiny_v3_and_rerankers.KINDS
    },
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_name_for_every_weight_and_back(kind):
    arch = architecture.from_config(CONFIGS[kind])
    there, back = tensor_names.gguf_names(arch), tensor_names.checkpoint_names(arch)
    assert list(there) == list(architecture.tensors(arch))
    assert {back[right]: right for right in there.values()} == there
    assert len(set(there.values())) == len(there)


@pytest.mark.parametrize("kind", CONFIGS)
def test_shapes_are_those_of_the_checkpoint_but_for_learned_positions(kind):
    arch = architecture.from_config(CONFIGS[kind])
    shapes, found = architecture.tensors(arch), tensor_names.gguf_shapes(arch)
    other = {left for left, right in tensor_names.gguf_names(arch).items() if found[right] != shapes[left]}
    if kind != "reranker-v2":
        assert other == set()
        return
    assert other == {"embeddings.position_embeddings.weight"}
    assert shapes["embeddings.position_embeddings.weight"] == (1026, 768)
    assert found["position_embd.weight"] == (1024, 768)


def test_the_names_of_the_bert_kinds():
    v3, v2 = (tensor_names.gguf_names(architecture.from_config(CONFIGS[kind])) for kind in ("v3", "reranker-v2"))
    assert v3["encoder.layers.23.mixer.Wqkv.bias"] == "blk.23.attn_qkv.bias"
    assert v3["encoder.layers.0.norm1.weight"] == "blk.0.attn_output_norm.weight"
    assert v3["encoder.layers.0.norm2.weight"] == "blk.0.layer_output_norm.weight"
    assert v3["emb_ln.bias"] == "token_embd_norm.bias"
    assert v2["classifier.out_proj.bias"] == "cls.output.bias"
    assert not {"position_embd.weight", "cls.weight"} & set(v3.values())


def test_a_table_that_misses_a_weight_is_found_out(monkeypatch):
    arch = architecture.from_config(CONFIGS["v3"])
    short = {left: right for left, right in tensor_names.TABLES["jina-bert-v3"].items() if left != "emb_ln"}
    monkeypatch.setitem(tensor_names.TABLES, "jina-bert-v3", short)
    with pytest.raises(ValueError, match=r"no GGUF name for \['emb_ln.bias', 'emb_ln.weight'\]"):
        tensor_names.gguf_names(arch)
