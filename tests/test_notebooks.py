"""The committed notebooks: run, with outputs, public API only, nothing of a machine; and, marked, run once more."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jina_local

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OUTSIDE = {"matplotlib", "numpy", "jina_local"}
MODULES = {"jina_local", "convert"}  # what a notebook may run with `python -m`
LARGEST = 400_000  # bytes of one file
# A home, a temporary folder, a checkout, a drive: any absolute path, whatever machine it comes from.
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|Users|tmp|private|var|work|opt|usr|mnt|data)/|\b[A-Z]:\\\\")
SECONDS = 600


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def cells(notebook, kind="code"):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def written(notebook):
    """What the notebook's text outputs say, by cell."""
    for cell in cells(notebook):
        for output in cell["outputs"]:
            yield cell, "".join(output.get("text", ())) + "".join(output.get("data", {}).get("text/plain", ()))


def says_something(cell):
    """Whether running the cell prints or draws; what its functions would do when called does not count."""
    body = [node for node in ast.parse(source(cell)).body if not isinstance(node, ast.FunctionDef)]
    calls = [node.func for top in body for node in ast.walk(top) if isinstance(node, ast.Call)]
    return any(ast.unparse(call) in ("print", "convert", "plt.show") for call in calls)


def outputs_are_sound(notebook):
    for number, cell in enumerate(cells(notebook), 1):
        assert cell["execution_count"] == number, f"{cell['id']} was not run in one go from the top"
        assert cell["outputs"] or not says_something(cell), f"{cell['id']} has lost its output"
        for output in cell["outputs"]:
            assert output["output_type"] != "error", cell["id"]
            assert output.get("name") != "stderr", f"{cell['id']}: {''.join(output['text'])}"
    plots = [o for cell in cells(notebook) for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(plots) == sum("plt.show()" in source(cell) for cell in cells(notebook))
    for cell, text in written(notebook):
        assert not MACHINE_PATH.search(text), f"{cell['id']}: {MACHINE_PATH.search(text)}"
        assert str(ROOT) not in text


def test_all_notebooks_are_here():
    names = [path.name for path in NOTEBOOKS]
    assert names == ["convert_and_verify.ipynb", "quickstart.ipynb", "search_your_notes.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_committed_and_whole(path):
    outputs_are_sound(read(path))
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_public_api_only(path):
    trees = [ast.parse(source(cell)) for cell in cells(read(path))]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                assert top in sys.stdlib_module_names or top in OUTSIDE, alias.name
                assert not alias.name.startswith("jina_local."), alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            top = node.module.split(".")[0]
            assert top in sys.stdlib_module_names or top in OUTSIDE, node.module
            if top == "jina_local":
                assert node.module == "jina_local", node.module
                assert {alias.name for alias in node.names} <= set(jina_local.__all__)
        elif isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_"), f"private: {node.attr}"
        elif isinstance(node, ast.List) and node.elts and getattr(node.elts[0], "value", None) == "-m":
            assert node.elts[1].value in MODULES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_nothing_of_a_machine_or_an_editor(path):
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}, cell["id"]
        assert re.fullmatch(r"[a-z-]+", cell["id"]), "a name, so that a difference can be read"
        assert not MACHINE_PATH.search(source(cell)), cell["id"]
        assert "../shared" not in source(cell), cell["id"]
    named = [line for cell in cells(notebook) for line in source(cell).splitlines() if "pico" in line]
    assert [line.split("#")[0].strip() for line in named] == ['MODEL = "pico"'], "the model is named in one place"


def test_text_cells_hold_no_measured_number():
    for path in NOTEBOOKS:
        for cell in cells(read(path), "markdown"):
            prose = re.sub(r"`[^`]*`", "", source(cell))
            assert not re.search(r"\d+\.\d|\d\s?%|\d\s?MB|\d{3}", prose), f"{path.name} {cell['id']}"


def test_the_guard_against_paths_sees_them():
    assert MACHINE_PATH.search("wrote /tmp/notebook-x/demo/gguf")
    assert MACHINE_PATH.search("File '/home/someone/jina_local/model.py'")
    assert not MACHINE_PATH.search("wrote demo/gguf (retrieval), see https://example.org/data/x")


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_from_top_to_bottom(path, tmp_path):
    missing = [
        m for m in ("nbclient", "ipykernel", "matplotlib", "mlx", "llama_cpp") if not importlib.util.find_spec(m)
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install -e '.[all,notebooks]')")
    command = [sys.executable, str(FOLDER / "execute.py"), path.name, "--to", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    fresh, committed = read(tmp_path / path.name), read(path)
    outputs_are_sound(fresh)
    for notebook in (fresh, committed):
        for cell in cells(notebook):
            cell["outputs"] = []
    assert fresh == committed, "a run changes more than the outputs"
