"""`index` and `cache`, on folders and a store made here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jina_local import console
from jina_local.cli import main
from jina_local.errors import IndexDamaged, IndexNotFound, Locked, UsageError
from jina_local.search import places, update
from jina_local.search.index import Index
from jina_local.search.writer import writing
from jina_local.store import local_store
from tests.search.standin import SearchEmbedder, guide

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def notes(tmp_path, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "My notes"
    (folder / "sub").mkdir(parents=True)
    for n in range(2):
        (folder / f"{n}.md").write_text(guide(n))
        os.utime(folder / f"{n}.md", (1, 1.5))
    (folder / "sub" / "x.bin").write_bytes(b"\0")
    os.utime(folder / "sub" / "x.bin", (1, 1.5))
    return folder


@pytest.fixture
def model(monkeypatch):
    """What `load` returns; `.loaded` has what it was asked for."""
    from jina_local import loading

    embedder = SearchEmbedder()

    def load(name_or_path, **settings):
        embedder.loaded = {"name_or_path": name_or_path, **settings}
        return embedder

    monkeypatch.setattr(loading, "load", load)
    return embedder


def run(*argv):
    return main.main(["index", *map(str, argv)])


def test_an_index_gets_its_folders_name_and_is_found_by_name_by_folder_and_from_inside(
    notes, model, capfd, monkeypatch
):
    assert run(notes, "--model", "pico", "--weights", "Q8_0", "--threads", "2") == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        "My-notes: files: 2 added, 1 skipped; 4 passages, 4 new vectors, 210 tokens at "
        f"{err.split(' tokens at ')[1].split()[0]} a second (`index --status` lists what was skipped)\n"
    )
    assert model.loaded["name_or_path"] == "pico"
    assert (model.loaded["weights"], model.loaded["threads"], model.loaded["isolate"]) == ("Q8_0", 2, "auto")
    monkeypatch.chdir(notes / "sub")
    for argv in (["My-notes"], [notes], []):
        assert run(*argv) == 0
        assert capfd.readouterr().err.startswith("My-notes: files: 2 unchanged, 1 skipped; 4 passages")
    for argv in (["My-notes"], [notes], [notes / "sub"], [], ["--name", "My-notes"]):
        assert run("--status", *argv) == 0
        assert capfd.readouterr().out.startswith("My-notes: 2 files, 4 passages; 1 skipped; 0.1 MB\n")


def test_status_and_list(notes, model, capfd, tmp_path):
    assert run("--list") == 0
    assert capfd.readouterr().out == "no index yet: jina-local index FOLDER\n"
    run(notes, "--exclude", "1.*")
    other = tmp_path / "other" / "My notes"
    other.mkdir(parents=True)
    run(other)
    (local_store.indexes() / "broken.sqlite").write_bytes(b"x")
    capfd.readouterr()
    assert run("--status", "My-notes") == 0
    assert capfd.readouterr().out == (
        "My-notes: 1 files, 2 passages; 1 skipped; 0.1 MB\n"
        f"  file      {local_store.indexes()}/My-notes.sqlite\n  folder    {notes}\n  exclude   1.*\n"
        f"  model     pico, 64 dimensions\n  skipped   {notes}/sub/x.bin: binary\n"
    ).replace("pico", model.spec.name)
    assert run("--list", "--json") == 0
    mine, second, broken = json.loads(capfd.readouterr().out)
    assert (mine["name"], mine["files"], mine["vectors"], mine["folders"]) == ("My-notes", 1, 2, [str(notes)])
    assert mine["skipped"] == [{"path": f"{notes}/sub/x.bin", "reason": "binary"}]
    assert (second["name"], second["folders"], second["model"]) == ("My-notes-2", [str(other)], None)
    assert broken["name"] == "broken"
    assert "no index of jina_local" in broken["fault"] or "not a database" in broken["fault"]
    with pytest.raises(UsageError, match="--list takes no name"):
        run("--list", "My-notes")


def test_verify_rebuild_and_remove(notes, model, capfd):
    run(notes)
    path = local_store.indexes() / "My-notes.sqlite"
    capfd.readouterr()
    assert run("--verify", notes) == 0
    assert capfd.readouterr().out == f"ok  {path}\n"
    with writing(path, "test") as writer:
        writer.connection.execute("UPDATE chunks SET text = 'x' WHERE id = 1")
    assert run("--verify", "My-notes") == console.DAMAGED
    out, err = capfd.readouterr()
    assert out == f"NOT OK  {path}\n        chunks: row 1 was changed ({notes}/0.md)\n"
    assert "index --rebuild" in err
    model.texts.clear()
    assert run("--rebuild", "My-notes") == 0
    assert "4 new vectors (4 from the cache)" in capfd.readouterr().err
    assert not model.texts
    assert run("--verify", "My-notes") == 0
    with pytest.raises(UsageError, match="--remove needs the name"):
        run("--remove")
    assert run("--remove", "My-notes") == 0
    assert list(local_store.indexes().iterdir()) == []
    assert len(list(notes.iterdir())) == 3


def test_a_damaged_file_is_exit_code_3_and_can_be_made_again(notes, model, capfd):
    run(notes)
    path = local_store.indexes() / "My-notes.sqlite"
    path.write_bytes(path.read_bytes()[:10_000])
    for argv in (["My-notes"], ["--status", "My-notes"], ["--verify", "My-notes"]):
        with pytest.raises(IndexDamaged) as caught:
            run(*argv)
        assert console.exit_code(caught.value) == console.DAMAGED
    assert run("--rebuild", notes, "--name", "My-notes") == 0
    assert run("--verify", "My-notes") == 0


def test_what_cannot_be_meant_is_refused(notes, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv, text in (
        ([], "there is no index yet. Make one: `jina-local index FOLDER`"),
        (["absent"], "there is no index 'absent'.*Make one: `index FOLDER`"),
        ([notes, tmp_path / "absent"], "absent: is no folder"),
        ([notes, "--json"], "--json goes with --status or --list"),
        ([notes, "--name", "a b"], "'a b' is no name for an index"),
        (["--status", "a", "b"], "several were given: a, b"),
        (["--watch", "--list"], "--watch goes with an update"),
        (["--verify", "--status"], "not allowed with argument"),
    ):
        with pytest.raises(UsageError, match=text):
            run(*argv)
    run(notes)
    with pytest.raises(UsageError, match="there is no index 'My-note', did you mean 'My-notes'|My-notes"):
        run("My-note")


def test_a_lock_is_exit_code_75(notes, model, capfd):
    run(notes)
    with writing(local_store.indexes() / "My-notes.sqlite", "index elsewhere"):
        with pytest.raises(Locked, match=rf"process {os.getpid()} .*index elsewhere") as caught:
            run(notes, "--wait", "0.1")
        assert console.exit_code(caught.value) == 75
        assert run("--status", "My-notes") == 0


def test_a_model_that_was_set_for_new_indexes_is_not_tried_on_one_that_has_its_own(notes, model, monkeypatch):
    run(notes, "--truncate-dim", "32", "--model", model.spec.name)
    model.loaded = {}
    for name, value in (("MODEL", "another"), ("WEIGHTS", "F16"), ("BACKEND", "mlx")):
        monkeypatch.setenv(f"JINA_LOCAL_{name}", value)
    (notes / "new.md").write_text(guide(3))
    for argv in ([notes], ["--rebuild", notes]):
        assert run(*argv) == 0
        assert (model.loaded["name_or_path"], model.loaded["weights"]) == (model.spec.name, "32bit")
    with Index.open("My-notes") as index:
        assert index.status().dim == 32


def test_passages_without_a_vector_are_exit_code_1(notes, model, capfd):
    model.BROKEN = "cable number 1"
    assert run(notes) == 1
    assert "1 have no vector, because the model gave none" in capfd.readouterr().err


def test_a_stop_says_what_is_in_and_how_to_go_on(notes, model, capfd, monkeypatch):
    monkeypatch.setattr(update, "_FIRST", 2)
    monkeypatch.setattr(update, "_MOST", 2)
    calls = []

    def embed(texts, **words):
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return SearchEmbedder.embed(model, texts, **words)

    monkeypatch.setattr(model, "embed", embed)
    with pytest.raises(KeyboardInterrupt):
        run(notes)
    assert capfd.readouterr().err == (
        "My-notes has 2 files; 2 of their 4 passages have vectors, the others are found by their words. "
        "`index My-notes` goes on.\n"
    )
    monkeypatch.undo()


def test_progress_has_files_passages_and_tokens_a_second(notes, model, capfd):
    assert run(notes, "--progress") == 0
    err = capfd.readouterr().err
    assert "words: 100%" in err
    assert "3/3" in err
    assert "vectors: 100%" in err
    assert "4/4" in err
    assert "tokens/s" in err


def test_places_that_may_fail_are_told(notes, model, capfd, monkeypatch, tmp_path):
    assert places.unreliable(tmp_path / "x.sqlite") is None
    assert "Dropbox may copy" in places.unreliable(tmp_path / "Dropbox" / "x.sqlite")
    monkeypatch.setattr(places, "unreliable", lambda path: "its file system is nfs, whose locks may not hold")
    run(notes)
    assert capfd.readouterr().err.startswith(
        f"warning: {local_store.indexes()}/My-notes.sqlite: its file system is nfs"
    )


def test_cache_info_and_clear(notes, model, capfd):
    run(notes)
    capfd.readouterr()
    assert main.main(["cache", "info"]) == 0
    assert capfd.readouterr().out == f"4 vectors, 0.0 MB of 2.15 GB\n  {local_store.vector_cache()}\n"
    assert main.main(["cache", "clear"]) == 0
    assert main.main(["cache", "info"]) == 0
    assert capfd.readouterr().out.startswith("0 vectors")
    local_store.vector_cache().write_bytes(b"damaged" * 1000)
    with pytest.raises(IndexDamaged):
        main.main(["cache", "info"])
    assert main.main(["cache", "clear"]) == 0
    assert main.main(["cache", "info"]) == 0


def test_an_index_that_is_removed_meanwhile(notes, model):
    run(notes)
    with pytest.raises(IndexNotFound), Index.open("My-notes") as index:
        index.remove()
        index.status()


def test_watching_takes_changes_in_until_a_signal_comes(notes, tmp_path):
    pytest.importorskip("watchfiles")
    argv = [sys.executable, "-m", "jina_local", "index", str(notes), "--model", "pico", "--watch", "--threads", "1"]
    child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(child.stderr.readline, "")
        assert any("watching" in line for line in lines)
        time.sleep(0.5)
        (notes / "new.md").write_text(guide(5))
        assert any("1 added" in line for line in lines)
        (notes / "0.md").unlink()
        assert any("1 removed" in line for line in lines)
        child.send_signal(signal.SIGINT)
        rest = child.communicate(timeout=60)[1]
        assert child.returncode == 130, rest
        assert "interrupted" in rest
    finally:
        child.kill()
        child.wait()
    with Index.open("My-notes") as index:
        assert index.status().counts.documents == 2


def test_a_run_that_takes_more_memory_than_allowed_ends_and_keeps_what_it_has(notes, model, capfd):
    assert run(notes, "--max-memory", "64GB") == 0
    (notes / "new.md").write_text(guide(7))
    with pytest.raises(UsageError, match=r"the run takes \d\.\d\d GB, and --max-memory allows 0\.00: it ends here"):
        run(notes, "--max-memory", "1.5M")
    assert run(notes, "--status") == 0
    assert "3 files" in capfd.readouterr().out
    for size in ("1", "GB", "1.5 tons"):
        with pytest.raises(UsageError, match="expected a size such as 1.5GB or 800M"):
            run(notes, "--max-memory", size)
