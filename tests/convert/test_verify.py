"""convert verify, and the converters' command line: wrong files are found, killed runs leave nothing.

The plain run judges short texts and mostly stays within this process. The slow run (`-m slow`) judges the whole
texts, starts a process for each command, and kills runs at more moments.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from convert.gguf.files import to_gguf
from convert.merge import merge
from convert.mlx.folders import to_mlx
from convert.verify.verify import verify
from jina_local import load
from jina_local.errors import UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.safetensors import SafetensorsFile
from tests import made, tiny

pytestmark = [pytest.mark.llama, pytest.mark.mlx, pytest.mark.usefixtures("judged_texts")]
ALSO_WHOLE_TEXTS = pytest.mark.parametrize(
    "judged_texts", ["short", pytest.param("whole", marks=pytest.mark.slow)], indirect=True
)
ROOT = Path(__file__).resolve().parents[2]


def convert(*arguments, check=True, **options):
    """Run `python -m convert` in a process of its own."""
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check, **options)


def outcome(findings):
    return {f.step: f.ok for f in findings}


@pytest.mark.sampled
@ALSO_WHOLE_TEXTS
@pytest.mark.parametrize("kind", ["small", "nano"])
@pytest.mark.parametrize("label", ["F32", "F16", "Q8_0", "Q4_K_M"])
def test_right_gguf_files_pass_every_step(kind, label):
    found, findings = verify(made.gguf(kind), made.checkpoint(kind), label=label)
    assert found.label == label
    assert outcome(findings) == {"ids": True, "rows": True, "vectors": True, "ranking": True}


@pytest.mark.sampled
@ALSO_WHOLE_TEXTS
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
    vocab = body["model"]["vocab"]
    vocab["e"], vocab["a"] = vocab["a"], vocab["e"]
    (other / "tokenizer.json").write_text(json.dumps(body))
    _, findings = verify(made.gguf("nano"), other, label="F32")
    assert outcome(findings) == {"ids": False}


def test_files_of_another_model_are_refused():
    with pytest.raises(UsageError, match="nothing to compare"):
        verify(made.gguf("nano"), made.checkpoint("small"), label="F32")


CONVERSIONS = [
    (["merge", "SRC", "OUT", "--task", "retrieval"], None),
    (["mlx", "SRC", "OUT", "--task", "all", "--bits", "8"], None),
    (["gguf", "SRC", "OUT", "--task", "retrieval", "--type", "Q8_0", "--type", "q4_k_m"], "Q4_K_M"),
    (["mlx", "SRC", "OUT", "--adapters", "separate", "--bits", "4"], None),
    (["gguf", "SRC", "OUT", "--adapters", "separate", "--task", "retrieval", "--type", "Q8_0"], None),
]


def with_paths(arguments, out):
    """SRC and OUT replaced by a checkpoint and by `out`."""
    return [{"SRC": str(made.checkpoint("nano")), "OUT": str(out)}.get(word, word) for word in arguments]


def converted_tasks(arguments):
    """The tasks that a conversion writes."""
    return {"retrieval"} if "retrieval" in arguments else set(tiny.TASKS)


@pytest.mark.sampled
@pytest.mark.parametrize(("arguments", "label"), CONVERSIONS)
def test_the_command_line_converts_and_verifies(arguments, label, convert_here, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = convert_here(*with_paths(arguments, out))
    assert (code, stdout) == (0, "")
    assert f"wrote {out}" in stderr
    if "separate" in arguments:
        assert len(manifest.load(out).bases) == 1
        assert {entry.task for entry in manifest.load(out).adapters.values()} == converted_tasks(arguments)
    weights = ["--weights", label] if label else []
    code, stdout, stderr = convert_here("verify", out, "--against", made.checkpoint("nano"), *weights)
    assert (code, stderr) == (0, "")
    assert stdout.endswith("all as they should be\n")
    assert stdout.count(" ok\n") == 4 * len(converted_tasks(arguments))
    assert convert_here(*with_paths(arguments, out)) == (
        73, "", f"error: {out} exists. Give --force to replace it, or another OUT.\n"
    )  # fmt: skip
    with load(out, weights=label, task="retrieval") as m:
        assert m.encode("x").shape == (256,)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "label"), CONVERSIONS)
def test_the_command_line_in_processes_of_its_own(arguments, label, tmp_path):
    out = tmp_path / "out"
    done = convert(*with_paths(arguments, out))
    assert done.stdout == ""
    assert f"wrote {out}" in done.stderr
    checked = convert("verify", out, "--against", made.checkpoint("nano"), *(["--weights", label] if label else []))
    assert checked.stdout.endswith("all as they should be\n")
    assert checked.stdout.count(" ok\n") == 4 * len(converted_tasks(arguments))
    assert checked.stderr == ""
    again = convert(*with_paths(arguments, out), check=False)
    assert again.returncode == 73
    assert again.stderr == f"error: {out} exists. Give --force to replace it, or another OUT.\n"


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
        (["merge", "SRC", "OUT", "--task", "all", "--adapters", "separate"], 2, "unknown option --adapters"),
        (["mlx", "SRC", "OUT", "--task", "search", "--adapters", "separate"], 2, "unknown task 'search'"),
    ],
)
def test_refusals(arguments, code, message, convert_here, monkeypatch, tmp_path):
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    found, stdout, stderr = convert_here(*with_paths(arguments, tmp_path / "out"))
    assert (found, stdout) == (code, "")
    assert re.search(message, stderr), stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


CONVERTERS = {
    "merge": partial(merge, dtype="F32"),
    "mlx": partial(to_mlx, bits=8),
    "gguf": partial(to_gguf, types=["Q8_0"]),
}


@pytest.mark.sampled
@pytest.mark.parametrize("form", CONVERTERS)
def test_a_disk_that_fills_up_leaves_the_old_folder_whole(form, tmp_path):
    """Files may not grow past a limit, as under a quota; the output of an earlier run stays."""
    out = tmp_path / "out"
    CONVERTERS[form](made.checkpoint("nano"), out, tasks=["retrieval"], source_name="nano")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    arguments = [form, made.checkpoint("nano"), out, "--task", "retrieval"]
    done = convert(*arguments, "--force", check=False, preexec_fn=limit)
    assert done.returncode == 73, done.stderr
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


KILLS = [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.2), (signal.SIGHUP, 0.2), (signal.SIGKILL, 0.2)]
MORE_KILLS = [
    pytest.param(how, delay, marks=pytest.mark.slow)
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    for delay in (0.0, 0.2, 0.5)
    if (how, delay) not in KILLS
]


@pytest.mark.sampled
@pytest.mark.parametrize(("how", "delay"), [*KILLS, *MORE_KILLS])
def test_a_killed_run_leaves_no_half_folder(how, delay, tmp_path):
    """A killed process cannot clean up; the next run into the same folder does."""
    out = tmp_path / "out"
    arguments = ["gguf", made.checkpoint("small"), out, "--task", "all"]
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
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
    to_gguf(made.checkpoint("small"), out, tasks=["retrieval"], types=["F32"], source_name="small")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_a_checkpoint_that_merge_wrote_converts_to_the_same_vectors(convert_here, tmp_path):
    merge(made.checkpoint("nano"), tmp_path / "merged", tasks=["clustering"], dtype="F32", source_name="nano")
    to_gguf(tmp_path / "merged", tmp_path / "gguf", tasks=["clustering"], types=["F32"])
    with load(tmp_path / "gguf") as a, load(made.gguf_all("nano"), weights="F32", task="clustering") as b:
        assert a.spec.tasks == ("clustering",)
        texts = ["one", "two words", "three little words"]
        np.testing.assert_array_equal(a.encode(texts), b.encode(texts, task="clustering"))
    code, _, stderr = convert_here("gguf", tmp_path / "merged", tmp_path / "x", "--task", "retrieval")
    assert code == 2
    assert "unknown task 'retrieval'" in stderr
