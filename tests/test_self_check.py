"""The numbers that converters write into the manifest, and models that are held against them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from jina_local import load, self_check
from jina_local.cli import main
from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats import manifest
from jina_local.formats.files import sha256
from jina_local.formats.safetensors import SafetensorsFile
from tests import made

LLAMA, MLX = pytest.mark.llama, pytest.mark.mlx
FORMS = {
    "nano-gguf": (lambda: made.gguf("nano"), LLAMA),
    "small-gguf": (lambda: made.gguf("small"), LLAMA),
    "separate-gguf": (lambda: made.gguf_separate("nano", "F32", "Q8_0"), LLAMA),
    "v3-gguf": (lambda: made.v3("v3", "F16"), LLAMA),
    "reranker-v3-gguf": (lambda: made.reranker("reranker-v3", "Q8_0"), LLAMA),
    "reranker-v2-gguf": (lambda: made.reranker("reranker-v2", "F32"), LLAMA),
    "small-mlx": (lambda: made.mlx("small", 4), MLX),
    "v3-mlx": (lambda: made.v3("v3", 16), MLX),
    "reranker-v3-mlx": (lambda: made.reranker("reranker-v3", 8), MLX),
    "reranker-v2-mlx": (lambda: made.reranker("reranker-v2", 32), MLX),
}


@pytest.mark.sampled
@pytest.mark.parametrize("form", [pytest.param(name, marks=mark) for name, (_, mark) in FORMS.items()])
def test_every_task_and_type_of_a_conversion_is_as_its_converter_expected(form):
    folder = FORMS[form][0]()
    record = manifest.read(folder)
    labels = {entry.weights for entry in record.files.values() if entry.weights}
    told = list(self_check.of_folder(folder))
    assert len(told) == len(labels)
    assert all(one.ok for one in told), told
    expected = {(task, label) for label, tasks in record.serves.items() for task in tasks}
    assert {(task, label) for task, known in record.probes.items() for label in known} >= expected


@pytest.mark.parametrize("engine", [pytest.param("mlx", marks=MLX), pytest.param("llama", marks=LLAMA)])
def test_the_model_of_the_package_is_as_it_was_shipped(engine):
    told = self_check.of_package(engine)
    assert told.ok, told
    assert "4 tasks" in told.text
    with load("pico", backend=engine, verify=True) as model:
        assert model.encode("x").shape == (256,)


@pytest.fixture
def other_weights(tmp_path):
    """A folder whose weights are another model's of the same shape, with digests that say that nothing changed."""
    folder = tmp_path / "other"
    shutil.copytree(made.mlx("nano", 32), folder)
    with SafetensorsFile(folder / "model.safetensors") as file:
        first = file.tensors["model.layers.0.self_attn.q_proj.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(first.start)
        rows = np.fromfile(file, np.float32, (first.end - first.start) // 4)
        file.seek(first.start)
        file.write(rows[::-1].tobytes())
    body = json.loads((folder / manifest.NAME).read_text())
    body["files"]["model.safetensors"]["sha256"] = sha256(folder / "model.safetensors")
    (folder / manifest.NAME).write_text(json.dumps(body))
    return folder


@pytest.mark.mlx
def test_other_weights_that_load_are_told_by_their_vectors(other_weights, capfd):
    with load(other_weights) as model:
        assert np.isfinite(model.encode("x")).all()
    with pytest.raises(ModelDamaged, match=r"'retrieval' gives other vectors than its converter wrote down"):
        load(other_weights, verify=True)
    assert main.main(["models", "verify", str(other_weights)]) == 3
    out = capfd.readouterr().out
    assert out.startswith("NOT OK")
    assert "other vectors than its converter wrote down" in out


@pytest.mark.mlx
def test_files_without_numbers_are_said_to_have_none(tmp_path, capfd):
    folder = tmp_path / "earlier"
    shutil.copytree(made.mlx("nano", 32), folder)
    body = json.loads((folder / manifest.NAME).read_text())
    del body["probes"]
    (folder / manifest.NAME).write_text(json.dumps(body))
    with pytest.raises(UsageError, match="no vectors are known for these files"):
        load(folder, verify=True)
    with pytest.raises(UsageError, match="no vectors are known"):
        load(made.checkpoint("nano"), backend="mlx", verify=True)
    assert main.main(["models", "verify", str(folder)]) == 0
    assert "vectors not known: an earlier version wrote this folder" in capfd.readouterr().out


@pytest.mark.mlx
def test_only_the_task_that_is_asked_for_is_run(monkeypatch):
    ran = []
    numbers = self_check.numbers
    monkeypatch.setattr(self_check, "numbers", lambda model, task: ran.append(task) or numbers(model, task))
    with load("pico", backend="mlx", task="clustering", verify=True):
        assert ran == ["clustering"]


def test_a_number_that_is_none_is_refused(tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(made.mlx("nano", 32), folder)
    body = json.loads((folder / manifest.NAME).read_text())
    body["probes"]["retrieval"]["32bit"][0][0] = "0.1"
    (folder / manifest.NAME).write_text(json.dumps(body))
    with pytest.raises(ModelDamaged, match=r"probes\['retrieval'\]\['32bit'\]\[0\]\[0\] is '0.1'"):
        manifest.read(folder)


@pytest.mark.slow
@pytest.mark.llama
def test_the_package_has_the_files_that_the_converter_makes(tmp_path):
    """Byte for byte: a key that gets another name is a format of its own."""
    from convert.gguf.files import to_gguf
    from jina_local import registry
    from jina_local.store import package

    row = registry.lookup("pico")
    shipped = package.folder(row, "gguf")
    to_gguf(
        package.folder(row, "checkpoint"),
        tmp_path / "gguf",
        tasks=row.spec.tasks,
        types=["Q8_0"],
        separate=True,
        source_name="pico",
    )
    for path in shipped.iterdir():
        assert sha256(path) == sha256(tmp_path / "gguf" / path.name), path.name
