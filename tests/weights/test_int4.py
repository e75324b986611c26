"""Linear layers in 4 bits: the codes of a block, their error, and the layout that ONNX Runtime multiplies."""

from __future__ import annotations

import numpy as np
import pytest

from jina_local.errors import UsageError
from jina_local.formats.onnx_file import Graph
from jina_local.weights import architecture, int4, int8


def test_a_block_worked_out_by_hand():
    """Sixteenths from -8 to 7 are exact: their scale is 1 / 16."""
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), 2)[None] / 16
    codes, scales = int4.quantised(weight)
    assert codes.shape == (1, 1, 16)
    assert scales.tolist() == [[0.0625]]
    assert codes[0, 0, :3].tolist() == [0 + 1 * 16, 2 + 3 * 16, 4 + 5 * 16]
    np.testing.assert_array_equal(int4.widened(codes, scales), weight)


def test_blocks_have_scales_of_their_own():
    weight = np.random.default_rng(0).standard_normal((70, 96)).astype(np.float32)
    weight[:, :32] *= 1e-20
    weight[:, 64:] *= 1e20
    weight[5] = 0
    wide = int4.widened(*int4.quantised(weight))
    assert wide.shape == weight.shape
    assert not wide[5].any()
    for start in (0, 32, 64):
        part, mine = (x[:, start : start + 32].astype(np.float64) for x in (weight, wide))
        assert np.linalg.norm(mine - part) < 0.09 * np.linalg.norm(part)


def test_weights_that_are_no_whole_blocks_are_refused():
    arch = architecture.from_config(_CONFIG)
    assert int8.layout(arch, "INT8")
    with pytest.raises(UsageError, match=r"q_proj.weight: 48 weights an output are not whole blocks of 32"):
        int8.layout(arch, "INT4")


_CONFIG = {
    "model_type": "qwen3", "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 64,
    "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": True, "hidden_act": "silu",
    "attention_bias": False,
}  # fmt: skip


@pytest.mark.onnx
def test_the_engine_reads_the_layout_as_we_do():
    from jina_local.backends import onnx

    weight = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)
    codes, scales = int4.quantised(weight)
    g = Graph()
    x = g.input("x", np.float32, ("n", 96))
    parts = g.weight("codes", codes), g.weight("scales", scales.reshape(-1))
    g.output("y", g.node("MatMulNBits", x, *parts, K=96, N=40, bits=4, block_size=32), np.float32, ("n", 40))
    states = np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    mine = onnx._session(g, 1).run(None, {"x": states})[0]
    np.testing.assert_allclose(mine, states @ int4.widened(codes, scales).T, atol=1e-4)
