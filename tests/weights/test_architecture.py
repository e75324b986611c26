"""architecture: configs in every spelling, bounds, and the tensors that follow from them."""

from __future__ import annotations

import json

import pytest

from jina_local.errors import ModelDamaged
from jina_local.weights import architecture
from tests import tiny, tiny_v3_and_rerankers

SMALL = {**tiny.CONFIGS["small"], **tiny.FULL["small"]}
NANO = {**tiny.CONFIGS["nano"], **tiny.FULL["nano"]}


def test_the_two_published_configs():
    small, nano = architecture.from_config(SMALL), architecture.from_config(NANO)
    assert (small.kind, small.causal, small.qk_norm, small.rope_theta, small.eps) == (
        "qwen3",
        True,
        True,
        3.5e6,
        1e-6,
    )
    assert (nano.kind, nano.causal, nano.qk_norm, nano.rope_theta, nano.eps) == ("eurobert", False, False, 1e6, 1e-5)


@pytest.mark.parametrize(("config", "parameters"), [(SMALL, 596_049_920), (NANO, 211_766_016)])
def test_parameter_counts_are_the_published_ones(config, parameters):
    total = 0
    for shape in architecture.tensors(architecture.from_config(config)).values():
        size = 1
        for n in shape:
            size *= n
        total += size
    assert total == parameters


@pytest.mark.parametrize(("config", "parameters"), [(SMALL, 20_185_088), (NANO, 6_782_976)])
def test_adapter_parameter_counts_are_the_published_ones(config, parameters):
    arch = architecture.from_config(config)
    shapes = architecture.tensors(arch)
    assert sum(32 * sum(shapes[name]) for name in architecture.projections(arch)) == parameters


