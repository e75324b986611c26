"""The page at `/`: what is served to whom, what it may do, and how it is opened."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from jina_local.server import assets
from tests.test_packaging import build

from .conftest import serving

FOLDER = Path(assets.__file__).parent / "page"
KEY = "a key of 24 characters.."


@pytest.fixture(scope="module")
def locked():
    with serving(JINA_LOCAL_API_KEY=KEY) as running:
        yield running


@pytest.mark.parametrize("path", assets.PATHS)
def test_each_file_is_served_to_anybody_with_a_strict_policy(locked, path):
    status, text, headers = locked.ask("GET", path)
    assert (status, text) == (200, (FOLDER / assets.PATHS[path]).read_text(encoding="utf-8"))
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert headers["content-type"].partition(";")[0] == kinds[assets.PATHS[path].rpartition(".")[2]]
    assert headers["x-content-type-options"] == "nosniff"
    policy = dict(one.strip().split(" ", 1) for one in headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert {name: value for name, value in policy.items() if name.endswith("-src")} == {
        f"{name}-src": "'self'" for name in ("script", "style", "connect", "img")
    }
    assert locked.ask("HEAD", path)[0] == 200


def test_everything_else_wants_the_key(locked):
    assert locked.ask("GET", "/page/none.js")[0] == 401
    assert locked.ask("POST", "/", {})[0] == 401
    assert locked.ask("GET", "/v1/models")[0] == 401
    assert locked.ask("GET", "/page/%2e%2e/settings.py", authorization=f"Bearer {KEY}")[0] == 404


def test_no_file_names_another_place_or_makes_markup_of_text():
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # the name of a language
        assert not re.search(r"\w+://|['\"(]//|@import|url\(", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=", text), (
            path.name
        )
        assert not re.search(r"Storage|document\.cookie|<script>|style=", text), path.name


def test_models_name_the_prompts_that_all_their_tasks_have(server):
    assert server.ask("GET", "/v1/models/pico")[1]["prompts"] == ["query", "document"]


def test_the_wheel_has_every_file(tmp_path):
    assert {path.name for path in FOLDER.iterdir()} == set(assets.PATHS.values())
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        assert {f"jina_local/server/page/{name}" for name in assets.PATHS.values()} <= set(wheel.namelist())


def test_open_starts_a_browser_once_the_page_is_there(tmp_path):
    script, opened = tmp_path / "browser", tmp_path / "opened"
    script.write_text(f'#!/bin/sh\necho "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    script.chmod(0o755)
    with serving("--open", BROWSER=f"{script} %s") as running:
        deadline = time.monotonic() + 20
        while not opened.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert opened.read_text().strip() == f"{running.url}/"


def test_a_unix_socket_cannot_be_opened_in_a_browser(tmp_path):
    command = [sys.executable, "-m", "jina_local", "serve", "--open", "--uds", str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "a browser cannot reach a Unix socket" in done.stderr) == (2, True)
