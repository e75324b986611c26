"""The page at `/`: what is served, and, in headless Chromium, what a person sees and does there."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from jina_local import Embedder, load
from jina_local.server import assets
from tests.test_packaging import build

from .browser import browsing, executable
from .conftest import serving

FOLDER = Path(assets.__file__).parent / "page"
KEY = "a key of 24 characters.."
TEXTS = ["How can dim objects be seen?", "A larger mirror shows fainter stars.", "火星 is red", '<img src=x> "a", b']


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
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\son\w+=", text), path.name
        assert not re.search(r"Storage|document\.cookie|<script>|style=", text), path.name


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


# In a browser.


@pytest.fixture(scope="module")
def model():
    with load("pico") as one:
        assert isinstance(one, Embedder)
        yield one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def started(folder):
    if (program := executable()) is None:
        pytest.skip("no Chromium in PATH: apt-get install chromium")
    with browsing(program, folder) as one:
        yield one


@pytest.fixture
def browser(started):
    started.look(1000, 900)
    started.stand_in({"/v1/indexes": {"data": []}})
    yield started
    assert started.errors() == []
    started.call("Page.navigate", url="about:blank")


@contextmanager
def only_asking(browser, server):
    """No request of the page leaves the server that it came from."""
    yield
    assert {url for url in browser.requested() if not url.startswith((f"{server.url}/", "about:", "blob:"))} == set()


def compare(browser, server, texts, *boxes):
    """Open the view, type texts, check more boxes by their labels, and wait for the maps."""
    browser.visit(f"{server.url}/#compare")
    browser.wait("document.querySelector('#model').value")
    for group, label in boxes:
        browser.value(
            f"[...document.querySelectorAll('[aria-label={json.dumps(group)}] label')]"
            f".find((one) => one.textContent === {json.dumps(label)}).click()"
        )
    browser.value("document.querySelector('#texts').focus()")
    browser.value("document.querySelector('#texts').select()")
    browser.type("\n".join(texts))
    browser.press("Enter", ctrl=True)
    browser.wait("document.querySelector('figure')")


def shown(browser):
    """The title of each map, and its numbers."""
    found = browser.value("""[...document.querySelectorAll("figure")].map((figure) => [
        figure.querySelector("figcaption").textContent,
        [...figure.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")].map((cell) =>
            Number(cell.dataset.value)))])""")
    return {title: np.array(numbers) for title, numbers in found}


@pytest.mark.slow
def test_the_maps_have_the_cosines_of_the_python_api(server, browser, model):
    with only_asking(browser, server):
        compare(browser, server, TEXTS, ("clustering", "query"), ("retrieval", "query"))
    maps = shown(browser)
    sides = {
        "retrieval query → document": (("retrieval", "query"), ("retrieval", "document")),
        "retrieval query": (("retrieval", "query"),) * 2,
        "text-matching document": (("text-matching", "document"),) * 2,
        "clustering query": (("clustering", "query"),) * 2,
    }
    assert list(maps) == list(sides)
    for title, pair in sides.items():
        a, b = (model.encode(TEXTS, task=task, prompt_name=prompt) for task, prompt in pair)
        assert np.abs(maps[title] - model.similarity(a, b)).max() < 6e-5, title
    assert browser.value("document.querySelectorAll('img, #maps b').length") == 0
    row = browser.value("document.querySelector('tbody tr:nth-child(4) th').textContent")
    assert row == f"4 {TEXTS[3]}"


@pytest.mark.slow
@pytest.mark.parametrize("width", [256, 64])
def test_vectors_are_downloaded_as_they_are(server, browser, model, folder, width):
    compare(browser, server, TEXTS)
    if width != 256:
        browser.value(f"document.querySelector('#dimensions').value = {width}")
        browser.value("document.querySelector('#vectors').replaceChildren()")
        browser.value("document.querySelector('#compare-form').requestSubmit()")
        browser.wait("document.querySelector('#vectors li')")
    expected = model.encode(TEXTS, task="retrieval", prompt_name="query", truncate_dim=width)
    saved = {}
    for form in ("json", "csv", "npy"):
        browser.value(f"document.querySelector('[aria-label=\"retrieval query as {form}\"]').click()")
        saved[form] = arrived(folder / f"pico-retrieval-query-{width}.{form}")
    assert np.array_equal(np.load(io.BytesIO(saved["npy"]), allow_pickle=False), expected)
    body = json.loads(saved["json"])
    assert {"model": "pico", "task": "retrieval", "prompt_name": "query", "dimensions": width}.items() <= body.items()
    assert [one["text"] for one in body["data"]] == TEXTS
    assert np.array_equal(np.array([one["embedding"] for one in body["data"]], np.float32), expected)
    head, *rows = csv.reader(io.StringIO(saved["csv"].decode()))
    assert head == ["index", "text", *(f"d{i}" for i in range(width))]
    assert [row[1] for row in rows] == TEXTS
    assert np.array_equal(np.array([row[2:] for row in rows], np.float32), expected)


def arrived(path):
    """The bytes of a download, once it is whole: the browser renames it then."""
    deadline = time.monotonic() + 20
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < deadline, list(path.parent.iterdir())
        time.sleep(0.05)
    return path.read_bytes()


@pytest.mark.slow
def test_a_map_is_read_and_left_by_keys(server, browser):
    compare(browser, server, TEXTS)
    for _ in range(40):
        browser.press("Tab")
        if browser.value("document.activeElement.matches('td')"):
            break
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    at = browser.value("document.activeElement.getAttribute('aria-label')")
    assert re.fullmatch(rf"-?0\.\d{{4}}: 3 {TEXTS[2]} / 2 {re.escape(TEXTS[1])}", at)
    assert browser.value("document.querySelector('#cell output').textContent") == at
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowUp"):  # stops at the edges
        browser.press(key)
    assert ": 1 How" in browser.value("document.activeElement.getAttribute('aria-label')")
    assert browser.value("document.querySelectorAll('figure:first-child td[tabindex=\"0\"]').length") == 1
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", **middle(browser, "tr:nth-child(2) td:nth-child(4)"))
    browser.wait("document.querySelector('#cell output').textContent.includes(': 2 A larger')")
    assert browser.value("document.activeElement.tagName") == "TD"
    browser.press("/")
    browser.wait("location.hash === '#search'")


def middle(browser, selector):
    return browser.value(
        f"(({{x, y, width, height}}) => ({{x: x + width / 2, y: y + height / 2}}))"
        f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
    )


@pytest.mark.slow
def test_what_the_server_refuses_is_said(server, browser):
    compare(browser, server, TEXTS)
    browser.value("document.querySelector('#texts').value = 'short\\n' + 'word '.repeat(5000)")
    browser.value("document.querySelector('#compare-form').requestSubmit()")
    browser.wait("document.querySelector('#compare-said.error')")
    assert browser.value("document.querySelector('#compare-said').textContent").startswith("input[1] ")
    browser.value("document.querySelector('#texts').value = ' \\n'")
    browser.value("document.querySelector('#compare-form').requestSubmit()")
    browser.wait("document.querySelector('#compare-said').textContent === 'Give a text.'")


HITS = [
    {"path": "/home/a/notes/router.md", "start_line": 5, "end_line": 8, "unit": "line", "context": "Router > Reset",
     "language": "markdown", "score": 3.25, "text": "## Reset\n\nHold the reset button <b>down</b>\nuntil resetting."},
    {"path": "/home/a/notes/<i>long</i>.md", "start_line": 1, "end_line": 30, "unit": "line", "context": "",
     "language": "markdown", "score": 1.5, "text": "\n".join(f"line {n}" for n in range(1, 31)), "state": "changed"},
    {"path": "a.pdf", "start_line": 2, "end_line": 3, "unit": "page", "context": "", "language": "pdf", "score": -0.25,
     "text": "of buttons"},
]  # fmt: skip


def search(browser, server, hits):
    indexes = {"data": [{"id": "notes"}, {"id": "src"}]}
    browser.stand_in({"/v1/indexes": indexes, "/v1/search": {"hits": hits, "mode": "lexical", "missing": ["a part"]}})
    browser.visit(server.url)
    browser.wait("document.querySelector('#index').value === 'notes'")
    browser.press("/")
    browser.type("the reset button")
    browser.press("Enter")
    browser.wait("document.querySelector('#search-said').textContent.includes(' ms')")


@pytest.mark.slow
def test_passages_have_their_lines_and_the_words_of_the_question(server, browser):
    with only_asking(browser, server):
        search(browser, server, HITS)
    said = browser.value("document.querySelector('#search-said').textContent")
    assert re.fullmatch(r"3 passages · lexical search answered · a part · \d+ ms", said)
    places = browser.value("[...document.querySelectorAll('.hit .path')].map((one) => one.textContent)")
    assert places == ["/home/a/notes/router.md:5-8", "/home/a/notes/<i>long</i>.md:1-30", "a.pdf page 2-3"]
    marks = browser.value("[...document.querySelectorAll('mark')].map((one) => one.textContent)")
    assert marks == ["Reset", "reset", "button", "resetting", "buttons"]
    numbers = browser.value("[...document.querySelectorAll('li:first-child .line')].map((one) => one.dataset.line)")
    assert numbers == ["5", "6", "7", "8"]
    texts = browser.value("[...document.querySelectorAll('#hits pre')].map((one) => one.textContent.trimEnd())")
    assert texts == [hit["text"] for hit in HITS]
    assert browser.value("document.querySelectorAll('#hits i').length") == 0
    assert "changed since" in browser.value("document.querySelectorAll('.about')[1].textContent")


@pytest.mark.slow
def test_passages_are_walked_and_unfolded_by_keys(server, browser):
    search(browser, server, HITS)
    for _ in range(5):
        browser.press("ArrowDown")  # stops at the last
    at = "[...document.querySelectorAll('.hit')].indexOf(document.activeElement)"
    assert browser.value(at) == 2
    browser.press("ArrowUp")
    assert browser.value(at) == 1
    height = "document.querySelectorAll('#hits pre')[1].clientHeight"
    folded = browser.value(height)
    browser.press("Enter")
    assert browser.value(height) > 2 * folded
    browser.press("Enter")
    assert browser.value(height) == folded
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    assert browser.value("document.activeElement.id") == "question"


@pytest.mark.slow
def test_a_server_without_an_index_says_how_to_get_one(server, browser):
    browser.visit(server.url)
    browser.wait("!document.querySelector('#no-index').hidden")
    assert "jina-local serve --index" in browser.value("document.querySelector('#no-index').innerText")
    assert browser.value("document.querySelector('#question').disabled")


@pytest.mark.slow
def test_status_has_the_models_and_what_was_done(server, browser):
    server.post("/v1/embeddings", {"model": "pico", "input": "a"})
    with only_asking(browser, server):
        browser.visit(f"{server.url}/#status")
        browser.wait("document.querySelector('dl')")
    text = browser.value("document.querySelector('main').innerText")
    for part in ("pico embedding", "Q8_0", "In the queue\n0 tokens", "/v1/embeddings", "0 under way"):
        assert part in text
    browser.wait("document.querySelector('#state').textContent.startsWith('ready')")


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_nowhere(locked, browser):
    browser.visit(f"{locked.url}/#compare")
    for given, said in (("wrong", "not valid"), (KEY, "")):
        browser.wait("document.querySelector('#key-dialog').open")
        browser.type(given)
        browser.press("Enter")
        browser.wait(f"document.querySelector('#key-said').textContent.includes({json.dumps(said)})")
    browser.wait("document.querySelector('#model').value === 'pico'")
    browser.value("document.querySelector('#compare-form').requestSubmit()")
    browser.wait("document.querySelector('figure')")
    assert browser.value("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert not any(KEY in url for url in browser.requested())


@pytest.mark.slow
def test_without_a_key_the_page_says_so_and_asks_no_more(locked, browser):
    browser.visit(locked.url)
    browser.wait("document.querySelector('#key-dialog').open")
    browser.value("document.querySelector('#key-cancel').click()")
    browser.wait("document.querySelector('#search-said').textContent.includes('wants a key')")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_narrow_window_in_both_schemes(server, browser, scheme):
    browser.look(360, 800, scheme)
    search(browser, server, HITS)
    fits(browser, scheme)
    compare(browser, server, [f"text {n} " + "long" * 40 for n in range(30)])
    fits(browser, scheme)
    browser.value("location.hash = 'status'")
    browser.wait("document.querySelector('dl')")
    fits(browser, scheme)


def fits(browser, scheme):
    """No sideways scrolling; ink on paper has the contrast that WCAG asks of text, in the scheme's direction."""
    assert browser.value("document.documentElement.scrollWidth") <= 360
    weak = browser.value("""(() => {
        const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => text.startsWith("color") ? v : v / 255);
        const luminance = (text) => rgb(text).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const paper = (one) => !one ? "rgb(255, 255, 255)" : /, 0\\)$|transparent/.test(getComputedStyle(one).backgroundColor)
            ? paper(one.parentElement) : getComputedStyle(one).backgroundColor;
        return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && !one.closest(":disabled, option")
            && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((one) => {
                const [a, b] = [luminance(getComputedStyle(one).color), luminance(paper(one))];
                return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.outerHTML.slice(0, 120)];
            }).filter(([contrast]) => contrast < 4.5);
    })()""")
    assert weak == []
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 60) == (scheme == "dark")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["search", "compare", "status"])
def test_every_control_has_a_name_and_shows_when_it_has_the_focus(server, browser, view):
    if view == "search":
        search(browser, server, HITS)
    else:
        compare(browser, server, TEXTS)
        browser.value(f"location.hash = {view!r}")
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "searchbox", "combobox", "checkbox", "link", "grid", "gridcell", "group"}
    named = [(one["role"]["value"], one.get("name", {}).get("value")) for one in nodes if not one["ignored"]]
    assert [role for role, name in named if role in controls and not name] == []
    assert ("link", "Search") in named
    browser.call("Accessibility.disable")
    browser.value("document.activeElement.blur()")
    seen = set()
    for _ in range(60):
        browser.press("Tab")
        style = browser.value("""document.activeElement === document.body ? null :
            [getComputedStyle(document.activeElement).outlineStyle, document.activeElement.outerHTML.slice(0, 80)]""")
        if style is None or style[1] in seen:
            break
        assert style[0] == "solid", style
        seen.add(style[1])
    assert len(seen) >= 3
