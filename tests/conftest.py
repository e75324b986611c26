"""Fixtures that several rooms share: an engine and an embedder without weights, and markers that skip aloud."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each process that runs tests; before numpy is imported
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # also for tests that open a graph without the library

import pytest

from jina_local import registry

from .fakes import FakeBackend, FakeEmbedder, FakeReranker

_NEEDS = {
    "mlx": (("mlx.core",), "pip install 'jina_local[mlx]'"),
    "llama": (("llama_cpp",), "pip install 'jina_local[llama]'"),
    "onnx": (("onnxruntime",), "pip install 'jina_local[onnx]'"),
    "reference": (("torch", "transformers"), "pip install 'jina_local[reference]'"),
}


def pytest_configure() -> None:
    """Where this runs in the background of a shell, SIGINT and SIGQUIT are ignored, and would be in every child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGQUIT") and signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an absent engine, and say which. Of sampled tests, all but the first for an engine are slow."""
    seen: set[tuple[object, ...]] = set()
    for item in items:
        if "sampled" in item.keywords:
            kind = (
                getattr(item, "function", None),
                *(name for name in ("mlx", "llama", "onnx") if name in item.keywords),
            )
            if kind in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(kind)
    for marker, (modules, install) in _NEEDS.items():
        absent = [name for name in modules if not _there(name)]
        if not absent:
            continue
        skip = pytest.mark.skip(reason=f"{', '.join(absent)} is not installed: {install}")
        for item in items:
            if marker in item.keywords:
                item.add_marker(skip)


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture
def fake_backend() -> Callable[..., FakeBackend]:
    """Make a FakeBackend."""
    return FakeBackend


@pytest.fixture
def fake_embedder(monkeypatch: pytest.MonkeyPatch) -> FakeEmbedder:
    """What `jina_local.loading.load` returns while the test runs; `.loaded` has what it was asked for."""
    from jina_local import loading

    embedder = FakeEmbedder()

    def load(name_or_path: object = registry.DEFAULT_MODEL, **settings: object) -> FakeEmbedder:
        embedder.loaded = {"name_or_path": name_or_path, **settings}
        return embedder

    monkeypatch.setattr(loading, "load", load)
    return embedder


@pytest.fixture
def fake_reranker(monkeypatch: pytest.MonkeyPatch) -> FakeReranker:
    """As `fake_embedder`, for a listwise reranker."""
    from jina_local import loading

    reranker = FakeReranker()

    def load(name_or_path: object = registry.DEFAULT_MODEL, **settings: object) -> FakeReranker:
        reranker.loaded = {"name_or_path": name_or_path, **settings}
        return reranker

    monkeypatch.setattr(loading, "load", load)
    return reranker


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the settings of who runs the tests."""
    for name in [n for n in os.environ if n.startswith("JINA_LOCAL_") or n == "PYTHONUNBUFFERED"]:
        monkeypatch.delenv(name)


@pytest.fixture
def stock_llama(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """llama-cpp-python's own `Llama`, with weights as they lie in the file: AMX crashes on repacked ones."""
    llama_cpp = pytest.importorskip("llama_cpp")
    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
    return llama_cpp.Llama
