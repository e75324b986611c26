"""`models`, on a store and a cache made here."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from jina_local import backends
from jina_local.cli import main
from jina_local.errors import (
    JinaError,
    ModelNotFound,
)
from jina_local.formats.manifest import Entry, Manifest, Source

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A local store with one converted folder, and an empty hub cache."""
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "store" / "nano-8bit"
    folder.mkdir(parents=True)
    files = {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"{}"}
    entries = {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        task, label = ("retrieval", "8bit") if name == "model.safetensors" else (None, None)
        entries[name] = Entry(len(data), hashlib.sha256(data).hexdigest(), task, label)
    body = Manifest("mlx", "jina-embeddings-v5-text-nano", Source("somewhere", None, {}), "0" * 64, entries)
    (folder / "manifest.json").write_text(body.dump())
    return folder


def test_models_list_shows_what_is_here(store, capfd):
    assert main.main(["models", "list"]) == 0
    out = capfd.readouterr().out
    assert "jina-embeddings-v5-text-small  (v5-small, " in out
    assert "not here: jina-local models pull jina-embeddings-v5-text-small" in out
    assert "768 dimensions, 8192 tokens, CC BY-NC 4.0; retrieval, " in out
    assert re.search(rf"local store +0\.0 MB  retrieval 8bit\n +{re.escape(str(store))}\n", out)
    assert main.main(["models", "list", "--json"]) == 0
    small, nano, *_ = json.loads(capfd.readouterr().out)
    assert small["places"] == []
    assert nano["places"] == [
        {"where": "local store", "path": str(store), "holds": ["retrieval 8bit"], "size": 11}
    ]  # fmt: skip
    assert nano["license"] == "CC BY-NC 4.0"


def test_models_verify(store, capfd):
    for argv in (["v5-nano"], [str(store)]):
        assert main.main(["models", "verify", *argv]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0] == f"ok  {store}  (3 files)"
        assert "vectors not known: an earlier version" in lines[1]
    assert main.main(["models", "verify"]) == 0
    first, _, third, *computed = capfd.readouterr().out.splitlines()
    assert first == f"ok  {store}  (3 files)"
    assert third.startswith("ok  ")
    assert "bundled_models" in third
    assert len(computed) == len(backends.BACKENDS)
    (store / "model.safetensors").write_bytes(b"WEIGHTS")
    assert main.main(["models", "verify", "v5-nano"]) == 3
    first, second = capfd.readouterr().out.splitlines()
    assert first == f"NOT OK  {store}  (3 files)"
    assert "model.safetensors" in second


def test_models_rm(store, capfd):
    assert main.main(["models", "rm", "v5-nano"]) == 0
    out = capfd.readouterr()
    assert out.out == ""
    assert out.err == f"removed from the local store: {store} (0.0 MB)\n"
    assert not store.exists()
    for action in ("rm", "verify", "path"):
        with pytest.raises(ModelNotFound, match="on this machine"):
            main.main(["models", action, "v5-nano"])


def test_models_pull_prints_where_the_files_are(store, capfd, monkeypatch):
    from jina_local.store import hub

    asked = []

    def pull(row, kind, **settings):
        asked.append((row.spec.name, kind, settings))
        return {"retrieval": Path("/cache/a.gguf"), "clustering": Path("/cache/b.gguf")}

    monkeypatch.setattr(hub, "pull", pull)
    options = ["--backend", "llama", "--task", "retrieval", "--task", "clustering", "--weights", "Q4_K_M"]
    assert main.main(["models", "pull", "v5-nano", *options, "--revision", "c0ffee", "--progress"]) == 0
    settings = {
        "tasks": ["retrieval", "clustering"],
        "weights": "Q4_K_M",
        "revision": "c0ffee",
        "show_progress": True,
    }
    assert asked == [("jina-embeddings-v5-text-nano", "llama", settings)]
    out = capfd.readouterr()
    assert out.out == "/cache/a.gguf\n/cache/b.gguf\n"
    monkeypatch.setenv("JINA_LOCAL_MODEL", "v5-small")
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "mlx")
    assert main.main(["models", "pull"]) == 0
    nothing = {"tasks": None, "weights": None, "revision": None, "show_progress": False}
    assert asked[1] == ("jina-embeddings-v5-text-small", "mlx", nothing)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list", "v5-nano"], r"list takes no name; `models path v5-nano`"),
        (["list", "--task", "retrieval"], r"--task belongs to `models pull`, not to `models list`"),
        (["rm", "v5-nano", "--task=retrieval"], r"--task belongs to `models pull`, not to `models rm`"),
        (["path", "--json"], r"--json belongs to `models list`, not to `models path`"),
        (["lst"], r"unknown action 'lst' \(did you mean 'list'\?\)\. Actions: list, pull, path, rm, verify"),
        ([], r"no action was given\.\n\nusage: .*\n\nList, pull"),
        (
            ["pull", "--weigths", "Q8_0"],
            r"unknown option --weigths \(did you mean '--weights'\?\)\. See `.* models pull -",
        ),
        (["verify", "--frob"], r"unknown option --frob\. See"),
        (["pull", "v5-nanno"], r"unknown model 'v5-nanno' \(did you mean 'v5-nano'\?\)"),
        (
            ["pull", "v5-nano", "--task", "retreival"],
            r"'retreival' \(did you mean 'retrieval'\?\)\. jina-embeddings-v5",
        ),
        (["rm"], r"rm needs a name: jina-embeddings-v5-text-small, "),
        (["pull", "v5-nano", "--offline"], r"pull needs the network, and --offline"),
        (["pull", "v5-nano", "--backend", "mlx", "--weights", "Q8_0"], r"--weights is for llama"),
        (["pull", "v6"], r"unknown model 'v6'"),
        (["path", "v6"], r"unknown model 'v6'|not"),
    ],
)
def test_models_misuse(store, argv, message):
    with pytest.raises(JinaError, match=message):
        main.main(["models", *argv])


