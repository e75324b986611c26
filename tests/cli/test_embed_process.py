"""The command line as a real process with real pipes: first a fake model, then MLX on a tiny checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jina_local.records.writers import FORMATS

from .. import tiny
from ..fakes import FakeEmbedder
from ..records.test_writers import values

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")

# A real process with the real command line; only the model is a fake that also prints where no engine should.
FAKE = """
import atexit, ctypes, os, sys
from tests.fakes import FakeEmbedder
from jina_local import loading
from jina_local.cli import main as cli
def load(*args, **settings):
    os.write(1, b"noise from an engine\\n")
    print("noise from Python")
    ctypes.CDLL(None).puts(b"noise from C")
    return FakeEmbedder()
loading.load = load
atexit.register(os.write, 1, b"noise at exit\\n")
sys.argv[0] = "jina-local"
cli.run()
"""


def fake(*args, **kwargs):
    """Run the fake command line as a process, to its end."""
    command = [sys.executable, "-c", FAKE, *args]
    kwargs = {"stdin": subprocess.DEVNULL} if "input" not in kwargs and "stdin" not in kwargs else {} | kwargs
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, check=False, **kwargs)


@contextlib.contextmanager
def started(*command):
    """A running process with three pipes, gone when the block ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        # Whatever goes wrong, no test waits for ever.
        watchdog = threading.Timer(60, child.kill)
        watchdog.start()
        try:
            yield child
        finally:
            watchdog.cancel()
            child.kill()


def expected(texts, **request):
    return FakeEmbedder().embed(texts, **request).vectors


def rows(stdout):
    return np.array([json.loads(line)["embedding"] for line in stdout.decode().splitlines()], np.float32)


@posix
def test_stdout_holds_data_only():
    done = fake("embed", "one", "two")
    assert done.returncode == 0
    assert np.array_equal(rows(done.stdout), expected(["one", "two"]))
    for source in ("from an engine", "from Python", "from C", "at exit"):
        assert f"noise {source}\n".encode() in done.stderr


@pytest.mark.sampled
@posix
@pytest.mark.parametrize("chosen", ["npy", "safetensors"])
def test_binary_formats_go_through_a_pipe_and_into_a_file(chosen, tmp_path):
    done = fake("embed", "--format", chosen, input=b"one\ntwo\n")
    assert done.returncode == 0, done.stderr
    named = tmp_path / f"out.{chosen}"
    assert fake("embed", "--output", str(named), input=b"one\ntwo\n").returncode == 0
    assert named.read_bytes() == done.stdout
    for mode in ("wb", "ab"):
        path = tmp_path / f"redirected-{mode}"
        path.write_bytes(b"before" if mode == "ab" else b"")
        with path.open(mode) as out:
            command = [sys.executable, "-c", FAKE, "embed", "one", "two", "--format", chosen]
            subprocess.run(
                command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True
            )
        assert path.read_bytes() == (b"before" if mode == "ab" else b"") + done.stdout


@posix
def test_a_reader_that_leaves_is_no_error():
    many = b"line\n" * 20_000
    command = f'{sys.executable} -c "$CODE" embed | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, input=many, capture_output=True, timeout=30, check=False,
        env={**os.environ, "CODE": FAKE},
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout)["index"] == 0
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@posix
@pytest.mark.parametrize("argv", [["--help"], ["embed", "one"]])
def test_a_reader_that_never_came_is_no_error(argv):
    gone, out = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-c", FAKE, *argv], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
        timeout=30, check=False,
    )  # fmt: skip
    os.close(out)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith(b"noise ")] == []


@posix
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)]
)
def test_an_interrupted_run_ends_quietly_and_leaves_nothing(number, code, tmp_path):
    with started("-c", FAKE, "embed", "--output", str(tmp_path / "out.npy")) as child:
        child.stdin.write(b"line\n" * 100)
        child.stdin.flush()
        deadline = time.monotonic() + 20
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [p.suffix for p in tmp_path.iterdir()] == [".tmp"]
        child.send_signal(number)
        assert child.wait(20) == code
        err = child.stderr.read()
    assert b"Traceback" not in err
    assert err.endswith(b"\ninterrupted\n") == (code == 130)
    assert f"{tmp_path}/out.npy was not written\n".encode() in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sampled
