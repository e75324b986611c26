"""Every layout of a folder that is found, what is never opened, and the text of every refusal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local import backends, registry
from jina_local.errors import ModelDamaged, ModelNotFound, UsageError
from jina_local.model_files import folder
from jina_local.spec import engine_of
from jina_local.store import find

from .. import layout_files, made, tiny
from ..layout_files import COMMIT, NANO, SMALL, converted, seal, write_adapter, write_base, write_gguf

# Fixtures, under the names that tests ask for them by.
published = layout_files.published
nano = layout_files.nano
places = layout_files.places
engines = layout_files.engines
pytestmark = pytest.mark.usefixtures("places")


def test_a_converted_gguf_folder_takes_task_and_label_from_its_manifest(tmp_path):
    folder = tmp_path / "out"
    write_gguf(folder / "any.gguf", label="Q8_0")
    seal(folder, "gguf", {"any.gguf": ("clustering", "Q8_0")})
    found = find.find(folder)
    assert (found.files, found.revision) == ({"clustering": folder / "any.gguf"}, COMMIT)
    assert find.find(folder / "any.gguf").files == found.files
    with pytest.raises(UsageError, match="python -m convert mlx SRC-NAME OUT"):
        find.find(folder, backend="mlx")


@pytest.mark.parametrize(("form", "label", "engine"), [("mlx", "8bit", "mlx"), ("checkpoint", "F32", "onnx")])
@pytest.mark.parametrize("tasks", [("retrieval",), ("clustering", "retrieval")])
def test_a_converted_folder_of_one_task_or_several(tmp_path, published, form, label, engine, tasks):
    folder = converted(tmp_path / "out", published["nano"], form, label, tasks)
    found = find.find(folder, backend=engine)
    assert (found.form, found.backend, found.label, found.revision) == (form, engine, label, COMMIT)
    assert found.files == {t: folder if len(tasks) == 1 else folder / t for t in tasks}
    assert found.tokenizer in (folder / "tokenizer.json", folder / tasks[0] / "tokenizer.json")
    assert found.model.tasks == tuple(t for t in tiny.TASKS if t in tasks)
    assert find.find(folder, weights=label.lower()).label == label
    if len(tasks) > 1:
        assert find.find(folder / "clustering").files == {"clustering": folder / "clustering"}


def test_a_converted_folder_refuses_what_it_has_not(tmp_path, published):
    folder = converted(tmp_path / "out", published["nano"], "mlx", "8bit")
    with pytest.raises(UsageError, match=r"has no weights '4bit'. There: 8bit\."):
        find.find(folder, weights="4bit")
    with pytest.raises(UsageError, match=r"has no weights for clustering. There: retrieval\."):
        find.find(folder, tasks=["clustering"])
    with pytest.raises(UsageError, match="python -m convert gguf SRC-NAME OUT --task all"):
        find.find(folder, backend="llama")
    with pytest.raises(UsageError, match="belongs to a name on the hub"):
        find.find(folder, revision="main")


def test_two_precisions_in_one_folder_are_refused(tmp_path, published):
    folder = converted(tmp_path / "out", published["nano"], "mlx", "8bit")
    shutil.copyfile(folder / "model.safetensors", folder / "model-4bit.safetensors")
    with pytest.raises(ModelDamaged, match=r"model-4bit.safetensors is not in the manifest"):
        find.find(folder)
    seal(folder, "mlx", {"model.safetensors": ("retrieval", "8bit"), "model-4bit.safetensors": ("retrieval", "4bit")})
    with pytest.raises(ModelDamaged, match="mixes weights of 4bit and 8bit"):
        find.find(folder)


def test_weights_of_another_model_than_the_manifest_or_the_other_tasks_are_refused(tmp_path, published):
    folder = tmp_path / "ggufs"
    write_gguf(folder / "any.gguf")
    seal(folder, "gguf", {"any.gguf": ("clustering", "Q8_0")}, model=SMALL)
    with pytest.raises(ModelDamaged, match=f"its manifest says {SMALL}, its files are {NANO}"):
        find.find(folder)
    several = converted(tmp_path / "out", published["nano"], "mlx", "8bit", ("retrieval", "clustering"))
    shutil.copyfile(published["small"] / "config.json", several / "clustering" / "config.json")
    seal(several, "mlx", {f"{task}/model.safetensors": (task, "8bit") for task in ("retrieval", "clustering")})
    with pytest.raises(ModelDamaged, match="its tasks have configs of different models"):
        find.find(several)
    single = converted(tmp_path / "one", published["nano"], "mlx", "8bit")
    with (single / "model.safetensors").open("r+b") as file:
        file.write(bytes(64))
    with pytest.raises(ModelDamaged, match=r"model.safetensors: its content has changed since it was written"):
        find.find(single)


def test_a_changed_converted_folder_is_refused(tmp_path, published):
    folder = converted(tmp_path / "out", published["nano"], "mlx", "8bit")
    seal(folder, "mlx", {"model.safetensors": ("retrieval", "8bit")}, model=SMALL)
    with pytest.raises(ModelDamaged, match=f"its manifest says {SMALL}, its config {NANO}"):
        find.find(folder)
    seal(folder, "mlx", {})
    with pytest.raises(ModelDamaged, match="does not say which file has which task's weights"):
        find.find(folder)
    seal(folder, "mlx", {"model.safetensors": ("retrieval", "8bit")})
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelDamaged, match="has 5000 bytes, the manifest says"):
        find.find(folder)


def shared_mlx(folder, source, tasks=tiny.TASKS):
    """An MLX base with adapters beside it, as far as the finder looks: its files are plain."""
    (folder / "adapters").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / name)
    entries = {"model.safetensors": (None, "4bit")}
    for task in tasks:
        name = f"adapters/{task}.safetensors"
        shutil.copyfile(source / "adapters" / task / "adapter_model.safetensors", folder / name)
        entries[name] = (task, None)
    return seal(folder, "mlx", entries), entries


def test_an_mlx_base_with_adapters_is_one_folder_for_all_tasks(tmp_path, published):
    folder, _ = shared_mlx(tmp_path / "out", published["nano"])
    found = find.find(folder)
    assert (found.form, found.backend, found.label, found.revision) == ("mlx", "mlx", "4bit", COMMIT)
    assert found.files == dict.fromkeys(tiny.TASKS, folder)
    assert found.adapters == {task: folder / "adapters" / f"{task}.safetensors" for task in tiny.TASKS}
    assert (found.model.tasks, found.model.default_task) == (tiny.TASKS, "retrieval")
    assert find.find(folder, tasks=["clustering"], weights="4BIT") == found
    with pytest.raises(UsageError, match=r"has no weights '8bit'. There: 4bit\."):
        find.find(folder, weights="8bit")
    with pytest.raises(UsageError, match="which mlx reads and llama does not"):
        find.find(folder, backend="llama")
    fewer, _ = shared_mlx(tmp_path / "fewer", published["nano"], ("clustering", "classification"))
    assert find.find(fewer).model.default_task is None
    with pytest.raises(UsageError, match=r"has no weights for retrieval. There: clustering, classification\."):
        find.find(fewer, tasks=["retrieval"])


def test_an_mlx_base_with_adapters_refuses_what_does_not_belong(tmp_path, published):
    folder, entries = shared_mlx(tmp_path / "out", published["nano"])
    for other in ({"adapters/clustering.safetensors": ("retrieval", None)}, {"config.json": (None, "4bit")}):
        seal(folder, "mlx", {**entries, **other})
        with pytest.raises(ModelDamaged, match=r"names \d bases, or two adapters of one task"):
            find.find(folder)
    for other in ({"config.json": ("clustering", "4bit")}, dict.fromkeys(entries, (None, None))):
        seal(folder, "mlx", {**entries, **other})
        with pytest.raises(ModelDamaged, match="nor is there a base with adapters and nothing else"):
            find.find(folder)
    seal(folder, "mlx", {"model.safetensors": (None, "4bit")})
    with pytest.raises(ModelDamaged, match="nor is there a base with adapters and nothing else"):
        find.find(folder)
    seal(folder, "checkpoint", entries)
    with pytest.raises(ModelDamaged, match="nor is there a base with adapters and nothing else"):
        find.find(folder)
    seal(folder, "mlx", {**entries, "adapters/retrieval.safetensors": ("search", None)})
    with pytest.raises(ModelDamaged, match=f"has adapters for search, which {NANO} has not"):
        find.find(folder)
    seal(folder, "mlx", entries, model=SMALL)
    with pytest.raises(ModelDamaged, match=f"its manifest says {SMALL}, its config {NANO}"):
        find.find(folder)
    seal(folder, "mlx", entries)
    shutil.copyfile(folder / "model.safetensors", folder / "more.safetensors")
    with pytest.raises(ModelDamaged, match=r"more\.safetensors is not in the manifest"):
        find.find(folder)
    (folder / "more.safetensors").unlink()
    (folder / "adapters" / "clustering.safetensors").unlink()
    with pytest.raises(ModelDamaged, match=r"adapters/clustering\.safetensors is missing"):
        find.find(folder)


def test_a_gguf_base_with_adapters_goes_by_its_manifest(tmp_path):
    folder = tmp_path / "out"
    names = {"x.gguf": (None, "Q8_0"), "y.gguf": (None, "Q4_K_M")}
    for name, (_, label) in names.items():
        write_base(folder / name, label=label)
    adapters = {task: write_adapter(folder / f"of-{task}.gguf", task=task) for task in ("clustering", "retrieval")}
    seal(folder, "gguf", {**names, **{path.name: (task, None) for task, path in adapters.items()}})
    found = find.find(folder)
    assert (found.files, found.label) == (dict.fromkeys(adapters, folder / "x.gguf"), "Q8_0")
    assert (found.adapters, found.revision) == (adapters, COMMIT)
    assert find.find(folder / "y.gguf").files == dict.fromkeys(adapters, folder / "y.gguf")
    assert find.find(folder / "y.gguf").adapters == adapters
    assert find.find(folder, weights="q4_k_m").label == "Q4_K_M"
    with pytest.raises(
        UsageError, match=r"of-retrieval\.gguf: is an adapter, not a model\. Give the path of the base"
    ):
        find.find(folder / "of-retrieval.gguf")
    seal(folder, "gguf", {**names, "of-clustering.gguf": ("retrieval", None)})
    with pytest.raises(ModelDamaged, match="is taken for the adapter of retrieval, and names the task 'clustering'"):
        find.find(folder)
    write_gguf(folder / "x.gguf")
    seal(folder, "gguf", {"x.gguf": (None, "Q8_0"), "of-clustering.gguf": ("clustering", None)})
    with pytest.raises(
        ModelDamaged, match=r"says that it is a base .*and it carries no digest of one \(jina_local.base"
    ):
        find.find(folder)
    write_gguf(folder / "x.gguf", keys={"jina_local.task": "retrieval"})
    seal(folder, "gguf", {"x.gguf": (None, "Q8_0"), "of-clustering.gguf": ("clustering", None)})
    with pytest.raises(ModelDamaged, match=r"is a base that tasks share, and it is merged for retrieval"):
        find.find(folder)
    write_base(folder / "x.gguf")
    seal(folder, "gguf", {"x.gguf": ("retrieval", "Q8_0")})
    with pytest.raises(
        ModelDamaged, match="is a base that tasks share, and its name or manifest says .* for retrieval"
    ):
        find.find(folder)


@pytest.mark.parametrize(("kind", "model", "dtype"), [("nano", NANO, "F32"), ("small", SMALL, "BF16")])
def test_a_published_checkpoint_is_found_with_its_adapters(published, kind, model, dtype):
    folder = published[kind]
    found = find.find(folder)
    assert (found.form, found.label, found.model.name) == ("checkpoint", dtype, model)
    assert found.backend == engine_of("checkpoint", backends.by_preference())
    assert found.files == dict.fromkeys(tiny.TASKS, folder)
    assert found.adapters == {task: folder / "adapters" / task for task in tiny.TASKS}
    assert found.tokenizer == folder / "tokenizer.json"
    assert found.model.default_task == "retrieval"
    assert find.find(folder, weights=dtype.lower()).label == dtype


def test_a_published_checkpoint_refuses_another_engine_and_other_weights(published):
    folder = published["nano"]
    with pytest.raises(UsageError, match="python -m convert gguf SRC OUT --task all"):
        find.find(folder, backend="llama")
    command = f"python -m convert mlx {folder} OUT --task all --bits 8"
    with pytest.raises(UsageError, match=f"not '8bit'. Make them: `{command}`"):
        find.find(folder, weights="8bit")
    with pytest.raises(UsageError, match=f"python -m convert gguf {folder} OUT --task all --type Q4_K_M"):
        find.find(folder, weights="q4_k_m")


def test_adapters_decide_the_tasks(nano):
    for task in ("clustering", "text-matching", "classification"):
        shutil.rmtree(nano / "adapters" / task)
    shutil.copytree(nano / "adapters" / "retrieval", nano / "adapters" / "something-else")
    found = find.find(nano)
    assert (list(found.files), found.model.default_task) == (["retrieval"], "retrieval")
    (nano / "adapters" / "retrieval" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelDamaged, match=r"adapter_model\.safetensors: cannot be opened"):
        find.find(nano)
    shutil.rmtree(nano / "adapters")
    with pytest.raises(UsageError, match="which task it was merged for"):
        find.find(nano)


def test_damaged_checkpoints_are_refused(nano):
    config = json.loads((nano / "config.json").read_text())
    (nano / "config.json").write_text(json.dumps({**config, "rope_theta": None}))
    with pytest.raises(ModelDamaged, match="no rope_theta"):
        find.find(nano)
    (nano / "config.json").write_text(json.dumps({**config, "rope_theta": 250000.0}))
    with pytest.raises(ModelDamaged) as error:
        find.find(nano)
    assert str(nano) in str(error.value)
    assert "none of the models known here" in str(error.value)
    (nano / "config.json").write_text(json.dumps(config))
    (nano / "tokenizer.json").rename(nano / "kept.json")
    with pytest.raises(ModelDamaged, match=r"has no tokenizer\.json"):
        find.find(nano)
    (nano / "kept.json").rename(nano / "tokenizer.json")
    size = (nano / "model.safetensors").stat().st_size
    with (nano / "model.safetensors").open("r+b") as file:
        file.truncate(size - 100)
    with pytest.raises(ModelDamaged, match="truncated or has something appended"):
        find.find(nano)


def test_an_index_that_names_a_file_outside_is_refused(nano):
    index = {"weight_map": {"norm.weight": "../x.safetensors"}}
    (nano / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelDamaged, match=r"names the shards \['../x.safetensors'\]"):
        find.find(nano)
    (nano / "model.safetensors").unlink()
    with pytest.raises(ModelDamaged, match=r"names the shards"):
        find.find(nano)


def test_gguf_files_beside_a_checkpoint_go_by_engine_and_label(nano, engines):
    path = write_gguf(nano / "v5-nano-retrieval-Q8_0.gguf")
    assert find.find(nano).files == {"retrieval": path}
    assert any("of the forms" in why for why in find.find(nano).reasons)
    assert find.find(nano, backend="mlx").form == "checkpoint"
    engines("mlx", "llama")
    assert find.find(nano).form == "checkpoint"
    assert find.find(nano, weights="Q8_0").form == "gguf"
    with pytest.raises(UsageError, match="has no weights 'nonsense'"):
        find.find(nano, weights="nonsense")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize(
    "name", ["v5-nano-retrieval-Q8_0.gguf", "model.safetensors", "config.json", "manifest.json",
             "adapters/retrieval/adapter_model.safetensors"],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_is_refused_and_does_not_hang(nano, name):
    (nano / name).unlink(missing_ok=True)
    os.mkfifo(nano / name)
    script = f"from jina_local.store.find import find; find({str(nano / name if 'gguf' in name else nano)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert "ModelDamaged" in done.stderr
    assert "is not a regular file" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("pytorch_model.bin", b"\x80\x04\x95rest", "a pickle"),
        ("model.pt", b"PK\x03\x04rest", "a zip archive, as torch and numpy write them"),
        ("innocent.dat", b"\x80\x02c", "a pickle"),
        ("model.h5", b"\x89HDF\r\n", "HDF5"),
    ],
)
def test_formats_that_can_run_code_are_named_and_never_opened(tmp_path, name, content, what):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(content)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound) as error:
        find.find(folder)
    assert f"Formats that are never opened, because they can run code: {name} ({what})." in str(error.value)
    assert "published checkpoint (config.json, model*.safetensors, adapters/)" in str(error.value)
    with pytest.raises(ModelDamaged) as error:
        find.find(folder / name)
    assert f"is {what}, which is never opened" in str(error.value)


def test_a_graph_is_opened_by_its_folder_and_its_task_is_known_or_given(tmp_path):
    published, unnamed = made.published_graph("nano"), tmp_path / "unnamed"
    for path in (published, published / "onnx"):
        found = find.find(path)
        assert (found.form, found.backend, found.label) == ("graph", "onnx", "F32")
        assert found.files == {"retrieval": published / "onnx"}
        assert found.tokenizer == published / "tokenizer.json"
        assert found.model.tasks == ("retrieval",)
    with pytest.raises(UsageError, match="has no weights for clustering. There: retrieval"):
        find.find(published, tasks=["clustering"])
    with pytest.raises(UsageError, match="its weights are F32, not 'INT8'"):
        find.find(published, weights="int8")
    with pytest.raises(UsageError, match="which onnx reads and mlx does not"):
        find.find(published, backend="mlx")
    with pytest.raises(ModelDamaged, match="is one file of a model; give its folder"):
        find.find(published / "onnx" / "model.onnx")
    shutil.copytree(published, unnamed)
    with pytest.raises(UsageError, match=r"Give task=, one of .*, such as jina-embeddings-v5-text-nano-retrieval"):
        find.find(unnamed)
    assert find.find(unnamed / "onnx", tasks=["clustering"]).model.tasks == ("clustering",)
    cached = tmp_path / "models--jinaai--jina-embeddings-v5-text-nano-classification" / "snapshots" / COMMIT
    shutil.copytree(published, cached)
    assert find.find(cached).model.tasks == find.find(cached / "onnx").model.tasks == ("classification",)
    (unnamed / "tokenizer.json").unlink()
    with pytest.raises(ModelDamaged, match=r"has no tokenizer\.json"):
        find.find(unnamed, tasks=["clustering"])
    (unnamed / "config.json").unlink()
    with pytest.raises(ModelDamaged, match=r"config\.json: cannot be opened"):
        find.find(unnamed, tasks=["clustering"])


def test_a_graph_in_the_folder_that_one_stands_in(monkeypatch):
    monkeypatch.chdir(made.published_graph("nano") / "onnx")
    assert find.find(".").model.tasks == ("retrieval",)


def test_a_graph_of_a_reranker_is_refused(tmp_path):
    """Its architecture is small's; only the base frequency tells them apart."""
    home = shutil.copytree(made.published_graph("small"), tmp_path / "x")
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps({**config, "rope_theta": 1e6, "rope_parameters": None}))
    with pytest.raises(UsageError, match="no graph of jina-reranker-v3 is run here: open its checkpoint instead"):
        find.find(home, tasks=["rerank"])


