"""The README against the tree: every file, model, command and option that it names is there, and the other way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jina_local import registry

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree(package):
    """The files that the tree in a package's README lists."""
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    block = text.split("<!-- tree -->\n```\n")[1].split("\n```")[0]
    return {line.split()[0] for line in block.splitlines()}


@pytest.mark.parametrize("package", ["jina_local", "convert"])
def test_the_tree_is_the_tree(package):
    files = {p.relative_to(ROOT / package).as_posix() for p in (ROOT / package).rglob("*.py")}
    assert tree(package) == files


def test_every_model_has_a_row_with_its_facts():
    for row in registry.PUBLISHED:
        spec = row.spec
        line = next(line for line in README.splitlines() if line.startswith(f"| `{spec.name}`"))
        assert ", ".join(map(str, spec.dims)) in line
        assert str(spec.max_tokens) in line
        assert ", ".join(spec.tasks) in line
        assert spec.license in line


def options(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout


@pytest.mark.parametrize("command", ["embed", "rerank", "models", "doctor"])
def test_the_runtimes_commands_are_named(command):
    assert command in options("jina_local")
    assert f"python -m jina_local {command}" in README
    assert "examples:" in options("jina_local", command)


@pytest.mark.parametrize("command", ["merge", "mlx", "gguf", "verify"])
def test_the_converters_commands_are_named(command):
    assert command in options("convert")
    assert f"python -m convert {command}" in README
    assert "examples:" in options("convert", command)


def test_every_option_in_the_readme_exists():
    helped = "".join(options("jina_local", c) for c in ("embed", "rerank"))
    helped += "".join(options("convert", c) for c in ("merge", "mlx", "gguf", "verify"))
    helped += "".join(options("jina_local", "models", c) for c in ("pull", "list", "path", "rm", "verify"))
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    for option in set(re.findall(r"(?<=\s)--[a-z][a-z-]+", shell)):
        assert option in helped, option


def test_the_environment_variables_are_named_on_both_sides():
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "jina_local").rglob("*.py"))
    for name in set(re.findall(r"JINA_LOCAL_[A-Z_]*[A-Z]", README)):
        suffix = name.removeprefix("JINA_LOCAL_")
        assert name in code or f'"{suffix}"' in code, name


def test_exit_codes_in_the_readme_are_those_of_the_code():
    from jina_local import console

    said = {int(n) for n in re.findall(r"(\d+) [a-z]", README.split("Exit codes:")[1].split("\n\n")[0])}
    assert said == {0, console.TERMINATED, *(set(console.EXIT_CODES.values()))}
