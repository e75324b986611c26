"""Without a network: what never fetches runs in a namespace that has no interface, not even to this machine.

The whole suite but for the stand-in hub: `unshare -rn python -m pytest --ignore tests/store/test_hub.py ...`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALONE = ("unshare", "--map-root-user", "--net")
# From a name or a path to vectors, rankings and converted files, by the library and by the command line.
CORE = ("tests/test_loading.py", "tests/test_doctor.py", "tests/cli/test_embed_process.py",
        "tests/cli/test_rerank_process.py", "tests/cli/test_search.py", "tests/store/test_find.py",
        "tests/store/test_package.py", "tests/reranking", "tests/convert/test_merge.py")  # fmt: skip
_CONNECT = "import socket; socket.create_connection(('127.0.0.1', 1), 5)"


@pytest.fixture
def alone():
    """Skip if a process may not leave the network here."""
    if not shutil.which(ALONE[0]):
        pytest.skip("unshare is not installed")
    done = subprocess.run([*ALONE, sys.executable, "-c", _CONNECT], capture_output=True, text=True, check=False)
    if "Network is unreachable" not in done.stderr:
        pytest.skip(f"this machine gives no process a network namespace of its own: {done.stderr[-200:]}")


@pytest.mark.usefixtures("alone")
def test_a_text_is_embedded_where_there_is_no_network():
    command = [sys.executable, "-m", "jina_local", "embed", "--model", "pico", "--format", "jsonl", "a text"]
    done = subprocess.run([*ALONE, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    here = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == here.stdout != ""


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_the_core_of_the_suite_passes_where_there_is_no_network():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CORE]
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run([*ALONE, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout
