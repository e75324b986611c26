"""Engines in a process of their own: the same bits, every way to die, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from jina_local import load
from jina_local.backends import frames, jobs, open_backend
from jina_local.backends.jobs import Limits
from jina_local.backends.process import identity
from jina_local.backends.remote import REASON, RemoteBackend
from jina_local.embedding.embedder import Embedder
from jina_local.errors import EngineCrashed, EngineError, ModelDamaged, NonFiniteError, UsageError
from jina_local.inference import passes
from tests import made
from tests.fakes import FakeBackend
from tests.faulty import QUICK, batch, expected, fault
from tests.faulty_worker import ONCE, SLOW, SLOWER

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["", "x", "Which planet is red?", "日本語のテキスト", " ".join(["word"] * 40)]

Open = Callable[..., RemoteBackend]


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Open]:
    """Open a faulty engine; `settings` are those of faulty_worker."""
    opened: list[RemoteBackend] = []

    def opener(limits: Limits = QUICK, **settings: object) -> RemoteBackend:
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(settings))
        backend = RemoteBackend("fake", path, limits=limits, worker="tests.faulty_worker")
        opened.append(backend)
        return backend

    yield opener
    for backend in opened:
        backend.close()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0


def gone(pid: int, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


# The same bits.

EMBEDDERS = [
    pytest.param(lambda: made.gguf_file("nano", "Q8_0"), None, marks=pytest.mark.llama, id="nano-Q8_0"),
    pytest.param(lambda: made.gguf_file("small", "F32"), None, marks=pytest.mark.llama, id="small-F32"),
    pytest.param(lambda: made.gguf_separate("small", "F16"), None, marks=pytest.mark.llama, id="small-gguf-beside"),
    pytest.param(lambda: made.gguf_separate("nano", "F32"), None, marks=pytest.mark.llama, id="nano-gguf-beside"),
    pytest.param(lambda: made.checkpoint("nano"), None, marks=pytest.mark.mlx, id="nano-checkpoint-beside"),
    pytest.param(lambda: made.checkpoint("small"), "clustering", marks=pytest.mark.mlx, id="small-checkpoint-merged"),
    pytest.param(lambda: made.mlx("nano", 8), None, marks=pytest.mark.mlx, id="nano-8bit"),
    pytest.param(lambda: made.v3("v3", "Q8_0"), None, marks=pytest.mark.llama, id="v3-Q8_0"),
    pytest.param(lambda: made.checkpoint("v3"), None, marks=pytest.mark.mlx, id="v3-checkpoint-beside"),
    pytest.param(lambda: made.checkpoint("v3-native"), "separation", marks=pytest.mark.mlx, id="v3-native-merged"),
    pytest.param(lambda: made.v3("v3", 8), None, marks=pytest.mark.mlx, id="v3-8bit"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("path", "task"), EMBEDDERS)
def test_vectors_have_the_same_bits(path, task):
    def vectors(isolate):
        with load(path(), task=task, isolate=isolate) as model:
            tasks = [task] if task else model.spec.tasks[-2:]
            got = [model.encode(TEXTS, task=one, deterministic=n == 1) for n, one in enumerate(tasks)]
            if model.spec.late_chunking:
                got.append(model.encode_chunks("One sentence. And one more.", [(0, 13), (14, 27)], task=tasks[0]))
            return got, model.spec.origin

    (here, origin), (apart, other) = vectors(None), vectors("process")
    assert [one.tobytes() for one in apart] == [one.tobytes() for one in here]
    assert other.reasons == (*origin.reasons, REASON)
    assert (other.device, other.dtype, other.threads) == (origin.device, origin.dtype, origin.threads)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        pytest.param(kind, form, marks=getattr(pytest.mark, engine), id=f"{kind}-{form}")
        for kind in ("reranker-v3", "reranker-v2")
        for form, engine in (("Q8_0", "llama"), ("checkpoint", "mlx"))
    ],
)
def test_scores_have_the_same_bits(kind, form):
    def scores(isolate):
        with load(made.reranker(kind, form), isolate=isolate) as model:
            assert (REASON in model.spec.origin.reasons) == (isolate is not None)
            return [(one.index, one.score) for one in model.rerank("Which planet is red?", TEXTS[1:])]

    assert scores("process") == scores(None)


@pytest.mark.llama
@pytest.mark.parametrize("wanted", ["first", "last", "mean"])
def test_rows_and_errors_of_a_pass_are_the_same(wanted):
    path = made.gguf_file("nano", "F32")
    with contextlib.ExitStack() as stack:
        here, apart = (open_backend("llama", path, isolate=isolate) for isolate in (None, "process"))
        for engine in (here, apart):
            stack.callback(engine.close)
        for name in ("hidden", "vocab", "budget", "lanes", "device", "dtype", "threads"):
            assert getattr(apart, name) == getattr(here, name)
        one = batch([5, 6, 7], [8], list(range(20, 90)), wanted=wanted)
        assert apart.forward(one).tobytes() == here.forward(one).tobytes()
        assert apart.forward(one).flags.writeable
        for wrong, task in ((batch([10**9]), None), (batch([5]), "retrieval"), (batch([5] * 2000), None)):
            told = []
            for engine in (here, apart):
                with pytest.raises(EngineError) as error:
                    engine.forward(wrong, 1, task)
                told.append((type(error.value), str(error.value)))
            assert told[0] == told[1]


@pytest.mark.parametrize(("engine", "wrong"), [
    pytest.param("llama", {"device": "abacus"}, marks=pytest.mark.llama),
    pytest.param("llama", {"threads": 0}, marks=pytest.mark.llama),
    pytest.param("llama", {"task": "retrieval"}, marks=pytest.mark.llama),
    pytest.param("mlx", {"threads": 3}, marks=pytest.mark.mlx),
])  # fmt: skip
def test_what_cannot_be_opened_is_refused_in_the_same_words(engine, wrong):
    path = made.gguf_file("nano", "F32") if engine == "llama" else made.checkpoint("nano")
    told = []
    for isolate in (None, "process"):
        with pytest.raises(UsageError) as error:
            open_backend(engine, path, isolate=isolate, **wrong)
        told.append(str(error.value))
    assert told[0] == told[1]


@pytest.mark.llama
def test_a_damaged_file_is_refused_in_the_same_words(tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(made.gguf_file("nano", "F32").read_bytes()[:5000])
    for path in (short, tmp_path / "absent.gguf", tmp_path):
        told = []
        for isolate in (None, "process"):
            with pytest.raises(ModelDamaged) as error:
                open_backend("llama", path, isolate=isolate)
            told.append(str(error.value))
        assert told[0] == told[1]


def test_another_word_than_process_is_refused(tmp_path):
    with pytest.raises(UsageError, match="isolate 'thread' is unknown. Possible: 'process'"):
        open_backend("llama", tmp_path, isolate="thread")  # type: ignore[arg-type]


@pytest.mark.llama
def test_a_file_that_is_cut_while_it_is_mapped(tmp_path):
    """A fault of native code itself: llama.cpp reads a page that is not there any more."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(made.gguf_file("small", "F32").read_bytes())
    with contextlib.closing(open_backend("llama", path, isolate="process")) as engine:
        assert np.isfinite(engine.forward(batch([5, 6]))).all()
        os.truncate(path, 4096)
        with pytest.raises(EngineCrashed, match=r"died \(SIGBUS: .*and its files were changed after") as error:
            engine.forward(batch([7, 8, 9]))
        assert error.value.cause.startswith("SIGBUS")


