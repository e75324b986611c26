"""Ignore rules, held against git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jina_local.search.folder import FileSeen, Skipped, walk
from jina_local.search.ignore import Patterns

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
NAMES = ["a", "b", "ab", "a.c", "b.c", "d"]
PATTERNS = st.lists(
    st.sampled_from([
        "a", "*.c", "/a", "b/", "!a", "!*.c", "a/b", "**/b", "a/**", "a/**/b", "d/*", "!d/a", "[ab]", "[!a]*", "?",
        "#a", "\\#a", "", "  ", "a ", "a\\ ", "/d/", "*", "!d/", "!/d/*", "a*b", "/*", "!/a", "d/a.c", "**", "*/a",
        "/**/a.c", "[a", "!!a", "[[:alpha:]]", "[a-]", "[]a]", "[!]a]", "[^a]", "a\\", "\\a", "**a", "a/*/b", "[b-a]",
        "**/", "/", "/a/", "a//b", "[[:no:]]", "\ta", "a\r", "*.[ch]", "!**/d", "**/a/**/b", "[a\\]b]", "*b*", "a*",
    ]),
    max_size=5,
)  # fmt: skip
PATHS = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join), min_size=1, max_size=12)


def write(folder: Path, paths: list[str]) -> None:
    for path in paths:
        file = folder / path
        if any(parent.is_file() for parent in file.parents) or file.is_dir():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")


def walked(folder: Path) -> set[str]:
    root = os.fsencode(folder)
    return {os.fsdecode(os.path.relpath(one.path, root)) for one in walk([root]) if isinstance(one, FileSeen)}


def by_git(folder: Path) -> set[str]:
    """The files that git would add."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "ls-files", "-z", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    return {name for name in done.stdout.decode().split("\0") if name and not os.path.basename(name).startswith(".")}


@needs_git
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(PATHS, PATTERNS, PATTERNS, st.sampled_from(["d", "a", "a/b"]))
@example(["a/b/c", "d/a"], ["a/**", "!a/b/"], [], "d")
@example(["d/a", "d/b.c"], ["*.c"], ["!b.c"], "d")
@example(["a.c/a.c"], ["*", "!*.c"], [], "d")
def test_the_same_files_as_git(paths, outer, inner, where):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["git", "init", "-q", name], check=True, capture_output=True)
        write(folder, paths)
        (folder / ".gitignore").write_text("\n".join(outer))
        if (folder / where).is_dir():
            (folder / where / ".gitignore").write_text("\n".join(inner))
        assert walked(folder) == by_git(folder)
        for inside in [child for child in folder.iterdir() if child.is_dir() and child.name != ".git"]:
            below = f"{inside.name}/"
            found = {path.removeprefix(below) for path in by_git(folder) if path.startswith(below)}
            if found:  # git lists nothing of a folder that is ignored itself; a user who names it wants it
                assert walked(inside) == found


@given(st.text(st.sampled_from("ab*?[]!^-\\\\/:.# &~|()\udcff\n"), max_size=30), st.text("ab-]/", max_size=10))
@example("[[:alpha:]", "a")
@example("[&&a--b||~~[[]", "a")
@example("[\\", "a")
def test_every_line_is_a_pattern_or_none(line, path):
    assert Patterns([line]).decide(path, True) in (True, False, None)


def test_jinaignore_has_the_last_word(tmp_path):
    write(tmp_path, ["a.log", "b.log", "c.txt"])
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / ".jinaignore").write_text("!b.log\nc.txt\n")
    assert walked(tmp_path) == {"b.log"}


def test_rules_end_at_the_top_of_the_repository(tmp_path):
    write(tmp_path, ["repository/src/a.log", "repository/src/b.txt"])
    (tmp_path / ".gitignore").write_text("*.txt\n")
    (tmp_path / "repository/.gitignore").write_text("*.log\n")
    assert walked(tmp_path / "repository/src") == {"a.log", "b.txt"}  # no repository: no rules from above
    (tmp_path / "repository/.git").mkdir()
    assert walked(tmp_path / "repository/src") == {"b.txt"}


@pytest.mark.parametrize(
    "pattern", ["*a*a*a*a*a*a*b", "a/**/a/**/a/**/a/**/b", "**/*a*a*a/**", "*" * 300 + "b", "[a-" * 100, "?*" * 100]
)
def test_every_pattern_is_quick(pattern):
    patterns = Patterns([pattern, "!" + pattern])
    start = time.process_time()
    patterns.decide("a" * 255, False)
    patterns.decide("a/" * 2000 + "a", True)
    assert time.process_time() - start < 1


def test_ignore_files_that_cannot_be_used_are_said_and_the_files_are_read(tmp_path):
    write(tmp_path, ["big/a", "link/a", "pipe/a"])
    (tmp_path / "big/.gitignore").write_text("a\n" * 100_000)
    (tmp_path / "rules").write_text("a\n")
    (tmp_path / "link/.gitignore").symlink_to(tmp_path / "rules")
    os.mkfifo(tmp_path / "pipe/.gitignore")
    assert walked(tmp_path) == {"big/a", "link/a", "pipe/a", "rules"}
    said = {
        os.path.basename(one.path): one.reason for one in walk([os.fsencode(tmp_path)]) if isinstance(one, Skipped)
    }
    assert said == {b"big": "its ignore files are not used: larger than 64 KiB"}
