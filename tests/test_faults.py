"""Conversions killed, and run on a full or broken disk, at some of their steps; `python -m tests.faults` takes all."""

from __future__ import annotations

import pytest

from . import faults

pytestmark = [pytest.mark.slow, pytest.mark.mlx, pytest.mark.llama]


def check(outcomes):
    assert len(outcomes) >= 2 * len(faults.FAULTS)
    assert [one for one in outcomes if one.problem or one.left == "HALF"] == []
    assert {one.left for one in outcomes} >= {"absent"}


@pytest.mark.parametrize("converter", faults.CONVERTERS)
def test_faults_of_the_system(converter):
    if why := faults.available():
        pytest.skip(f"{why}; the next test has Python's own calls fail")
    check(faults.enumerate_faults(converter, every=19, layer="strace"))


@pytest.mark.parametrize("converter", faults.CONVERTERS)
def test_faults_of_pythons_own_calls(converter):
    check(faults.enumerate_faults(converter, every=11, layer="python"))
