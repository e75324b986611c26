"""The deliberate faults still fit the code: each has its place there, once, and tests that are there."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, ROOT, stale


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_has_its_place_and_its_tests(mutant):
    assert stale(mutant) is None
    assert all(
        (ROOT / name.partition("::")[0]).exists() for name in mutant.tests.split() if name.startswith("tests/")
    )
