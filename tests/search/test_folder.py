"""What lies in a folder: odd names, links, specials, what cannot be read; files that change while they are read."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from jina_local.search import folder
from jina_local.search.folder import FileSeen, Skipped, Unreadable, read_stable, walk


def names(*roots: Path, **options) -> list[str]:
    found = walk([os.fsencode(root) for root in roots], **options)
    return [os.fsdecode(os.path.relpath(one.path, one.root)) for one in found if isinstance(one, FileSeen)]


def skipped(*roots: Path) -> dict[str, str]:
    found = walk([os.fsencode(root) for root in roots])
    return {os.fsdecode(os.path.relpath(one.path, one.root)): one.reason for one in found if isinstance(one, Skipped)}


@pytest.fixture
def tree(tmp_path):
    for path in ("a.txt", "b/c.md", "b/d/e.py", ".hidden", ".git/config", "b/.cache/x", "CVS/y", "z.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("text")
    return tmp_path


def test_files_come_in_order_without_hidden_ones_and_repositories(tree):
    assert names(tree) == ["a.txt", "z.md", "b/c.md", "b/d/e.py"]
    assert skipped(tree) == {}


def test_a_file_comes_with_its_stat(tree):
    first = next(iter(walk([os.fsencode(tree)])))
    at = os.stat(tree / "a.txt")
    assert first == FileSeen(os.fsencode(tree / "a.txt"), os.fsencode(tree), 4, at.st_mtime_ns, at.st_dev, at.st_ino)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["*.md"]}, ["z.md", "b/c.md"]),
        ({"include": ["*.md", "!z.md"]}, ["b/c.md"]),
        ({"exclude": ["b/d/"]}, ["a.txt", "z.md", "b/c.md"]),
        ({"include": ["/b/**"], "exclude": ["*.py"]}, ["b/c.md"]),
    ],
)
def test_include_and_exclude(tree, options, expected):
    assert names(tree, **options) == expected


def test_folders_inside_each_other_give_each_file_once(tree):
    assert names(tree, tree / "b", tree) == ["a.txt", "z.md", "c.md", "d/e.py"]


def test_links_are_not_followed(tree, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret")
    (tree / "out").symlink_to(outside)
    (tree / "secret.txt").symlink_to(outside / "secret.txt")
    (tree / "nowhere").symlink_to(tree / "gone")
    (tree / "inside.txt").symlink_to(tree / "a.txt")
    (tree / "b/loop").symlink_to(tree)
    (tree / "self").symlink_to(tree / "self")
    assert names(tree) == ["a.txt", "z.md", "b/c.md", "b/d/e.py"]
    assert skipped(tree) == {
        "nowhere": "a link that leads nowhere",
        "out": "a link that leads out of the folder",
        "secret.txt": "a link that leads out of the folder",
    }
    assert skipped(tree, outside) == {"nowhere": "a link that leads nowhere"}


def test_a_root_may_be_a_link(tree, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(tree)
    assert names(link) == names(tree)


def test_specials_are_not_opened(tree):
    os.mkfifo(tree / "pipe")
    start = time.monotonic()
    assert skipped(tree) == {"pipe": "not a regular file"}
    with pytest.raises(Unreadable, match="not a regular file"):
        read_stable(os.fsencode(tree / "pipe"), 10)
    with pytest.raises(Unreadable, match="not a regular file"):
        read_stable(b"/dev/zero", 10)
    with pytest.raises(Unreadable, match="not a regular file"):
        read_stable(os.fsencode(tree), 10)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"two\nlines", "😀".encode(), b"x" * 255, b"-", b"a b", b"\x1b[31m", b"*"]
)
def test_odd_names_are_bytes(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        with open(path, "w") as file:
            file.write("x")
    except OSError:
        pytest.skip("this file system refuses the name")
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    (one,) = walk([os.fsencode(tmp_path)])
    assert one.path == path
    assert read_stable(path, 10)[0] == b"x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_skipped(tree):
    (tree / "b").chmod(0)
    (tree / "a.txt").chmod(0)
    try:
        assert skipped(tree) == {"b": "permission denied"}
        with pytest.raises(Unreadable, match="permission denied"):
            read_stable(os.fsencode(tree / "a.txt"), 10)
    finally:
        (tree / "b").chmod(0o700)


def test_errors_of_the_system_are_counted_and_the_rest_is_walked(tree, monkeypatch):
    def scandir(path):
        if path.endswith(b"/d"):
            raise PermissionError(13, "Permission denied", path)
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(folder.os, "scandir", scandir)
    assert names(tree) == ["a.txt", "z.md", "b/c.md"]
    assert skipped(tree) == {"b/d": "permission denied"}


def test_a_root_that_is_gone_is_skipped(tmp_path):
    assert skipped(tmp_path / "gone") == {".": "no such file or directory"}
    (tmp_path / "file").write_text("x")
    assert skipped(tmp_path / "file") == {".": "not a directory"}


def test_a_very_deep_tree_ends(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deepdeep", dir_fd=here)
        here, last = os.open("deepdeep", os.O_RDONLY, dir_fd=here), here
        os.close(last)
    os.close(here)
    assert names(tmp_path) == []
    assert list(skipped(tmp_path).values()) == ["file name too long"]
    subprocess.run(["rm", "-rf", tmp_path / "deepdeep"], check=True)  # too deep for Python's own


def test_a_file_is_read_with_the_stat_of_its_content(tree):
    data, at = read_stable(os.fsencode(tree / "a.txt"), 4)
    assert data == b"text"
    assert stat.S_ISREG(at.st_mode)
    assert at.st_mtime_ns == os.stat(tree / "a.txt").st_mtime_ns


def test_what_cannot_be_read_says_why(tree):
    with pytest.raises(Unreadable, match="^no such file or directory$"):
        read_stable(os.fsencode(tree / "gone"), 10)
    with pytest.raises(Unreadable, match="^larger than 1 MiB$"):
        (tree / "big").write_bytes(b"x" * ((1 << 20) + 1))
        read_stable(os.fsencode(tree / "big"), 1 << 20)
    (tree / "link").symlink_to(tree / "a.txt")
    with pytest.raises(Unreadable, match="^not a regular file$"):
        read_stable(os.fsencode(tree / "link"), 10)


def changing(monkeypatch, path: Path, times: int) -> list[int]:
    """The file changes during the first `times` reads."""
    reads: list[int] = []
    fdopen = open

    def opened(descriptor, *rest):
        reads.append(descriptor)
        if len(reads) <= times:
            at = os.fstat(descriptor)
            file = fdopen(descriptor, *rest)
            read = file.read

            class Changing:
                def fileno(self):
                    return file.fileno()

                def read(self, most):
                    data = read(most)
                    path.write_text(f"changed {len(reads)}")
                    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns + len(reads) * 1000))
                    return data

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

            return Changing()
        return fdopen(descriptor, *rest)

    monkeypatch.setattr(folder, "open", opened, raising=False)
    return reads


def test_a_file_that_changes_is_read_again(tree, monkeypatch):
    reads = changing(monkeypatch, tree / "a.txt", 2)
    assert read_stable(os.fsencode(tree / "a.txt"), 100)[0] == b"changed 2"
    assert len(reads) == 3


def test_a_file_that_always_changes_is_unstable(tree, monkeypatch):
    changing(monkeypatch, tree / "a.txt", 99)
    with pytest.raises(Unreadable, match="^unstable"):
        read_stable(os.fsencode(tree / "a.txt"), 100)


def test_ten_thousand_files_are_walked_in_well_under_a_second(tmp_path):
    for n in range(100):
        (tmp_path / f"{n}").mkdir()
        for m in range(100):
            (tmp_path / f"{n}/{m}.py").touch()
    (tmp_path / ".gitignore").write_text("\n".join(f"*.{n}\n/build{n}/\nout{n}/*.x" for n in range(50)))
    start = time.process_time()
    assert len(names(tmp_path)) == 10_000
    assert time.process_time() - start < 2  # on a busy machine; 0.25 s on an idle core
