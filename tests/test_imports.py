"""Who may import whom, held against the code itself; and what an import of the package costs and loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = set(sys.stdlib_module_names)

# A room is a package or a file at the top of `jina_local`. It may import errors and spec, the rooms named here, and
# from outside the standard library the libraries named here. Imports go downhill only.
RUNTIME: dict[str, tuple[str, str]] = {
    "errors": ("", ""),
    "spec": ("", "numpy"),
    "registry": ("", ""),
    "children": ("", ""),
    "console": ("", "tqdm"),
    "arguments": ("registry", ""),
    "formats": ("", "numpy"),
    "weights": ("formats", "numpy"),
    "text": ("formats", "numpy tokenizers semantic_text_splitter tree_sitter"),
    "records": ("formats", "numpy pyarrow"),
    "model_files": ("weights formats registry", ""),
    "backends": ("children weights formats", "numpy mlx llama_cpp onnxruntime"),
    "store": ("model_files backends formats registry", "huggingface_hub"),
    "inference": ("backends text formats", "numpy tqdm"),
    "embedding": ("inference backends text registry", "numpy typing_extensions"),
    "reranking": ("inference backends text weights", "numpy typing_extensions"),
    "self_check": ("store backends embedding reranking formats", "numpy"),
    "loading": ("store inference embedding reranking registry formats self_check", ""),
    "bulk": ("embedding records store", "numpy"),
    "search": (
        "children bulk embedding reranking text loading store registry",
        "numpy numkong watchfiles pypdf pyarrow lancedb pymilvus milvus_lite",
    ),
    "bench": (
        "children console backends embedding formats inference loading model_files registry reranking store text "
        "weights",
        "numpy llama_cpp onnxruntime tokenizers torch transformers",
    ),
    "doctor": ("children self_check store backends registry", "numpy mlx llama_cpp onnxruntime"),
    "server": ("search loading embedding reranking inference text registry", "numpy starlette uvicorn h11"),
    "cli": (
        "arguments children console records bulk search backends registry store embedding reranking self_check "
        "loading doctor bench integrations server",
        "numpy",
    ),
    "__init__": ("text embedding reranking loading search", ""),
    "integrations": ("__init__ children", "numpy pyarrow ray anyio mcp mcp_types"),
    "__main__": ("cli", ""),
    "pyinstaller": ("children text", "PyInstaller"),
}
OPEN_TO_ALL = {"errors", "spec"}
MOST_FLOORS = 11
# convert may use the runtime from below the model; only `verify` runs it whole.
CONVERT_MAY = {"arguments", "console", "embedding", "formats", "registry", "store", "text", "weights"} | OPEN_TO_ALL
CONVERT_MORE = {"verify": {"backends", "inference", "reranking", "self_check"}, "onnx": {"backends"}}  # by folder
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
    return path.relative_to(ROOT / "jina_local").with_suffix("").parts[0]


def arrows(files: Iterable[Path]) -> dict[str, set[str]]:
    """Room -> the rooms that it imports, errors and spec left out, as they stand in the files."""
    rooms = {room(path) for path in files}
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for path in files:
        inside = {name.split(".")[1] for name in imports(path) if name.startswith("jina_local.")}
        found[room(path)] |= (inside & rooms) - {room(path)} - OPEN_TO_ALL
    return found


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Room -> one more than the highest room that it imports. Raises ValueError with the rooms of a circle."""
    placed: dict[str, int] = {}
    while len(placed) < len(graph):
        free = [name for name in graph if name not in placed and graph[name] <= placed.keys()]
        if not free:
            raise ValueError(f"a circle among {sorted(graph.keys() - placed.keys())}")
        placed |= {name: 1 + max((placed[below] for below in graph[name]), default=0) for name in free}
    return placed


def count(files: Iterable[Path]) -> str:
    """What `python -m tests.test_imports` prints."""
    graph = arrows(list(files))
    text = f"{len(graph)} rooms, {sum(map(len, graph.values()))} imports between them"
    try:
        return f"{text}, {max(floors(graph).values())} floors, no circle"
    except ValueError as circle:
        return f"{text}, {circle}"


@pytest.mark.parametrize("path", sorted((ROOT / "jina_local").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downhill_only(path):
    inside, outside = RUNTIME[room(path)]
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "jina_local":
            # A name of the package itself (load, JinaError) comes from __init__.
            target = rest[0] if rest else "__init__"
            if target != room(path) and target in RUNTIME:
                assert target in {*inside.split(), *OPEN_TO_ALL}, f"{path.name} imports {name}"
        else:
            assert top in STANDARD or top in outside.split(), f"{path.name} imports {name}"
        assert top != "convert"


@pytest.mark.parametrize("path", sorted((ROOT / "jina_local/server/dialects").glob("*.py")), ids=lambda p: p.name)
def test_a_dialect_knows_calls_and_plain_dicts(path):
    shared = {f"jina_local.server.dialects.{name}" for name in ("calls", "fields")}
    allowed = {*shared, "jina_local.errors", "jina_local.spec", "jina_local.registry"}
    assert all(name in allowed or name.split(".")[0] in {*STANDARD, "numpy"} for name in imports(path))


def test_there_is_no_circle_and_no_more_floors_than_a_reader_can_keep():
    graph = arrows(list((ROOT / "jina_local").rglob("*.py")))
    assert max(floors(graph).values()) <= MOST_FLOORS
    with pytest.raises(ValueError, match=r"a circle among \['a', 'b'\]"):
        floors({"a": {"b"}, "b": {"a"}, "c": set()})


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


if __name__ == "__main__":
    print(count((ROOT / "jina_local").rglob("*.py")))
