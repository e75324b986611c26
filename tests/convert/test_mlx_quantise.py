"""Quantisation: the bits of mx.quantize, the gain of the refit, and what the recipe refuses."""

from __future__ import annotations

import numpy as np
import pytest

from convert.mlx import quantise as room
from convert.mlx.quantise import BITS, GROUP_SIZES, dequantise, quantise, recipe
from jina_local.errors import ModelDamaged, UsageError


def gaussian(rows: int = 96, columns: int = 768, seed: int = 0) -> np.ndarray:
    """Weights of a usual size."""
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32) * np.float32(0.03)


def awkward() -> np.ndarray:
    """Rows that a rule can trip over: constant, one-sided, tiny, with an outlier, with ties."""
    w = gaussian(12, 256, 1)
    w[0], w[1], w[2] = 0, 0.5, -0.25
    w[3] *= np.float32(1e-3)
    w[4], w[5] = np.abs(w[4]), -np.abs(w[5])
    w[6, ::3] = 1
    w[7] = np.tile([-1, 1], 128)
    w[8] = np.arange(256) / np.float32(256)
    w[9, 0] = 60000
    w[10] = np.tile([-1e-8, 1e-8], 128)
    return w


def error(weight: np.ndarray, again: np.ndarray) -> float:
    """Relative root mean square."""
    return float(np.sqrt(np.square(again - weight).sum() / np.square(weight).sum()))


@pytest.mark.mlx
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_equals_mlx_bit_for_bit(bits, group_size):
    import mlx.core as mx

    for weight in (gaussian(), awkward()):
        half = weight.astype(np.float16)
        codes, scales, biases = (np.array(a) for a in mx.quantize(mx.array(half), group_size, bits))
        mine = quantise(half.astype(np.float32), bits, group_size, where="w", refit=False)
        np.testing.assert_array_equal(mine.codes, codes)
        np.testing.assert_array_equal(mine.scales.view(np.uint16), scales.view(np.uint16))
        np.testing.assert_array_equal(mine.biases.view(np.uint16), biases.view(np.uint16))


@pytest.mark.mlx
@pytest.mark.parametrize("bits", BITS)
def test_mlx_reads_the_refitted_codes_as_meant(bits):
    import mlx.core as mx

    weight = gaussian()
    mine = quantise(weight, bits, 64, where="w", refit=True)
    wide = [mx.array(a.astype(np.float32)) for a in (mine.scales, mine.biases)]
    theirs = np.array(mx.dequantize(mx.array(mine.codes), *wide, group_size=64, bits=bits))
    np.testing.assert_allclose(theirs, dequantise(mine, bits, 64), atol=1e-8)
    assert error(weight, theirs) < {4: 0.085, 5: 0.042, 6: 0.021, 8: 0.0051}[bits]


@pytest.mark.parametrize(
    ("bits", "group_size", "gain"), [(4, 64, 0.08), (4, 32, 0.11), (5, 64, 0.06), (6, 64, 0.055)]
)
def test_refit_lowers_the_error_as_promised(bits, group_size, gain):
    weight = gaussian()
    by_ends = error(weight, dequantise(quantise(weight, bits, group_size, where="w", refit=False), bits, group_size))
    refitted = error(weight, dequantise(quantise(weight, bits, group_size, where="w"), bits, group_size))
    assert refitted < by_ends * (1 - gain)


@pytest.mark.parametrize("bits", BITS)
def test_refit_is_never_worse_than_the_plain_rule_in_any_group(bits):
    for weight in (awkward(), gaussian(16, 256) ** 3):
        plain = dequantise(quantise(weight, bits, 32, where="w", refit=False), bits, 32)
        refitted = dequantise(quantise(weight, bits, 32, where="w", refit=True), bits, 32)
        off = [np.square(a - weight, dtype=np.float64).reshape(-1, 32).sum(1) for a in (plain, refitted)]
        assert (off[1] <= off[0] * (1 + 1e-5) + 1e-12).all()
        assert np.isfinite(refitted).all()


def test_eight_bits_are_not_refitted_by_default_and_six_are():
    weight = gaussian()
    for bits, default in ((8, False), (6, True), (5, True), (4, True)):
        chosen, forced = quantise(weight, bits, 64, where="w"), quantise(weight, bits, 64, where="w", refit=default)
        np.testing.assert_array_equal(chosen.codes, forced.codes)
        other = quantise(weight, bits, 64, where="w", refit=not default)
        assert (chosen.codes != other.codes).any()


@pytest.mark.parametrize("refit", [False, True])
def test_the_size_of_the_pieces_changes_nothing(monkeypatch, refit):
    weight = gaussian(50, 256)
    whole = quantise(weight, 5, 64, where="w", refit=refit)
    monkeypatch.setattr(room, "_PLAIN_CHUNK", 256 * 7)
    monkeypatch.setattr(room, "_REFIT_CHUNK", 256 * 7)
    pieces = quantise(weight, 5, 64, where="w", refit=refit)
    np.testing.assert_array_equal(whole.codes, pieces.codes)
    np.testing.assert_array_equal(whole.scales, pieces.scales)
    np.testing.assert_array_equal(whole.biases, pieces.biases)


def test_weights_beyond_float16_are_refused_by_name():
    weight = gaussian(2, 64)
    weight[1, 3] = 1e6
    for refit in (False, True):
        with pytest.raises(ModelDamaged, match=r"layers\.0\.q \(.*do not fit float16"):
            quantise(weight, 4, 32, where="layers.0.q", refit=refit)


def test_recipe_keeps_norms_and_never_starves_the_token_table():
    for bits in BITS:
        assert recipe("norm.weight", (768,), bits, 64) is None
        assert recipe("layers.0.self_attn.q_norm.weight", (128,), bits, 64) is None
        assert recipe("embed_tokens.weight", (1000, 768), bits, 64) == (8, 64)
        assert recipe("layers.3.mlp.up_proj.weight", (3072, 768), bits, 32) == (bits, 32)
        assert recipe("embeddings.word_embeddings.weight", (1000, 768), bits, 64) == (8, 64)
        assert recipe("encoder.layers.3.mixer.Wqkv.weight", (2304, 768), bits, 64) == (bits, 64)
        for kept in ("embeddings.token_type_embeddings", "embeddings.position_embeddings", "classifier.dense"):
            assert recipe(f"{kept}.weight", (768, 768), bits, 64) is None
        assert recipe("encoder.layers.3.mixer.Wqkv.bias", (2304,), bits, 64) is None
    for bits in (16, 32):
        assert recipe("layers.3.mlp.up_proj.weight", (3072, 768), bits, 64) is None


@pytest.mark.parametrize(
    ("bits", "group_size", "message"),
    [
        (3, 64, "bits 3: possible are 4, 5, 6, 8, 16 and 32"),
        (4, 48, "group_size 48: possible are 32, 64, 128"),
        (4, 128, "rows of 320 weights are not a whole number of groups of 128"),
    ],
)
def test_recipe_refuses_what_the_format_does_not_have(bits, group_size, message):
    with pytest.raises(UsageError, match=message):
        recipe("layers.0.mlp.up_proj.weight", (64, 320), bits, group_size)
