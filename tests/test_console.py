"""console.py: exit codes, messages and progress."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jina_local import console
from jina_local.errors import (
    EngineError,
    EngineMissing,
    JinaError,
    Locked,
    ModelDamaged,
    ModelNotFound,
    NonFiniteError,
    OutputError,
    TextError,
    UsageError,
)

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2), (TextError(1, "x"), 2), (ModelNotFound("x"), 3), (ModelDamaged("x"), 3),
        (EngineMissing("x"), 69), (EngineError("x"), 70), (NonFiniteError([1], 2), 1), (OutputError("x"), 73),
        (Locked("x"), 75), (JinaError("x"), 70), (OSError(5, "Input/output error"), 74), (RuntimeError("x"), 70),
    ],
)  # fmt: skip
def test_exit_codes(error, code, capsys):
    def main():
        raise error

    assert console.guarded(main) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ")
    assert ("Traceback" in err) == isinstance(error, RuntimeError)


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2), ("a reason", 2)])
def test_an_exit_of_argparse_keeps_its_code(code, expected):
    assert console.guarded(lambda: sys.exit(code)) == expected


def test_errors_of_the_system_name_their_file(capsys):
    assert console.guarded(lambda: len(Path("/none/at/all").read_text())) == 74
    assert capsys.readouterr().err == "error: /none/at/all: No such file or directory\n"


def test_odd_bytes_in_a_message_do_not_break_it(capsys):
    console.say("file \udcff")
    assert capsys.readouterr().err == "file \\udcff\n"


def test_progress_is_silent_off_a_terminal_and_loud_when_asked(capsys, monkeypatch):
    bar = console.progress(2, "texts")
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("NO_COLOR", "1")
    bar = console.progress(2, "texts", True)
    bar.update(2)
    bar.close()
    out = capsys.readouterr()
    assert out.out == ""
    assert "2/2" in out.err
    assert out.err.isascii()
    assert "\x1b" not in out.err


@pytest.mark.parametrize(("term", "shown"), [("xterm", True), ("dumb", False)])
def test_progress_on_a_terminal(term, shown, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", term)
    bar = console.progress(2, "texts")
    bar.update(2)
    bar.close()
    assert ("2/2" in sys.stderr.getvalue()) == shown


@pytest.mark.skipif(os.name != "posix", reason="descriptors as POSIX has them")
def test_quiet_stdout_leads_everything_but_the_data_to_stderr_and_ends_clean():
    code = (
        "import ctypes, os\n"
        "from jina_local import console\n"
        "print('before')\n"
        "with console.quiet_stdout() as data:\n"
        "    ctypes.CDLL(None).puts(b'from C')\n"
        "    print('from Python')\n"
        "    os.system('echo from a child')\n"
        "    data.write(b'data\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    assert done.stdout == b"before\ndata\nafter\n"
    assert sorted(done.stderr.splitlines()) == [b"from C", b"from Python", b"from a child"]
