"""The llama.cpp backend: right rows in any company, nothing that aborts, NaN that does not stay."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from convert.verify.reference import hidden_states
from jina_local.backends.llama import repack
from jina_local.backends.llama.repack import decide, survives
from jina_local.errors import EngineError, JinaError, ModelDamaged, UsageError
from jina_local.inference import batching
from jina_local.inference.batching import pack
from jina_local.spec import TokenBatch
from jina_local.text.tokenizer import Encoded
from jina_local.weights.checkpoint import Checkpoint
from tests import made
from tests.oracle import cosines

pytestmark = pytest.mark.llama
LENGTHS = (1, 2, 3, 8, 31, 32, 33, 64, 127, 200, 256, 257, 300, 511, 512, 513, 700, 1000)


def backend(path, **options):
    from jina_local.backends.llama.backend import LlamaBackend

    return LlamaBackend(path, **options)


def texts(kind, lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    with Checkpoint(made.checkpoint(kind)) as checkpoint:
        vocab = checkpoint.arch.vocab
    ids = [rng.integers(0, vocab, n).astype(np.int32) for n in lengths]
    return Encoded(ids, np.zeros(len(ids), np.bool_))


def batch(ids, starts, rows):
    arrays = (np.array(a, np.int32) for a in (ids, starts, rows))
    return TokenBatch(*arrays, np.zeros(len(rows), np.int32))


@pytest.fixture(scope="module", params=["small", "nano"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def exact(kind):
    """The F32 backend, its texts and the reference rows at the last token of each."""
    encoded = texts(kind)
    with Checkpoint(made.checkpoint(kind)) as checkpoint:
        weights = dict(checkpoint.merged("retrieval"))
        states = [hidden_states(checkpoint.arch, weights, ids) for ids in encoded.ids]
    engine = backend(made.gguf_file(kind, "F32"))
    yield engine, encoded, states
    engine.close()


@pytest.mark.sampled
def test_every_length_equals_the_reference(exact):
    engine, encoded, states = exact
    for i, expected in enumerate(states):
        row = engine.forward(pack(encoded, [i], "last"))
        assert row.shape == (1, engine.hidden)
        assert row.dtype == np.float32
        assert cosines(row[0], expected[-1]) > 0.999999, LENGTHS[i]


def test_all_rows_of_several_texts_equal_the_reference(exact):
    engine, encoded, states = exact
    group = [3, 6, 9, 0]
    rows = engine.forward(pack(encoded, group, "mean"))
    assert cosines(rows, np.concatenate([states[i] for i in group])).min() > 0.999999


def test_rows_come_in_the_order_asked_for_also_over_several_ubatches(exact):
    engine, encoded, states = exact
    wanted = [0, 5, 511, 512, 513, 900, 999]
    ids = encoded.ids[-1]
    rows = engine.forward(batch(ids, [0, len(ids)], wanted))
    assert cosines(rows, states[-1][wanted]).min() > 0.999999


@pytest.mark.sampled
def test_company_order_and_threads_change_nothing_in_32_bits(exact):
    engine, encoded, _ = exact
    short = [i for i, n in enumerate(LENGTHS) if n <= 256]
    alone = np.concatenate([engine.forward(pack(encoded, [i], "last")) for i in short])
    unit = alone / np.linalg.norm(alone, axis=1, keepdims=True)
    rng = np.random.default_rng(5)
    for sharers in (1, 2):
        order = rng.permutation(short)
        for group in np.array_split(order, 4):
            rows = engine.forward(pack(encoded, group.tolist(), "last"), sharers)
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            assert np.abs(rows - unit[group]).max() < 2e-5


MORE_LABELS = [pytest.param(label, marks=pytest.mark.slow) for label in ("Q6_K", "Q5_K_M", "Q4_0")]


@pytest.mark.sampled
@pytest.mark.parametrize("label", ["F16", "BF16", "Q8_0", "Q4_K_M", *MORE_LABELS])
def test_alone_is_the_same_bits_again_and_close_in_company(kind, label):
    engine = backend(made.gguf_file(kind, label))
    encoded = texts(kind, (5, 17, 64, 3, 40))
    first, again = (np.concatenate([engine.forward(pack(encoded, [i], "last")) for i in range(5)]) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    together = engine.forward(pack(encoded, [0, 1, 2, 3, 4], "last"))
    # BF16 rounds activations, too; the plan never puts two such texts into one pass.
    assert (label == "BF16") == (engine.budget.texts == 1)
    assert cosines(first, together).min() > {"F16": 0.999999, "BF16": 0.9999}.get(label, 0.9995)
    engine.close()


def test_many_threads_get_their_own_rows(exact):
    engine, encoded, states = exact
    wrong: list[int] = []

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 10, 12):
            row = engine.forward(pack(encoded, [int(i)], "last"), 2)
            if cosines(row[0], states[i][-1]) < 0.999999:
                wrong.append(int(i))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("ids", "starts", "rows", "message"),
    [
        ([1, 2, 10**6], [0, 3], [2], r"token id 1000000 is outside the model's table"),
        ([1, -1, 3], [0, 3], [2], "token id -1 is outside"),
        ([1, 2, 3], [0, 0, 3], [2], "at least one token in every text"),
        ([], [0], [], "at least one token"),
        ([1, 2, 3], [0, 3], [3], "ascending positions within the pass"),
        ([1, 2, 3], [0, 3], [1, 1], "ascending positions"),
        ([1, 2, 3], [0, 3], [], "ascending positions"),
        ([1] * 2000, [0, 2000], [5], "a text of 2000 tokens; the model has positions for 1024"),
    ],
)
def test_what_would_abort_is_refused(exact, ids, starts, rows, message):
    with pytest.raises(EngineError, match=message):
        exact[0].forward(batch(ids, starts, rows))


def test_more_texts_than_a_lane_holds_are_fine(exact):
    engine, encoded, states = exact
    rows = engine.forward(pack(encoded, [0, 1, 2] * 40, "last"))
    assert cosines(rows, np.stack([states[i % 3][-1] for i in range(120)])).min() > 0.999999


def test_a_pack_beyond_the_resident_size_is_fine(exact):
    engine, encoded, states = exact
    group = [9, 10, 11, 12, 5]
    rows = engine.forward(pack(encoded, group, "last"))
    assert cosines(rows, np.stack([states[i][-1] for i in group])).min() > 0.999999


def test_a_closed_backend_says_so(kind):
    engine = backend(made.gguf_file(kind, "F16"))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="this model is closed"):
        engine.forward(batch([1], [0, 1], [0]))


@pytest.mark.sampled
def test_a_pass_that_is_stopped_leaves_no_trace(exact, kind):
    from jina_local.backends.llama.context import Stop

    encoded = exact[1]
    long = pack(encoded, [LENGTHS.index(1000)], "last")
    engine = backend(made.gguf_file(kind, "F16"))
    expected = engine.forward(long)

    def run(stop):
        with engine._pool.lend(1000, 1, 1, None) as context:
            return context.run(long, 1, None, stop)

    early = Stop()
    early.request()
    with pytest.raises(EngineError, match="a pass of 1000 tokens was stopped before its end"):
        run(early)
    np.testing.assert_array_equal(engine.forward(long), expected)
    stopped = 0
    for trial in range(8):  # in the midst of a pass
        stop = Stop()
        timer = threading.Timer(0.002 * trial, stop.request)
        timer.start()
        try:
            run(stop)
        except EngineError:
            stopped += 1
        timer.join()
        np.testing.assert_array_equal(engine.forward(long), expected)
    assert stopped
    engine.close()


def test_closing_waits_for_a_pass_that_nobody_waits_for(exact, kind):
    encoded, lent, go_on = exact[1], threading.Event(), threading.Event()
    engine = backend(made.gguf_file(kind, "F16"))

    def work():
        with engine._pool.lend(8, 1, 1, None) as context:
            lent.set()
            go_on.wait(10)
            rows.append(context.run(pack(encoded, [3], "last"), 1, None, Stop()))

    from jina_local.backends.llama.context import Stop

    rows: list[np.ndarray] = []
    expected = engine.forward(pack(encoded, [3], "last"))
    worker = threading.Thread(target=work)
    worker.start()
    lent.wait(10)
    closing = threading.Thread(target=engine.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    worker.join()
    closing.join(10)
    assert not closing.is_alive()
    np.testing.assert_array_equal(rows[0], expected)
    with pytest.raises(EngineError, match="this model is closed"):
        engine.forward(pack(encoded, [3], "last"))


def test_what_fails_in_the_engines_callback_comes_out(kind, monkeypatch):
    if kind != "small":
        pytest.skip("an encoder has no callback")

    class Full(list):
        def append(self, rows):
            raise MemoryError("no room for rows")

    engine = backend(made.gguf_file(kind, "F16"), threads=1)
    expected = engine.forward(batch([1, 2], [0, 2], [1]))
    monkeypatch.setattr(engine._pool.contexts[0], "_caught", Full())
    with pytest.raises(MemoryError, match="no room for rows"):
        engine.forward(batch([1, 2], [0, 2], [1]))
    monkeypatch.undo()
    np.testing.assert_array_equal(engine.forward(batch([1, 2], [0, 2], [1])), expected)
    engine.close()


def test_nan_from_one_text_does_not_stay(kind, tmp_path):
    path = overflow(made.gguf_file(kind, "F32"), tmp_path / "bad.gguf", token=7)
    engine = backend(path, threads=1)
    encoded = texts(kind, (40, 40, 40))
    for ids in encoded.ids:
        ids[ids == 7] = 8
    clean = engine.forward(pack(encoded, [0], "last"))
    poisoned = encoded.ids[1].copy()
    poisoned[3] = 7
    mixed = Encoded([encoded.ids[0], poisoned], encoded.truncated[:2])
    for group in ([1], [0, 1], [1, 0]):
        assert not np.isfinite(engine.forward(pack(mixed, group, "last"))[group.index(1)]).all()
    np.testing.assert_array_equal(engine.forward(pack(encoded, [0], "last")), clean)
    engine.close()


def overflow(source: Path, target: Path, token: int) -> Path:
    """A copy of an F32 GGUF in which one token, and no other, makes the first layer's values infinite.

    Channel 5 of the table is zero but for that token, and the value projection multiplies it by 1e38: finite
    weights that pass every check at load.
    """
    from jina_local.formats.gguf import read_header

    raw = np.fromfile(source, np.uint8)
    header = read_header(source)

    def view(name):
        t = header.tensors[name]
        assert t.type == "F32"
        return raw[t.start : t.start + t.nbytes].view(np.float32).reshape(t.shape)

    view("token_embd.weight")[:, 5] = 0
    view("token_embd.weight")[token, 5] = 1e6
    view("blk.0.attn_v.weight")[:, 5] = 1e38
    raw.tofile(target)
    return target


def test_nan_weights_are_refused_at_load(kind, tmp_path):
    from jina_local.formats.gguf import read_header

    raw = bytearray(made.gguf_file(kind, "F16").read_bytes())
    tensor = read_header(made.gguf_file(kind, "F16")).tensors["blk.1.attn_v.weight"]
    raw[tensor.start : tensor.start + 2] = b"\xff\xff"
    (tmp_path / "nan.gguf").write_bytes(raw)
    with pytest.raises(ModelDamaged, match="llama.cpp cannot load it: .*invalid data"):
        backend(tmp_path / "nan.gguf")


def test_unknown_devices_are_refused(kind):
    with pytest.raises(UsageError, match="unknown device 'tpu'; possible: cpu, metal"):
        backend(made.gguf_file(kind, "F16"), device="tpu")


def test_the_library_says_nothing_on_either_stream(kind):
    script = (
        "import numpy as np; from pathlib import Path;"
        "from jina_local.backends.llama.backend import LlamaBackend as B;"
        "from jina_local.spec import TokenBatch as T; a = lambda *x: np.array(x, np.int32);"
        f"b = B(Path({str(made.gguf_file(kind, 'Q8_0'))!r})); b.forward(T(a(1, 2, 3), a(0, 3), a(2), a(0)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize(
    ("machine", "amx", "weights", "survives", "expected"),
    [
        ("arm64", False, "Q4_K_M", None, True),
        ("aarch64", False, "Q8_0", None, True),
        ("x86_64", False, "Q4_K_M", None, False),
        ("x86_64", False, "Q8_0", None, False),
        ("x86_64", False, "Q4_0", None, True),
        ("x86_64", True, "Q8_0", True, True),
        ("x86_64", True, "Q8_0", False, False),
        ("x86_64", True, "Q4_0", False, False),
        ("x86_64", True, "Q4_0", "unknown", False),
        ("x86_64", True, "Q6_K", None, False),
        ("x86_64", True, "F16", None, True),
    ],
)
def test_repacking_is_decided_by_what_is_safe_then_by_what_is_fast(
    machine, amx, weights, survives, expected, monkeypatch
):
    monkeypatch.delenv("JINA_LOCAL_AMX", raising=False)

    def asked():
        assert survives is not None, "the child process was started where it cannot matter"
        return None if survives == "unknown" else survives

    allowed, why = decide(machine, amx, weights, asked)
    assert allowed is expected
    assert why


def test_amx_can_be_switched_off_by_the_environment(monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_AMX", "off")
    assert decide("x86_64", True, "Q8_0", lambda: True) == (False, "weights are not repacked: JINA_LOCAL_AMX=off")
    monkeypatch.setenv("JINA_LOCAL_AMX", "no")
    with pytest.raises(UsageError, match=r"JINA_LOCAL_AMX='no' is not known; possible: auto \(the default\), off"):
        decide("x86_64", True, "Q8_0", lambda: True)


@pytest.fixture(scope="module")
def stock_survives():
    """Whether llama-cpp-python's own `Llama`, which always repacks, survives a decode of a quantised file here."""
    script = "import sys, llama_cpp; llama_cpp.Llama(sys.argv[1], embedding=True, verbose=False).embed('a b c d')"
    command = f"ulimit -c 0; exec {sys.executable} -c {shlex.quote(script)} {made.gguf_file('nano', 'Q8_0')}"
    return subprocess.run(["sh", "-c", command], capture_output=True).returncode == 0


