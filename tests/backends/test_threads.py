"""Threads of our own: the main thread only waits, an interrupted wait harms nothing, and threads are used again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jina_local.backends import threads
from jina_local.backends.threads import EngineThread, borrow, give_back, shield
from jina_local.errors import EngineError


@pytest.fixture
def thread():
    made = EngineThread()
    yield made
    made.stop()


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_the_main_thread_lets_another_work_and_any_other_works_itself():
    assert shield(threading.get_ident) != threading.get_ident()
    assert shield(threading.get_ident) == shield(threading.get_ident), "the same one again"
    found = []
    worker = threading.Thread(target=lambda: found.append(shield(threading.get_ident)))
    worker.start()
    worker.join()
    assert found == [worker.ident]


def test_errors_come_out_where_the_work_was_asked_for(thread):
    def fail():
        raise ValueError("of the work")

    for run in (shield, thread.run):
        with pytest.raises(ValueError, match="of the work"):
            run(fail)
        assert run(lambda: 5) == 5


def test_a_system_without_another_thread_is_an_error_that_says_so(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(EngineError, match=r"no thread can be started for the engine \(can't start new thread\)"):
        EngineThread()


def test_jobs_are_done_in_the_order_in_which_they_come(thread):
    done = []
    for n in range(20):
        thread.post(lambda n=n: done.append(n))
    assert thread.run(lambda: len(done)) == 20
    assert done == list(range(20))


@pytest.mark.parametrize("how", ["shield", "thread"])
def test_an_interrupted_wait_asks_the_work_to_end_and_leaves_it_to_itself(how, thread):
    run = shield if how == "shield" else thread.run
    before = shield(threading.get_ident)
    asked, ended = threading.Event(), threading.Event()

    def work():
        asked.wait(10)
        time.sleep(0.1)  # it does not end at once
        ended.set()

    interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        run(work, asked.set)
    assert asked.is_set()
    assert not ended.is_set()
    if how == "shield":
        assert shield(threading.get_ident) != before, "the other one is busy"
    assert run(lambda: 7) == 7
    assert ended.wait(10)


def test_a_thread_whose_work_was_left_ends_when_it_is_done():
    def alive():
        return {worker.ident for worker in threads._alive.values()}

    before, free = shield(threading.get_ident), threading.Event()
    interrupt_after(0.1)
    with pytest.raises(KeyboardInterrupt):
        shield(lambda: free.wait(10))
    shield(lambda: None)
    assert before in alive()
    free.set()
    deadline = time.monotonic() + 10
    while before in alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert before not in alive()


def test_a_thread_that_is_given_back_is_lent_again():
    first, second = borrow(), borrow()
    assert first is not second
    give_back(first)
    assert borrow() is first
    give_back(first)
    give_back(second)


_AT_EXIT = """
import atexit, os, signal, sys, threading, time
def late():
    from jina_local.errors import EngineError
    print("shielded", shield(lambda: "directly"))
    try:
        thread.run(lambda: None)
    except EngineError as error:
        print(error)
atexit.register(late)
from jina_local.backends.threads import EngineThread, shield
thread = EngineThread()
def work():
    time.sleep(0.5)
    print("the work ended")
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    shield(work)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_process_waits_for_work_that_still_runs_and_refuses_more():
    done = subprocess.run([sys.executable, "-c", _AT_EXIT], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "interrupted",
        "the work ended",
        "shielded directly",
        "the process is ending; no model can be run any more.",
    ]
