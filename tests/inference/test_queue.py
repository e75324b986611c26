"""The queue that callers share: whose rows are whose, who runs a round, what is dropped, and who has to come back."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jina_local import Embedder, load
from jina_local.errors import CallEnded, EngineCrashed, EngineError, Overloaded
from jina_local.inference.batching import lay_out
from jina_local.inference.queue import Call, PassQueue
from jina_local.spec import Budget

from ..fakes import FakeBackend


class Gated(FakeBackend):
    """Its first pass waits until `gate` is set, so that others gather behind it."""

    def __init__(self, **words):
        super().__init__(**words)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.sharers = []

    def forward(self, batch, sharers=1, task=None):
        self.sharers.append(sharers)
        if not self.entered.is_set():
            self.entered.set()
            assert self.gate.wait(30)
        return super().forward(batch, sharers, task)


def batch(*texts, wanted="last"):
    return lay_out([np.array(ids, np.int32) for ids in texts], wanted)


def behind(engine, queued, jobs):
    """Run `jobs`, (batch, task) each, in threads of their own behind a first pass; the futures, in order."""
    pool = ThreadPoolExecutor(len(jobs) + 1)
    first = pool.submit(queued.forward, batch([999]))
    assert engine.entered.wait(30)
    futures = [pool.submit(queued.forward, one, 1, task) for one, task in jobs]
    deadline = time.monotonic() + 30
    while len(queued._queue._waiting) < len(jobs):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    engine.gate.set()
    first.result(30)
    pool.shutdown(wait=False)
    return futures


@pytest.mark.parametrize("lanes", [1, 2])
def test_texts_of_many_callers_share_passes_and_each_gets_its_own_rows(lanes):
    engine = Gated(lanes=lanes)
    queued = PassQueue().wrap(engine)
    jobs = [(batch([n, n + 1, 2 * n], [n] * 3, wanted="mean" if n % 3 else "last"), None) for n in range(1, 15)]
    futures = behind(engine, queued, jobs)
    alone = FakeBackend()
    for (one, task), future in zip(jobs, futures, strict=True):
        assert np.array_equal(future.result(30), alone.forward(one, 1, task))
    # 28 texts; a pass takes eight.
    assert len(engine.batches) == 1 + 4
    assert set(engine.sharers) == {1, lanes}


def test_a_call_larger_than_a_round_lets_others_in_between():
    engine = Gated(budget=Budget(tokens=8, texts=2, padded=False))
    queue = PassQueue()
    queued = queue.wrap(engine)
    futures = behind(engine, queued, [(batch([1] * 20), None), (batch([2, 2]), None), (batch([3]), None)])
    for future in futures:
        future.result(30)
    assert [len(b.starts) - 1 for b in engine.batches] == [1, 1, 2]
    assert queue.counts().texts == 4
    assert queue.counts().tokens == 24
    assert queue.counts().admitted == 0


def test_tasks_have_passes_of_their_own():
    engine = Gated(adapters=("a", "b"))
    engine.entered.set()
    engine.gate.set()
    queued = PassQueue().wrap(engine)
    jobs = [(batch([n, n]), "ab"[n % 2]) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(queued.forward, one, 1, task) for one, task in jobs]
        alone = FakeBackend(adapters=("a", "b"))
        for (one, task), future in zip(jobs, futures, strict=True):
            assert np.array_equal(future.result(30), alone.forward(one, 1, task))


def test_an_error_belongs_to_the_caller_whose_text_it_is():
    engine = Gated()
    queued = PassQueue().wrap(engine)
    futures = behind(engine, queued, [(batch([1]), None), (batch([5000]), None), (batch([2]), None)])
    assert np.array_equal(futures[0].result(30), FakeBackend().forward(batch([1])))
    assert np.array_equal(futures[2].result(30), FakeBackend().forward(batch([2])))
    with pytest.raises(EngineError, match="outside"):
        futures[1].result(30)


class Deadly(Gated):
    """As a remote engine: a text with the id 13 ends its process, and has no row."""

    def forward(self, batch, sharers=1, task=None):
        rows = super().forward(batch, sharers, task)
        culprits = [13 in batch.ids[a:b] for a, b in zip(batch.starts[:-1], batch.starts[1:], strict=True)]
        if all(culprits):
            raise EngineCrashed("it died", by_text=True)
        rows[np.array(culprits)[batch.owner]] = np.nan
        return rows


def test_a_deadly_text_takes_nobody_with_it():
    engine = Deadly()
    queued = PassQueue().wrap(engine)
    jobs = [(batch([1]), None), (batch([13]), None), (batch([13], [2]), None)]
    futures = behind(engine, queued, jobs)
    assert np.array_equal(futures[0].result(30), FakeBackend().forward(batch([1])))
    assert np.isnan(futures[1].result(30)).all()  # in company it has no row; alone, see below
    assert np.isnan(futures[2].result(30)).all(axis=1).tolist() == [True, False]
    with pytest.raises(EngineCrashed, match="it died"):
        queued.forward(batch([13]))


def test_a_call_that_nobody_waits_for_is_dropped():
    engine = Gated()
    queue = PassQueue()
    queued = queue.wrap(engine)
    call, late = Call(), Call(seconds=0.0)

    def admitted(one):
        with queue.admit(one, 1):
            return queued.forward(batch([7]))

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(queued.forward, batch([999]))
        assert engine.entered.wait(30)
        gone = pool.submit(admitted, call)
        while not queue._waiting:
            time.sleep(0.001)
        call.end()
        engine.gate.set()
        first.result(30)
        with pytest.raises(CallEnded):
            gone.result(30)
        with pytest.raises(CallEnded):
            admitted(late)
    assert len(engine.batches) == 1
    assert queue.counts().admitted == 0


def test_a_call_that_wants_no_company_is_run_as_the_library_plans_it():
    engine = Gated(lanes=2)
    queue = PassQueue()
    queued = queue.wrap(engine)
    call, other = Call(30), Call(30)
    call.alone = True
    with queue.admit(other, 1):
        assert queue.lend(queued) is queued
    with queue.admit(call, 3):
        lent = queue.lend(queued)
        assert (lent.budget, lent.lanes) == (engine.budget, engine.lanes)
        pool = ThreadPoolExecutor(1)
        first = pool.submit(queued.forward, batch([999]))  # a round that others would wait behind
        assert engine.entered.wait(30)
        one = batch([1, 2], [3])
        assert np.array_equal(lent.forward(one), FakeBackend().forward(one))
        assert engine.batches[-1] is one
        engine.gate.set()
        first.result(30)
        call.end()
        with pytest.raises(CallEnded):
            lent.forward(one)
    assert queue.lend(queued) is queued
    counts = queue.counts()
    assert (counts.passes, counts.texts, counts.tokens, counts.admitted) == (2, 3, 4, 0)


def test_more_than_may_be_under_way_is_refused_with_the_time_to_come_back():
    engine = FakeBackend()
    queue = PassQueue(max_tokens=10)
    queued = queue.wrap(engine)
    with queue.admit(Call(), 500):  # the only one
        queued.forward(batch([1, 2, 3]))
        with (
            pytest.raises(Overloaded, match="500 tokens are under way") as refused,
            queue.admit(Call(), 1),
        ):
            pass
        assert 0 < refused.value.retry_after < 60
    with queue.admit(Call(), 5), queue.admit(Call(), 5):
        pass


def test_one_text_waits_for_company_as_long_as_it_is_told():
    engine = FakeBackend()
    queued = PassQueue(max_wait=0.25).wrap(engine)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: queued.forward(batch([n])), range(4)))
    assert time.monotonic() - began >= 0.2
    assert len(engine.batches) == 1


def test_a_full_pass_does_not_wait():
    engine = FakeBackend()
    queued = PassQueue(max_wait=60.0).wrap(engine)
    began = time.monotonic()
    queued.forward(batch([1] * 64))
    assert time.monotonic() - began < 10


class Interrupted(Gated):
    """Ctrl-C comes during the second pass."""

    def forward(self, batch, sharers=1, task=None):
        if len(self.batches) == 1:
            self.batches.append(batch)
            raise KeyboardInterrupt
        return super().forward(batch, sharers, task)


def test_an_interrupted_leader_leaves_the_others_their_rows():
    engine = Interrupted()
    queued = PassQueue().wrap(engine)
    futures = behind(engine, queued, [(batch([n]), None) for n in range(3)])
    outcomes = [future.exception(30) for future in futures]
    assert sorted(map(repr, outcomes)) == ["KeyboardInterrupt()", "None", "None"]
    for n, outcome in enumerate(outcomes):
        if outcome is None:
            assert np.array_equal(futures[n].result(30), FakeBackend().forward(batch([n])))


def test_passes_are_no_larger_than_asked():
    engine = Gated()
    queued = PassQueue(max_batch_tokens=4).wrap(engine)
    for future in behind(engine, queued, [(batch([n, n]), None) for n in range(8)]):
        future.result(30)
    assert max(len(b.ids) for b in engine.batches) == 4


@pytest.mark.parametrize(
    "backend", [pytest.param("llama", marks=pytest.mark.llama), pytest.param("mlx", marks=pytest.mark.mlx)]
)
def test_the_bundled_model_under_many_threads(backend):
    texts = [f"text {n}: {'one word after another ' * (n % 9)}" for n in range(64)]
    with load("pico", backend=backend) as plain:
        expected = plain.encode(texts)
    queue = PassQueue()
    with load("pico", backend=backend, queue=queue) as model, ThreadPoolExecutor(16) as pool:
        assert isinstance(model, Embedder)
        found = np.stack(list(pool.map(model.encode, texts)))
        assert queue.counts().passes < 64
        # Company changes what quantised activations round to.
        assert (found * expected).sum(axis=1).min() > 0.9999
        assert (model.encode(texts) * expected).sum(axis=1).min() > 0.9999
