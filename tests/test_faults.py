"""Conversions that are killed, or run on a full or broken disk. `python -m tests.faults` takes every step."""

from __future__ import annotations

import pytest

from . import faults

pytestmark = [pytest.mark.slow, pytest.mark.mlx, pytest.mark.llama]


def check(outcomes):
    assert len(outcomes) >= 2 * len(faults.FAULTS)
    assert [one for one in outcomes if one.problem or one.left == "HALF"] == []
    assert {one.left for one in outcomes} & {"absent", "old"}


@pytest.mark.parametrize("converter", faults.CONVERTERS)
@pytest.mark.parametrize("replace", [False, True], ids=["absent", "old"])
def test_faults_of_the_system(converter, replace):
    if why := faults.available():
        pytest.skip(f"{why}; the next test has Python's own calls fail")
    check(faults.enumerate_faults(converter, every=29, layer="strace", replace=replace))


@pytest.mark.parametrize("converter", faults.CONVERTERS)
def test_faults_of_pythons_own_calls(converter):
    check(faults.enumerate_faults(converter, every=17, layer="python"))