def test_a_path_that_is_not_there_is_not_taken_for_a_misspelt_name(store):
    for action in ("verify", "rm", "path", "pull"):
        with pytest.raises(ModelNotFound, match="no such file or folder"):
            main.main(["models", action, "./nothing"])


@pytest.mark.parametrize(
    ("action", "own", "foreign"),
    [
        ("list", ["--json", "jq"], ["--task", "--revision", "NAME"]),
        ("pull", ["--task", "--weights", "--revision", "--progress", "models pull v5-nano"], ["--json", "models rm"]),
        ("path", ["--backend", "--weights", "models path pico"], ["--json", "--revision", "models pull"]),
        ("rm", ["NAME", "models rm v5-nano"], ["--json", "--task", "--backend"]),
        ("verify", ["NAME", "a converted folder"], ["--json", "--task", "--backend"]),
    ],
)
def test_help_is_about_the_action(action, own, foreign, capfd):
    for argv in ([action, "--help"], ["--help", action]):
        assert main.main(["models", *argv]) == 0
        text = capfd.readouterr().out
        assert f"usage: jina-local models {action} " in text
        assert [word for word in own if word not in text] == []
        assert [word for word in foreign if word in text] == []
    assert main.main(["models", "--help"]) == 0
    text = capfd.readouterr().out
    assert f"\n  {action} " in text
    assert "--revision" not in text


def test_options_may_stand_before_the_action(store, capfd):
    assert main.main(["models", "--backend", "mlx", "path", "v5-nano"]) == 0
    assert capfd.readouterr().out == f"{store}\n"


def test_path_names_the_folder_that_would_be_opened(store, capfd, tmp_path, monkeypatch):
    def path(*argv):
        assert main.main(["models", "path", *argv]) == 0
        return capfd.readouterr().out.removesuffix("\n")

    assert path("v5-nano") == str(store)
    assert path("v5-nano:8bit") == str(store)
    assert path(str(tmp_path)) == str(tmp_path)
    assert path("pico", "--backend", "llama").endswith("pico/gguf")
    assert path("pico", "--weights", "F16", "--backend", "mlx").endswith("pico/checkpoint")
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "mlx")
    assert path("pico").endswith("pico/checkpoint")
    with pytest.raises(
        ModelNotFound, match=f"Here, and not what was asked for: local store, {store} .retrieval 8bit"
    ):
        main.main(["models", "path", "v5-nano", "--backend", "llama"])
    with pytest.raises(ModelNotFound, match="Here, and not"):
        main.main(["models", "path", "v5-nano", "--task", "clustering"])
