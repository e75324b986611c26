"""Ctrl-C at random moments of a whole process. `python -m tests.cli.test_stops 200 pico` is the long version.

What is to be written is as it was before, old or absent, or it is whole; and nothing else is left behind.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "embed": ["embed", "--input", "in.txt", "--output", "out.npy"],
    "rerank": ["rerank", "planet", "--input", "in.txt", "--output", "out.json"],
}
PACKAGE = str(ROOT / "jina_local")
CONVERT = ["convert", "merge", "checkpoint", "out", "--force", "--task"]
# The real command line over fakes, which are there before it says that it is ready.
FAKE = """
import sys
from jina_local import loading
from jina_local.cli import main
from tests.fakes import FakeEmbedder, FakeReranker
loading.load = lambda name_or_path, **settings: FakeReranker() if "reranker" in name_or_path else FakeEmbedder()
sys.stderr.write("ready\\n")
sys.stderr.flush()
main.run()
"""


def once(start, command, folder, delay=None):
    """(exit code, stderr, seconds) of a process that gets Ctrl-C after a delay."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *start, *command], cwd=folder, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        if start == ["-c", FAKE]:
            assert child.stderr.readline() == b"ready\n"
            began = time.monotonic()
        if delay is not None:
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
        err = child.communicate(timeout=120)[1].decode()
        return child.returncode, err, time.monotonic() - began


def content(path):
    """What is there: bytes by name, empty if nothing is."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def interrupt(start, command, folder, times, *, earliest, seed, old=b"old"):
    """Interrupt a command again and again, and return how often that was in time. A fault is an AssertionError.

    old: what may stand in the place of its output: the content of a file, or a folder.
    """
    (folder / "in.txt").write_text("a line\n" * 300)
    out = folder / next(word for word in command if word.startswith("out"))
    code, said, full = once(start, command, folder)
    assert code == 0, said
    whole = content(out)
    rng = random.Random(seed)
    stopped = 0
    for _ in range(times):
        remove(out)
        if rng.random() < 0.5:
            _ = out.write_bytes(old) if isinstance(old, bytes) else shutil.copytree(old, out)
        before = content(out)
        delay = rng.uniform(earliest, full)
        code, err, _ = once(start, command, folder, delay)
        if PACKAGE not in err and (code == -signal.SIGINT or (code == 1 and "KeyboardInterrupt" in err)):
            # Python was starting, and not one line of ours had run.
            assert content(out) == before, err
            continue
        told = f"seed {seed}, after {delay:.3f} of {full:.3f} s, code {code}: {err}"
        stopped += code == 130
        assert (code, err) == (0, said) or (code == 130 and err.endswith("interrupted\n")), told
        assert "Traceback" not in err, told
        assert content(out) in ([whole] if code == 0 else [before, whole]), told
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [], told
    return stopped


def checkpoint(folder):
    """Make a checkpoint to convert, and another conversion of it to stand in the way."""
    from tests import tiny

    size = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
            "head_dim": 64, "intermediate_size": 256, "max_position_embeddings": 128}  # fmt: skip
    tiny.write(folder / "checkpoint", "nano", config=size, tasks=("retrieval", "clustering"))
    code, said, _ = once(["-m", "jina_local"], [*CONVERT, "clustering"], folder)
    assert code == 0, said
    return (folder / "out").rename(folder / "old")


@pytest.mark.sampled
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_any_moment(name, tmp_path):
    assert interrupt(["-c", FAKE], COMMANDS[name], tmp_path, 6, earliest=0.0, seed=1) > 0


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("module", ["jina_local.cli.main", "jina_local.console", "argparse"])
def test_ctrl_c_while_modules_are_imported(module):
    """By the console script's door, which is also that of `python -m jina_local`."""
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from jina_local.__main__ import run
sys.argv[1:] = ["--version"]
run()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_while_converting(tmp_path):
    old = checkpoint(tmp_path)
    start, command = ["-m", "jina_local"], [*CONVERT, "retrieval"]
    assert interrupt(start, command, tmp_path, 10, earliest=0.1, seed=3, old=old) > 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    times, chosen = int(sys.argv[1]), sys.argv[2:]
    for name, command in {**COMMANDS, "convert": [*CONVERT, "retrieval"]}.items():
        with tempfile.TemporaryDirectory() as name_of_folder:
            folder = Path(name_of_folder)
            old = checkpoint(folder) if name == "convert" else b"old"
            real = command if name == "convert" else [*command, "--model", *chosen]
            found = interrupt(["-m", "jina_local"], real, folder, times, earliest=0.05, seed=2, old=old)
            print(f"{name}: {times} interrupts, {found} of them in time, no fault", flush=True)