@posix
@pytest.mark.parametrize("resume", [False, True])
def test_a_hundred_thousand_lines_in_constant_memory(resume, tmp_path):
    code = FAKE.replace(
        "cli.run()",
        "import resource\n"
        "from jina_local import console\n"
        "from jina_local.cli import embed\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "def main():\n"
        "    code = cli.main()\n"
        "    print('grew by', peak() - before, 'units', file=sys.stderr)\n"
        "    return code\n"
        "console.run(main)",
    )
    options = ["--truncate-dim", "32", "--precision", "ubinary", "--format", "npy"]
    if resume:
        options += ["--output", str(tmp_path / "out.npy"), "--resume"]
    lines = 100_000
    with started("-c", code, "embed", *options) as child:
        feeder = threading.Thread(target=lambda: (child.stdin.write(b"a short line\n" * lines), child.stdin.close()))
        feeder.start()
        out, err = child.stdout.read(), child.stderr.read()
        feeder.join()
        assert child.wait(30) == 0, err
    assert len((tmp_path / "out.npy").read_bytes() if resume else out) == 128 + 4 * lines
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(re.search(rb"grew by (\d+) units", err)[1]) * unit < 50 << 20


@posix
def test_closed_streams_are_met_with_words():
    def shell(tail, **kwargs):
        return subprocess.run(
            ["bash", "-c", f'{sys.executable} -c "$CODE" embed {tail}'], cwd=ROOT, capture_output=True, timeout=30,
            check=False, env={**os.environ, "CODE": FAKE}, **kwargs,
        )  # fmt: skip

    done = shell("one >&-")
    assert done.returncode == 73
    assert b"error: standard output is closed; give --output FILE." in done.stderr
    done = shell("<&-")
    assert done.returncode == 2
    assert b"error: standard input is closed" in done.stderr
    done = shell("one 2>&-")
    assert done.returncode == 0
    assert np.array_equal(rows(done.stdout), expected(["one"]))
    no_talk = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m jina_local --version 2>&-"], cwd=ROOT, capture_output=True, check=False
    )
    assert (no_talk.returncode, no_talk.stdout.split()[0]) == (0, b"jina-local")
    if os.path.exists("/dev/full"):
        done = shell("one > /dev/full")
        assert done.returncode == 73
        assert b"the disk is full" in done.stderr
        assert b"Traceback" not in done.stderr


def in_terminal(*args, env=None):
    """(exit code, what a terminal of 60 columns shows) of a fake command, its input at its end."""
    import fcntl
    import pty
    import struct
    import termios

    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    env = {**{key: value for key, value in os.environ.items() if key != "COLUMNS"}, "TERM": "xterm", **(env or {})}
    command = [sys.executable, "-c", FAKE.replace("noise", ""), *args]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=env
    ) as child:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose last user has gone
            while data := os.read(leader, 4096):
                shown += data
        os.close(leader)
        return child.wait(30), shown.decode()


@posix
def test_binary_to_a_terminal_is_refused():
    code, shown = in_terminal("embed", "one", "--format", "npy")
    assert code == 2
    assert "npy is binary and stdout is a terminal: give --output FILE" in shown


