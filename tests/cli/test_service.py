"""`service`: what is written for launchd and systemd, and that systemd reads it as it was meant."""

from __future__ import annotations

import itertools
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jina_local import children, console
from jina_local.cli import main, service
from jina_local.errors import EngineError, UsageError

pytestmark = pytest.mark.usefixtures("plain_environment")
ODD = 'my 100% $HOME "keys" \\x; a'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, whose name has spaces, and a key file whose name has worse."""
    home = tmp_path / "the home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    for name in service.PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "con fig"))
    monkeypatch.setattr(sys, "platform", "linux")
    (home / ODD).write_text("a-key\n")
    return home


def unit(home):
    return home / "con fig" / "systemd" / "user" / "jina-local.service"


def words_of(line):
    """The words of a line that has all of them in quotes, as systemd.syntax(7) undoes it."""
    assert line.startswith('"')
    out, word, inside, letters = [], "", False, iter(line)
    for letter in letters:
        if letter == "\\":
            word += next(letters)
        elif letter == "%":
            assert next(letters) == "%"
            word += "%"
        elif letter == '"':
            if inside:
                out.append(word)
            word, inside = "", not inside
        elif inside:
            word += letter
        else:
            assert letter == " "
    assert not inside
    return out


OPTIONS = ["--model", "pico", "--port", "0", "--max-wait-ms", "0", "--cors-origin", "http://a", "--cors-origin",
           "http://b", "--offline"]  # fmt: skip


def test_a_unit_starts_serve_with_the_options_that_were_given(home, capfd, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(home / "100% hub"))
    assert main.main(["service", "install", *OPTIONS, "--api-key-file", ODD]) == 0
    err = capfd.readouterr().err
    assert f"{unit(home)}: written" in err
    assert "start it: systemctl --user daemon-reload && systemctl --user enable --now jina-local" in err
    lines = dict(line.split("=", 1) for line in unit(home).read_text().splitlines() if "=" in line)
    assert lines["ExecStart"][0] == ":"
    program, *words = words_of(lines["ExecStart"][1:])
    assert program == sys.executable
    assert words[:3] == ["-m", "jina_local", "serve"]
    given = list(itertools.pairwise(words))
    for pair in (
        ("--model", "pico"), ("--port", "0"), ("--max-wait-ms", "0.0"), ("--cors-origin", "http://a"),
        ("--cors-origin", "http://b"), ("--api-key-file", str(home / ODD)),
    ):  # fmt: skip
        assert pair in given
    assert "--offline" in words
    assert len(words) == 3 + 13
    assert words_of(lines["Environment"]) == [f"HF_HOME={home / '100% hub'}"]
    assert (lines["Restart"], lines["RestartPreventExitStatus"]) == ("on-failure", "2 3 69")


def test_what_is_written_serve_understands(home):
    """The options go through the parser of `serve` again, and mean the same."""
    assert main.main(["service", "install", "--model", "pico", "--uds", "a b.sock", "--timeout", "5"]) == 0
    line = next(one for one in unit(home).read_text().splitlines() if one.startswith("ExecStart=:"))
    words = words_of(line.removeprefix("ExecStart=:"))[4:]
    parsed = service.serve.parser(main._make).parse_intermixed_args(words)
    assert (parsed.model, parsed.uds, parsed.timeout) == (["pico"], str(home / "a b.sock"), 5.0)


def test_systemd_reads_it(home, monkeypatch):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    runtime = home / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert main.main(["service", "install", "--api-key-file", ODD]) == 0

    def verify():
        command = ["systemd-analyze", "verify", "--user", str(unit(home))]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    found = verify()
    assert (found.returncode, found.stderr) == (0, "")
    text = unit(home).read_text()
    unit(home).write_text(text.replace(f':"{sys.executable}"', ':"/no such/python"'))
    assert "/no such/python is not executable" in verify().stderr


def test_an_agent_of_launchd(home, capfdbinary, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    (home / "a model").mkdir()
    assert (
        main.main(["service", "install", "--model", "a model", "--cors-origin", "http://a&<b", "--timeout", "5"]) == 0
    )
    path = home / "Library" / "LaunchAgents" / "local.jina-local.serve.plist"
    facts = plistlib.loads(path.read_bytes())
    assert facts["ProgramArguments"][:4] == [sys.executable, "-m", "jina_local", "serve"]
    assert facts["ProgramArguments"][4:] == [
        "--model", str(home / "a model"), "--cors-origin", "http://a&<b", "--timeout", "5.0"
    ]  # fmt: skip
    assert (facts["RunAtLoad"], facts["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert facts["StandardErrorPath"] == str(home / "Library" / "Logs" / "jina-local.log")
    err = capfdbinary.readouterr().err.decode()
    assert f"launchctl bootstrap gui/{service.os.getuid()} '{path}'" in err


def test_print_writes_nothing_and_prints_either_kind(home, capfdbinary):
    for kind, begin in ((None, b"[Unit]"), ("systemd", b"[Unit]"), ("launchd", b"<?xml")):
        assert main.main(["service", "install", "--print", *([] if kind is None else ["--kind", kind])]) == 0
        out = capfdbinary.readouterr()
        assert out.out.startswith(begin)
        assert out.err.startswith(b"This belongs into ")
    assert not (home / "con fig").exists()


def test_it_is_replaced_and_removed(home, capfd):
    for port, said in (("1", "written"), ("1", "nothing was written"), ("2", "replaced")):
        assert main.main(["service", "install", "--port", port]) == 0
        err = capfd.readouterr().err
        assert said in err
        assert ("restart jina-local" in err) == (said != "written")
    assert main.main(["service", "remove"]) == 0
    assert "stop it: systemctl --user disable --now jina-local" in capfd.readouterr().err
    assert list(unit(home).parent.iterdir()) == []
    assert main.main(["service", "remove"]) == console.SOME_FAILED
    assert "there is no service" in capfd.readouterr().err


def test_a_frozen_app_is_started_as_python_is_if_it_recognises_that(home, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EngineError, match="cannot run jina_local in a process of its own"):
        main.main(["service", "install"])
    monkeypatch.setattr(children, "_diverts", True)
    assert main.main(["service", "install"]) == 0
    assert f'ExecStart=:"{sys.executable}" "-m" "jina_local" "serve"\n' in unit(home).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["install", "--kind", "launchd"], "this system has systemd; --print prints the file of another"),
        (["remove", "--print"], "--print goes with `service install`"),
        (["remove", "--port", "1"], "takes no options of serve"),
        (["install", "--port", "99999"], "--port 99999: expected a number"),
        (["install", "--port", "1", "--uds", "x"], "--uds stands in place of"),
        (["install", "--index", "nothing"], "there is no index"),
        (["install", "--model", "a\nb"], "control characters"),
        ([], "action"),
        (["instal"], "did you mean 'install'"),
    ],
)
def test_what_cannot_be_is_refused(home, words, said):
    with pytest.raises(UsageError, match=said):
        main.main(["service", *words])
    assert not unit(home).exists()


def test_a_key_is_never_written(home, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_API_KEY", "secret")
    with pytest.raises(UsageError, match="JINA_LOCAL_API_KEY does not reach a service"):
        main.main(["service", "install"])


def test_a_place_that_cannot_be_written_is_said(home):
    (home / "con fig").write_text("")
    assert console.guarded(lambda: main.main(["service", "install"])) in (73, 74)
    assert Path(home / "con fig").read_text() == ""
