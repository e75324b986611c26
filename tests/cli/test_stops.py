"""Ctrl-C at random moments of a whole process. `python -m tests.cli.test_stops 200 pico` is the long version."""

from __future__ import annotations

import os
import random
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


def interrupt(start, command, folder, times, *, earliest, seed):
    """Interrupt a command again and again, and return how often that was in time. A fault is an AssertionError."""
    (folder / "in.txt").write_text("a line\n" * 300)
    code, said, full = once(start, command, folder)
    assert code == 0, said
    rng = random.Random(seed)
    stopped = 0
    for _ in range(times):
        delay = rng.uniform(earliest, full)
        code, err, _ = once(start, command, folder, delay)
        told = f"seed {seed}, after {delay:.3f} of {full:.3f} s, code {code}: {err}"
        stopped += code == 130
        assert (code, err) == (0, said) or (code == 130 and err.endswith("interrupted\n")), told
        assert "Traceback" not in err, told
        assert list(folder.glob(".jina-*")) == [], told
    return stopped


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_any_moment(name, tmp_path):
    assert interrupt(["-c", FAKE], COMMANDS[name], tmp_path, 6, earliest=0.0, seed=1) > 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            real = [*command, "--model", *sys.argv[2:]]
            # Before a tenth of a second Python itself is starting.
            found = interrupt(["-m", "jina_local"], real, Path(folder), int(sys.argv[1]), earliest=0.1, seed=2)
            print(f"{name}: {sys.argv[1]} interrupts, {found} of them in time, no fault")
