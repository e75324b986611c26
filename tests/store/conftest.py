"""What tests of the store share."""

from __future__ import annotations

import pytest

from jina_local.store import default_weights


@pytest.fixture(autouse=True)
def same_default_everywhere(monkeypatch):
    """The default type is Q8_0 on whatever machine the tests run; test_default_weights.py has both."""
    monkeypatch.setitem(default_weights.TABLE, "x86", default_weights.TABLE["other"])