def test_rope_theta_is_read_from_either_place():
    nested = {k: v for k, v in SMALL.items() if k != "rope_theta"}
    nested["rope_parameters"] = {"rope_type": "default", "rope_theta": 3500000.0}
    assert architecture.from_config(nested) == architecture.from_config(SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": None}, "no rope_theta, neither at the top nor under rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "two different RoPE bases"),
        ({"rope_theta": float("nan")}, "rope_theta is nan; expected a number from 1 to 1e"),
        ({"rope_theta": [1e6]}, "rope_theta is .1000000.0.; expected a number from 1 to 1e"),
        ({"rope_theta": -1}, "rope_theta is -1; expected a number from 1 to 1e"),
        ({"rope_parameters": {"rope_theta": {}}}, "rope_parameters.rope_theta is an object of 0 members; expected"),
        ({"rope_scaling": {"type": "yarn"}}, "unscaled RoPE only"),
        ({"rope_parameters": {"rope_theta": 3.5e6, "rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"hidden_size": -1}, "hidden_size is -1; expected a whole number from 8 to 16384"),
        ({"hidden_size": "1024"}, "hidden_size is '1024'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": 3}, "cannot be laid out"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5"),
        ({"rms_norm_eps": 2e-6}, "the epsilon of its norms is 2e-06; the published models .* have 1e-06"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which this runtime does not compute"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ModelDamaged, match=message):
        architecture.from_config({**SMALL, **change})


def test_a_missing_key_is_named():
    config = json.loads(json.dumps(SMALL))
    del config["intermediate_size"]
    with pytest.raises(ModelDamaged, match="intermediate_size is missing"):
        architecture.from_config(config)


V3_AND_RERANKERS = {
    kind: {**tiny_v3_and_rerankers.CONFIGS[kind], **tiny_v3_and_rerankers.FULL[kind]}
    for kind in tiny_v3_and_rerankers.KINDS
}


def test_v3_and_the_rerankers():
    v3, native, listwise, pairwise = (
        architecture.from_config(V3_AND_RERANKERS[kind]) for kind in tiny_v3_and_rerankers.KINDS
    )
    assert v3 == native
    assert (v3.kind, v3.rope_theta, v3.eps, v3.max_positions, v3.labels) == ("jina-bert-v3", 2e4, 1e-5, 8194, 0)
    assert (v3.causal, v3.qk_norm, v3.xlm_roberta, v3.width, v3.kv_heads) == (False, False, True, 1024, 16)
    assert (listwise.kind, listwise.rope_theta, listwise.max_positions) == ("qwen3", 1e6, 131072)
    assert (listwise.xlm_roberta, listwise.width, listwise.table) == (False, 1024, "embed_tokens.weight")
    assert (pairwise.kind, pairwise.rope_theta, pairwise.max_positions) == ("bert", 0.0, 1024)
    assert (pairwise.labels, pairwise.width, pairwise.table) == (1, 1, "embeddings.word_embeddings.weight")


def test_only_v3_has_adapters_on_its_tables():
    tables = ["embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"]
    for kind, config in V3_AND_RERANKERS.items():
        arch = architecture.from_config(config)
        extra = [name for name in architecture.adaptable(arch) if name not in architecture.projections(arch)]
        assert extra == (tables if kind.startswith("v3") else [])
        assert not {"classifier.dense.weight", "emb_ln.weight"} & set(architecture.adaptable(arch))
    # Wqkv, out_proj, fc1 and fc2 of every layer
    assert len(architecture.projections(architecture.from_config(V3_AND_RERANKERS["v3"]))) == 4 * 24


def test_the_tensors_of_the_two_bert_kinds():
    v3, pairwise = (
        architecture.tensors(architecture.from_config(V3_AND_RERANKERS[k])) for k in ("v3", "reranker-v2")
    )
    assert v3["encoder.layers.23.mixer.Wqkv.weight"] == (3072, 1024)
    assert v3["encoder.layers.0.mlp.fc2.weight"] == (1024, 4096)
    assert v3["embeddings.token_type_embeddings.weight"] == (1, 1024)
    assert pairwise.keys() - {name for name in v3 if not name.startswith("encoder.layers.")} >= {
        "embeddings.position_embeddings.weight", "classifier.dense.bias", "classifier.out_proj.weight",
    }  # fmt: skip
    assert pairwise["embeddings.position_embeddings.weight"] == (1026, 768)
    assert (pairwise["classifier.dense.weight"], pairwise["classifier.out_proj.weight"]) == ((768, 768), (1, 768))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("v3", {"rotary_emb_base": None}, "Engines would fall back to a default and give wrong vectors"),
        ("v3", {"rotary_emb_base": 20000.0, "rope_theta": 10000.0}, "two different RoPE bases"),
        ("v3", {"position_embedding_type": "absolute"}, "with rotary positions, or as XLMRobertaForSequence"),
        ("v3", {"architectures": ["XLMRobertaForSequenceClassification"]}, "architectures"),
        ("v3", {"emb_pooler": "mean"}, "emb_pooler is 'mean', which this runtime does not compute"),
        ("v3", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ("v3", {"type_vocab_size": 2}, "type_vocab_size is 2"),
        ("v3", {"pad_token_id": 0}, "pad_token_id is 0"),
        ("v3", {"num_attention_heads": 7}, "does not divide by 7 heads"),
        ("v3", {"num_key_value_heads": 8}, "cannot be laid out"),
        ("v3", {"layer_norm_eps": None}, "layer_norm_eps is None"),
        ("v3", {"layer_norm_eps": 1e-6}, "the epsilon of its norms is 1e-06; the published models .* have 1e-05"),
        ("v3", {"num_attention_heads": 8}, "its heads are 128 wide; those of the published models .* are 64"),
        ("reranker-v2", {"num_attention_heads": 4}, "its heads are 192 wide"),
        ("v3-native", {"rope_parameters": None}, "no rope_theta"),
        ("v3-native", {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4}}, "rope_type 'linear'"),
        ("reranker-v2", {"position_embedding_type": "rotary"}, "architectures"),
        ("reranker-v2", {"position_embedding_type": "relative_key"}, "architectures"),
        ("reranker-v2", {"architectures": ["XLMRobertaForMaskedLM"]}, "model_type is None"),
        ("reranker-v2", {"architectures": None}, "model_type is None"),
        ("reranker-v2", {"num_labels": 3}, "num_labels is 3"),
        ("reranker-v2", {"max_position_embeddings": 2}, "leaves no position"),
        (
            "reranker-v3",
            {"layer_types": ["sliding_attention", "full_attention"] * 14},
            r"limited to a window.*reranker-v3\.5 has them",
        ),
        ("reranker-v3", {"use_sliding_window": True}, "limited to a window"),
    ],
)
def test_refusals_of_v3_and_the_rerankers(kind, change, message):
    with pytest.raises(ModelDamaged, match=message):
        architecture.from_config({**V3_AND_RERANKERS[kind], **change})


def test_layer_types_of_full_attention_change_nothing():
    config = V3_AND_RERANKERS["reranker-v3"]
    same = architecture.from_config({**config, "layer_types": ["full_attention"] * 28})
    assert same == architecture.from_config(config)


@pytest.mark.parametrize("kind", ["v3", "reranker-v2"])
def test_a_gguf_header_says_the_same_as_the_config(kind):
    arch = architecture.from_config(V3_AND_RERANKERS[kind])
    keys = {
        "general.architecture": arch.kind,
        f"{arch.kind}.context_length": arch.max_positions,
        f"{arch.kind}.embedding_length": arch.hidden,
        f"{arch.kind}.block_count": arch.layers,
        f"{arch.kind}.attention.head_count": arch.heads,
        f"{arch.kind}.feed_forward_length": arch.intermediate,
        f"{arch.kind}.attention.layer_norm_epsilon": arch.eps,
        **({f"{arch.kind}.rope.freq_base": arch.rope_theta} if arch.rope_theta else {}),
    }
    assert architecture.from_gguf(keys, arch.vocab) == arch
    if arch.rope_theta:
        del keys[f"{arch.kind}.rope.freq_base"]
        with pytest.raises(ModelDamaged, match="no rope_theta"):
            architecture.from_gguf(keys, arch.vocab)


def test_a_gguf_with_a_window_is_refused():
    arch = architecture.from_config(V3_AND_RERANKERS["reranker-v3"])
    keys = {"general.architecture": "qwen3", "qwen3.attention.sliding_window": 1024,
            "qwen3.context_length": arch.max_positions, "qwen3.embedding_length": arch.hidden,
            "qwen3.block_count": arch.layers, "qwen3.attention.head_count": arch.heads,
            "qwen3.attention.head_count_kv": arch.kv_heads, "qwen3.attention.key_length": arch.head_dim,
            "qwen3.feed_forward_length": arch.intermediate, "qwen3.attention.layer_norm_rms_epsilon": arch.eps,
            "qwen3.rope.freq_base": arch.rope_theta}  # fmt: skip
    with pytest.raises(ModelDamaged, match=r"limited to a window.*reranker-v3\.5"):
        architecture.from_gguf(keys, arch.vocab)
    assert architecture.from_gguf({**keys, "qwen3.attention.sliding_window": 0}, arch.vocab) == arch