@pytest.mark.llama
def test_files_of_unknown_origin_are_isolated_if_that_is_left_to_the_rule(tmp_path):
    ours = made.gguf_file("nano", "Q8_0")
    copied = tmp_path / ours.name
    copied.write_bytes(ours.read_bytes())

    def how(name_or_path, isolate="auto"):
        with load(name_or_path, backend="llama", isolate=isolate) as model:
            return REASON in model.spec.origin.reasons, " ".join(model.spec.origin.reasons)

    assert how(copied)[0]
    assert f"isolate: {copied} has no manifest.json of our converter" in how(copied)[1]
    assert how(tmp_path)[0]
    assert not how(copied, None)[0]
    for known in (ours, ours.parent, "pico"):
        assert not how(known)[0]
        assert "isolate: the origin of the files is known" in how(known)[1]
    assert how(ours, "process")[0]
    with pytest.raises(UsageError, match="isolate 'no' is unknown. Possible: 'process', 'auto', None"):
        load("a name that is not looked for", isolate="no")


@pytest.mark.llama
def test_the_caller_imports_no_engine():
    script = f"""
        import sys
        from jina_local import load
        with load({str(made.gguf_file("nano", "F32"))!r}, isolate="process") as model:
            assert model.encode("x").shape == (256,)
        assert not {{"llama_cpp", "mlx.core"}} & set(sys.modules)  # asking for mlx.core imports mlx, an empty package
    """
    done = run(script)
    assert (done.returncode, done.stderr) == (0, "")


