"""notebooks/desktop, frozen from the wheel into a folder: its size, its vectors, its processes, its end."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from jina_local import load
from tests.test_packaging import build

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks" / "desktop"
MOST_BYTES = 160e6
TEXTS = ["Yeast makes bread rise.", "A larger mirror shows fainter stars.", "橋は今も歩いて渡ることができます。"]


def test_the_entry_point_leads_to_the_hook():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    module, function = re.search(r'pyinstaller40\]\nhook-dirs = "([\w.]+):(\w+)"', text).groups()
    (folder,) = map(Path, getattr(importlib.import_module(module), function)())
    assert (folder / "hook-jina_local.py").is_file()
    started = json.loads((folder / "rthooks.dat").read_text(encoding="utf-8"))["jina_local"]
    assert [path.name for path in (folder / "rthooks").glob("*.py")] == started


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The frozen sidecar."""
    if sys.platform != "linux":
        pytest.skip("freezing is tried on Linux")
    pytest.importorskip("PyInstaller", reason="PyInstaller is not installed: pip install 'jina_local[dev]'")
    pytest.importorskip("llama_cpp")
    pytest.importorskip("uvicorn")
    work = tmp_path_factory.mktemp("desktop")
    (work / "wheel").mkdir()
    with zipfile.ZipFile(build("wheel", work / "wheel")) as wheel:
        wheel.extractall(work / "site")
    done = subprocess.run(
        [sys.executable, "-m", "PyInstaller", str(FOLDER / "sidecar.spec"), "--distpath", "dist"],
        cwd=work, env={**os.environ, "PYTHONPATH": str(work / "site")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return work / "dist" / "sidecar" / "sidecar"


def alone(home):
    """An environment in which nothing of this Python is found."""
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "JINA_LOCAL_API_KEY": "sesame"}


@contextmanager
def running(program, home):
    """The sidecar as an app starts it: its process, and the address of its start line."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [program, "--port", "0"], stdin=pipe, stderr=pipe, text=True, cwd=home, env=alone(home)
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if address := re.match(r"listening at (http:\S+);", line):
                break
        else:
            pytest.fail("".join(said))
        yield process, address[1]
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stderr.close()


def vectors(address):
    """Those of TEXTS, by HTTP."""
    body = {"model": "pico", "input": TEXTS, "task": "retrieval.passage"}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sesame"}
    request = urllib.request.Request(f"{address}/v1/embeddings", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array([one["embedding"] for one in json.load(answer)["data"]], np.float32)


def descendants(parent):
    """The command lines of the processes under one, by their id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ancestor = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):  # it has ended
            continue
        if ancestor == parent:
            found |= {int(folder.name): words, **descendants(int(folder.name))}
    return found


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_it_is_small(program):
    files = [path for path in program.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    print(f"\n{size / 1e6:.0f} MB")
    assert size < MOST_BYTES, sorted(((path.stat().st_size, path.name) for path in files), reverse=True)[:20]


@pytest.mark.slow
def test_its_vectors_are_the_librarys_and_its_engine_has_one_process(program, tmp_path):
    with load("pico", backend="llama") as model:
        expected = model.encode(TEXTS, task="retrieval", prompt_name="document")
    start = time.perf_counter()
    with running(program, tmp_path) as (process, address):
        ready = time.perf_counter()
        found = vectors(address)
        print(
            f"\nready after {ready - start:.2f} s, first vectors {1000 * (time.perf_counter() - ready):.1f} ms later"
        )
        assert np.array_equal(found, expected)
        (worker,) = descendants(process.pid).values()
        assert worker[:3] == [str(program), "-m", "jina_local.backends.worker"]
        assert np.array_equal(vectors(address), expected)


@pytest.mark.slow
def test_its_engine_comes_back(program, tmp_path):
    with running(program, tmp_path) as (process, address):
        before = vectors(address)
        (worker,) = descendants(process.pid)
        os.kill(worker, signal.SIGKILL)
        assert np.array_equal(vectors(address), before)
        assert worker not in descendants(process.pid)
        assert len(descendants(process.pid)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["standard input", "SIGTERM", "SIGKILL"])
def test_it_ends_with_the_app_and_leaves_nothing(program, tmp_path, how):
    with running(program, tmp_path) as (process, address):
        vectors(address)
        (worker,) = descendants(process.pid)
        if how == "standard input":
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[how])
        assert process.wait(20) == (-signal.SIGKILL if how == "SIGKILL" else 0)
        assert process.stderr.read() == ""
        wait_until(lambda: not Path(f"/proc/{worker}").exists())


@pytest.mark.slow
def test_its_doctor_finds_what_is_in_it(program, tmp_path):
    done = subprocess.run(
        [program, "-m", "jina_local", "doctor", "--json"], capture_output=True, text=True, cwd=tmp_path,
        env={**alone(tmp_path), "JINA_LOCAL_MODEL": "pico"}, timeout=120, check=False,
    )  # fmt: skip
    found = {check["label"]: check for check in json.loads(done.stdout)}
    there = (
        "numpy",
        "tokenizers",
        "huggingface_hub",
        "tqdm",
        "llama-cpp-python",
        "engine llama",
        "vectors llama",
        "model",
    )
    for label in there:
        assert found[label]["ok"] is True, found[label]
    for label in ("mlx", "engine mlx"):
        assert (found[label]["ok"], found[label]["detail"]) == (None, "not installed")


@pytest.mark.slow
def test_agents_would_start_its_command_line(program, tmp_path):
    done = subprocess.run(
        [program, "-m", "jina_local", "mcp", "install", "cursor", "--print"], capture_output=True, text=True,
        cwd=tmp_path, env=alone(tmp_path), check=True,
    )  # fmt: skip
    server = json.loads(done.stdout)["mcpServers"]["jina-local"]
    assert (server["command"], server["args"]) == (str(program), ["-m", "jina_local", "mcp"])
