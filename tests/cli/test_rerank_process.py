"""`rerank` as a real process with real pipes and a terminal: first a fake model, then tiny ones on both engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .. import tiny
from .test_rerank import DOCUMENTS, lines, plain, ranked

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as POSIX has them")

FAKE = """
import os, sys, time
from tests.fakes import FakeReranker
from jina_local import loading
from jina_local.cli import main as cli
def load(*args, **settings):
    os.write(1, b"noise from an engine\\n")
    print("noise from Python")
    sys.stderr.write("loaded\\n")
    sys.stderr.flush()
    time.sleep(float(os.environ.get("SLOW", "0")))
    return FakeReranker()
loading.load = load
sys.argv[0] = "jina-local"
cli.run()
"""


def process(*args, **kwargs):
    kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **kwargs}
    if "input" in kwargs:
        del kwargs["stdin"]
    command = [sys.executable, "-c", FAKE, "rerank", *args]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=30, check=False, **kwargs)


@posix
def test_stdout_holds_data_only():
    done = process("planet", input="\n".join(DOCUMENTS).encode())
    assert done.returncode == 0
    assert lines(done.stdout) == plain("planet", DOCUMENTS)
    assert b"noise from an engine\n" in done.stderr
    assert b"noise from Python\n" in done.stderr


@posix
def test_a_terminal_gets_a_table():
    import fcntl
    import pty
    import struct
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 33, 0, 0))
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    done = process("planet", *DOCUMENTS, stdout=follower, env=env)
    os.close(follower)
    out = b""
    while b"\n" not in out or out.count(b"\n") < 1 + len(DOCUMENTS):
        out += os.read(leader, 4096)
    os.close(leader)
    assert done.returncode == 0
    head, *rows = out.decode().split("\r\n")[:-1]
    assert head == "rank    score  text  document"
    assert [row[21:] for row in rows] == [
        {"Mars looks red.": "Mars looks …", "Venus is hot.": "Venus is ho…", "Saturn has rings.": "Saturn has …",
         "日本語のテキスト": "日本語のテ…"}[d] for _, _, d in ranked("planet", DOCUMENTS)
    ]  # fmt: skip


@posix
def test_a_reader_that_leaves_or_never_came_is_no_error():
    command = f'{sys.executable} -c "$CODE" rerank planet | head -1; exit ${{PIPESTATUS[0]}}'
    many = b"".join(b"line %d\n" % i for i in range(20_000))
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, input=many, capture_output=True, timeout=30, check=False,
        env={**os.environ, "CODE": FAKE},
    )  # fmt: skip
    assert done.returncode == 0
    assert len(lines(done.stdout)) == 1
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
    gone, out = os.pipe()
    os.close(gone)
    done = process("planet", "Mars", stdout=out)
    os.close(out)
    assert done.returncode == 0
    assert b"Broken" not in done.stderr


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_quietly_and_leaves_nothing(number, code, tmp_path):
    command = [sys.executable, "-c", FAKE, "rerank", "planet", "Mars", "--output", str(tmp_path / "out.json")]
    env = {**os.environ, "SLOW": "20"}
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env) as child:
        try:
            deadline = time.monotonic() + 20
            while b"loaded" not in child.stderr.readline():
                assert time.monotonic() < deadline
            child.send_signal(number)
            assert child.wait(20) == code
            err = child.stderr.read()
        finally:
            child.kill()
    assert b"Traceback" not in err
    assert err.endswith(b"interrupted\n") == (code == 130)
    assert f"{tmp_path}/out.json was not written\n".encode() in err
    assert list(tmp_path.iterdir()) == []


@posix
def test_closed_streams_and_full_disks_are_met_with_words():
    def shell(tail):
        return subprocess.run(
            ["bash", "-c", f'{sys.executable} -c "$CODE" rerank planet {tail}'], cwd=ROOT, capture_output=True,
            timeout=30, check=False, env={**os.environ, "CODE": FAKE},
        )  # fmt: skip

    done = shell("Mars >&-")
    assert (done.returncode, b"standard output is closed" in done.stderr) == (73, True)
    done = shell("<&-")
    assert (done.returncode, b"error: standard input is closed" in done.stderr) == (2, True)
    if os.path.exists("/dev/full"):
        done = shell("Mars > /dev/full")
        assert (done.returncode, b"the disk is full" in done.stderr) == (73, True)


# --- real models, tiny and random


@pytest.fixture(scope="module", params=["reranker-v3", "reranker-v2"])
def checkpoint(request, tmp_path_factory):
    """A reranker as its makers publish it."""
    return tiny.write(tmp_path_factory.mktemp("models") / request.param, request.param)


def real(*args, checkpoint, backend="mlx", **kwargs):
    """`python -m jina_local rerank ...`, no network, to its end."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jina_local", "rerank", "--backend", backend, "--model", str(checkpoint), *args]
    kwargs.setdefault("input", b"")
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=90, check=False, env=env, **kwargs)


