"""architecture: configs in every spelling, bounds, and the tensors that follow from them."""

from __future__ import annotations

import json

import pytest

from jina_local import architecture
from jina_local.errors import ModelDamaged
from tests import tiny

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
        ({"rope_theta": float("nan")}, "expected a positive number"),
        ({"rope_scaling": {"type": "yarn"}}, "unscaled RoPE only"),
        ({"rope_parameters": {"rope_theta": 3.5e6, "rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"hidden_size": -1}, "hidden_size is -1; expected a whole number from 8 to 16384"),
        ({"hidden_size": "1024"}, "hidden_size is '1024'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": 3}, "cannot be laid out"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5"),
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
