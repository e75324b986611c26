"""What a person sees and does on the page at `/`, in headless Chromium."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from .chromium import browsing, executable
from .conftest import serving
from .notes import indexed

pytestmark = pytest.mark.slow
KEY = "a key of 24 characters.."
TEXTS = ["How can dim objects be seen?", "A larger mirror shows fainter stars.", "火星 is red", '<img src=x> "a", b']


@pytest.fixture(scope="module")
def locked():
    with serving(JINA_LOCAL_API_KEY=KEY) as running:
        yield running


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


def elsewhere(browser, server):
    """The addresses that the page has asked, without those of the server that it came from."""
    return [url for url in browser.requested() if not url.startswith((f"{server.url}/", "about:", "blob:"))]


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


def test_the_maps_have_the_cosines_of_the_python_api(server, browser, model):
    compare(browser, server, TEXTS, ("clustering", "query"), ("retrieval", "query"))
    assert elsewhere(browser, server) == []
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


def test_a_model_with_a_task_for_each_side_of_a_search(server, browser, model):
    (listed,) = server.ask("GET", "/v1/models")[1]["data"]
    tasks = ["retrieval.query", "retrieval.passage", "clustering"]
    models = [{**listed, "tasks": tasks, "prompts": []}, {**listed, "id": "other", "kind": "reranker"}]
    browser.stand_in({"/v1/indexes": {"data": []}, "/v1/models": {"data": models}})
    compare(browser, server, TEXTS)
    assert browser.value("[...document.querySelectorAll('#model option')].map((one) => one.value)") == ["pico"]
    offered = "[...document.querySelectorAll('#sides [role=group]')].map((one) => one.innerText.split(/\\n/))"
    assert browser.value(offered) == [["retrieval", "query → passage", "passage", "query"], ["clustering", "on"]]
    query, passage = (model.encode(TEXTS, task=task) for task in tasks[:2])
    maps = shown(browser)
    assert list(maps) == ["retrieval query → passage", "clustering"]
    assert np.abs(maps["retrieval query → passage"] - model.similarity(query, passage)).max() < 6e-5


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


def test_what_the_server_refuses_is_said(server, browser):
    compare(browser, server, TEXTS)
    browser.value("document.querySelector('#texts').value = 'short\\n' + 'word '.repeat(5000)")
    browser.value("document.querySelector('#compare-form').requestSubmit()")
    browser.wait("document.querySelector('#compare-said.error')")
    assert browser.value("document.querySelector('#compare-said').textContent").startswith("input[1] ")
    browser.value("document.querySelector('#texts').value = ' \\n'")
    browser.value("document.querySelector('#compare-form').requestSubmit()")
    browser.wait("document.querySelector('#compare-said').textContent === 'Give a text.'")


PLACE = {"unit": "line", "context": "", "language": "markdown"}
HITS = [
    {**PLACE, "path": "/home/a/notes/router.md", "start_line": 5, "end_line": 8, "context": "Router > Reset",
     "score": 3.25, "text": "## Reset\n\nHold the reset button <b>down</b>\nuntil resetting."},
    {**PLACE, "path": "/home/a/notes/<i>long</i>.md", "start_line": 1, "end_line": 30, "score": 1.5,
     "text": "\n".join(f"line {n}" for n in range(1, 31)), "state": "changed"},
    {**PLACE, "path": "a.pdf", "start_line": 2, "end_line": 3, "unit": "page", "score": -0.25, "text": "of buttons"},
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


def test_passages_have_their_lines_and_the_words_of_the_question(server, browser):
    search(browser, server, HITS)
    assert elsewhere(browser, server) == []
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


def test_a_question_finds_passages_of_files_with_their_lines(browser, tmp_path):
    with serving("--model", "pico", "--index", "notes", **indexed(tmp_path)) as running:
        browser.stand_in({})
        browser.visit(running.url)
        browser.press("/")
        browser.type("how long to hold the reset button")
        browser.press("Enter")  # sends nothing yet if the page does not know the indexes
        browser.wait("!document.querySelector('#search-form button').disabled")
        browser.press("Enter")
        browser.wait("document.querySelector('.hit')")
        assert elsewhere(browser, running) == []
        hits = browser.value("""[...document.querySelectorAll("#hits li")].map((hit) => [
            hit.querySelector(".hit").title, hit.querySelector(".place").textContent,
            [...hit.querySelectorAll(".line")].map((line) => [Number(line.dataset.line), line.textContent])])""")
    assert hits[0][0] == str(tmp_path / "notes" / "router.md")
    assert "Hold the button on the back for ten seconds.\n" in [text for _, text in hits[0][2]]
    assert {name for name, _, _ in hits} >= {str(tmp_path / "notes" / name) for name in ("bread.md", "code/moon.py")}
    for name, place, lines in hits:
        numbers = [number for number, _ in lines]
        first, last = map(int, place.removeprefix(":").split("-"))
        assert numbers == list(range(first, last + 1)), name
        if "caf" not in name:  # its name is not UTF-8
            written = Path(name).read_text(encoding="utf-8").splitlines()
            assert [text.removesuffix("\n") for _, text in lines] == [written[number - 1] for number in numbers]


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


def test_a_server_without_an_index_says_how_to_get_one(server, browser):
    browser.visit(server.url)
    browser.wait("!document.querySelector('#no-index').hidden")
    assert "jina-local serve --index" in browser.value("document.querySelector('#no-index').innerText")
    assert browser.value("document.querySelector('#question').disabled")


def test_status_has_the_models_and_what_was_done(server, browser):
    server.post("/v1/embeddings", {"model": "pico", "input": "a"})
    browser.visit(f"{server.url}/#status")
    browser.wait("document.querySelector('dl')")
    assert elsewhere(browser, server) == []
    text = browser.value("document.querySelector('main').innerText")
    for part in ("pico embedding", "F16", "In the queue\n0 tokens", "/v1/embeddings", "0 under way"):
        assert part in text
    browser.wait("document.querySelector('#state').textContent.startsWith('ready')")


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


def test_without_a_key_the_page_says_so_and_asks_no_more(locked, browser):
    browser.visit(locked.url)
    browser.wait("document.querySelector('#key-dialog').open")
    browser.value("document.querySelector('#key-cancel').click()")
    browser.wait("document.querySelector('#search-said').textContent.includes('wants a key')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_narrow_window_in_both_schemes(server, browser, scheme):
    browser.look(360, 800, scheme)
    long = {"path": f"/home/{'a' * 200}", "context": "b" * 100, "text": "c" * 300}
    search(browser, server, [*HITS, {**HITS[0], **long}])
    fits(browser, scheme)
    for texts in ([f"text {n} " + "long" * 40 for n in range(30)], ["a red planet", "a red planet!", "yeast"] * 3):
        compare(browser, server, texts)
        fits(browser, scheme)
    browser.value("location.hash = 'status'")
    browser.wait("document.querySelector('dl')")
    fits(browser, scheme)


# Texts with less contrast to what is behind them than WCAG asks for, with their contrast.
WEAK = r"""(() => {
    const style = (one) => getComputedStyle(one);
    const numbers = (color) => color.match(/[\d.]+/g).slice(0, 3).map((v) => v / (color.startsWith("rgb") ? 255 : 1));
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = (color) => numbers(color).reduce((sum, v, i) => sum + linear(v) * [0.2126, 0.7152, 0.0722][i], 0);
    const isClear = (one) => /, 0\)$/.test(style(one).backgroundColor);
    const paper = (one) => (isClear(one) ? paper(one.parentElement) : style(one).backgroundColor);
    const hasText = (one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const contrast = (one) => {
        const [a, b] = [light(style(one).color), light(paper(one))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    return [...document.querySelectorAll("body *")]
        .filter((one) => one.checkVisibility() && hasText(one) && !one.closest(":disabled, option, noscript"))
        .map((one) => [contrast(one), one.outerHTML.slice(0, 100)])
        .filter(([found]) => found < 4.5);
})()"""


def fits(browser, scheme):
    """No sideways scrolling, the scheme that was asked for, and nothing that is hard to read."""
    assert browser.value("document.documentElement.scrollWidth") <= 360
    assert browser.value(WEAK) == []
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 60) == (scheme == "dark")


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
