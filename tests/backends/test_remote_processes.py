"""An engine in a process of its own, whose parent is interrupted, forked or killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jina_local.errors import EngineCrashed
from tests import made
from tests.faulty import ROOT, batch, fault, gone

_OPEN = """
    import json, os, signal, sys, threading, time
    from pathlib import Path
    import numpy as np
    from jina_local.backends.remote import RemoteBackend
    from jina_local.errors import EngineError
    from tests.faulty import QUICK, batch, expected, fault
    from tests.faulty_worker import SLOW
    engine = RemoteBackend("fake", Path(sys.argv[1]), limits=QUICK, worker="tests.faulty_worker")
"""


def run(script: str, *arguments: str, **words: object) -> subprocess.CompletedProcess[str]:
    """A script in a new process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, **words,
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> str:
    path = tmp_path / "settings.json"
    path.write_text("{}")
    return str(path)


@pytest.mark.slow
def test_an_interrupt_leaves_no_answer_for_the_next_call(settings):
    done = run(
        _OPEN
        + """
    pid = engine.pid
    for n in range(3):
        threading.Timer(0.1 + 0.02 * n, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            engine.forward(batch([SLOW, n]))
        except KeyboardInterrupt:
            print("interrupted")
        os.kill(pid, signal.SIGINT)  # as a terminal would, if it had the same group
        one = batch([n, 5], [n])
        assert np.array_equal(engine.forward(one), expected(one))
    assert engine.pid == pid
    """,
        settings,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n" * 3, "")


def test_an_interrupt_while_it_opens_leaves_nothing(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"open": "spin"}))
    done = run(
        """
    import os, signal, sys, threading
    from pathlib import Path
    from jina_local.backends.remote import RemoteBackend
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        RemoteBackend("fake", Path(sys.argv[1]), worker="tests.faulty_worker")
    except KeyboardInterrupt:
        print(threading.active_count(), os.waitstatus_to_exitcode(0))
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("no child")
    """,
        str(path),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 0\nno child\n", "")


def test_closing_after_an_interrupt_does_not_wait(settings):
    done = run(
        _OPEN
        + """
    pid = engine.pid
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        engine.forward(batch([fault("hold")]))
    except KeyboardInterrupt:
        start = time.monotonic()
        engine.close()
        print(time.monotonic() - start < 0.5)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        print("gone")
    """,
        settings,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\ngone\n", "")


def test_a_program_that_forgets_to_close_ends_quietly(settings):
    done = run(
        "import warnings; warnings.simplefilter('error')\n" + textwrap.dedent(_OPEN + "    print(engine.pid)"),
        settings,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert gone(int(done.stdout))


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "os.abort()"])
@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_its_parent(settings, how, busy):
    if busy and sys.platform != "linux":
        pytest.skip("only Linux ends a process whose native code never returns to Python")
    work = (
        "threading.Thread(target=engine.forward, args=(batch([fault('hold')]),), daemon=True).start(); time.sleep(.3)"
    )
    done = run(_OPEN + f"    {work if busy else ''}\n    print(engine.pid, flush=True)\n    {how}", settings)
    assert gone(int(done.stdout))


def test_a_fork_is_refused_and_holds_nothing_back(settings):
    done = run(
        _OPEN
        + """
    pid, child = engine.pid, os.fork()
    if not child:
        try:
            engine.forward(batch([1]))
        except EngineError as error:
            print("opened before the process was forked" in str(error), flush=True)
        engine.close()
        own = RemoteBackend("fake", Path(sys.argv[1]), limits=QUICK, worker="tests.faulty_worker")
        print(np.array_equal(own.forward(batch([1])), expected(batch([1]))), flush=True)
        own.close()
        time.sleep(3)
        sys.exit()
    one = batch([1])
    assert np.array_equal(engine.forward(one), expected(one))
    time.sleep(1)
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """,
        settings,
        stdin=subprocess.DEVNULL,
    )
    first, second, pid = done.stdout.split()
    assert (first, second, done.stderr) == ("True", "True", "")
    assert gone(int(pid))


def test_a_death_is_seen_even_if_a_fork_holds_the_other_end(faulty, monkeypatch):
    """Without a watch on the process itself, the end of the connection would never come."""
    from jina_local.backends import process

    held: list[int] = []
    start = process.subprocess.Popen

    def forked(*arguments, **words):
        held.extend(os.dup(number) for number in words["pass_fds"])
        return start(*arguments, **words)

    monkeypatch.setattr(process.subprocess, "Popen", forked)
    engine = faulty()
    with pytest.raises(EngineCrashed, match="SIGABRT"):
        engine.forward(batch([fault("abort")]))
    for number in held:
        os.close(number)


def test_the_folder_it_is_started_in_brings_no_modules(settings, tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError('not this one')")
    done = run(
        """
    import sys
    sys.path.remove("")
    """
        + _OPEN
        + "    print(engine.forward(batch([1])).shape)",
        settings,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("(1, 32)\n", "")


@pytest.mark.llama
def test_the_caller_imports_no_engine():
    script = f"""
        import sys
        from jina_local import load
        with load({str(made.gguf_file("nano", "F32"))!r}, isolate="process") as model:
            assert model.encode("x").shape == (256,)
        assert not {{"llama_cpp", "mlx.core"}} & set(sys.modules)  # asking for mlx.core imports mlx, an empty package
    """
    done = run(script)
    assert (done.returncode, done.stderr) == (0, "")
