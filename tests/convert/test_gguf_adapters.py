"""Checkpoint -> a base and its adapters in GGUF: what is in them, that others read them, and what is refused."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from convert import source
from convert.gguf import engine, imatrix
from convert.gguf.files import to_gguf
from convert.verify import reference
from jina_local.errors import ModelDamaged, OutputError, UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.files import sha256
from jina_local.formats.gguf import read_header
from jina_local.store import find
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, tensor_names
from jina_local.weights.checkpoint import Checkpoint

from .. import made, tiny

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'jina_local[convert]'")
pytestmark = pytest.mark.llama


@pytest.fixture(scope="module", params=["small", "nano"])
def separate(request, tmp_path_factory):
    """(kind, source, output): one base in two types, the adapters of two tasks."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    tiny.write(folder / "source", kind)
    _convert(folder / "source", folder / "out", revision="abc", source_name="tiny")
    return kind, folder / "source", folder / "out"


def _convert(src: Path, out: Path, tasks=("retrieval", "clustering"), types=("F16", "Q4_K_M"), **options):
    to_gguf(src, out, tasks=tasks, types=types, separate=True, **options)


def test_the_folder_holds_a_base_of_each_type_and_an_adapter_of_each_task(separate):
    kind, _, out = separate
    assert manifest.verify(out) == []
    held = manifest.load(out)
    assert {name: (e.task, e.weights) for name, e in held.files.items()} == {
        f"v5-{kind}-base-F16.gguf": (None, "F16"),
        f"v5-{kind}-base-Q4_K_M.gguf": (None, "Q4_K_M"),
        f"v5-{kind}-retrieval-adapter.gguf": ("retrieval", None),
        f"v5-{kind}-clustering-adapter.gguf": ("clustering", None),
        "tokenizer.json": (None, None),
        "config.json": (None, None),
    }
    assert "adapters/clustering/adapter_model.safetensors" in held.source.files
    assert not any("classification" in name for name in held.source.files)
    found = find.find(out)
    assert found.adapters == {task: out / f"v5-{kind}-{task}-adapter.gguf" for task in ("retrieval", "clustering")}
    assert set(found.files.values()) == {out / f"v5-{kind}-base-F16.gguf"}
    assert found.tokenizer == out / "tokenizer.json"


def test_base_and_adapters_carry_the_digest_of_the_published_base(separate):
    _, src, out = separate
    line = f"{sha256(src / 'model.safetensors')}  model.safetensors\n"
    expected = hashlib.sha256(line.encode()).hexdigest()
    found = {path.name: read_header(path).keys for path in out.glob("*.gguf")}
    assert {keys["jina_local.base"] for keys in found.values()} == {expected}
    assert {name for name, keys in found.items() if "jina_local.task" in keys} == {n for n in found if "adapter" in n}
    merged = read_header(made.gguf_file("nano", "F16")).keys
    assert "jina_local.base" not in merged


def test_the_digest_is_of_the_base_weights_alone(tmp_path):
    def digest(name, **options):
        with Checkpoint(tiny.write(tmp_path / name, "nano", **options)) as checkpoint:
            return source.base_digest(checkpoint)

    first = digest("a")
    assert digest("b", tasks=("clustering",)) == first
    assert digest("c", seed=1) != first
    sharded = tmp_path / "d"
    assert digest("d", shards=2) != first
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(sharded.glob("model-*.safetensors"))]
    with Checkpoint(sharded) as checkpoint:
        assert source.base_digest(checkpoint) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_keys_of_an_adapter_are_complete(separate):
    kind, _, out = separate
    keys = read_header(out / f"v5-{kind}-clustering-adapter.gguf").keys
    name = f"jina-embeddings-v5-text-{kind}"
    expected = {
        "general.type": "adapter", "general.architecture": {"small": "qwen3", "nano": "eurobert"}[kind],
        "general.name": f"{name}-clustering", "general.finetune": "clustering", "general.basename": name,
        "general.license": "cc-by-nc-4.0", "general.base_model.count": 1, "general.base_model.0.name": name,
        "general.base_model.0.organization": "jinaai", "general.base_model.0.version": "abc",
        "general.base_model.0.repo_url": f"https://huggingface.co/jinaai/{name}",
        "general.tags": [b"feature-extraction", b"sentence-similarity", b"embeddings"], "general.file_type": 1,
        "adapter.type": "lora", "adapter.lora.alpha": float(tiny.RANK), "adapter.lora.task_name": "clustering",
        "adapter.lora.prompt_prefix": "Document: ", "jina_local.model": name, "jina_local.task": "clustering",
        "jina_local.prompts": '{"query": "Query: ", "document": "Document: "}',
        "jina_local.default_prompt": "document",
    }  # fmt: skip
    rest = {"general.size_label", "jina_local.base"}
    assert {k: v for k, v in keys.items() if k not in rest} == expected
    base = read_header(out / f"v5-{kind}-base-F16.gguf").keys
    assert (base["general.name"], base["general.type"]) == (f"{name}-base", "model")


