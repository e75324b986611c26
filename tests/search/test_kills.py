"""A writer that is killed at any moment, and files that are damaged: the quick size of two commands."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from jina_local.search.index import Index
from tests.search.standin import guide


def command(module, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.search.{module}", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.sampled
@pytest.mark.parametrize("seed", ["1", "2"])
def test_fifty_kills_lose_nothing(seed):
    """`python -m tests.search.kills --kills 5000` is the long version."""
    out = command("kills", "--kills", "50", "--seed", seed)
    assert "0 of them lost" in out
    assert int(out.split(" kills, ")[1].split()[0]) > 50  # so many were acknowledged


def test_damage_is_found_or_harmless():
    """`python -m tests.search.damage --count 20000` is the long version."""
    out = command("damage", "--count", "150")
    assert out.startswith("150 damaged files: ")
    assert "found by verify" in out


@pytest.mark.slow
def test_the_command_goes_on_after_every_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "home"))
    notes = tmp_path / "notes"
    notes.mkdir()
    for n in range(40):
        (notes / f"{n}.md").write_text(guide(n))
    argv = [
        sys.executable,
        "-m",
        "jina_local",
        "index",
        str(notes),
        "--model",
        "pico",
        "--name",
        "n",
        "--threads",
        "1",
    ]
    rng = random.Random(1)
    for _ in range(3):
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        time.sleep(rng.uniform(0.6, 2.0))
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    with Index.open("n") as index:
        assert index.verify() == []
        status = index.status()
        assert (status.counts.documents, status.counts.chunks, status.without_vector) == (40, 80, 0)