LONG = "A long one. " * 40


@pytest.fixture(scope="module")
def answer(checkpoint):
    """What the library gives."""
    from jina_local import load

    with load(checkpoint, backend="mlx") as model:
        return model.rerank("planet", [*DOCUMENTS, LONG])


@pytest.mark.sampled
@pytest.mark.mlx
@posix
def test_real_scores_are_those_of_the_library(checkpoint, answer, tmp_path):
    source = tmp_path / "in.jsonl"
    records = [{"body": text, "id": i} for i, text in enumerate([*DOCUMENTS, LONG])]
    source.write_text("\n".join(map(json.dumps, records)))
    done = real("planet", "--input", str(source), "--field", "body", checkpoint=checkpoint)
    assert done.returncode == 0, done.stderr
    got = lines(done.stdout)
    assert [(r["index"], r["id"], r["document"]) for r in got] == [
        (one.index, one.index, one.document) for one in answer.results
    ]
    assert [r["score"] for r in got] == pytest.approx([one.score for one in answer.results], abs=1e-6)
    assert (b"documents was cut (first: line 5)" in done.stderr) == (answer.cut == (4,))
    assert b"(index 4)" not in done.stderr
    table = real("planet", "--input", str(source), "--field", "body", "--format", "table", checkpoint=checkpoint)
    rows = table.stdout.decode().splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [
        [str(n), f"{one.score:.4f}", str(one.index + 1)] for n, one in enumerate(answer.results, 1)
    ]


@pytest.mark.mlx
@posix
def test_real_failures(checkpoint):
    other = ["--no-window"] if "v3" in checkpoint.name else ["--block-size", "3"]
    done = real("planet", "Mars", *other, checkpoint=checkpoint)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"error: " in done.stderr
    assert b"Leave it out" in done.stderr
    done = real("planet", checkpoint=checkpoint, input=b"fine\nn\xe9\n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"standard input line 2: not UTF-8" in done.stderr
    done = real(" ", "Mars", checkpoint=checkpoint)
    assert (done.returncode, len(lines(done.stdout))) == (0, 1)
    assert b"the query is empty" in done.stderr


@pytest.mark.sampled
@pytest.mark.llama
@pytest.mark.mlx
@posix
def test_both_engines_say_the_same(checkpoint, tmp_path):
    from convert.__main__ import main as convert

    out = tmp_path / "gguf"
    assert convert(["gguf", str(checkpoint), str(out), "--type", "F32"]) == 0
    documents = [*DOCUMENTS, "A longer one. " * 20]
    scores = []
    for model, backend in ((checkpoint, "mlx"), (out, "llama")):
        done = real("planet", *documents, checkpoint=model, backend=backend)
        assert done.returncode == 0, done.stderr
        scores.append({r["index"]: r["score"] for r in lines(done.stdout)})
    # reranker-v2's GELU goes through a table in half precision.
    near = 1e-4 if "v3" in checkpoint.name else 1e-3
    assert len(scores[0]) == len(documents)
    assert scores[1] == pytest.approx(scores[0], abs=near)