def test_base_and_adapters_name_the_repository_of_a_published_model(separate):
    kind, _, out = separate
    for path in out.glob("*.gguf"):
        keys = read_header(path).keys
        assert keys["general.base_model.0.organization"] == "jinaai", path.name
        assert keys["general.base_model.0.repo_url"].endswith(f"/jinaai/jina-embeddings-v5-text-{kind}"), path.name


@pytest.mark.parametrize("types", [("F16", "Q4_K_M"), ("F32",)])
def test_the_factors_and_the_base_are_those_of_the_checkpoint(separate, tmp_path, types):
    kind, src, out = separate
    wide = "F32" in types
    if wide:
        out = tmp_path / "out"
        _convert(src, out, types=types)
    with Checkpoint(src) as checkpoint, checkpoint.adapter("clustering") as adapter:
        renamed = tensor_names.gguf_names(checkpoint.arch)
        expected = {}
        for name in architecture.projections(checkpoint.arch):
            for letter, factor in zip("ab", adapter.factors(name), strict=True):
                expected[f"{renamed[name]}.lora_{letter}"] = factor if wide else factor.astype(np.float16)
        plain = {renamed[name]: data for name, data in checkpoint.merged(None)}
    read = {t.name: np.array(t.data) for t in gguf.GGUFReader(out / f"v5-{kind}-clustering-adapter.gguf").tensors}
    assert read.keys() == expected.keys()
    for name, factor in expected.items():
        assert (read[name].dtype, read[name].tobytes()) == (factor.dtype, factor.tobytes()), name
    base = gguf.GGUFReader(out / f"v5-{kind}-base-{types[0]}.gguf").tensors
    assert {t.name for t in base} == plain.keys()
    for tensor in base:
        want = plain[tensor.name] if wide or plain[tensor.name].ndim == 1 else plain[tensor.name].astype(np.float16)
        np.testing.assert_array_equal(np.array(tensor.data), want, err_msg=tensor.name)


@pytest.mark.sampled
def test_stock_llama_cpp_runs_base_and_adapter_and_reads_the_task_and_prompt(separate, tmp_path, stock_llama):
    import llama_cpp

    """The low-level calls that every binding has, on our two files, against the reference's vector."""
    kind, src, _ = separate
    _convert(src, tmp_path / "out", ["clustering"], ["F32"])
    text = "Document: The quick brown fox"
    ids = Tokenizer.from_file(src / "tokenizer.json").ids(text)
    with engine.heard():
        stock = stock_llama(
            str(tmp_path / "out" / f"v5-{kind}-base-F32.gguf"), embedding=True, n_ctx=512, n_threads=1, verbose=False
        )
        path = os.fsencode(tmp_path / "out" / f"v5-{kind}-clustering-adapter.gguf")
        adapter = llama_cpp.llama_adapter_lora_init(stock.model, path)
        room = ctypes.create_string_buffer(64)
        said = {}
        for key in (b"adapter.lora.task_name", b"adapter.lora.prompt_prefix"):
            llama_cpp.llama_adapter_meta_val_str(adapter, key, ctypes.cast(room, ctypes.c_char_p), 64)
            said[key] = room.value
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(
            ctypes.cast(adapter, llama_cpp.llama_adapter_lora_p_ctypes)
        )
        assert llama_cpp.llama_set_adapters_lora(stock.ctx, handles, 1, (ctypes.c_float * 1)(1.0)) == 0
        found = np.array(stock.embed(text, normalize=True), np.float32)
        stock.close()
    assert said == {b"adapter.lora.task_name": b"clustering", b"adapter.lora.prompt_prefix": b"Document: "}
    with Checkpoint(src) as checkpoint:
        states = reference.hidden_states(checkpoint.arch, dict(checkpoint.merged("clustering")), ids)
    assert found @ (states[-1] / np.linalg.norm(states[-1])) > 0.99999


