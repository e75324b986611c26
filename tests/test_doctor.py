"""doctor.py: every finding is true of this machine or of the one that a test pretends, and has a next step."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jina_local import backends, doctor
from jina_local.cli import main
from jina_local.doctor import Check

from . import tiny

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[1]


def by_label(found):
    labels = [check.label for check in found]
    assert len(labels) == len(set(labels))
    return {check.label: check for check in found}


def test_versions_compare_by_their_numbers():
    assert doctor.release("0.31.2") < doctor.release("0.31.10")
    assert doctor.release("0.31.2.dev1") == (0, 31, 2)
    assert doctor.release("2.4.0rc1") == (2, 4, 0)
    assert doctor.release("3.11.0+local") == (3, 11, 0)


def test_least_versions_are_those_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text()
    declared = dict(re.findall(r'"([A-Za-z_-]+)(?:\[cpu\])?>=([\d.]+)[";]?', text))
    for name, (least, _) in doctor.PACKAGES.items():
        assert declared[name] == least, name


def test_a_package_that_is_absent_old_or_fine(monkeypatch):
    versions = {"numpy": "1.25.3", "tokenizers": "0.20", "llama-cpp-python": "0.3.35"}

    def version(name):
        if name in versions:
            return versions[name]
        raise doctor.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    assert doctor._package("numpy") == Check(
        "numpy", False, "1.25.3, but 1.26 or newer is needed", "pip install -U 'numpy>=1.26'"
    )
    assert doctor._package("tokenizers") == Check("tokenizers", True, "0.20")
    assert doctor._package("llama-cpp-python").next_step == "pip install -U 'jina_local[llama]'"
    assert doctor._package("tqdm").ok is False
    assert doctor._package("pyarrow") == Check(
        "pyarrow", None, "not installed", "pip install -U 'jina_local[parquet]'"
    )


LOOKS = """
import os, signal, sys, time
look = sys.argv[1]
if look == "dies":
    os.kill(os.getpid(), signal.SIGSEGV)
if look == "leaves":
    sys.exit("no library")
if look == "lacks":
    import surely_not_there
if look == "sleeps":
    time.sleep(30)