@posix
def test_a_terminal_gets_a_short_form_without_a_bar(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("one\n" * 80)
    numbers = " ".join(f"{x:7.4f}" for x in expected(["one"])[0][:6])
    for options in (["one"] * 80, ["--input", str(path)]):
        code, shown = in_terminal("embed", *options)
        assert code == 0
        lines = shown.split("\r\n")
        start = lines.index("index  tokens  64 numbers, float32")
        assert lines[start + 1] == f"    0       3  {numbers}"[:59] + "…"
        assert lines[start + 80].startswith("   79       3  ")
        assert "For all numbers: --format jsonl, a pipe, or --output FILE." in lines
        assert "%|" not in shown
    assert '{"index": 0, "embedding": [' in in_terminal("embed", "one", "--format", "jsonl")[1]


@posix
def test_a_bar_counts_the_bytes_of_files_and_leaves_arguments_alone(tmp_path):
    path, out = tmp_path / "in.txt", str(tmp_path / "out.npy")
    path.write_text("line\n" * 100)
    shown = in_terminal("embed", "--input", str(path), "--input", str(path), "--output", out)[1]
    assert "100%|" in shown
    assert "1.00k/1.00k [" in shown
    assert "B/s]" in shown
    assert "%|" not in in_terminal("embed", "one", "--output", out)[1]
    assert "%|" not in in_terminal("embed", "--input", str(path), "--output", out, "--no-progress")[1]
    assert "texts [" in in_terminal("embed", "one", "--output", out, "--progress")[1]


def real(*args, checkpoint, **kwargs):
    """`python -m jina_local embed ...` with MLX, no network, to its end."""
    kwargs.setdefault("input", b"")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "jina_local", "embed", "--backend", "mlx", "--model", str(checkpoint), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False, env=env, **kwargs)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A nano checkpoint as its makers publish it, with random weights."""
    return tiny.write(tmp_path_factory.mktemp("models") / "nano", "nano")


@pytest.fixture(scope="module")
def vectors(checkpoint):
    """What the library gives for `LINES`: (4, 256) float32."""
    from jina_local import load

    with load(checkpoint, backend="mlx") as model:
        return model.encode(LINES, task="retrieval")


LINES = ["The quick brown fox", "", "naïve café, 日本語", "x" * 3000]


@pytest.mark.mlx
@posix
def test_real_vectors_in_every_format_are_those_of_the_library(checkpoint, vectors, tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("safetensors")
    source = tmp_path / "in.txt"
    source.write_text("\n".join(LINES), encoding="utf-8")
    outputs = [tmp_path / f"out.{chosen}" for chosen in FORMATS]
    options = ["embed", "--backend", "mlx", "--model", str(checkpoint), "--task", "retrieval", "--input", str(source)]
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(started("-m", "jina_local", *options, "--output", str(out))) for out in outputs
        ]
        for child, out in zip(children, outputs, strict=True):
            assert child.wait(60) == 0, child.stderr.read()
            assert child.stdout.read() == b""
            assert child.stderr.read() == b"1 of 4 texts was cut to 1024 tokens (first: line 4)\n"
            got = np.asarray(values(out.suffix[1:], out.read_bytes()), np.float32)
            assert got.shape == vectors.shape
            assert np.abs(got - vectors).max() < 2e-6


@pytest.mark.mlx
@posix
def test_real_pipes(checkpoint, vectors):
    done = real(checkpoint=checkpoint, input="\n".join(LINES).encode())
    assert done.returncode == 0, done.stderr
    assert np.abs(rows(done.stdout) - vectors).max() < 2e-6
    assert [json.loads(line).get("truncated", False) for line in done.stdout.splitlines()] == [False] * 3 + [True]
    command = (
        f"seq 1 300 | {sys.executable} -m jina_local embed --backend mlx --model {checkpoint} --truncate-dim 32 "
        "| head -1; exit ${PIPESTATUS[1]}"
    )
    cut = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert cut.returncode == 0
    assert cut.stderr == b""
    assert len(json.loads(cut.stdout)["embedding"]) == 32


@pytest.mark.mlx
@posix
def test_real_failures(checkpoint, tmp_path):
    done = real("text", "--task", "none", checkpoint=checkpoint)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ")
    assert b"none" in done.stderr
    assert b"retrieval, text-matching, clustering, classification" in done.stderr
    assert done.stderr.count(b"\n") == 1
    done = real("x" * 3000, "--overflow", "error", checkpoint=checkpoint)
    assert done.returncode == 2
    assert b"error: the command line text 1: has more than the 1024 tokens" in done.stderr
    done = real("text", checkpoint=tmp_path / "nowhere")
    assert done.returncode in (2, 3)
    assert b"nowhere" in done.stderr
    broken = tiny.write(tmp_path / "broken", "nano")
    with (broken / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    done = real("text", checkpoint=broken)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.mlx
@posix
def test_real_interrupt_while_waiting_for_input(checkpoint):
    short = ["--truncate-dim", "32", "--precision", "ubinary"]  # a block fits into the buffer of stdout
    with started("-m", "jina_local", "embed", "--backend", "mlx", "--model", str(checkpoint), *short) as child:
        child.stdin.write(b"line\n" * 64)
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["index"] == 0  # the model is loaded and a block is through
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert child.stderr.read() == b"interrupted\n"
