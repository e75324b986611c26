"""An engine in a process of its own under many threads, and after the last of its callers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

from jina_local.backends.jobs import Limits
from jina_local.backends.remote import RemoteBackend
from jina_local.errors import EngineCrashed, EngineError
from tests.faulty import batch, expected, fault, gone
from tests.faulty_worker import SLOW


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