def test_a_graph_beside_other_weights(tmp_path, published):
    """A checkpoint that says its tasks comes first; merged for one task it does not, and the graph is run."""
    base = shutil.copytree(published["nano"], tmp_path / "base")
    shutil.copytree(made.published_graph("nano") / "onnx", base / "onnx")
    assert find.find(base, backend="onnx").form == "checkpoint"
    repository = tmp_path / "jina-embeddings-v5-text-nano-retrieval"
    shutil.copytree(made.published_graph("nano"), repository)
    shutil.copy(made.onnx("nano", 32) / "model.safetensors", repository)
    found = find.find(repository, backend="onnx")
    assert (found.form, found.model.tasks) == ("graph", ("retrieval",))
    with pytest.raises(UsageError, match="has no adapters/"):
        find.find(repository, backend="mlx")


def test_a_gguf_by_name_alone_and_other_files_are_refused(tmp_path, published):
    (tmp_path / "v5-nano-retrieval-Q8_0.gguf").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelDamaged, match="not a GGUF file: is a pickle, which is never opened"):
        find.find(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    with pytest.raises(ModelDamaged, match="is one file of a checkpoint; give its folder"):
        find.find(published["nano"] / "model.safetensors")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ModelDamaged, match=r"is empty\. Read are a \.gguf file and folders"):
        find.find(tmp_path / "empty.txt")


def test_a_folder_without_a_model_lists_the_layouts_and_what_is_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="holds no model.*Found: nothing"):
        find.find(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(ModelNotFound) as error:
        find.find(tmp_path / "empty")
    for layout in folder.LAYOUTS:
        assert layout.what in str(error.value)
    assert "Found: notes.txt." in str(error.value)


def test_folders_of_the_published_width_have_the_published_length(nano, tmp_path, monkeypatch):
    """A config that says less would have long texts cut without a word."""
    out = converted(tmp_path / "out", nano, "mlx", "F32")
    row = registry.lookup("v5-nano")
    spec = replace(row.spec, dims=(32, 64), max_tokens=129)
    monkeypatch.setattr("jina_local.registry.identify", lambda **_: replace(row, spec=spec))
    for given in (nano, out):
        with pytest.raises(
            ModelDamaged, match=rf"{given}: max_position_embeddings is 128; {NANO} reads 129 tokens\."
        ):
            find.find(given)
    monkeypatch.setattr("jina_local.registry.identify", lambda **_: replace(row, spec=replace(spec, max_tokens=128)))
    for given in (nano, out):
        assert find.find(given).model.max_tokens == 128
