"""Many clients at once, of which some vanish, while the engine's process is killed: every answer is the text's own.

    python -m tests.server.chaos --clients 16 --texts 1000 --kill-every 10

All texts are different, and the vectors of all are computed beforehand by the Python API. An answer is right if its
vector has a cosine over 0.9999 with the text's own, and is nearer to it than to that of any other text. Prints what
was counted as JSON, and ends with 1 if an answer was wrong, or an error had no kill to explain it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jina_local import Embedder, load

from .conftest import Running, serving
from .door import answer, children, request

_WORDS = ("red", "planet", "bread", "yeast", "river", "stone", "cloud", "engine", "letter", "garden", "winter")
_EXPLAINED = {"worker_crashed", "breaker_open", "engine"}  # by a kill
_CALM = 60.0  # seconds after a kill in which an error is explained by it


@dataclass
class Tally:
    """What came of the requests."""

    right: int = 0
    wrong: list[int] = field(default_factory=list)  # texts
    vanished: int = 0
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)  # by status and type
    unexplained: list[str] = field(default_factory=list)
    lowest: float = 1.0  # cosine of an answer with its text's own vector
    killed_at: float = -1e9

    def said(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "right": self.right, "wrong": self.wrong, "vanished": self.vanished, "kills": self.kills,
            "faults": dict(self.faults), "unexplained": self.unexplained, "lowest cosine": self.lowest,
        }  # fmt: skip

    @property
    def is_good(self) -> bool:
        """Whether nothing was wrong or unexplained."""
        return not self.wrong and not self.unexplained


def unique_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 2 to 60 words, each with a number of its own."""
    rng = random.Random(seed)
    return [f"{n} " + " ".join(rng.choices(_WORDS, k=rng.choice((2, 5, 12, 60)))) for n in range(count)]


def known_vectors(texts: list[str]) -> np.ndarray:
    """(n_texts, width) float32, by the Python API."""
    with load("pico") as model:
        assert isinstance(model, Embedder)
        return np.asarray(model.encode(texts, task="retrieval.passage", show_progress=False), np.float32)


def run(
    server: Running,
    texts: list[str],
    known: np.ndarray,
    clients: int,
    *,
    kill_after: list[float] | None = None,
    kill_every: float | None = None,
    vanishing: float = 0.05,
) -> Tally:
    """Send all texts by so many clients, and end the engine's process at the times given."""
    tally, lock, over = Tally(), threading.Lock(), threading.Event()

    def client(number: int) -> None:
        rng, connection = random.Random(number), None
        for n in range(number, len(texts), clients):
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=120)
            body = json.dumps({"input": texts[n], "task": "retrieval.passage", "encoding_format": "base64"}).encode()
            raw = request(server.port, "POST", "/v1/embeddings", body)
            if rng.random() < vanishing:
                connection.sendall(raw[: rng.randint(1, len(raw))])
                time.sleep(rng.choice((0, 0.002, 0.02)))
                connection.close()
                connection = None
                with lock:
                    tally.vanished += 1
                continue
            try:
                connection.sendall(raw)
                status, _, found = answer(connection)
            except (ConnectionError, TimeoutError) as error:
                connection.close()
                connection = None
                with lock:
                    tally.unexplained.append(f"{type(error).__name__}: {error}")
                continue
            with lock:
                _judge(tally, n, status, found, known)
        if connection is not None:
            connection.close()

    def killer() -> None:
        waits = iter(kill_after or ())
        while not over.wait(kill_every if kill_every is not None else next(waits, 1e6)):
            for pid in children(server.process.pid):
                with lock:
                    tally.kills += 1
                    tally.killed_at = time.monotonic()
                os.kill(pid, 9)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    threads.append(threading.Thread(target=killer))
    for thread in threads:
        thread.start()
    for thread in threads[:-1]:
        thread.join()
    over.set()
    threads[-1].join()
    return tally


def _judge(tally: Tally, n: int, status: int, found: Any, known: np.ndarray) -> None:
    if status != 200:
        kind = found["error"]["type"]
        tally.faults[f"{status} {kind}"] += 1
        recent = time.monotonic() - tally.killed_at < _CALM
        if status >= 500 and not (kind in _EXPLAINED and recent):
            tally.unexplained.append(f"{status} {kind}: {found['detail']}")
        return
    vector = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    cosines = known @ vector
    tally.lowest = min(tally.lowest, float(cosines[n]))
    if cosines[n] > 0.9999 and int(cosines.argmax()) == n:
        tally.right += 1
    else:
        tally.wrong.append(n)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--texts", type=int, default=1000, help="of each client")
    parser.add_argument("--kill-every", type=float, default=10.0, metavar="SECONDS")
    args = parser.parse_args()
    texts = unique_texts(args.clients * args.texts)
    print(f"{len(texts)} texts; their vectors by the Python API first", file=sys.stderr)
    known = known_vectors(texts)
    began = time.monotonic()
    with serving("--queue-tokens", "1000000") as server:
        tally = run(server, texts, known, args.clients, kill_every=args.kill_every)
    print(json.dumps({**tally.said(), "seconds": round(time.monotonic() - began, 1)}))
    return 0 if tally.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
