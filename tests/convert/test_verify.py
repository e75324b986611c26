"""convert verify, and the converters' command line: wrong files are found, killed runs leave nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convert.mlx.folders import to_mlx
from convert.verify.verify import verify
from jina_local import load
from jina_local.errors import UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.safetensors import SafetensorsFile
from tests import made, tiny

pytestmark = [pytest.mark.llama, pytest.mark.mlx]
ROOT = Path(__file__).resolve().parents[2]


def convert(*arguments, check=True, **options):
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check, **options)


def outcome(findings):
    return {f.step: f.ok for f in findings}


@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("label", ["F32", "F16", "Q8_0", "Q4_K_M"])
def test_right_gguf_files_pass_every_step(kind, label):
    found, findings = verify(made.gguf(kind), made.checkpoint(kind), label=label)
    assert found.label == label
    assert outcome(findings) == {"ids": True, "rows": True, "vectors": True, "ranking": True}


@pytest.mark.parametrize("bits", [32, 4])
def test_right_mlx_folders_pass_every_step(bits):
    _, findings = verify(made.mlx("small", bits), made.checkpoint("small"))
    assert len(findings) == 4
    assert all(f.ok for f in findings)


def test_an_adapter_under_another_name_is_found_out(tmp_path):
    """The name is put right inside, so that nothing but the comparison can tell."""
    out = tmp_path / "out"
    to_mlx(made.checkpoint("nano"), out, tasks=["retrieval", "clustering"], bits=8, separate=True)
    ours, theirs = (out / "adapters" / f"{task}.safetensors" for task in ("retrieval", "clustering"))
    with SafetensorsFile(theirs) as file:
        layout = {name: (entry.dtype, entry.shape) for name, entry in file.tensors.items()}
        tensors, metadata = [(name, file.read(name)) for name in layout], file.metadata
    ours.unlink()
    safetensors.write(ours, layout, tensors, {**metadata, "task": "retrieval"})
    body = json.loads((out / "manifest.json").read_text())
    body["files"]["adapters/retrieval.safetensors"]["bytes"] = ours.stat().st_size
    (out / "manifest.json").write_text(json.dumps(body))
    _, findings = verify(out, made.checkpoint("nano"))
    assert {f.task for f in findings} == {"retrieval", "clustering"}
    assert {f.task for f in findings if not f.ok} == {"retrieval"}


def test_another_tasks_weights_are_found_out(tmp_path):
    """The weights of one task under the name of another load, and give vectors; only the comparison tells."""
    other = shutil.copytree(made.checkpoint("nano"), tmp_path / "swapped")
    shutil.rmtree(other / "adapters" / "retrieval")
    shutil.copytree(other / "adapters" / "clustering", other / "adapters" / "retrieval")
    _, findings = verify(made.gguf("nano"), other, label="F32")
    assert outcome(findings) == {"ids": True, "rows": False, "vectors": False, "ranking": False}


def test_another_tokenizer_stops_at_the_ids(tmp_path):
    other = shutil.copytree(made.checkpoint("nano"), tmp_path / "other")
    body = json.loads((other / "tokenizer.json").read_text())
    body["normalizer"] = {"type": "NFC"}
    (other / "tokenizer.json").write_text(json.dumps(body))
    _, findings = verify(made.gguf("nano"), other, label="F32")
    assert outcome(findings) == {"ids": False}


def test_files_of_another_model_are_refused():
    with pytest.raises(UsageError, match="nothing to compare"):
        verify(made.gguf("nano"), made.checkpoint("small"), label="F32")


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        (["merge", "SRC", "OUT", "--task", "retrieval"], None),
        (["mlx", "SRC", "OUT", "--task", "all", "--bits", "8"], None),
        (["gguf", "SRC", "OUT", "--task", "retrieval", "--type", "Q8_0", "--type", "q4_k_m"], "Q4_K_M"),
        (["mlx", "SRC", "OUT", "--adapters", "separate", "--bits", "4"], None),
        (["gguf", "SRC", "OUT", "--adapters", "separate", "--task", "retrieval", "--type", "Q8_0"], None),
    ],
)
def test_the_command_line_converts_and_verifies(arguments, label, tmp_path):
    out = tmp_path / "out"
    done = convert(
        *(str(made.checkpoint("nano")) if a == "SRC" else str(out) if a == "OUT" else a for a in arguments)
    )
    assert done.stdout == ""
    assert f"wrote {out}" in done.stderr
    if "separate" in arguments:
        assert len(manifest.load(out).bases) == 1
        tasks = {entry.task for entry in manifest.load(out).adapters.values()}
        assert tasks == ({"retrieval"} if "--task" in arguments else set(tiny.TASKS))
    checked = convert("verify", out, "--against", made.checkpoint("nano"), *(["--weights", label] if label else []))
    assert checked.stdout.endswith("all as they should be\n")
    assert "NOT OK" not in checked.stdout
    assert checked.stderr == ""
    again = convert(
        *(str(made.checkpoint("nano")) if a == "SRC" else str(out) if a == "OUT" else a for a in arguments),
        check=False,
    )
    assert again.returncode == 73
    assert again.stderr == f"error: {out} exists. Give --force to replace it, or another OUT.\n"
    with load(out, weights=label, task="retrieval") as m:
        assert m.encode("x").shape == (256,)


def test_wrong_files_end_with_a_table_and_code_three(tmp_path):
    other = tiny.write(tmp_path / "other", "nano", seed=5)
    done = convert("verify", made.gguf("nano"), "--against", other, "--weights", "F16", check=False)
    assert done.returncode == 3
    assert done.stdout.count("NOT OK") == 3
    assert done.stdout.endswith("these files do not give the vectors of their source\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gguf", "SRC", "OUT", "--task", "search"], 2, "unknown task 'search'; .* has: retrieval, text-matching"),
        (["gguf", "SRC", "OUT", "--task", "retrieval", "--type", "Q9"], 2, "unknown type 'Q9'"),
        (["gguf", "SRC", "OUT", "--task", "retrieval", "--type", "IQ1_S"], 2, "needs an importance matrix"),
        (["mlx", "SRC", "OUT", "--task", "retrieval", "--bits", "7"], 2, "invalid choice: 7"),
        (["mlx", "no-such-model", "OUT", "--task", "all", "--offline"], 2, "unknown model 'no-such-model'"),
        (["mlx", "./nowhere", "OUT", "--task", "all"], 3, "is not a folder"),
        (
            ["mlx", "v5-nano", "OUT", "--task", "all", "--offline"],
            3,
            "not on this machine, and it may not be fetched",
        ),
        (["merge", "SRC", "OUT"], 2, "--task is required: give a task, or all"),
        (
            ["mlx", "SRC", "OUT"],
            2,
            "--task is required: give a task, or all. With --adapters separate it may be left",
        ),
        (["gguf", "SRC", "OUT", "--adapters", "apart"], 2, "invalid choice: 'apart'"),
        (["merge", "SRC", "OUT", "--task", "all", "--adapters", "separate"], 2, "unrecognized arguments: --adapters"),
        (["mlx", "SRC", "OUT", "--task", "search", "--adapters", "separate"], 2, "unknown task 'search'"),
    ],
)
def test_refusals(arguments, code, message, tmp_path):
    names = {"SRC": str(made.checkpoint("nano")), "OUT": str(tmp_path / "out")}
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "JINA_LOCAL_HOME": str(tmp_path / "store")}
    done = convert(*(names.get(a, a) for a in arguments), check=False, env=env)
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["merge", "mlx", "gguf"])
def test_a_disk_that_fills_up_leaves_the_old_folder_whole(form, tmp_path):
    """Files may not grow past a limit, as under a quota; the output of an earlier run stays."""
    out = tmp_path / "out"
    arguments = [form, made.checkpoint("nano"), out, "--task", "retrieval"]
    convert(*arguments)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = convert(*arguments, "--force", check=False, preexec_fn=limit)
    assert done.returncode == 73, done.stderr
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_half_folder(how, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "convert", "gguf", str(made.checkpoint("small")), str(out), "--task", "all"]
    for delay in (0.0, 0.2, 0.5):
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        while not any(tmp_path.glob(".out.tmp-*")) and child.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        child.send_signal(how)
        _, stderr = child.communicate()
        assert b"Traceback" not in stderr
        if out.exists():
            assert manifest.verify(out) == []
            shutil.rmtree(out)
        elif how != signal.SIGKILL:
            assert list(tmp_path.iterdir()) == []
    done = convert(*command[3:])
    assert done.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_checkpoint_that_merge_wrote_converts_to_the_same_vectors(tmp_path):
    convert("merge", made.checkpoint("nano"), tmp_path / "merged", "--task", "clustering", "--dtype", "F32")
    convert("gguf", tmp_path / "merged", tmp_path / "gguf", "--task", "clustering", "--type", "F32")
    with load(tmp_path / "gguf") as a, load(made.gguf_all("nano"), weights="F32", task="clustering") as b:
        assert a.spec.tasks == ("clustering",)
        texts = ["one", "two words", "three little words"]
        np.testing.assert_array_equal(a.encode(texts), b.encode(texts, task="clustering"))
    done = convert("gguf", tmp_path / "merged", tmp_path / "x", "--task", "retrieval", check=False)
    assert "unknown task 'retrieval'" in done.stderr
