"""The rules that adapters keep in every kind of file, by themselves; each file has tests of its own."""

from __future__ import annotations

import pytest

from jina_local.errors import ModelDamaged
from jina_local.weights import architecture
from jina_local.weights.adapters.mlx_file import names
from jina_local.weights.adapters.rules import Slot, check_base, check_scale, linear_slots, pair_factors
from jina_local.weights.checkpoint import Checkpoint
from tests import made

SLOTS = [Slot("w", "w.A", (2, 8), "w.B", (4, 2)), Slot("v", "v.A", (2, 8), "v.B", (6, 2))]


def test_only_slots_with_factors_are_filled_and_the_order_is_theirs():
    shapes = {"v.B": (6, 2), "v.A": (2, 8)}
    assert pair_factors(shapes, SLOTS, "file") == SLOTS[1:]
    assert pair_factors({**shapes, "w.A": (2, 8), "w.B": (4, 2)}, SLOTS, "file") == SLOTS


@pytest.mark.parametrize(
    ("shapes", "every", "message"),
    [
        ({}, False, "file: holds no LoRA factors"),
        ({"w.A": (2, 8)}, False, "1 missing: w.B"),
        ({"w.A": (2, 8), "w.B": (2, 4)}, False, r"1 of another shape: w.B \(2, 4\) \(expected \(4, 2\)\)"),
        ({"w.A": (2, 8), "w.B": (4, 2), "x.A": (1, 1)}, False, "1 unknown: x.A"),
        ({"w.A": (2, 8), "w.B": (4, 2)}, True, "2 missing: v.A, v.B"),
    ],
)
def test_what_does_not_pair_is_refused(shapes, every, message):
    with pytest.raises(ModelDamaged, match=message):
        pair_factors(shapes, SLOTS, "file", every=every)


def test_only_a_fused_weight_may_have_three_times_the_rank():
    with Checkpoint(made.checkpoint("v3")) as checkpoint:
        arch = checkpoint.arch
    weights = [name for name in architecture.projections(arch) if "layers.0" in name]
    shapes = {names(weight)[0]: (12, 256) for weight in weights}
    ranks = {slot.weight: slot.a_shape[0] for slot in linear_slots(arch, weights, 4, shapes, names)}
    assert {weight: rank for weight, rank in ranks.items() if rank != 4} == {"encoder.layers.0.mixer.Wqkv.weight": 12}


@pytest.mark.parametrize(
    ("adapter", "base", "message"),
    [
        ("a", None, r"^base: carries no digest of a base \(key\).* convert both: command\.$"),
        (
            None,
            "b",
            r"^adapter: carries no digest of its base \(key\).* trained on base\. .* both: command\.$",
        ),
        ("a", "b", r"^adapter: was made for the base a, and base is of the base b\. .*: command\.$"),
    ],
)
def test_an_adapter_belongs_to_one_base(adapter, base, message):
    with pytest.raises(ModelDamaged, match=message):
        check_base(adapter, base, "adapter", "base", key="key", command="command")
    check_base("b", "b", "adapter", "base", key="key", command="command")


@pytest.mark.parametrize(("rank", "alpha"), [(0, 1), (513, 1), (True, 1), (4.0, 1), (4, 0), (4, True), (4, "1")])
def test_a_scale_that_cannot_be_is_refused(rank, alpha):
    with pytest.raises(ModelDamaged, match="file: (rank|alpha) .*; expected a"):
        check_scale(rank, alpha, "file")
    assert check_scale(512, 65536, "file") == (512, 65536.0)
