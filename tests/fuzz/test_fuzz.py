"""Damaged files at quick size: nothing dies, hangs, raises an untyped error, or gives another model's vectors."""

from __future__ import annotations

from random import Random

import pytest

from . import farm, gateless, graphs, mutate
from .bases import KINDS
from .counting import PAST, count

pytestmark = [pytest.mark.mlx, pytest.mark.llama, pytest.mark.onnx]


def test_a_few_damaged_files_of_each_kind():
    outcomes, faults = count(KINDS, 6, seed=1, jobs=1)
    assert faults == []
    assert sum(outcomes.values()) == 6 * len(KINDS)
    assert outcomes[farm.REFUSED] >= 3 * len(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind):
    outcomes, faults = count([kind], 300, seed=2, jobs=2)
    assert faults == []
    assert sum(outcomes.values()) == 300
    assert sum(outcomes[one] for one in PAST) >= 8, "some have to get past the gate, or nothing behind it is tried"


@pytest.mark.slow
@pytest.mark.parametrize("kind", gateless.KINDS)
def test_without_the_gate_a_process_of_its_own_is_enough(kind):
    outcomes, faults = count([kind], 30, seed=3, jobs=2, gate_off="spawn")
    assert faults == []
    assert sum(outcomes.values()) == 30


@pytest.mark.parametrize(
    ("work", "became"),
    [
        (lambda: farm.os.abort(), f"{farm.DEATH} by SIGABRT"),
        (lambda: farm.os._exit(3), f"{farm.DEATH} with exit code 3"),
        (lambda: farm.time.sleep(60), f"{farm.HANG} over 0.5 s"),
        (lambda: {}["x"], f"{farm.UNTYPED} KeyError"),
        (lambda: farm.digest(farm.np.array([1.0, float("nan")])), farm.ODD),
        (lambda: farm.SAME, farm.SAME),
    ],
)
def test_the_farm_tells_every_end_apart(work, became):
    assert farm.in_child(work, limit=0.5).startswith(became)


def test_a_gguf_header_is_written_as_it_was_read():
    from tests import made

    raw = made.gguf_file("nano", "Q8_0").read_bytes()
    assert mutate.Gguf(raw).dump() == raw
    changed = [mutate.of_gguf(Random(n), raw)[0] for n in range(20)]
    assert len({raw, *changed}) > 15


def test_a_graph_is_written_as_it_was_read():
    from tests import made

    raw = (made.published_graph("nano") / "onnx" / "model.onnx").read_bytes()
    assert graphs.Message(raw, "Model").dump() == raw
    changed = [graphs.of_graph(Random(n), raw)[0] for n in range(20)]
    assert len({raw, *changed}) > 15
