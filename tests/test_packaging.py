"""What is built and configured: the wheel and the sdist, the editable install, extras, workflows, hooks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import jina_local

ROOT = Path(__file__).resolve().parents[1]
ON_A_MAC = "sys_platform == 'darwin' and platform_machine == 'arm64'"
ON_AN_INTEL_MAC = "sys_platform == 'darwin' and platform_machine != 'arm64'"
ELSEWHERE = "sys_platform != 'darwin' and python_version >= '3.11'"
WITHOUT_WHEELS = "sys_platform != 'darwin' and python_version < '3.11'"
USER = """
from jina_local import load

with load("pico") as model:
    vectors = model.encode(["a", "b"])
    reveal_type(model)
    reveal_type(vectors.shape)
    model.encode(7)
"""


def build(what, out):
    """Call the build backend as pip does, in a process of its own."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install 'jina_local[dev]'")
    code = f"from hatchling import build; build.build_{what}({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def tracked(*folders):
    """The files of the repository in these folders; the sdist has no repository, and there it is what lies in it."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
        return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_holds_both_packages_without_the_training(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        entry_points = next(file.read(n).decode() for n in file.namelist() if n.endswith("entry_points.txt"))
        licences = [name for name in file.namelist() if name.endswith("/LICENSE") and ".dist-info/" in name]
    expected = {name for name in tracked("jina_local", "convert") if not name.startswith("convert/pico/")}
    assert names == expected
    assert "jina_local/py.typed" in names
    assert "jina_local = jina_local.__main__:run" in entry_points.replace("-", "_")
    assert licences


def test_the_metadata_has_the_version_and_one_engine_for_each_machine(wheel):
    with zipfile.ZipFile(wheel) as file:
        metadata = message_from_bytes(next(file.read(n) for n in file.namelist() if n.endswith("/METADATA")))
    assert metadata["Version"] == jina_local.__version__
    needed = [line.replace('"', "'") for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    engines = {line.partition("; ")[2]: line.partition(";")[0] for line in needed if ";" in line}
    assert engines == {
        ON_A_MAC: "mlx>=0.31.2",
        ELSEWHERE: "onnxruntime>=1.24",
        ON_AN_INTEL_MAC: "llama-cpp-python>=0.3.36",
        WITHOUT_WHEELS: "llama-cpp-python>=0.3.36",
    }
    assert "torch" not in "".join(needed)


def test_the_version_is_in_one_place():
    files = [ROOT / "pyproject.toml", *(ROOT / "jina_local").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]
    stated = re.compile(rf"(?<![\w.=]){re.escape(jina_local.__version__)}(?![\w.])")
    found = [path.relative_to(ROOT).as_posix() for path in files if stated.search(path.read_text(encoding="utf-8"))]
    assert found == ["jina_local/__init__.py"]


def test_the_sdist_holds_what_the_repository_holds(sdist):
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("tests", "convert/pico", "notebooks", ".ci", ".github"):
        assert tracked(folder) <= names, folder
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names


@pytest.mark.slow
def test_the_suite_of_the_sdist_runs(sdist, tmp_path):
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4 on
    (unpacked,) = tmp_path.iterdir()
    some = ["tests/test_imports.py", "tests/text", "tests/formats", "tests/records", "tests/model_files"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *some], cwd=unpacked, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(unpacked)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def site_packages(environment):
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def test_an_editable_install_is_a_path(tmp_path):
    """Type checkers follow a path in a .pth file; they do not run an import hook."""
    with zipfile.ZipFile(build("editable", tmp_path)) as file:
        lines = [file.read(name).decode().strip() for name in file.namelist() if name.endswith(".pth")]
        assert not [name for name in file.namelist() if name.endswith(".py")]
    assert lines == [str(ROOT)]


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_find_the_package_in_an_editable_install(checker, tmp_path):
    """In an environment that holds nothing else, from a folder that is not the repository."""
    pytest.importorskip(checker)
    (tmp_path / "wheel").mkdir()
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    with zipfile.ZipFile(build("editable", tmp_path / "wheel")) as file:
        file.extractall(site_packages(environment))
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    python = environment / "bin" / "python"
    options = {"mypy": ["--strict", f"--python-executable={python}"], "pyright": [f"--pythonpath={python}"]}[checker]
    command = [sys.executable, "-m", checker, *options, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout
    assert re.search(r'(is "jina_local\.embedding\.embedder\.Embedder"|"model" is "Embedder")', said), said
    assert re.search(r"(arg-type|call-overload|reportArgumentType|reportCallIssue)", said), "a number is no text"
    assert not re.search(r"import-untyped|import-not-found|reportMissingImports", said), said


CONFIGURED = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"])


@pytest.mark.parametrize("path", CONFIGURED, ids=lambda path: path.name)
def test_yaml_is_yaml(path):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_the_pythons_that_are_promised():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    declared = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert jobs["linux"]["strategy"]["matrix"]["python"] == declared
    assert ".ci/run" in [step.get("run") for step in jobs["linux"]["steps"]]
    assert any("metal or not metal" in step.get("run", "") for step in jobs["macos"]["steps"])


def test_publishing_waits_for_the_trial_and_keeps_no_password():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github/workflows/release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert (jobs["try"]["needs"], jobs["publish"]["needs"]) == ("build", "try")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text


def test_hooks_are_the_checks_of_ci():
    yaml = pytest.importorskip("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    script = (ROOT / ".ci/run").read_text()
    for hook in hooks:
        command = hook["entry"].removesuffix(" --fix")
        assert re.search(rf"^{command}\b", script, re.MULTILINE), hook["id"]
