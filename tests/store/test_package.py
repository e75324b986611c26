"""pico, the model in the package: found by name, the same on both engines, whole, and never taken for another."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from jina_local import load, registry
from jina_local.backends import BACKENDS
from jina_local.cli.main import main
from jina_local.errors import ModelNotFound, UsageError
from jina_local.formats.gguf import read_header
from jina_local.store import hub, inventory, package
from jina_local.store.find import find

PICO = registry.lookup("pico")
DOCUMENTS = [
    "The bridge across the river was closed after the flood damaged two of its pillars.",
    "Bread rises because yeast turns sugar into gas, which the dough holds in small bubbles.",
    "The committee raised taxes on imported steel to protect jobs at home.",
    "A telescope with a larger mirror gathers more light and shows fainter stars.",
]
QUESTIONS = {
    "Why does dough get bigger before baking?": 1,
    "How can astronomers see objects that are very dim?": 3,
    "Which road connection is out of use because of high water?": 0,
    "What did the government do about foreign metal?": 2,
}


@pytest.fixture(autouse=True)
def nothing_else_here(monkeypatch, tmp_path):
    """An empty store and cache, and no network."""
    for name in ("JINA_LOCAL_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("JINA_LOCAL_OFFLINE", "1")  # not HF_HUB_OFFLINE: its library keeps what it read first


@pytest.mark.parametrize("backend", [pytest.param(n, marks=getattr(pytest.mark, n)) for n in BACKENDS])
def test_its_vectors_mean_something(backend):
    with load("pico", backend=backend) as model:
        scores = model.similarity(model.encode_query(list(QUESTIONS)), model.encode_document(DOCUMENTS))
        assert scores.argmax(1).tolist() == list(QUESTIONS.values())
        origin = model.spec.origin
        assert origin.weights == package.LABELS["gguf" if backend == "llama" else "checkpoint"]
        assert "it comes with the package" in origin.reasons
        assert (model.spec.tasks, model.spec.dims) == (PICO.spec.tasks, (32, 64, 128, 256))


@pytest.mark.llama
@pytest.mark.mlx
@pytest.mark.onnx
@pytest.mark.parametrize("task", PICO.spec.tasks)
def test_all_engines_give_the_same_vectors(task):
    with (
        load("pico", backend="llama") as one,
        load("pico", backend="mlx") as other,
        load("pico", backend="onnx") as x,
    ):
        a, b, c = (model.encode(DOCUMENTS, task=task) for model in (one, other, x))
    assert (a * b).sum(1).min() > 0.999  # Q8_0 against float16
    assert np.abs(b - c).max() < 1e-5


@pytest.mark.llama
@pytest.mark.mlx
def test_the_tokens_of_both_forms_are_the_same():
    with load("pico", backend="llama") as one, load("pico", backend="mlx") as other:
        assert one.tokenize(DOCUMENTS)[0].tolist() == other.tokenize(DOCUMENTS)[0].tolist()


@pytest.mark.llama
def test_the_adapters_differ_and_one_base_serves_them_all():
    with load("pico", backend="llama") as model:
        vectors = {task: model.encode(DOCUMENTS, task=task) for task in PICO.spec.tasks}
        again = model.encode(DOCUMENTS, task="retrieval")
    assert np.array_equal(again, vectors["retrieval"])
    for task in PICO.spec.tasks[1:]:
        assert (vectors[task] * vectors["retrieval"]).sum(1).max() < 0.9999


def test_the_package_carries_less_than_24_mb_and_every_digest_fits():
    root, count, faults = package.root(PICO), *package.verify(package.root(PICO))
    assert faults == ()
    assert count == sum(p.is_file() for p in root.rglob("*")) - 1  # the digests themselves
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) < 24_000_000


def test_its_gguf_files_name_no_repository():
    files = sorted((package.root(PICO) / "gguf").glob("*.gguf"))
    assert len(files) == 1 + len(PICO.spec.tasks)
    for path in files:
        keys = read_header(path).keys
        assert keys["general.base_model.0.name"] == "pico"
        assert not {key for key in keys if "repo_url" in key or "organization" in key}, path.name


def test_a_changed_file_is_found(monkeypatch, tmp_path):
    shutil.copytree(package.root(PICO), tmp_path / "pico")
    monkeypatch.setattr(package, "_ROOT", tmp_path)
    path = tmp_path / "pico" / "checkpoint" / "config.json"
    path.write_text(path.read_text() + " ")
    (tmp_path / "pico" / "gguf" / "tokenizer.json").unlink()
    said = [fault.rsplit(": ")[1] for fault in package.verify(package.root(PICO))[1]]
    assert said == ["its content is not what was shipped", "is missing"]
    assert inventory.verify("pico")[0].faults


def test_the_converters_find_its_checkpoint_by_name():
    found = find("pico", source=True)
    assert found.form == "checkpoint"
    assert (found.files["retrieval"] / "adapters" / "retrieval").is_dir()


def test_what_it_has_not_is_refused_with_the_way_to_make_it():
    with pytest.raises(ModelNotFound, match="python -m convert gguf pico OUT --task all --type Q4_K_M"):
        load("pico", weights="Q4_K_M")
    with pytest.raises(UsageError, match="comes with the package and has no revisions"):
        load("pico", revision="0" * 40)
    with pytest.raises(UsageError, match="nothing to fetch"):
        hub.pull(PICO)
    with pytest.raises(UsageError, match="part of the package"):
        inventory.remove("pico")


def test_it_never_stands_in_for_another_model():
    assert registry.DEFAULT_MODEL == "jina-embeddings-v5-text-nano"
    with pytest.raises(ModelNotFound, match=r"models pull jina-embeddings-v5-text-nano.*--model pico"):
        load()


def test_the_command_line_lists_it_and_says_where_it_is(capfdbinary):
    assert main(["models", "list", "--json"]) == 0
    listed = {model["name"]: model for model in json.loads(capfdbinary.readouterr().out)}
    assert [place["where"] for place in listed["pico"]["places"]] == ["package", "package"]
    assert listed["jina-embeddings-v5-text-nano"]["places"] == []
    assert main(["models", "path", "pico", "--backend", "mlx"]) == 0
    assert capfdbinary.readouterr().out.decode().strip().endswith("bundled_models/pico/checkpoint")