print("noise")
print('{"a": 1}')
"""


def test_an_engine_that_kills_its_process_is_a_finding(monkeypatch, tmp_path):
    (tmp_path / "odd_looks.py").write_text(LOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_LOOKS", "odd_looks")
    assert doctor._child("dies") == "killed its process with signal 11"
    assert doctor._child("leaves") == "no library"
    assert "ModuleNotFoundError" in doctor._child("lacks")
    assert doctor._child("prints") == {"a": 1}
    monkeypatch.setattr(doctor, "_SECONDS", 0.5)
    assert doctor._child("sleeps") == "gave no answer in 0.5 seconds"
    monkeypatch.setattr(backends, "installed", lambda name: True)
    monkeypatch.setattr(doctor, "_child", lambda look: "killed its process with signal 11")
    found = by_label(doctor._engines())
    assert found["engine mlx"].ok is False
    assert "--force-reinstall 'jina_local[mlx]'" in found["engine mlx"].next_step


def test_no_engine_at_all(monkeypatch):
    monkeypatch.setattr(backends, "installed", lambda name: False)
    found = by_label(doctor._engines())
    assert (found["engine mlx"].ok, found["engine llama"].ok, found["engine used"].ok) == (None, None, False)
    assert "pip install 'jina_local[llama]'" in found["engine used"].next_step


def test_what_is_said_about_mlx(monkeypatch):
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    told = {"gpu": False, "name": "", "blas": 4.2, "numpy": 110.0, "library": None}
    slow = by_label(doctor._mlx(told))["mlx BLAS"]
    assert slow.ok is None
    assert slow.detail == (
        "the BLAS of its own wheel: 4.2 GFLOP/s in float32 on one core, and numpy's 110 in the same moment"
    )
    assert "apt install libopenblas0" in slow.next_step
    library = "/usr/lib/libopenblasp-r0.3.21.so"
    for speed, numpy in ((165.0, 120.0), (4.2, 9.0)):  # fast; on a machine where everything is slow now
        answer = told | {"blas": speed, "numpy": numpy, "library": library}
        assert by_label(doctor._mlx(answer))["mlx BLAS"] == Check(
            "mlx BLAS", True, f"{library}: {speed} GFLOP/s in float32 on one core"
        )
    metal = by_label(doctor._mlx({"gpu": True, "name": "Apple M5", "blas": 900.0, "numpy": 100.0}))
    assert "Apple M5" in metal["mlx device"].detail
    assert metal["mlx TF32"].ok is None
    assert "MLX_ENABLE_TF32=0" in metal["mlx TF32"].next_step
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert by_label(doctor._mlx({"gpu": True, "name": "", "blas": 9.0, "numpy": 100.0}))["mlx TF32"] == Check(
        "mlx TF32", True, "off"
    )


def test_what_is_said_about_llama(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    info = "CPU : SSE3 = 1 | AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1 | "
    found = by_label(doctor._llama({"info": info, "offload": True}))
    assert found["llama.cpp build"].detail == "SSE3, AVX512, AMX_INT8, REPACK"
    assert "not tried yet" in found["llama.cpp AMX"].detail
    assert found["llama.cpp AMX"].next_step == "JINA_LOCAL_AMX=off never tries it."
    assert "llama.cpp AMX" not in by_label(doctor._llama({"info": "SSE3 = 1 | AMX_INT8 = 0", "offload": True}))
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert "GGML_METAL=on" in by_label(doctor._llama({"info": "", "offload": False}))["llama.cpp device"].next_step


@pytest.mark.llama
def test_the_verdicts_about_amx_are_told(monkeypatch, tmp_path):
    from jina_local.backends.llama import repack

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = iter([0, -11])
    monkeypatch.setattr(repack, "_exit_code_of_child", lambda path: next(codes))
    repack.survives(tmp_path / "x.gguf", "Q4_0")
    assert doctor._amx() == Check("llama.cpp AMX", True, "used for Q4_0: a trial in a child process survived")
    repack.survives(tmp_path / "x.gguf", "Q8_0")
    assert doctor._amx().ok is None
    assert doctor._amx().detail == "not used for Q8_0: this build crashed with it in a child process"
    assert "GCC 12" in doctor._amx().next_step
    monkeypatch.setenv("JINA_LOCAL_AMX", "off")
    assert doctor._amx() == Check("llama.cpp AMX", True, "built in, and never used (JINA_LOCAL_AMX=off)")
    monkeypatch.setenv("JINA_LOCAL_AMX", "0")
    assert doctor._amx().ok is False
    assert doctor._amx().next_step == "Unset JINA_LOCAL_AMX."


@pytest.mark.parametrize(
    ("blas", "loops", "ok"),
    [(120.0, 1.0, True), (5.0, 1.0, None), (5.0, 0.2, True), (14.0, 1.1, True)],
    ids=["optimised", "the reference", "optimised, on a busy machine", "optimised, on a weak one"],
)
def test_the_slow_and_the_fast_numpy(monkeypatch, blas, loops, ok):
    monkeypatch.setattr(doctor, "_child", lambda look: {"blas": blas, "loops": loops})
    assert doctor._numpy_blas().ok is ok
    assert (doctor._numpy_blas().next_step is None) is (ok is True)


def test_a_busy_moment_makes_no_blas_slow():
    """Twice as many processes as cores, all busy; the wheel of numpy that the tests run with has OpenBLAS."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        assert doctor._numpy_blas().ok is True
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_old_glibc(monkeypatch):
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.34"))
    assert doctor._platform().ok is None
    assert "MLX needs glibc 2.35" in doctor._platform().next_step


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The whole command in a process of its own that dies where it creates a socket."""
    home = tmp_path_factory.mktemp("home")
    code = (
        "import os, sys\n"
        "sys.addaudithook(lambda event, args: os._exit(99) if event.startswith('socket.') else None)\n"
        "from jina_local.cli import main as cli\n"
        "sys.exit(cli.main(['doctor', '--json']))"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "JINA_LOCAL_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120, check=False,
        env={**env, "HOME": str(home)},
    )  # fmt: skip


def test_the_whole_report_opens_no_socket(report):
    assert report.returncode != 99, "a socket was opened"
    found = by_label([Check(**record) for record in json.loads(report.stdout)])
    assert {"python", "platform", "numpy", "engine mlx", "engine llama", "engine used", "model"} <= set(found)
    assert found["python"].ok is True
    for check in found.values():
        assert check.detail
        if check.ok is False:
            assert check.next_step, check
    assert report.returncode == (1 if any(c.ok is False for c in found.values()) else 0)


def test_without_a_model_the_report_says_how_to_get_one(report):
    found = by_label([Check(**record) for record in json.loads(report.stdout)])
    assert found["model"].ok is not True
    assert "models pull" in found["model"].next_step


def test_the_model_that_would_be_loaded_is_named(tmp_path, monkeypatch):
    folder = tiny.write(tmp_path / "nano", "nano")
    monkeypatch.setenv("JINA_LOCAL_MODEL", str(folder))
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "mlx")
    found = doctor._model()
    assert found.ok is True
    assert str(folder) in found.detail
    assert "jina-embeddings-v5-text-nano, F32 on mlx" in found.detail
    (folder / "config.json").write_text("{")
    found = doctor._model()
    assert found.ok is False
    assert "config.json" in found.detail
    monkeypatch.setenv("JINA_LOCAL_MODEL", "v6")
    assert "unknown model 'v6'" in doctor._model().detail


def test_a_reranker_is_looked_for_apart_from_the_embedding_model(tmp_path, monkeypatch):
    nano, ranker = tiny.write(tmp_path / "nano", "nano"), tiny.write(tmp_path / "ranker", "reranker-v2")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("JINA_LOCAL_MODEL", str(nano))
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "mlx")
    # Nobody has to have one, until it was asked for.
    assert doctor._reranker() == Check(
        "reranker", True, "none is on this machine; `rerank` would fetch jina-reranker-v3"
    )
    monkeypatch.setenv("JINA_LOCAL_RERANK_MODEL", "reranker-v2")
    found = doctor._reranker()
    assert (found.ok, found.next_step) == (None, "jina-local models pull reranker-v2")
    monkeypatch.setenv("JINA_LOCAL_RERANK_MODEL", str(ranker))
    assert doctor._reranker().ok is True
    assert "jina-reranker-v2-base-multilingual, BF16 on mlx" in doctor._reranker().detail
    for check, variable, folder, said in (
        (doctor._model, "JINA_LOCAL_MODEL", ranker, "ranks documents and has no vectors"),
        (doctor._reranker, "JINA_LOCAL_RERANK_MODEL", nano, "embeds texts and ranks none"),
    ):
        monkeypatch.setenv(variable, str(folder))
        found = check()
        assert found.ok is False
        assert said in found.detail
        assert variable in found.next_step


def test_places_and_network_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    cache, store, broken = doctor._places()
    assert cache.detail == f"{tmp_path / 'cache'}: does not exist yet"
    assert store.detail == f"{tmp_path}: 0 folders of these models, 0 MB"
    assert broken.ok is False
    assert "cannot be read as a manifest" in broken.detail
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert doctor._network().detail == "never used (HF_HUB_OFFLINE=1)"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert doctor._network().detail.endswith("from http://127.0.0.1:1")
    monkeypatch.setenv("HF_ENDPOINT", "hub")
    assert doctor._network() == Check("network", False, doctor._network().detail, "Unset HF_ENDPOINT.")


def test_the_table(monkeypatch, capfd):
    found = [
        Check("good", True, "fine"),
        Check("weak", None, "slow", "Do this."),
        Check("bad", False, "gone", "Do that."),
    ]
    monkeypatch.setattr(doctor, "checks", lambda: found)
    assert main.main(["doctor"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["ok", "good", "fine"], ["--", "weak", "slow"], ["->", "Do", "this."], ["!!", "bad", "gone"],
        ["->", "Do", "that."],
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "checks", lambda: found[:2])
    assert main.main(["doctor", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[1] == {
        "label": "weak", "ok": None, "detail": "slow", "next_step": "Do this."
    }  # fmt: skip
