"""Child processes: how they are started, by a frozen app too, where `sys.executable` is the app."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jina_local import children
from jina_local.errors import EngineError

PACKAGE = Path(children.__file__).parent
APP = """
import sys
sys.frozen = True
sys.argv[0] = "app"
from jina_local.children import divert
divert()
print("the app itself", *sys.argv[1:])
"""


def frozen(*arguments, app=APP):
    return subprocess.run([sys.executable, "-c", app, *arguments], capture_output=True, text=True, check=False)


def test_modules_that_run_in_processes_of_their_own_are_listed():
    guarded = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")
        for path in PACKAGE.rglob("*.py")
        if re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert guarded == children.MODULES


def test_nothing_else_starts_the_program_that_python_or_the_app_is():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"sys\.executable|import multiprocessing|from multiprocessing", path.read_text(encoding="utf-8"))
    }
    assert found == {"children.py", "doctor/__init__.py"}
    assert (PACKAGE / "doctor/__init__.py").read_text(encoding="utf-8").count("sys.executable") == 1  # says it


def test_the_command_is_pythons():
    assert children.command("some.module", "a", "b") == [sys.executable, "-m", "some.module", "a", "b"]


def test_python_without_a_program_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(EngineError, match="this Python has no program of its own"):
        children.command("jina_local")


def test_a_frozen_app_is_not_started_again_before_it_can_divert(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["app"])
    with pytest.raises(EngineError, match=r"cannot run jina_local in .* Build it with PyInstaller"):
        children.command("jina_local")
    monkeypatch.setattr(children, "_diverts", False)  # and put back afterwards
    children.divert()
    assert children.command("jina_local", "serve") == [sys.executable, "-m", "jina_local", "serve"]
    with pytest.raises(EngineError, match=r"cannot run http\.server"):
        children.command("http.server")


def test_a_frozen_app_runs_the_module_in_place_of_itself():
    done = frozen("-m", "jina_local", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"jina-local [\d.]+\n", done.stdout)


def test_a_module_that_fails_ends_as_in_python():
    done = frozen("-m", "jina_local.doctor.looks", "no such look")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == "KeyError: 'no such look'"


@pytest.mark.parametrize(
    "arguments",
    [[], ["-m"], ["-m", "http.server", "0"], ["-m", "jina_local.cli"], ["x", "-m", "jina_local"], ["-c", "pass"]],
    ids=" ".join,
)
def test_other_arguments_are_the_apps(arguments):
    done = frozen(*arguments)
    assert done.stdout.split("the app itself")[1].split() == arguments


def test_python_itself_is_not_diverted():
    done = frozen("-m", "jina_local", "--version", app=APP.replace("sys.frozen = True", ""))
    assert done.stdout.startswith("the app itself -m jina_local")
