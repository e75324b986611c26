"""Changes of a folder as they come: sets, hidden files left out, folders that go and come back."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
import time

import pytest

pytest.importorskip("watchfiles")

from jina_local.errors import EngineMissing
from jina_local.search.watch import watch


class Watched:
    """A folder that is watched by a thread."""

    def __init__(self, *folders: bytes) -> None:
        self.stop = threading.Event()
        self._sets: queue.Queue[set[bytes]] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(folders,), daemon=True)
        self._thread.start()
        time.sleep(0.5)  # the system's watches are being set

    def _run(self, folders: tuple[bytes, ...]) -> None:
        for changed in watch(folders, self.stop):
            self._sets.put(changed)

    def until(self, path: bytes) -> set[bytes]:
        """All that changed until this path did."""
        seen: set[bytes] = set()
        while path not in seen:
            seen |= self._sets.get(timeout=15)
        return seen

    def nothing(self) -> bool:
        """Whether nothing comes for a while."""
        time.sleep(1)
        return self._sets.empty()

    def end(self) -> float:
        """Stop it; returns the seconds that took."""
        start = time.monotonic()
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        return time.monotonic() - start


def write(path: bytes) -> bytes:
    with open(path, "a") as file:
        file.write("x")
    return path


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/sub").mkdir(parents=True)
    return os.fsencode(tmp_path / "root")


def test_changes_come_as_paths_and_hidden_ones_do_not(root):
    watched = Watched(root)
    paths = {write(root + b"/a.txt"), write(root + b"/sub/b.txt"), write(root + b"/.gitignore")}
    hidden = {write(root + b"/.index.db"), write(root + b"/sub/.x")}
    seen = watched.until(root + b"/a.txt") | watched.until(write(root + b"/last"))
    assert paths <= seen
    assert not hidden & seen
    os.mkdir(root + b"/.git")
    write(root + b"/.git/index")
    write(root + b"/.index.db")
    assert watched.nothing()
    assert watched.end() < 3


def test_a_folder_may_be_a_link_and_lie_in_a_hidden_one(tmp_path):
    (tmp_path / ".notes").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / ".notes")
    for name in (".notes", "link"):
        watched = Watched(os.fsencode(tmp_path / name))
        write(os.fsencode(tmp_path / ".notes" / name.strip(".")))
        assert os.path.basename(watched._sets.get(timeout=15).pop()) == os.fsencode(name.strip("."))
        watched.end()


def test_many_changes_come_together(root):
    watched = Watched(root)
    paths = {write(root + b"/%d" % n) for n in range(300)}
    seen = [watched.until(root + b"/299")]
    while not watched.nothing():
        seen.append(watched._sets.get())
    assert paths <= set().union(*seen)
    assert len(seen) < 20
    watched.end()


@pytest.mark.slow
def test_a_folder_that_goes_away_is_watched_again_when_it_is_back(root):
    watched = Watched(root)
    shutil.rmtree(root)
    assert root in watched.until(root)
    time.sleep(1.5)
    os.mkdir(root)
    assert root in watched.until(root)
    time.sleep(1)
    assert root + b"/new" in watched.until(write(root + b"/new"))
    watched.end()


def test_a_folder_that_is_not_there_yet_is_waited_for(root):
    later = root + b"/later"
    watched = Watched(later)
    os.mkdir(later)
    assert watched.until(later) == {later}
    watched.end()


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse the name")
def test_a_name_that_is_not_utf_8_is_a_change_of_its_root(root):
    watched = Watched(root)
    write(root + b"/caf\xe9")
    assert watched.until(root)
    time.sleep(1)
    assert root + b"/after" in watched.until(write(root + b"/after"))
    watched.end()


def test_without_the_library_the_extra_is_named(monkeypatch, root):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(EngineMissing, match=r"--watch needs watchfiles: pip install 'jina_local\[search\]'"):
        next(watch([root], threading.Event()))
