"""`search`, `get` and `related` on an index of a few files, with pico."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jina_local.cli import main
from jina_local.cli.get import place_of
from jina_local.cli.search import _around
from jina_local.errors import SearchIndexError, UsageError
from jina_local.search import filters
from jina_local.search.index import Index
from tests import made

ROOT = Path(__file__).resolve().parents[2]
NOTES = {
    "router.md": "# Router\n\nSome intro.\n\n## Reset\n\nHold the reset button for ten seconds.\nWait for green.\n",
    "todo.txt": "Buy milk and bread.\n\nCall mum.\n",
    "zh.md": "路由器需要重新启动。按住按钮十秒。\n",
    "src/router.py": 'def reset(port):\n    """Reset it."""\n    return port + 1\n\n\ndef other():\n    return 2\n',
    "evil.txt": "milk \x1b]0;owned\x07 and \u202emilk\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of notes with an index, and nothing else that is indexed."""
    home = tmp_path_factory.mktemp("home")
    for name, text in NOTES.items():
        path = home / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (home / os.fsdecode(b"notes/caf\xe9 \xf0.txt")).write_text("The caf\u00e9 opens at nine.\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home / "data"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        assert main.main(["index", str(home / "notes"), "--model", "pico"]) == 0
    return home


@pytest.fixture
def here(home, monkeypatch):
    """That folder as the current one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.chdir(home)
    return home


def hits(capfd):
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def test_a_pipe_gets_a_record_for_each_passage(here, capfd):
    assert main.main(["search", "how", "do", "I", "reset", "the router", "-k", "3", "--lang", "md"]) == 0
    first, *_ = found = hits(capfd)
    assert len(found) == 3
    assert first["path"] == str(here / "notes" / "router.md")
    assert (first["start_line"], first["end_line"], first["unit"]) == (5, 8, "line")
    assert first["context"] == "Router > Reset"
    assert first["text"] == "## Reset\n\nHold the reset button for ten seconds.\nWait for green."
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)


def test_a_table_has_true_lines_and_no_control_characters(here, capfd):
    assert main.main(["search", "reset button", "-k", "1", "--format", "table", "--lang", "md"]) == 0
    title, *lines = capfd.readouterr().out.splitlines()
    assert re.fullmatch(r"1\. notes/router\.md:5-8  \d\.\d\d  Router > Reset", title)
    assert lines[1] == "     7  Hold the reset button for ten seconds."
    assert main.main(["search", "milk", "--format", "table", "--mode", "lexical", "--path", "evil.txt"]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert r"milk \x1b]0;owned\x07 and \u202emilk" in out


def test_context_is_lines_of_the_file(here, capfd):
    words = ["search", "reset button", "-k", "1", "--path", "router.md", "--format"]
    assert main.main([*words, "table"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[1:] == [
        "     5  ## Reset", "     7  Hold the reset button for ten seconds.", "     8  Wait for green.", "",
    ]  # fmt: skip
    assert main.main([*words, "table", "--context", "0"]) == 0
    assert capfd.readouterr().out.splitlines()[1:] == ["     7  Hold the reset button for ten seconds.", ""]
    assert main.main([*words, "jsonl", "--context", "2"]) == 0
    (found,) = hits(capfd)
    assert (found["start_line"], found["end_line"]) == (3, 8)
    assert found["text"].startswith("Some intro.\n\n## Reset")


def test_json_says_which_mode_answered_and_what_is_missing(here, capfd):
    assert main.main(["search", "milk", "--format", "json", "--rerank", "jina-reranker-v3"]) == 0
    out, err = capfd.readouterr()
    body = json.loads(out)
    assert body["mode"] == "hybrid"
    (why,) = body["missing"]
    assert why.startswith("jina-reranker-v3 cannot be opened, so nothing was reranked: jina-reranker-v3: not on this")
    assert why in err


def test_paths_are_bytes_as_they_are(here, capfdbinary):
    assert main.main(["search", "café opens", "--mode", "lexical", "--format", "paths"]) == 0
    assert capfdbinary.readouterr().out == bytes(here) + b"/notes/caf\xe9 \xf0.txt\n"
    assert main.main(["search", "café opens", "--mode", "lexical"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["path"].endswith(r"/notes/caf\xe9 \xf0.txt")


def test_words_of_scripts_without_spaces(here, capfd):
    assert main.main(["search", "重新启动", "--mode", "lexical", "--format", "table"]) == 0
    assert "路由器需要重新启动" in capfd.readouterr().out


def test_nothing_found_is_1(here, capfd):
    assert main.main(["search", "zeppelin", "--mode", "lexical"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "nothing was found" in err


def test_filters(here, capfd):
    assert main.main(["search", "reset router", "--lang", "py", "--format", "paths"]) == 0
    assert capfd.readouterr().out == f"{here}/notes/src/router.py\n"
    assert main.main(["search", "reset router", "--path", "src/*", "--format", "paths"]) == 0
    assert capfd.readouterr().out == f"{here}/notes/src/router.py\n"
    assert main.main(["search", "milk", "--since", "2999-01-01"]) == 1
    assert main.main(["search", "milk", "--since", "1h"]) == 0
    assert main.main(["search", "milk", "--min-score", "99"]) == 1


def test_a_budget_of_tokens_cuts_at_a_line(here, capfd):
    assert main.main(["search", "reset", "-k", "6"]) == 0
    whole = hits(capfd)
    assert main.main(["search", "reset", "-k", "6", "--max-tokens", "60"]) == 0
    out, err = capfd.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    with Index.open("notes") as index:
        assert 0 < sum(index.count_tokens([one["text"] for one in found])) <= 60
    assert re.search(r"\d of 6 passages did not fit into max_tokens", err)
    assert [one["text"] for one in found[:-1]] == [one["text"] for one in whole[: len(found) - 1]]
    last = whole[len(found) - 1]
    assert last["text"].startswith(found[-1]["text"])
    assert found[-1]["end_line"] - found[-1]["start_line"] == found[-1]["text"].count("\n")


def test_a_reranker_reads_the_best_again(here, capfd, monkeypatch):
    made_reranker = made.reranker("reranker-v2", "F32")
    assert main.main(["search", "reset the router", "-k", "3", "--rerank", str(made_reranker)]) == 0
    found = hits(capfd)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert all(0 <= one["score"] <= 1 for one in found)


def test_an_answer_goes_on_to_rerank(here):
    run = f"{sys.executable} -m jina_local"
    command = f"{run} search milk -k 4 | {run} rerank milk --model pico --field text"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout.splitlines()[0])
    assert {"document", "path", "start_line", "retrieval_score"} <= first.keys()


def test_get(here, capfd):
    for place in ("notes/router.md:7:1", f"{here}/notes/router.md:7:1", "router.md:7:1"):
        assert main.main(["get", place]) == 0
        assert capfd.readouterr().out == "Hold the reset button for ten seconds.\n"
    assert main.main(["get", "router.md", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["start_line"], found["changed"]) == (1, False)
    for place, message in (("/etc/passwd", "is not in the index notes"), ("router.md:99", "and 99 was asked for")):
        with pytest.raises(UsageError, match=message):
            main.main(["get", place])


def test_related(here, capfd):
    assert main.main(["related", "src/router.py:2", "-k", "2"]) == 0
    found = hits(capfd)
    assert len(found) == 2
    assert all(one["text"] != NOTES["src/router.py"][:60] for one in found)
    assert found[0]["score"] == pytest.approx(found[0]["cosine"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["search"], "no question was given"),
        (["search", " "], "no question was given"),
        (["search", "x", "--lang", "pyhton"], r"--lang pyhton: unknown \(did you mean 'python'\?\)\. Known: "),
        (["search", "x", "--since", "yesterday"], r"--since yesterday: expected a date such as 2026-01-31, or 90m"),
        (["search", "x", "--index", "note"], r"there is no index 'note' \(did you mean 'notes'\?\)"),
        (["search", "x", "-k", "0"], r"k 0 is out of range"),
        (["search", "x", "--max-tokens", "0"], r"--max-tokens 0: expected a whole number from 1"),
        (["search", "x", "--context", "-1"], r"--context -1: expected a whole number from 0"),
        (["search", "x", "--rerank", "pico"], r"--rerank pico: is no reranker"),
        (["search", "x", "--output", "a.xyz"], r"--output a.xyz: the format cannot be told from the name"),
        (["search", "x", "--mode", "hybird"], r"did you mean 'hybrid'"),
        (["related", "router.md:1:2"], r"takes a line and no count"),
    ],
)
def test_what_cannot_be_done_is_said(here, args, message):
    with pytest.raises(UsageError, match=message):
        main.main(args)


def test_without_an_index(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, SearchIndexError), match=r"there is no index yet\. Make one: `jina-local index"):
        main.main(["search", "x"])


def test_a_file_that_has_changed_is_said_to_have(home, here, capfd):
    path = here / "notes" / "todo.txt"
    before = path.stat()
    path.write_text("Buy nothing.\n")
    try:
        assert main.main(["search", "milk bread", "--path", "todo.txt", "--context", "3"]) == 0
        (found,) = hits(capfd)
        assert found["state"] == "changed"
        assert "Buy milk" in found["text"]
    finally:
        path.write_text(NOTES["todo.txt"])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_places_and_moments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:3").touch()
    assert place_of("a.py:3:4") == ("a.py", 3, 4)
    assert place_of("a.py:3") == ("a.py", 3, None)
    assert place_of("a.py") == ("a.py", 1, None)
    assert place_of("a:3") == ("a:3", 1, None)
    now = time.time()
    assert filters.since("2d", now, "--since") == int(now - 2 * 86400) * 10**9
    assert filters.since("2026-01-31", now, "--since") < filters.since("2026-01-31T12:00", now, "--since")


def test_lines_around_the_best():
    lines = ["a", "", "", "b", "", "c", "d"]
    assert list(_around(lines, 3, None)) == [0, 3, 5]
    assert list(_around(lines, 0, None)) == [0, 3]
    assert list(_around(lines, 3, 1)) == [2, 3, 4]
    assert list(_around(lines, 6, 2)) == [4, 5, 6]
