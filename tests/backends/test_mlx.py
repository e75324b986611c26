"""The MLX engine: the right states, whatever shares the pass, and refusals instead of crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from convert.mlx.folders import to_mlx
from convert.verify.reference import hidden_states
from jina_local import backends
from jina_local.backends import padding
from jina_local.errors import EngineError, UsageError
from jina_local.spec import TokenBatch
from jina_local.weights.checkpoint import Checkpoint
from tests.convert.test_mlx_folders import small_source

pytestmark = pytest.mark.mlx

LENGTHS = (1, 2, 7, 8, 9, 31, 32, 33, 64, 16, 8, 3)
ROUNDING = 4e-6  # of states up to 4: OpenBLAS adds in another order for other shapes of a product


def batch(texts: Sequence[np.ndarray], rows: str | Sequence[Sequence[int]] = "last") -> TokenBatch:
    """Texts laid end to end; `rows`: "last", "all", or the wanted positions of each text."""
    lengths = np.array([len(t) for t in texts])
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if rows == "last":
        rows = [[n - 1] for n in lengths]
    elif rows == "all":
        rows = [range(n) for n in lengths]
    owner = np.repeat(np.arange(len(texts)), [len(r) for r in rows]).astype(np.int32)
    inside = np.concatenate([np.array(r, np.int32) for r in rows])
    return TokenBatch(np.concatenate(texts).astype(np.int32), starts, starts[owner] + inside, owner)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture(scope="module", params=["nano", "small"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(kind, tmp_path_factory) -> Path:
    return small_source(tmp_path_factory.mktemp("source") / kind, kind)


@pytest.fixture(scope="module")
def engine(source):
    backend = backends.open_backend("mlx", source, task="retrieval", device="cpu")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def texts(engine) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, engine.vocab, n) for n in LENGTHS]


@pytest.fixture(scope="module")
def states(source, texts) -> list[np.ndarray]:
    """Of every text, from the plain numpy forward pass."""
    with Checkpoint(source) as checkpoint:
        weights = dict(checkpoint.merged("retrieval"))
        return [hidden_states(checkpoint.arch, weights, ids) for ids in texts]


@pytest.mark.sampled
@pytest.mark.reference
def test_equals_transformers_on_every_task(source):
    from tests.oracle import Oracle

    rng = np.random.default_rng(2)
    for task in ("retrieval", "text-matching", "clustering", "classification"):
        oracle, engine = Oracle(source, task), backends.open_backend("mlx", source, task=task, device="cpu")
        texts = [rng.integers(0, engine.vocab, n) for n in (1, 5, 8, 40, 21)]
        mine = engine.forward(batch(texts, "all"))
        engine.close()
        theirs = np.concatenate([oracle.states(ids) for ids in texts])
        assert mine.dtype == np.float32
        assert cosines(mine, theirs).min() > 0.9999999
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_equals_the_plain_reference_in_every_row(engine, texts, states):
    mine = engine.forward(batch(texts, "all"))
    theirs = np.concatenate(states)
    assert mine.shape == theirs.shape
    assert cosines(mine, theirs).min() > 0.9999999
    np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_the_pruned_last_layer_gives_the_rows_of_the_plain_one(engine, texts):
    everything = engine.forward(batch(texts, "all"))
    starts = batch(texts).starts
    np.testing.assert_allclose(engine.forward(batch(texts)), everything[starts[1:] - 1], atol=ROUNDING)
    first = [[0] for _ in texts]
    np.testing.assert_allclose(engine.forward(batch(texts, first)), everything[starts[:-1]], atol=ROUNDING)
    rng = np.random.default_rng(3)
    some = [sorted(rng.choice(len(t), rng.integers(0, min(len(t), 6) + 1), replace=False)) for t in texts]
    wanted = batch(texts, some)
    assert len(set(map(len, some))) > 2
    np.testing.assert_allclose(engine.forward(wanted), everything[wanted.rows], atol=ROUNDING)


def test_a_text_has_one_vector_in_any_company(engine, texts):
    alone = np.concatenate([engine.forward(batch([t])) for t in texts])
    together = engine.forward(batch(texts))
    np.testing.assert_allclose(together, alone, atol=ROUNDING)
    order = np.random.default_rng(1).permutation(len(texts))
    np.testing.assert_allclose(engine.forward(batch([texts[i] for i in order])), alone[order], atol=ROUNDING)
    twice = engine.forward(batch([texts[5], texts[5]]))
    np.testing.assert_array_equal(twice[0], twice[1])


def test_one_long_text_among_short_ones(engine):
    rng = np.random.default_rng(4)
    texts = [rng.integers(0, engine.vocab, n) for n in (5, 200, 3, 9)]
    together = engine.forward(batch(texts))
    for row, ids in zip(together, texts, strict=True):
        np.testing.assert_allclose(row, engine.forward(batch([ids]))[0], atol=ROUNDING)


@pytest.mark.sampled
def test_what_stands_in_the_pads_does_not_matter(engine, texts, monkeypatch):
    wanted = [
        batch(texts),
        batch(texts, "all"),
        batch(texts, [[0, *([len(t) - 1] if len(t) > 1 else [])] for t in texts]),
    ]
    before = [engine.forward(b) for b in wanted]
    for pad in (1, engine.vocab - 1):
        monkeypatch.setattr(padding, "PAD", pad)
        for b, expected in zip(wanted, before, strict=True):
            np.testing.assert_array_equal(engine.forward(b), expected)


def test_ids_inside_a_text_that_equal_the_pad_id_are_text(source, engine):
    config = json.loads((source / "config.json").read_text())
    end = config["pad_token_id"]
    texts = [np.array([5, end, 7, end]), np.array([5, end, 7, 8, 9, end, end]), np.array([end])]
    with Checkpoint(source) as checkpoint:
        weights = dict(checkpoint.merged("retrieval"))
        theirs = np.stack([hidden_states(checkpoint.arch, weights, ids)[-1] for ids in texts])
    np.testing.assert_allclose(engine.forward(batch(texts)), theirs, atol=2e-5)


@pytest.mark.parametrize("wanted", ["last", "all", "many"])
def test_query_blocks_change_nothing(engine, monkeypatch, wanted):
    from jina_local.backends.mlx import layers

    rng = np.random.default_rng(6)
    texts = [rng.integers(0, engine.vocab, n) for n in (65, 33, 50)]
    b = batch(texts, [range(1, len(t)) for t in texts] if wanted == "many" else wanted)
    whole = engine.forward(b)
    for limit, value in (("QUERY_BLOCK", 16), ("_MOST_SCORES", 3 * 2 * 72 * 10)):
        with monkeypatch.context() as patch:
            patch.setattr(layers, limit, value)
            np.testing.assert_allclose(engine.forward(b), whole, atol=ROUNDING)


def test_causal_looks_back_only_and_encoder_both_ways(engine, kind):
    ids = np.arange(20)
    other = ids.copy()
    other[-1] += 1
    a, b = (engine.forward(batch([x], "all"))[:-1] for x in (ids, other))
    assert (np.abs(a - b).max() < 1e-6) == (kind == "small")


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_widened_at_load_equals_quantised_products(source, texts, bits, tmp_path):
    import mlx.core as mx

    from jina_local.backends.mlx.folder import open_folder
    from jina_local.backends.mlx.layers import Packed
    from jina_local.backends.mlx.transformer import Transformer

    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=bits)
    backend = backends.open_backend("mlx", tmp_path / "out", task=None, device="cpu")
    b = batch(texts)
    widened = backend.forward(b)
    assert "widened once at load" in backend.reasons[0]
    backend.close()
    folder = open_folder(tmp_path / "out", None)
    weights = dict(folder.weights(mx.float32, keep_packed=True))
    folder.close()
    assert sum(isinstance(w, Packed) for w in weights.values()) == 1 + 7 * folder.arch.layers
    kept = np.array(Transformer(folder.arch, weights, fused=False)(padding.pad(b, 8)))
    assert np.abs(kept - widened).max() <= 4e-6 * np.abs(widened).max()


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("bits", "least"), [(32, 0.9999999), (16, 0.99999), (8, 0.999), (6, 0.99), (5, 0.975), (4, 0.92)]
)
def test_fidelity_by_bits(source, texts, states, bits, least, tmp_path):
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=bits)
    backend = backends.open_backend("mlx", tmp_path / "out", task=None, device="cpu")
    mine = backend.forward(batch(texts))
    backend.close()
    assert cosines(mine, np.stack([s[-1] for s in states])).min() > least


def test_float16_as_on_metal(source, texts, states):
    """The arithmetic of the Metal path, on the CPU: types must not be mixed and the result has to be close."""
    import mlx.core as mx

    from jina_local.backends.mlx.folder import open_folder
    from jina_local.backends.mlx.transformer import Transformer

    folder = open_folder(source, "retrieval")
    weights = dict(folder.weights(mx.float16, keep_packed=True))
    folder.close()
    assert {w.dtype for w in weights.values()} == {mx.float16}
    mine = np.array(Transformer(folder.arch, weights, fused=False)(padding.pad(batch(texts), 8)))
    assert cosines(mine, np.stack([s[-1] for s in states])).min() > 0.9999


@pytest.mark.sampled
def test_eight_threads_at_once(engine, texts):
    expected = [engine.forward(batch(texts[n:])) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: engine.forward(batch(texts[n % 8 :])), range(16)))
    for n, rows in enumerate(found):
        np.testing.assert_array_equal(rows, expected[n % 8])


def test_a_long_pass_can_be_stopped_between_blocks_and_has_the_same_bits(engine, texts, monkeypatch):
    from jina_local.backends import mlx

    whole = engine.forward(batch(texts))
    monkeypatch.setattr(mlx, "_STOPPABLE", 1)
    np.testing.assert_array_equal(engine.forward(batch(texts)), whole)
    padded, stop = padding.pad(batch(texts), 8), threading.Event()
    stop.set()
    with pytest.raises(EngineError, match="a pass was stopped before its end"):
        engine._thread.run(lambda: engine._opened[0].run(padded, None, stop))
    np.testing.assert_array_equal(engine.forward(batch(texts)), whole)


def test_metal_is_refused_in_a_forked_child(monkeypatch):
    from jina_local.backends import mlx

    monkeypatch.setattr(mlx, "_first_process", os.getpid() + 1)
    mlx._check_fork(metal=False)
    with pytest.raises(EngineError, match="forked from one that used MLX, .* 'spawn', or give device='cpu'"):
        mlx._check_fork(metal=True)


def test_closing_waits_and_ends(source):
    backend = backends.open_backend("mlx", source, task="retrieval")
    b = batch([np.arange(100)])
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(backend.forward, b) for _ in range(4)]
        running[0].result()
        closers = [pool.submit(backend.close) for _ in range(3)]
        for closer in closers:
            closer.result()
        for call in running:
            error = call.exception()
            assert error is None or "is closed" in str(error)
    backend.close()
    with pytest.raises(EngineError, match="this model is closed"):
        backend.forward(b)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("vocab", r"token id \d+ is outside the model's table of \d+ rows"),
        (-1, "token id -1 is outside"),
        (2**31 - 1, "token id 2147483647 is outside"),
    ],
)
def test_ids_outside_the_table_are_refused(engine, ids, message):
    bad = engine.vocab if ids == "vocab" else ids
    with pytest.raises(EngineError, match=message):
        engine.forward(batch([np.array([1, 2]), np.array([3, bad, 4])]))


def test_passes_that_make_no_sense_are_refused(engine):
    good = batch([np.arange(3), np.arange(4)])
    with pytest.raises(EngineError, match="at least one token in every text"):
        engine.forward(TokenBatch(good.ids, np.array([0, 0, 7], np.int32), good.rows, good.owner))
    with pytest.raises(EngineError, match="a text of 257 tokens; the model has positions for 256"):
        engine.forward(batch([np.arange(257)]))
    with pytest.raises(EngineError, match="ascending positions"):
        engine.forward(TokenBatch(good.ids, good.starts, np.array([2, 7], np.int32), good.owner))
    with pytest.raises(EngineError, match="outside the text"):
        engine.forward(TokenBatch(good.ids, good.starts, good.rows, np.array([0, 0], np.int32)))


def test_device_and_threads_are_honoured_or_refused(source, engine):
    assert (engine.device, engine.dtype, engine.threads, engine.lanes) == ("cpu", "float32", 1, 1)
    with pytest.raises(UsageError, match="unknown device 'cuda'; possible: cpu, metal"):
        backends.open_backend("mlx", source, task="retrieval", device="cuda")
    with pytest.raises(UsageError, match="threads 2 cannot be honoured"):
        backends.open_backend("mlx", source, task="retrieval", threads=2)
    backends.open_backend("mlx", source, task="retrieval", device="cpu", threads=1).close()


@pytest.mark.metal
@pytest.mark.parametrize("bits", [None, 32, 16, 8, 4])
def test_metal_is_close_to_the_cpu(source, texts, states, bits, tmp_path):
    folder, task = source, "retrieval"
    if bits is not None:
        to_mlx(source, tmp_path / "out", tasks=[task], bits=bits)
        folder, task = tmp_path / "out", None
    found = {}
    for device in ("metal", "cpu"):
        backend = backends.open_backend("mlx", folder, task=task, device=device)
        found[device] = backend.forward(batch(texts))
        assert (backend.device, backend.dtype) == (
            device,
            "float16" if device == "metal" and bits != 32 else "float32",
        )
        backend.close()
    assert cosines(found["metal"], found["cpu"]).min() > (0.999999 if bits == 32 else 0.9999)


@pytest.mark.skipif(sys.platform == "darwin", reason="there is Metal here")
@pytest.mark.parametrize("device", ["metal", "gpu"])
def test_metal_is_refused_where_there_is_none(source, device):
    with pytest.raises(UsageError, match="MLX finds no Metal here; possible: cpu"):
        backends.open_backend("mlx", source, task="retrieval", device=device)


_ALONE = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from jina_local.backends.mlx import MlxBackend
from jina_local.errors import EngineError
from tests.backends.test_mlx import batch
backend = MlxBackend(Path(sys.argv[1]), task="retrieval")
backend.forward(batch([np.arange(9)]))
assert os.environ["MLX_ENABLE_TF32"] == "0"
warnings.simplefilter("ignore")
child = os.fork()
if not child:
    try:
        backend.forward(batch([np.arange(9)]))
    except EngineError as error:
        backend.close()
        os._exit(7 if "does not survive a fork" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
backend.forward(batch([np.arange(9)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and has no Metal to compile for")
def test_compiles_nothing_on_the_cpu_and_refuses_to_work_after_a_fork(source):
    # A compiled function raises where there is no temp folder to put its source into.
    environment = {**os.environ, "TMPDIR": "/nonexistent"}
    environment.pop("MLX_DISABLE_COMPILE", None)
    environment.pop("MLX_ENABLE_TF32", None)
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, source], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
