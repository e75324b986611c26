"""Who may import whom, held against the code itself; and what an import of the package costs and loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = set(sys.stdlib_module_names)

# Room -> the rooms it may import, and what from outside beyond the standard library. Imports go downhill only.
RUNTIME: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "spec": (set(), {"numpy"}),
    "registry": ({"errors", "spec"}, set()),
    "inference": ({"backends", "errors", "formats", "spec", "text"}, {"numpy", "tqdm"}),
    "weights": ({"errors", "formats", "spec"}, {"numpy"}),
    "formats": ({"errors"}, {"numpy"}),
    "text": ({"errors", "formats", "spec"}, {"numpy", "tokenizers"}),
    "embedding": ({"backends", "errors", "inference", "registry", "spec", "text"}, {"numpy", "typing_extensions"}),
    "backends": ({"errors", "formats", "inference", "spec", "weights"}, {"llama_cpp", "mlx", "numpy"}),
    "model_files": ({"backends", "errors", "formats", "registry", "spec", "store", "weights"}, set()),
    "store": (
        {"backends", "errors", "formats", "model_files", "registry", "spec", "weights"},
        {"huggingface_hub", "tqdm"},
    ),
    "reranking": ({"backends", "errors", "inference", "spec", "text", "weights"}, {"numpy"}),
    "loading": ({"embedding", "registry", "reranking", "store"}, set()),
    "doctor": ({"backends", "errors", "registry", "spec", "store"}, {"llama_cpp", "mlx", "numpy"}),
    "console": ({"errors"}, {"tqdm"}),
    "cli": (
        {
            "backends",
            "console",
            "doctor",
            "embedding",
            "errors",
            "loading",
            "records",
            "registry",
            "reranking",
            "spec",
            "store",
        },
        {"numpy"},
    ),
    "records": ({"errors", "formats", "spec"}, {"numpy", "pyarrow"}),
    "__init__": ({"embedding", "errors", "loading", "reranking", "spec", "text"}, set()),
    "__main__": ({"cli"}, set()),
}
# convert may use the runtime from below the model; only `verify` runs it whole.
CONVERT_MAY = {"console", "embedding", "errors", "formats", "registry", "spec", "store", "text", "weights"}
CONVERT_MORE = {"verify": {"backends", "inference", "reranking"}}  # by folder
TRAINING = {"torch", "tokenizers", "transformers"}  # convert/pico alone
CONVERT_OUTSIDE = {"numpy", "gguf", "llama_cpp", "tqdm", "mlx"}


def imports(path: Path) -> set[str]:
    """Absolute dotted names of everything that a file imports, at any depth."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{a.name}" for a in node.names] if module in ("jina_local", "convert") else [module]
            found |= set(names)
    return found


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "jina_local").with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", sorted((ROOT / "jina_local").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downhill_only(path):
    inside, outside = RUNTIME[room(path)]
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "jina_local":
            # A name of the package itself (load, JinaError) comes from __init__.
            target = rest[0] if rest else "__init__"
            if target != room(path) and target in RUNTIME:
                assert target in inside, f"{path.name} imports {name}"
        else:
            assert top in STANDARD or top in outside, f"{path.name} imports {name}"
        assert top != "convert"


@pytest.mark.parametrize("path", sorted((ROOT / "convert").rglob("*.py")), ids=lambda p: p.name)
def test_convert_uses_the_runtime_from_below_the_model(path):
    allowed = CONVERT_MAY | CONVERT_MORE.get(path.parent.name, set())
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "jina_local":
            assert not rest or rest[0] in allowed, f"{path.name} imports {name}"
        elif top != "convert":
            outside = CONVERT_OUTSIDE | (TRAINING if path.parent.name == "pico" else set())
            assert top in STANDARD | outside, f"{path.name} imports {name}"


def test_nothing_imports_the_training_code():
    for path in (*(ROOT / "jina_local").rglob("*.py"), *(ROOT / "convert").rglob("*.py")):
        if path.parent.name == "pico":
            continue
        assert not any(name.startswith("convert.pico") for name in imports(path)), path


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout.split()
    )


def test_importing_the_package_loads_the_standard_library_only():
    loaded = modules_after("import jina_local")
    foreign = {m.split(".")[0] for m in loaded} & {
        "numpy",
        "tokenizers",
        "mlx",
        "llama_cpp",
        "huggingface_hub",
        "tqdm",
    }
    assert not foreign


@pytest.mark.parametrize("code", ["import jina_local.loading", "import jina_local.cli.main"])
def test_no_engine_and_no_heavy_library_is_loaded_before_it_is_needed(code):
    loaded = {m.split(".")[0] for m in modules_after(code)}
    assert not loaded & {"mlx", "llama_cpp", "transformers", "torch", "mlx_lm", "huggingface_hub", "pyarrow", "gguf"}


def test_running_a_model_loads_no_training_library(tmp_path):
    pytest.importorskip("mlx.core")
    from tests import tiny

    folder = tiny.write(tmp_path / "nano", "nano")
    loaded = modules_after(f"from jina_local import load\nload({str(folder)!r}, backend='mlx').encode('x')")
    assert "mlx.core" in loaded
    assert not {m.split(".")[0] for m in loaded} & {"transformers", "torch", "mlx_lm", "gguf", "llama_cpp"}


@pytest.mark.parametrize(
    ("arguments", "limit"), [(["-c", "import jina_local"], 0.2), (["-m", "jina_local", "--help"], 0.3)]
)
def test_start_up_is_quick(arguments, limit):
    """The best of several runs of the whole process."""

    def best(command):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(arguments) < limit
