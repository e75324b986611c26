"""Where files are looked for, and when the network may be asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jina_local.store import hub, hub_cache, local_store


def test_places_follow_the_environment(monkeypatch, tmp_path):
    for name in (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "JINA_LOCAL_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache.cache_folder() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setattr(local_store.sys, "platform", "linux")
    assert local_store.root() == tmp_path / ".local" / "share" / "jina_local"
    monkeypatch.setattr(local_store.sys, "platform", "darwin")
    assert local_store.root() == tmp_path / "Library" / "Application Support" / "jina_local"
    monkeypatch.setattr(local_store.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_DATA_HOME", "/d")
    assert (hub_cache.cache_folder(), local_store.root()) == (Path("/c/huggingface/hub"), Path("/d/jina_local"))
    monkeypatch.setenv("HF_HOME", "/h")
    monkeypatch.setenv("JINA_LOCAL_HOME", "~/j")
    assert (hub_cache.cache_folder(), local_store.root()) == (Path("/h/hub"), tmp_path / "j")
    monkeypatch.setenv("HF_HUB_CACHE", "/x")
    assert hub_cache.cache_folder() == Path("/x")


def test_the_cache_is_where_the_library_looks(tmp_path):
    script = """
from huggingface_hub import constants
from jina_local.store import hub_cache
print(str(hub_cache.cache_folder()) == constants.HF_HUB_CACHE)
"""
    keys = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    plain = {k: v for k, v in os.environ.items() if k not in keys}
    for extra in ({}, {"HF_HOME": "~/h"}, {"XDG_CACHE_HOME": str(tmp_path)}, {"HF_HUB_CACHE": "$HOME/x"}):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=plain | extra, check=False
        )
        assert done.stdout == "True\n", (extra, done.stderr)


@pytest.mark.parametrize(
    ("asked", "env", "expected"),
    [
        (None, "1", True),
        (None, "yes", True),
        (None, "0", False),
        (None, "", False),
        (True, "0", True),
        (False, "1", False),
    ],
)
def test_offline_is_as_asked_else_as_the_environment_says(monkeypatch, asked, env, expected):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "JINA_LOCAL_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JINA_LOCAL_OFFLINE", env)
    assert hub.offline(asked) is expected


def test_a_file_is_compared_by_size_then_by_either_digest(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    # As `sha256sum` and `git hash-object` print them.
    large = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    small = "ce013625030ba8dba906f756967f9e9ca394464a"
    assert [hub_cache.fault_of(path, 6, digest) for digest in (large, small)] == [None, None]
    assert hub_cache.fault_of(path, 7, large) == f"{path}: has 6 bytes, expected 7"
    path.write_bytes(b"jello\n")
    assert f", expected {large}" in str(hub_cache.fault_of(path, 6, large))
    assert "has the git blob id" in str(hub_cache.fault_of(path, None, small))
