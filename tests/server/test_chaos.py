"""Many clients, vanishing clients, killed engines, too much work, and the end: no answer is wrong, none is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from . import chaos
from .conftest import Running, serving
from .door import answer, children, request

pytestmark = pytest.mark.skipif(not os.path.exists("/proc"), reason="the engine's process is found in /proc")
LONG = "red planet bread yeast river stone cloud engine " * 12


def ask(server: Running, body: dict[str, object], **headers: str) -> tuple[int, dict[str, str], dict[str, object]]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one:
        one.sendall(request(server.port, "POST", "/v1/embeddings", json.dumps(body).encode(), **headers))
        return answer(one)


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def count(server: Running, name: str) -> float:
    found = re.search(rf"^jina_local_{name}(?:{{[^}}]*}})? (\S+)$", server.ask("GET", "/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_answers_are_right_while_clients_vanish_and_the_engine_is_killed():
    texts = chaos.unique_texts(16 * 30)
    known = chaos.known_vectors(texts)
    with serving("--queue-tokens", "1000000") as server:
        tally = chaos.run(server, texts, known, 16, kill_after=[1.0, 2.0])
    assert tally.is_good, tally.said()
    assert tally.right + tally.vanished + sum(tally.faults.values()) == len(texts)
    assert tally.right > 0.8 * len(texts)
    assert tally.kills, tally.said()


def test_the_judge_sees_rows_that_are_exchanged():
    known = np.eye(3, dtype=np.float32)
    found = {"data": [{"embedding": chaos.base64.b64encode(known[1].tobytes()).decode()}]}
    tally = chaos.Tally()
    chaos._judge(tally, 1, 200, found, known)
    chaos._judge(tally, 2, 200, found, known)
    chaos._judge(tally, 0, 500, {"error": {"type": "worker_crashed"}, "detail": ""}, known)
    assert (tally.right, tally.wrong, len(tally.unexplained)) == (1, [2], 1)


def test_the_end_loses_no_request_that_was_taken():
    with serving() as server, ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, server, {"input": f"{n} {LONG}"}) for n in range(24)]
        wait_for(lambda: count(server, "requests_under_way") + sum(one.done() for one in asked) >= 24)
        server.process.send_signal(signal.SIGTERM)
        assert [one.result()[0] for one in asked] == [200] * 24
        assert server.process.wait(20) == 0


def test_the_end_cuts_no_answer_off():
    """Clients that go on asking get whole answers, or 503, or no connection."""
    with serving() as server:
        seen: list[int] = []
        cut: list[str] = []

        def client(number: int) -> None:
            for n in range(10_000):
                try:
                    one = socket.create_connection(("127.0.0.1", server.port), timeout=60)
                except OSError:
                    return
                with one:
                    try:
                        one.sendall(
                            request(server.port, "POST", "/v1/embeddings", b'{"input": "%d %d"}' % (number, n))
                        )
                        if not one.recv(1, socket.MSG_PEEK):
                            return
                    except ConnectionError:
                        return  # it was closed before it was taken
                    try:
                        seen.append(answer(one)[0])
                    except ConnectionError as error:
                        cut.append(str(error))

        threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(seen) > 20)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.process.wait(20) == 0
        assert not cut
        assert set(seen) <= {200, 503}


@pytest.mark.slow
def test_a_second_signal_ends_at_once():
    with serving() as server, ThreadPoolExecutor(2) as pool:
        asked = pool.submit(ask, server, {"input": [f"{n} {LONG}" for n in range(400)]})
        wait_for(lambda: count(server, "queued_tokens") > 0)
        worker = children(server.process.pid)[0]
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(8)
        assert time.monotonic() - began < 5
        with pytest.raises(ConnectionError):
            asked.result()
        wait_for(lambda: not os.path.exists(f"/proc/{worker}"), 5)


def test_too_much_work_is_refused_with_the_time_to_come_back():
    with serving("--queue-tokens", "600") as server, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: ask(server, {"input": f"{n} {LONG}"}), range(32)))
        refused = [one for one in found if one[0] != 200]
        assert 0 < len(refused) < 32
        for status, headers, body in refused:
            assert (status, body["error"]["type"]) == (429, "overloaded")
            assert int(headers["retry-after"]) >= 1
        wait_for(lambda: count(server, "queued_tokens") == 0)
        assert ask(server, {"input": LONG})[0] == 200


def test_a_deadline_is_kept_and_the_work_is_dropped(server):
    body = {"input": [f"{n} {LONG}" for n in range(300)]}
    began = time.monotonic()
    status, _, found = ask(server, body, x_timeout="0.2")
    assert (status, found["error"]["type"]) == (504, "deadline")
    assert time.monotonic() - began < 4
    wait_for(lambda: count(server, "queued_tokens") == 0)
    assert ask(server, {"input": "a"})[0] == 200
    for wrong in ("0", "-1", "nan", "inf", "1e9", "soon", ""):
        assert ask(server, {"input": "a"}, x_timeout=wrong)[0] == 400


def test_work_is_dropped_if_its_client_vanishes(server):
    before = count(server, "texts_total")
    texts = [f"{n} {LONG}" for n in range(400)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one:
        raw = json.dumps({"input": texts}).encode()
        one.sendall(request(server.port, "POST", "/v1/embeddings", raw))
        wait_for(lambda: count(server, "queued_tokens") > 0)
    wait_for(lambda: count(server, "queued_tokens") == 0, 10)
    assert count(server, "texts_total") - before < len(texts)


def test_health_is_answered_while_the_largest_request_is_read(server):
    body = json.dumps({"input": ["a " * 1900] * 2048 + ["one too many"]}).encode()
    slowest = 0.0
    with ThreadPoolExecutor(1) as pool:
        raw = request(server.port, "POST", "/v1/embeddings", body)

        def send() -> int:
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as one:
                one.sendall(raw)
                return answer(one)[0]

        asked = pool.submit(send)
        while not asked.done():
            began = time.monotonic()
            assert server.ask("GET", "/health")[0] == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.005)
        assert asked.result() == 422
    assert slowest < 1.0


@pytest.mark.slow
def test_the_same_at_length():
    texts = chaos.unique_texts(16 * 1000)
    known = chaos.known_vectors(texts)
    with serving("--queue-tokens", "1000000") as server:
        tally = chaos.run(server, texts, known, 16, kill_every=10)
    assert tally.is_good, tally.said()