def test_the_child_dies_where_stock_llama_cpp_dies_and_is_asked_once(kind, tmp_path, monkeypatch, stock_survives):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = made.gguf_file(kind, "Q8_0")
    assert repack.kept_verdict("Q8_0") is None
    assert survives(file, "Q8_0") is stock_survives
    assert repack.kept_verdict("Q8_0") is stock_survives
    assert repack.kept_verdict("Q4_0") is None, "a verdict is for one type"
    monkeypatch.setattr(repack, "_exit_code_of_child", None)
    assert survives(file, "Q8_0") is stock_survives


@pytest.mark.skipif(sys.platform != "linux", reason="where a core file goes is read from /proc")
def test_the_death_of_the_child_leaves_no_core_file(tmp_path, monkeypatch):
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")):
        pytest.skip("this system sends core files elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    try:
        survives(made.gguf_file("nano", "Q8_0"), "Q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_a_trial_that_says_nothing_about_the_library_is_not_kept(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    assert survives(bad, "Q8_0") is None
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no such program"))
    assert survives(made.gguf_file(kind, "Q8_0"), "Q8_0") is None
    assert repack.kept_verdict("Q8_0") is None


def test_the_child_finds_the_modules_of_this_process_in_any_folder(tmp_path, monkeypatch):
    """A module of the same name in the working folder would be imported in their place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "numpy.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    assert survives(made.gguf_file("nano", "Q8_0"), "Q8_0") is not None


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(0, True), (-11, False), (-4, False), (3, False), (1, None), (-2, None), (-9, None), (None, None)],
)
def test_only_a_crash_or_wrong_numbers_speak_against_repacking(code, verdict):
    assert repack._verdict(code) is verdict


def test_a_plan_for_the_backend_fits_its_lanes(exact):
    engine, encoded, states = exact
    groups = batching.plan(encoded.counts.tolist(), engine.budget)
    for group in groups:
        rows = engine.forward(pack(encoded, group, "last"), engine.lanes)
        assert cosines(rows, np.stack([states[i][-1] for i in group])).min() > 0.999999


@pytest.mark.parametrize("damage", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 40])
def test_damaged_files_are_our_errors(tmp_path, damage):
    path = tmp_path / "x.gguf"
    path.write_bytes(damage)
    with pytest.raises(JinaError):
        backend(path)


def test_a_pass_that_cannot_fit_is_refused_with_the_numbers(kind, exact, monkeypatch):
    from jina_local.backends.llama import context

    _, encoded, states = exact
    long = pack(encoded, [LENGTHS.index(1000)], "last")
    engine = backend(made.gguf_file(kind, "F32"))
    monkeypatch.setattr(context, "available_memory", lambda: 2_000_000)
    with pytest.raises(EngineError, match=r"a pass of \d+ tokens takes llama.cpp about 0.0 GB .* 0.0 GB are free"):
        engine.forward(long)
    monkeypatch.setattr(context, "available_memory", lambda: None)
    assert cosines(engine.forward(long)[0], states[-1][-1]) > 0.999999
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_room_for_logits_that_an_encoder_never_uses_is_given_back(tmp_path):
    """512 tokens of a vocabulary of 50,000 would keep 100 MB; repeated passes stay right."""
    from convert.gguf.files import to_gguf
    from tests import tiny

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    source = tiny.write(tmp_path / "wide", "nano", tasks=("retrieval",), config={"vocab_size": 50_000})
    to_gguf(source, tmp_path / "gguf", tasks=["retrieval"], types=["F16"])
    engine = backend(tmp_path / "gguf" / "v5-nano-retrieval-F16.gguf", threads=1)
    encoded = texts("nano", (4, 500, 300, 500))
    engine.forward(pack(encoded, [0], "last"))
    before = resident()
    rows = [engine.forward(pack(encoded, [i], "last")) for i in (1, 2, 1, 3, 1)]
    assert resident() - before < 60
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(rows[0], rows[4])
    engine.close()
