"""An engine in a process of its own dies: which text is at fault, what is said, when it is given up."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers

from jina_local import load
from jina_local.backends import jobs
from jina_local.backends.jobs import Limits
from jina_local.backends.process import identity
from jina_local.embedding.embedder import Embedder
from jina_local.errors import EngineCrashed, EngineError, ModelDamaged, NonFiniteError
from jina_local.inference import passes
from tests import made
from tests.fakes import FakeBackend
from tests.faulty import QUICK, Open, batch, expected, fault, gone
from tests.faulty_worker import ONCE, SLOW, SLOWER

DEADLY = [
    ("abort", "SIGABRT: ggml.c:3093: GGML_ASSERT(n_tokens > 0) failed"),
    ("segfault", "SIGSEGV"),
    ("bus error", "SIGBUS: a file may have been cut or replaced"),
    ("exit", "it ended with code 3"),
    ("kill", "SIGKILL: the system may have been short of memory"),
    ("garbage", "it sent b'what is this"),
    ("other rows", "an answer of kind 17 to question 1000000, which was not asked"),
    ("spin", "it did not answer a pass of 3 tokens in"),
    ("shout", "seconds and was ended: again and again"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("name", "cause"), DEADLY)
def test_a_text_that_ends_the_process_is_found_and_set_aside(faulty, caplog, name, cause):
    engine = faulty(replace(QUICK, pass_seconds=1.5) if name in ("spin", "shout") else QUICK)
    one = batch([1, 2], [3, fault(name), 4], [5])
    rows = engine.forward(one)
    assert np.isnan(rows[1]).all()
    assert np.array_equal(rows[[0, 2]], expected(one)[[0, 2]])
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert cause in caplog.text
    assert "a text of 3 tokens ended the engine's process again" in caplog.text
    pid = engine.pid
    again = engine.forward(batch([3, fault(name), 4], [6]))
    assert np.isnan(again[0]).all()
    assert np.array_equal(again[1], expected(batch([6]))[0])
    with pytest.raises(EngineCrashed) as error:
        engine.forward(batch([3, fault(name), 4]))
    assert error.value.by_text
    assert cause in error.value.cause
    assert "the engine's process died twice of this text" in str(error.value)
    assert engine.pid == pid  # it is known, and was not run


def test_the_error_has_the_last_words_of_the_process(faulty):
    engine = faulty()
    with pytest.raises(EngineCrashed) as error:
        engine.forward(batch([fault("abort")]))
    assert error.value.words == "/home/builder/src/ggml.c:3093: GGML_ASSERT(n_tokens > 0) failed"
    assert error.value.cause == "SIGABRT: ggml.c:3093: GGML_ASSERT(n_tokens > 0) failed"
    assert isinstance(error.value, EngineError)
    assert np.array_equal(engine.forward(batch([1])), expected(batch([1])))


def test_a_text_is_set_aside_for_its_task_alone(faulty):
    engine = faulty(adapters=["a", "b"])
    for task in ("a", "b"):
        with pytest.raises(EngineCrashed):
            engine.forward(batch([fault("abort")]), task=task)
    assert np.array_equal(engine.forward(batch([1]), task="b"), expected(batch([1]), "b", adapters=["a", "b"]))


def test_a_pass_is_run_again_once(faulty, caplog):
    engine = faulty()
    one = batch([1, 2, 3], [4, ONCE])
    first = engine.pid
    assert np.array_equal(engine.forward(one), expected(one))
    assert engine.pid != first
    assert len(caplog.records) == 1
    assert "SIGABRT: ggml.c:3093: GGML_ASSERT(n_tokens > 0) failed" in caplog.text
    assert "is run again in a new one" in caplog.text


@pytest.mark.parametrize("name", ["refuse", "bug", "damaged"])
def test_an_exception_is_no_death(faulty, name):
    engine = faulty()
    pid = engine.pid
    words = {
        "refuse": (EngineError, "the engine refuses this pass"),
        "bug": (EngineError, "the engine's process could not do it (TypeError: somebody gave a str for an int)."),
        "damaged": (ModelDamaged, "the file is cut"),
    }
    with pytest.raises(words[name][0]) as error:
        engine.forward(batch([fault(name)]))
    assert type(error.value) is words[name][0]
    assert str(error.value) == words[name][1]
    assert engine.pid == pid


def test_no_memory_is_an_error(faulty):
    with pytest.raises(EngineError, match="MemoryError"):
        faulty().forward(batch([fault("eat")]))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["stop", "hold"])
def test_a_process_without_a_sign_of_life_is_ended(faulty, name):
    engine = faulty(Limits(pass_seconds=50, silent_seconds=1, beat_seconds=0.1))
    pid = engine.pid
    with pytest.raises(EngineCrashed, match="no sign of life for 1 seconds"):
        engine.forward(batch([fault(name)]))
    assert gone(pid)
    assert np.array_equal(engine.forward(batch([1])), expected(batch([1])))


@pytest.mark.slow
def test_a_slow_pass_gives_signs_of_life(faulty):
    engine = faulty(Limits(silent_seconds=1.5, beat_seconds=0.1))
    slow = batch([SLOW, SLOWER])
    assert np.array_equal(engine.forward(slow), expected(slow))


def test_a_longer_pass_has_more_time(faulty):
    engine = faulty(Limits(pass_seconds=0.1, token_seconds=0.05, beat_seconds=0.1))
    long = batch([SLOW] * 100)
    assert np.array_equal(engine.forward(long), expected(long))
    with pytest.raises(EngineCrashed, match="did not answer a pass of 1 tokens"):
        engine.forward(batch([SLOW]))


@pytest.mark.slow
def test_the_process_may_be_killed_at_any_time(faulty):
    engine = faulty()
    one = batch([1, 2], [SLOW, 3])
    killer = threading.Timer(0.3, lambda: os.kill(engine.pid, signal.SIGKILL))
    killer.start()
    assert np.array_equal(engine.forward(one), expected(one))
    killer.join()
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)  # while it is idle
    assert gone(pid)
    assert np.array_equal(engine.forward(one), expected(one))


@pytest.mark.parametrize("name", ["abort", "segfault", "exit", "garbage"])
def test_a_file_whose_opening_ends_the_process(faulty, name):
    start = time.monotonic()
    with pytest.raises(
        EngineCrashed, match="settings.json: the engine's process died while it loaded the model"
    ) as error:
        faulty(open=name)
    assert not error.value.by_text
    assert error.value.cause
    assert time.monotonic() - start < 10


def test_a_file_whose_opening_never_ends(faulty):
    with pytest.raises(EngineCrashed, match="had not loaded the model after 1 seconds"):
        faulty(Limits(open_seconds=1, beat_seconds=0.1), open="spin")


def test_an_engine_that_dies_of_everything_is_not_blamed_on_a_text(faulty):
    engine = faulty(always="abort")
    with pytest.raises(EngineCrashed, match="dies of every text, of a single token too: SIGABRT") as error:
        engine.forward(batch([1, 2], [3]))
    assert not error.value.by_text
    assert "GGML_ASSERT(n_tokens > 0)" in error.value.cause


def test_after_many_deaths_no_other_process_is_started_for_a_while(faulty, tmp_path, monkeypatch):
    engine = faulty(replace(QUICK, within_seconds=300), always="abort")
    with pytest.raises(EngineCrashed, match="dies of every text"):
        engine.forward(batch([1]))
    for _ in range(3):
        with pytest.raises(EngineCrashed, match="died 4 times within 300 seconds, the last time of SIGABRT") as error:
            engine.forward(batch([1]))
        assert not error.value.by_text
        assert "GGML_ASSERT(n_tokens > 0)" in error.value.cause
        assert engine.pid is None
    (tmp_path / "cured").touch()
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 200))
    with pytest.raises(EngineCrashed, match="died 4 times"):
        engine.forward(batch([1]))
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 600))
    assert np.array_equal(engine.forward(batch([1])), expected(batch([1])))


def test_deadly_texts_among_others_are_many_before_it_is_refused(faulty):
    engine = faulty(replace(QUICK, deaths_in_a_row=3, deaths=8, within_seconds=300))
    for n in range(3):
        with pytest.raises(EngineCrashed, match="died twice of this text"):
            engine.forward(batch([fault("abort"), n]))
    with pytest.raises(EngineCrashed, match="died 8 times within 300 seconds"):
        engine.forward(batch([fault("abort"), 3]))


def test_files_that_were_replaced_are_not_opened_again(faulty, tmp_path):
    engine = faulty()
    (tmp_path / "new").write_text("{}")
    os.replace(tmp_path / "new", tmp_path / "settings.json")
    assert np.array_equal(engine.forward(batch([1])), expected(batch([1])))  # it is open still
    with pytest.raises(EngineCrashed, match="its files were changed after they were opened"):
        engine.forward(batch([fault("abort")]))


def test_a_folder_is_known_by_its_files(tmp_path):
    (tmp_path / "a").write_text("a")
    before = identity([tmp_path, tmp_path / "absent"])
    assert identity([tmp_path, tmp_path / "absent"]) == before
    (tmp_path / "b").write_text("b")
    os.utime(tmp_path, ns=(before[0][4], before[0][4]))
    assert identity([tmp_path]) != before


@pytest.fixture
def embedder(faulty: Open, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedder]:
    """A model of test size over a faulty engine, on which every text with a 7 is deadly."""
    from jina_local import backends

    path = made.checkpoint("nano")
    seven = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")).encode("7", add_special_tokens=False).ids
    engine = faulty(also={str(seven[-1]): "abort"}, hidden=256, vocab=10_000)
    monkeypatch.setattr(backends, "open_backend", lambda *args, **words: engine)
    with load(path, backend="mlx", task="retrieval") as model:
        yield model


@pytest.mark.mlx
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_other_texts_of_a_call_have_their_vectors(embedder, deterministic):
    texts = ["a", "b 7", "c", "d"]
    found = embedder.embed(texts, deterministic=deterministic)
    assert found.failed == (1,)
    assert not found.vectors[1].any()
    assert np.array_equal(found.vectors[[0, 2, 3]], embedder.encode(["a", "c", "d"]))
    with pytest.raises(NonFiniteError) as error:
        embedder.encode(texts)
    assert error.value.indices == (1,)


@pytest.mark.mlx
def test_a_call_of_deadly_texts_says_what_happened(embedder):
    for texts in ("7", ["7"], ["7", "7"]):
        with pytest.raises(EngineCrashed, match=r"GGML_ASSERT\(n_tokens > 0\) failed"):
            embedder.encode(texts)
    assert np.isfinite(embedder.encode("8")).all()


def test_passes_of_one_call_outlive_a_crash_of_another():
    done: list[int] = []

    def one_pass(group: list[int], sharers: int) -> None:
        if 2 in group:
            raise EngineCrashed("it is deadly", by_text=True)
        done.extend(group)

    engine = FakeBackend()
    passes.run(engine, [5] * 4, one_pass, deterministic=True)
    passes.run_alone(one_pass, [2, 3])
    assert sorted(done) == [0, 1, 3, 3]
    with pytest.raises(EngineCrashed, match="it is deadly"):
        passes.run(engine, [5] * 3, one_pass)  # one group, and so all of them

    def refused(group: list[int], sharers: int) -> None:
        raise EngineCrashed("no process is started")

    for call in (lambda: passes.run(engine, [5], refused), lambda: passes.run_alone(refused, [0])):
        with pytest.raises(EngineCrashed, match="no process is started"):
            call()
