"""The converters' command line within the test's process, and how much text `convert verify` judges."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from convert.__main__ import main
from convert.verify import cases
from jina_local import console

# Judged in short: three queries, and the beginnings of six documents. One is a single token, one is not in NFC.
QUERIES = cases.QUERIES[:3]
DOCUMENTS = tuple(text[:30] for text in (*cases.DOCUMENTS[:4], "x", cases.DOCUMENTS[-1]))


@pytest.fixture
def judged_texts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `verify` run few and short texts, unless the test asks for "whole": MLX on Linux has a slow BLAS."""
    if getattr(request, "param", "short") == "short":
        monkeypatch.setattr(cases, "QUERIES", QUERIES)
        monkeypatch.setattr(cases, "DOCUMENTS", DOCUMENTS)


@pytest.fixture
def convert_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `python -m convert` within this process: its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = console.guarded(lambda: main([*map(str, arguments)]))
        return code, *capfd.readouterr()

    return run
