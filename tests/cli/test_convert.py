"""`convert`: the package's own commands, by another door; another package of that name is told apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jina_local.cli import main
from jina_local.errors import EngineMissing, UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_it_is_the_same_command_as_the_packages_own(capsys):
    from convert.__main__ import main as convert

    for options in (["--help"], ["gguf", "--help"]):
        assert main.main(["convert", *options]) == 0
        said = capsys.readouterr().out
        with pytest.raises(SystemExit):
            convert(options)
        assert said == capsys.readouterr().out
        assert "examples:" in said
    with pytest.raises(UsageError, match="required: SRC, OUT"):
        main.main(["convert", "gguf"])


@pytest.mark.parametrize("kind", ["convert.py", "convert/__init__.py"])
def test_another_convert_is_named(tmp_path, kind):
    foreign = tmp_path / kind
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("raise RuntimeError('not to be run')")
    code = (
        f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]; sys.argv[1:] = ['convert', 'gguf']\n"
        "from jina_local.cli.main import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    named = foreign if kind == "convert.py" else foreign.parent
    said = f"error: {named} is in the way: it is named `convert` as well and is not jina_local's"
    assert done.stderr.startswith(said)


def test_without_the_package_there_is_a_way_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineMissing, match=r"not installed: pip install 'jina_local\[convert\]'"):
        main.main(["convert", "gguf"])