def test_the_same_input_gives_the_same_bytes(separate, tmp_path):
    _, src, out = separate
    _convert(src, tmp_path / "again", revision="abc", source_name="tiny", threads=1)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tmp_path / "again").iterdir())
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_importance_matrix_is_that_of_the_base_alone(separate, tmp_path):
    kind, src, out = separate
    (tmp_path / "texts").write_text("The quick brown fox\n\nJupiter is the largest planet")
    told = []
    _convert(src, tmp_path / "out", imatrix=tmp_path / "texts", progress=lambda *step: told.append(step))
    assert {what for what, _, _ in told} == {
        "base F32", "importance base", "base F16", "base Q4_K_M", "retrieval adapter", "clustering adapter",
    }  # fmt: skip
    name = f"v5-{kind}-base-Q4_K_M.gguf"
    keys = read_header(tmp_path / "out" / name).keys
    assert keys["quantize.imatrix.dataset"] == imatrix.digest(imatrix.read_texts(tmp_path / "texts"))
    assert (tmp_path / "out" / name).read_bytes()[-50_000:] != (out / name).read_bytes()[-50_000:]
    adapter = f"v5-{kind}-retrieval-adapter.gguf"
    with_texts, without = (read_header(folder / adapter).keys for folder in (tmp_path / "out", out))
    assert {k: v for k, v in with_texts.items() if "version" not in k} == {
        k: v for k, v in without.items() if "version" not in k
    }


def test_a_merged_source_has_nothing_to_keep_separate(tmp_path):
    from convert.merge import merge

    src = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    merge(src, tmp_path / "merged", tasks=["retrieval"], dtype=None, source_name="tiny")
    with pytest.raises(
        UsageError, match=r"merged: its adapter is merged already, so that none can stay separate\. Con"
    ):
        _convert(tmp_path / "merged", tmp_path / "out", ["retrieval"])
    assert not (tmp_path / "out").exists()


def test_factors_beyond_float16_are_refused_and_stay_in_float32(tmp_path):
    src = tiny.write(tmp_path / "source", "nano", tasks=("retrieval",))
    path = src / "adapters" / "retrieval" / "adapter_model.safetensors"
    with safetensors.SafetensorsFile(path) as file:
        tensors = {name: file.read_f32(name) for name in file.tensors}
    first = next(name for name in tensors if "lora_B" in name)
    tensors[first] = tensors[first] + np.float32(70000)
    path.unlink()
    layout = {name: ("F32", data.shape) for name, data in tensors.items()}
    safetensors.write(path, layout, iter(tensors.items()), {"format": "pt"})
    with pytest.raises(ModelDamaged, match=r"adapters/retrieval: the factor B of layers\.\d\..*_proj\.weight"):
        _convert(src, tmp_path / "out", ["retrieval"], ["Q8_0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
    _convert(src, tmp_path / "out", ["retrieval"], ["F32"])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["form"] == "gguf"


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    src = tiny.write(tmp_path / "source", "nano")
    real = shutil.disk_usage

    def nearly_full(path):
        return real(path)._replace(free=5_000_000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(OutputError, match="are needed and 5 MB are free"):
        _convert(src, tmp_path / "out", list(tiny.TASKS), ["F32"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