# Deaths.

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


# Above the wall.


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


# Many callers, and none.


def test_many_threads_share_one_process(faulty):
    engine = faulty(lanes=3)
    answers: dict[int, bool] = {}

    def work(n: int) -> None:
        good = True
        for turn in range(30):
            one = batch([n, turn, 7], [turn + 1] * (n + 1))
            good = good and np.array_equal(engine.forward(one), expected(one))
        answers[n] = good

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == dict.fromkeys(range(16), True)


def test_the_process_is_killed_again_and_again_under_many_threads(faulty):
    engine = faulty(Limits(pass_seconds=20, deaths_in_a_row=100, deaths=1000), lanes=3)
    stop = threading.Event()
    answers: list[bool] = []

    def work(n: int) -> None:
        turn = 0
        while not stop.is_set():
            one = batch([n, turn, 7], [turn, n])
            turn = (turn + 1) % 800
            with contextlib.suppress(EngineCrashed):  # killed twice at the same text, as may happen
                rows = engine.forward(one)
                answers.append(bool(np.array_equal(rows, expected(one)) or np.isnan(rows).any()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    killed = 0
    while killed < 8:
        time.sleep(0.1)
        if (pid := engine.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert len(answers) > 50
    assert all(answers)


def test_other_passes_go_on_beside_a_deadly_text(faulty):
    engine = faulty(Limits(deaths=100, deaths_in_a_row=100), lanes=2)
    wrong: list[object] = []

    def work(n: int) -> None:
        for turn in range(40):
            one = batch([n, turn])
            if not np.array_equal(engine.forward(one), expected(one)):
                wrong.append(one)

    def poison() -> None:
        for n in range(3):
            with contextlib.suppress(EngineCrashed):
                engine.forward(batch([fault("abort"), n]))
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)] + [threading.Thread(target=poison)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_it_lives_on_after_the_thread_that_opened_it(faulty):
    opened: list[RemoteBackend] = []
    thread = threading.Thread(target=lambda: opened.append(faulty()))
    thread.start()
    thread.join()
    pid = opened[0].pid
    time.sleep(0.2)
    assert np.array_equal(opened[0].forward(batch([1])), expected(batch([1])))
    assert opened[0].pid == pid


def test_close_waits_for_calls_and_refuses_others(faulty):
    engine = faulty()
    pid = engine.pid
    rows: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: rows.append(engine.forward(batch([SLOW]))))
    thread.start()
    time.sleep(0.2)
    engine.close()
    thread.join()
    assert np.array_equal(rows[0], expected(batch([SLOW])))
    assert gone(pid)
    engine.close()
    with pytest.raises(EngineError, match="this model is closed"):
        engine.forward(batch([1]))
    assert engine.pid is None


def test_descriptors_threads_and_processes_stay_flat(faulty):
    def there() -> tuple[int, int]:
        return len(os.listdir("/dev/fd")), threading.active_count()

    faulty().close()
    before = there()
    pids = []
    for n in range(5):
        engine = faulty()
        pids.append(engine.pid)
        if n % 2:
            with pytest.raises(EngineCrashed):
                engine.forward(batch([fault("abort")]))
        engine.close()
    with pytest.raises(EngineCrashed):
        faulty(open="abort")
    assert there() == before
    assert all(gone(pid) for pid in pids)


def test_one_that_nobody_holds_any_more_is_closed(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    engine = RemoteBackend("fake", tmp_path / "settings.json", worker="tests.faulty_worker")
    pid = engine.pid
    del engine
    assert gone(pid)


def test_secrets_are_not_handed_on(faulty, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "JINA_API_KEY", "https_proxy", "HTTP_PROXY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "sesame")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = faulty().reasons[0]
    assert "sesame" not in seen
    assert "OMP_NUM_THREADS=1" in seen
    assert "GGML_NO_BACKTRACE=1" in seen


# Processes: the parent interrupted, forked, killed.

_OPEN = """
    import json, os, signal, sys, threading, time
    from pathlib import Path
    import numpy as np
    from jina_local.backends.remote import RemoteBackend
    from jina_local.errors import EngineError
    from tests.faulty import QUICK, batch, expected, fault
    from tests.faulty_worker import SLOW
    engine = RemoteBackend("fake", Path(sys.argv[1]), limits=QUICK, worker="tests.faulty_worker")
"""


def run(script: str, *arguments: str, **words: object) -> subprocess.CompletedProcess[str]:
    """A script in a new process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, **words,
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> str:
    path = tmp_path / "settings.json"
    path.write_text("{}")
    return str(path)


@pytest.mark.slow
def test_an_interrupt_leaves_no_answer_for_the_next_call(settings):
    done = run(
        _OPEN
        + """
    pid = engine.pid
    for n in range(3):
        threading.Timer(0.1 + 0.02 * n, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            engine.forward(batch([SLOW, n]))
        except KeyboardInterrupt:
            print("interrupted")
        os.kill(pid, signal.SIGINT)  # as a terminal would, if it had the same group
        one = batch([n, 5], [n])
        assert np.array_equal(engine.forward(one), expected(one))
    assert engine.pid == pid
    """,
        settings,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n" * 3, "")


def test_an_interrupt_while_it_opens_leaves_nothing(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"open": "spin"}))
    done = run(
        """
    import os, signal, sys, threading
    from pathlib import Path
    from jina_local.backends.remote import RemoteBackend
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        RemoteBackend("fake", Path(sys.argv[1]), worker="tests.faulty_worker")
    except KeyboardInterrupt:
        print(threading.active_count(), os.waitstatus_to_exitcode(0))
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child")
    """,
        str(path),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 0\nno child\n", "")


def test_closing_after_an_interrupt_does_not_wait(settings):
    done = run(
        _OPEN
        + """
    pid = engine.pid
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        engine.forward(batch([fault("hold")]))
    except KeyboardInterrupt:
        start = time.monotonic()
        engine.close()
        print(time.monotonic() - start < 0.5)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        print("gone")
    """,
        settings,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\ngone\n", "")


def test_a_program_that_forgets_to_close_ends_quietly(settings):
    done = run(
        "import warnings; warnings.simplefilter('error')\n" + textwrap.dedent(_OPEN + "    print(engine.pid)"),
        settings,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(int(done.stdout))


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "os.abort()"])
@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_its_parent(settings, how, busy):
    if busy and sys.platform != "linux":
        pytest.skip("only Linux ends a process whose native code never returns to Python")
    work = (
        "threading.Thread(target=engine.forward, args=(batch([fault('hold')]),), daemon=True).start(); time.sleep(.3)"
    )
    done = run(_OPEN + f"    {work if busy else ''}\n    print(engine.pid, flush=True)\n    {how}", settings)
    assert gone(int(done.stdout))


def test_a_fork_is_refused_and_holds_nothing_back(settings):
    done = run(
        _OPEN
        + """
    pid, child = engine.pid, os.fork()
    if not child:
        try:
            engine.forward(batch([1]))
        except EngineError as error:
            print("opened before the process was forked" in str(error), flush=True)
        engine.close()
        own = RemoteBackend("fake", Path(sys.argv[1]), limits=QUICK, worker="tests.faulty_worker")
        print(np.array_equal(own.forward(batch([1])), expected(batch([1]))), flush=True)
        own.close()
        time.sleep(3)
        sys.exit()
    one = batch([1])
    assert np.array_equal(engine.forward(one), expected(one))
    time.sleep(1)
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """,
        settings,
        stdin=subprocess.DEVNULL,
    )
    first, second, pid = done.stdout.split()
    assert (first, second, done.stderr) == ("True", "True", "")
    assert gone(int(pid))


def test_a_death_is_seen_even_if_a_fork_holds_the_other_end(faulty, monkeypatch):
    """Without a watch on the process itself, the end of the connection would never come."""
    from jina_local.backends import process

    held: list[int] = []
    start = process.subprocess.Popen

    def forked(*arguments, **words):
        held.extend(os.dup(number) for number in words["pass_fds"])
        return start(*arguments, **words)

    monkeypatch.setattr(process.subprocess, "Popen", forked)
    engine = faulty()
    with pytest.raises(EngineCrashed, match="SIGABRT"):
        engine.forward(batch([fault("abort")]))
    for number in held:
        os.close(number)


def test_the_folder_it_is_started_in_brings_no_modules(settings, tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError('not this one')")
    done = run(
        """
    import sys
    sys.path.remove("")
    """
        + _OPEN
        + "    print(engine.forward(batch([1])).shape)",
        settings,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("(1, 32)\n", "")


# Frames.


def exchange(pieces: list[bytes], limit: int = 1 << 20) -> list[frames.Frame]:
    """What a reader makes of bytes that arrive in pieces."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = frames.Reader(lambda kind, sequence: limit)
        got = []
        for piece in pieces:
            theirs.sendall(piece)
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    if frame := reader.receive(ours):
                        got.append(frame)
        return got


@hypothesis.given(
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "arrays"), st.none() | st.text() | st.integers()),
    st.lists(
        st.tuples(st.sampled_from(["<i4", "<i8", "<f4"]), st.lists(st.integers(0, 5), min_size=1, max_size=2)),
        max_size=3,
    ),
    st.integers(0, 2**64 - 1),
    st.integers(1, 40),
)
def test_a_frame_comes_back_as_it_was_sent_however_it_is_cut(words, kinds, sequence, cut):
    arrays = {str(n): np.arange(math.prod(shape), dtype=kind).reshape(shape) for n, (kind, shape) in enumerate(kinds)}
    raw = b"".join(frames.pack(frames.Frame(frames.Kind.RUN, sequence, words, arrays))) * 2
    got = exchange([raw[n : n + cut] for n in range(0, len(raw), cut)])
    assert len(got) == 2
    for frame in got:
        assert (frame.kind, frame.sequence, dict(frame.words)) == (frames.Kind.RUN, sequence, words)
        assert {name: (a.dtype, a.tolist()) for name, a in frame.arrays.items()} == {
            name: (a.dtype, a.tolist()) for name, a in arrays.items()
        }


@hypothesis.given(st.integers(0, 2**32), st.data())
def test_a_damaged_frame_is_refused_or_another_frame_and_nothing_else(seed, data):
    raw = bytearray(b"".join(frames.pack(frames.Frame(2, 7, {"sharers": 1}, {"ids": np.arange(9, dtype=np.int32)}))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(frames.FrameError):
        exchange([bytes(raw)], limit=100)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost", "is no head of a frame"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 2, 2, 0, 2, 0), "the package was changed on disk"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2**31, 0), "2147483648 bytes of JSON"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2, 2**63), "9223372036854775808 of arrays"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2, 0) + b"[]", "JSON is list"),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 2, 0) + b"{}", "without a list of its arrays"),
        (
            struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 31, 8) + b'{"arrays": [["a", "<i4", [3]]]}' + bytes(8),
            "12 of 8",
        ),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 31, 8) + b'{"arrays": [["a", "<i4", [1]]]}' + bytes(8), "4 of 8"),
        (
            struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 32, 8) + b'{"arrays": [["a", "<i4", [-2]]]}' + bytes(8),
            "cannot be",
        ),
        (struct.pack("<3sBB3xQIQ", b"JLW", 1, 2, 0, 30, 0) + b'{"arrays": [["a", "O", [10]]]}', "cannot be"),
    ],
)
def test_what_is_no_frame_is_refused_before_memory_is_taken(head, told):
    with pytest.raises(frames.FrameError, match=re.escape(told)):
        exchange([head])


def test_an_array_of_another_type_is_not_sent():
    with pytest.raises(frames.FrameError, match="an array of type <f8"):
        frames.pack(frames.Frame(2, 1, {}, {"ids": np.zeros(3)}))
