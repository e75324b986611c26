"""publish: absent, old or complete, whatever happens and whenever."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from convert.publish import staging, write_manifest
from jina_local.errors import Locked, ModelDamaged, OutputError
from jina_local.formats import manifest
from jina_local.formats.manifest import Source

NAME = "jina-embeddings-v5-text-nano"


def fill(folder, text="new"):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text(text)
    (folder / "b.txt").write_text(text)
    write_manifest(
        folder,
        form="mlx",
        model=NAME,
        source=Source("s", None, {}),
        tokenizer="t",
        weights={"b.txt": ("retrieval", "8bit")},
    )


def publish(target, text="new", force=False):
    with staging(target, force=force, needs=1) as folder:
        fill(folder, text)


def litter(parent):
    return sorted(p.name for p in parent.iterdir() if p.name.startswith("."))


def test_a_published_folder_is_whole_and_its_manifest_says_so(tmp_path):
    publish(tmp_path / "out")
    found = manifest.load(tmp_path / "out")
    assert set(found.files) == {"b.txt", "sub/a.txt"}
    assert (found.files["b.txt"].task, found.files["b.txt"].weights) == ("retrieval", "8bit")
    assert manifest.verify(tmp_path / "out") == []
    assert litter(tmp_path) == []


def test_existing_output_needs_force_and_force_swaps_it(tmp_path):
    publish(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="exists. Give --force"):
        publish(tmp_path / "out")
    publish(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "b.txt").read_text() == "new"
    assert litter(tmp_path) == []


def test_force_never_replaces_what_this_program_did_not_write(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="was not written by this program"):
        publish(tmp_path / "out", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is not a folder"):
        publish(tmp_path / "file", force=True)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_a_failed_run_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    publish(tmp_path / "out", "old")
    with pytest.raises((type(error), OutputError)), staging(tmp_path / "out", force=True, needs=1) as folder:
        fill(folder)
        raise error
    assert (tmp_path / "out" / "b.txt").read_text() == "old"
    assert litter(tmp_path) == []


def test_a_full_disk_is_said_with_the_room_needed(tmp_path):
    with (
        pytest.raises(OutputError, match=r"the disk is full; about 2 MB are needed"),
        staging(tmp_path / "out", force=False, needs=2_000_000),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OutputError, match=r"are needed and .* MB are free"),
        staging(tmp_path / "out", force=False, needs=10**18),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time(tmp_path):
    with staging(tmp_path / "out", force=False, needs=1) as folder:
        with (
            pytest.raises(Locked, match="another process is writing"),
            staging(tmp_path / "out", force=False, needs=1),
        ):
            pass
        fill(folder)
    assert (tmp_path / "out" / "b.txt").exists()


def test_everything_is_on_disk_before_the_name_is_and_the_name_afterwards(tmp_path, monkeypatch):
    events = []

    def fsync(descriptor, real=os.fsync):
        events.append(("sync", os.stat(descriptor).st_ino))
        real(descriptor)

    def rename(source, target, real=os.rename):
        events.append(("rename", os.stat(source).st_ino))
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    publish(tmp_path / "out")
    out = tmp_path / "out"
    named = events.index(("rename", out.stat().st_ino))
    synced = {inode for what, inode in events[:named] if what == "sync"}
    assert synced == {path.stat().st_ino for path in [out, *out.rglob("*")]}
    assert ("sync", tmp_path.stat().st_ino) in events[named:]


def test_a_folder_without_a_manifest_is_not_published(tmp_path):
    with (
        pytest.raises(AssertionError, match="only with its manifest"),
        staging(tmp_path / "out", force=False, needs=1) as folder,
    ):
        (folder / "b.txt").write_text("new")
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_run_left_is_removed(tmp_path):
    dead = tmp_path / ".out.tmp-99999-abcd"
    dead.mkdir()
    (dead / "half").write_text("x")
    publish(tmp_path / "out")
    assert litter(tmp_path) == []


def test_killed_at_every_step_the_target_is_old_or_new(tmp_path):
    """A child publishes and dies at its n-th file operation, for n = 1, 2, ... until it survives."""
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from tests.convert.test_publish import publish
        left = int(sys.argv[2])
        def dying(name):
            real = getattr(os, name)
            def wrapper(*args, **kwargs):
                global left
                left -= 1
                if left < 0:
                    os._exit(9)
                return real(*args, **kwargs)
            setattr(os, name, wrapper)
        publish(Path(sys.argv[1]), "old")
        for name in ("open", "fsync", "mkdir", "rename", "unlink", "rmdir", "close"):
            dying(name)
        publish(Path(sys.argv[1]), "new", force=True)
        """
    )
    seen = set()
    for n in range(0, 200, 2):
        target = tmp_path / f"out{n}"
        child = subprocess.run([sys.executable, "-c", script, str(target), str(n)], capture_output=True, check=False)
        assert child.returncode in (0, 9), child.stderr.decode()
        assert manifest.verify(target) == []
        texts = {(target / name).read_text() for name in ("b.txt", "sub/a.txt")}
        assert len(texts) == 1
        seen |= texts
        publish(target, "again", force=True)
        assert (target / "b.txt").read_text() == "again"
        if child.returncode == 0:
            break
    assert seen == {"old", "new"}
    assert child.returncode == 0
    assert litter(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "b.txt").unlink(), "b.txt is missing"),
        (lambda f: (f / "b.txt").write_text("longer than before"), "the manifest says 3"),
        (lambda f: (f / "manifest.json").write_text("{}"), "cannot be read as a manifest"),
        (
            lambda f: (f / "manifest.json").write_text(
                (f / "manifest.json").read_text().replace("manifest 1", "manifest 9")
            ),
            "manifest 9",
        ),
        (
            lambda f: (f / "manifest.json").write_text(
                (f / "manifest.json").read_text().replace('"b.txt"', '"../b.txt"')
            ),
            "outside its folder",
        ),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, change, message):
    publish(tmp_path / "out")
    change(tmp_path / "out")
    with pytest.raises(ModelDamaged, match=message):
        manifest.load(tmp_path / "out")


def test_a_flipped_byte_is_found_by_verify(tmp_path):
    publish(tmp_path / "out")
    (tmp_path / "out" / "b.txt").write_text("neW")
    assert manifest.verify(tmp_path / "out") == [
        f"{tmp_path / 'out' / 'b.txt'}: its content has changed since it was written"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        publish(tmp_path / "locked" / "out")


def test_an_interrupt_while_the_old_folder_is_removed_leaves_nothing(tmp_path, monkeypatch):
    publish(tmp_path / "out", "old")
    whole, calls = shutil.rmtree, []

    def broken_off(path, **options):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        whole(path, **options)

    monkeypatch.setattr(shutil, "rmtree", broken_off)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "b.txt").read_text() == "new"
    assert litter(tmp_path) == []
