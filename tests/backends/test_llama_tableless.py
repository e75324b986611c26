"""Long texts on a copy of an encoder's weights without their token table: the same bits, and no room for logits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local.errors import EngineError
from jina_local.inference.batching import pack
from jina_local.spec import NO_TASK
from tests import made, tiny
from tests.backends.test_llama import backend
from tests.backends.test_llama_v3_and_rerankers import CROSS, V3, at, files, texts, write

pytestmark = pytest.mark.llama
__all__ = ["files"]  # a fixture


@pytest.fixture
def tableless(monkeypatch):
    """Every pass that is too long for a small context runs on the copy without a table."""
    from jina_local.backends.llama import pool

    monkeypatch.setattr(pool, "_MOST_LOGITS", 0)


MORE_LABELS = [pytest.param(label, marks=pytest.mark.slow) for label in ("F16", "BF16", "Q4_0")]


@pytest.mark.sampled
@pytest.mark.parametrize("label", ["F32", "Q8_0", *MORE_LABELS])
@pytest.mark.parametrize("arch", [V3, CROSS], ids=lambda arch: arch.kind)
def test_without_a_table_a_long_pass_has_the_same_bits(files, arch, label, tableless, monkeypatch):
    encoded, how = texts(arch, (700, 1000, 40)), "first" if arch.labels else "mean"
    groups = ([1], [0, 2], [1, 2, 0, 1], [2])
    engine = backend(files(arch, label))
    rows = [engine.forward(pack(encoded, group, how)) for group in groups]
    assert engine._pool.tableless
    engine.close()
    with pytest.raises(EngineError, match="this model is closed"):
        engine.forward(pack(encoded, [1], how))
    monkeypatch.undo()
    engine = backend(files(arch, label))
    for group, expected in zip(groups, rows, strict=True):
        np.testing.assert_array_equal(engine.forward(pack(encoded, group, how)), expected)
    assert not engine._pool.tableless
    engine.close()


@pytest.mark.parametrize("label", ["Q6_K", "Q5_K_M", "Q4_K_M"])
def test_without_a_table_converted_files_have_the_same_bits(label, tableless, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 500, 900).astype(np.int32)
    engine = backend(made.gguf_file("nano", label))
    rows = engine.forward(at(ids, [0, 899]))
    assert engine._pool.tableless
    engine.close()
    monkeypatch.undo()
    engine = backend(made.gguf_file("nano", label))
    np.testing.assert_array_equal(engine.forward(at(ids, [0, 899])), rows)
    engine.close()


def test_without_a_table_adapters_run_too(tableless, monkeypatch):
    folder = made.gguf_separate("nano", "F32", "Q8_0")
    adapters = {task: folder / f"v5-nano-{task}-adapter.gguf" for task in tiny.TASKS[:2]}
    ids = np.random.default_rng(0).integers(0, 500, 900).astype(np.int32)
    engine = backend(folder / "v5-nano-base-F32.gguf", adapters=adapters)
    rows = {task: engine.forward(at(ids, [899]), 1, task) for task in (*adapters, NO_TASK)}
    engine.close()
    monkeypatch.undo()
    engine = backend(folder / "v5-nano-base-F32.gguf", adapters=adapters)
    for task, row in rows.items():
        np.testing.assert_array_equal(engine.forward(at(ids, [899]), 1, task), row)
    engine.close()


def test_no_memory_or_no_disk_for_the_copy_is_said(files, tableless, monkeypatch, tmp_path):
    from jina_local.backends.llama import tableless

    engine, encoded = backend(files(V3)), texts(V3, (700,))
    monkeypatch.setattr(tableless, "available_memory", lambda: 1000)
    with pytest.raises(
        EngineError, match=r"jina-bert-v3-F32\.gguf: so long a text runs on a copy .* Lower max_length"
    ):
        engine.forward(pack(encoded, [0], "mean"))
    monkeypatch.setattr(tableless, "available_memory", lambda: None)

    def full(header, out):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tableless, "_write", full)
    with pytest.raises(EngineError, match=r"cannot be written \(No space left on device\)\. Make room, set TMPDIR"):
        engine.forward(pack(encoded, [0], "mean"))
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that was held is read from /proc")
def test_a_long_text_does_not_take_room_for_logits(tmp_path):
    """3000 tokens of a vocabulary of 120,000 would clear 1.4 GB."""

    def held(key):
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[key].split()[0]) / 1e3

    wide = replace(V3, vocab=120_000, hidden=64, heads=1, kv_heads=1, head_dim=64, intermediate=16, layers=1)
    engine = backend(write(tmp_path / "wide.gguf", wide), threads=1)
    encoded = texts(wide, (4, 3000))
    engine.forward(pack(encoded, [0], "mean"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the most that was held so far
    before = held("VmRSS")
    assert np.isfinite(engine.forward(pack(encoded, [1], "mean"))).all()
    assert held("VmHWM") - before < 300
    engine.close()
