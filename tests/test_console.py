"""console.py: exit codes, messages and progress."""

from __future__ import annotations

import io
import os
import signal
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


# --- signals


def stopped(body, **kwargs):
    """(exit code, stderr) of a command whose `main` has this body, in a process of its own."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = (
        "import ctypes, os, signal, sys, time\n"
        "from jina_local import console\n"
        "def stop(number=signal.SIGINT):\n"
        "    os.kill(os.getpid(), number)\n"
        "    time.sleep(0.2)\n"
        f"def main():\n{lines}    return 0\n"
        "console.run(main)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, check=False, **kwargs)
    return done.returncode, done.stderr.decode()


signals = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@signals
@pytest.mark.parametrize(
    "body",
    [
        "stop()",
        "try: stop()\nexcept KeyboardInterrupt: raise SystemError('exception set')",  # as C code does
        "try: stop()\nexcept KeyboardInterrupt: raise ImportError('numpy')",
        "exec('stop()', globals())",
        "ctypes.CFUNCTYPE(None)(stop)()\ntime.sleep(9)",  # no exception leaves a callback
        "class Late:\n    def __del__(self): stop()\nLate()\ntime.sleep(9)",
        "try: stop()\nfinally: stop()",  # the second one must not break off the tidying up
        "console.say = lambda message, say=console.say: (stop(), say(message))\nraise console.UsageError('late')",
    ],
)
def test_ctrl_c_is_interrupted_wherever_it_comes(body):
    code, err = stopped(body)
    assert (code, err.splitlines()[-1:]) == (130, ["interrupted"])
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@signals
def test_what_is_tidied_up_is_tidied_up_to_its_end(tmp_path):
    mark = tmp_path / "mark"
    assert stopped(f"try: stop()\nfinally:\n    stop()\n    open({str(mark)!r}, 'w').close()")[0] == 130
    assert mark.exists()
    assert stopped("try: stop()\nfinally:\n    stop()\n    stop()\n    time.sleep(9)")[0] == -signal.SIGINT


@signals
def test_sigterm_ends_quietly_and_a_callback_cannot_hide_it():
    for body in ("stop(signal.SIGTERM)", "ctypes.CFUNCTYPE(None)(lambda: stop(signal.SIGTERM))()\ntime.sleep(9)"):
        assert stopped(body) == (143, "")


@signals
def test_a_signal_after_the_work_changes_nothing():
    assert stopped("import atexit\natexit.register(stop)\nreturn 1") == (1, "")


@signals
def test_sigint_that_the_shell_ignores_stays_ignored():
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    assert stopped("stop()", preexec_fn=ignore) == (0, "")


@signals
@pytest.mark.parametrize("module", ["jina_local.cli.main", "argparse", "jina_local.records.readers", "numpy"])
def test_ctrl_c_while_a_module_is_imported(module):
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.modules.pop('argparse', None)\n"
        "sys.argv = ['jina-local', 'embed', '--model', 'pico', 'text']\n"
        "runpy.run_module('jina_local', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")
