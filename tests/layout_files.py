"""Model files of every layout at the size of one layer, whole or with one thing wrong, and places to put them."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from convert.publish import write_manifest
from jina_local import backends
from jina_local.formats.gguf import FILE_TYPES
from jina_local.formats.manifest import Source
from jina_local.weights import architecture, tensor_names

from . import tiny

NANO, SMALL = "jina-embeddings-v5-text-nano", "jina-embeddings-v5-text-small"
SHAPE = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
         "head_dim": 64, "intermediate_size": 64, "max_position_embeddings": 128}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "5e" * 32  # of a base checkpoint


def write_gguf(path, kind="nano", *, label="Q8_0", keys=None, drop=(), extra=None, tokens=None, shapes=None):
    """A model of one layer with all keys and tensors in place; the arguments damage it."""
    name = {"nano": "eurobert", "small": "qwen3"}[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    arch = architecture.from_config({**tiny.CONFIGS[kind], **SHAPE, "vocab_size": 40})
    tokens = tokens if tokens is not None else [f"t{i}" for i in range(arch.vocab)]
    body = {
        f"{name}.block_count": 1, f"{name}.context_length": 128, f"{name}.embedding_length": 64,
        f"{name}.feed_forward_length": 64, f"{name}.attention.head_count": 1, f"{name}.attention.head_count_kv": 1,
        f"{name}.attention.key_length": 64, f"{name}.attention.layer_norm_rms_epsilon": arch.eps,
        f"{name}.rope.freq_base": arch.rope_theta, f"{name}.pooling_type": 3,
        "general.file_type": {v: k for k, v in FILE_TYPES.items()}[label],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "jina-v5-nano" if kind == "nano" else "qwen2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.eos_token_id": 1, **(keys or {}),
    }  # fmt: skip
    writer = gguf.GGUFWriter(str(path), name)
    _add_keys(writer, body)
    renamed = tensor_names.gguf_names(arch)
    for tensor, shape in (architecture.tensors(arch) | (extra or {})).items():
        if tensor not in drop:
            stored = tensor if tensor in (extra or {}) else renamed[tensor]
            add_zeros(writer, stored, (shapes or {}).get(tensor, shape), label)
    return _written(writer, path)


def write_base(path, kind="nano", *, label="Q8_0", base=DIGEST, keys=None):
    """A base that tasks share, of the size of `write_gguf`."""
    return write_gguf(path, kind, label=label, keys={"jina_local.base": base, **(keys or {})})


def write_adapter(path, kind="nano", *, arch=None, task="retrieval", base=DIGEST, keys=None, tensors=None):
    """An adapter of rank 4 on two projections of a layer. `keys`, `tensors`: what is other; None leaves out."""
    arch = arch or architecture.from_config({**tiny.CONFIGS[kind], **SHAPE, "vocab_size": 40})
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), (keys or {}).get("general.architecture", arch.kind))
    body = {
        "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0,
        "adapter.lora.task_name": task, "jina_local.task": task, "jina_local.base": base, **(keys or {}),
    }  # fmt: skip
    _add_keys(writer, {key: value for key, value in body.items() if key != "general.architecture"})
    rng = np.random.default_rng(0)
    factors = {}
    for name in ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.down_proj.weight"):
        (out, inner), stem = architecture.tensors(arch)[name], tensor_names.gguf_names(arch)[name]
        factors[f"{stem}.lora_a"] = rng.standard_normal((4, inner)).astype(np.float16)
        factors[f"{stem}.lora_b"] = rng.standard_normal((out, 4)).astype(np.float16)
    for name, values in {**factors, **(tensors or {})}.items():
        if values is not None:
            kind = gguf.GGMLQuantizationType.BF16 if values.dtype == np.uint16 else None
            writer.add_tensor(name, values, raw_dtype=kind)
    return _written(writer, path)


def add_zeros(writer, name, shape, label):
    """A tensor of a file with this label: matrices have 16 bits if the label says so, all others have 32."""
    short = len(shape) > 1 and label in ("F16", "BF16")
    kind = gguf.GGMLQuantizationType.BF16 if short and label == "BF16" else None
    writer.add_tensor(
        name, np.zeros(shape, np.uint16 if kind else np.float16 if short else np.float32), raw_dtype=kind
    )


def _add_keys(writer, body):
    for key, value in body.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)


def _written(writer, path):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Small published checkpoints: kind -> folder. Not to be changed."""
    root = tmp_path_factory.mktemp("published")
    return {kind: tiny.write(root / kind, kind, config=SHAPE) for kind in ("nano", "small")}


@pytest.fixture
def nano(published, tmp_path):
    """A copy of one, to be changed."""
    return Path(shutil.copytree(published["nano"], tmp_path / "nano"))


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Empty places, and no network whatever the environment says."""
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("JINA_LOCAL_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def engines(monkeypatch):
    """Pretend that these engines are installed, the first preferred."""

    def pretend(*names):
        monkeypatch.setattr(backends, "installed", lambda name: name in names)
        others = (name for name in backends.BACKENDS if name not in names)
        monkeypatch.setattr(backends, "by_preference", lambda: (*names, *others))

    pretend("llama", "mlx")
    return pretend


def converted(folder, source, form, label, tasks=("retrieval",), *, revision=COMMIT):
    """A folder as our converters leave it: every task in its own folder where there are several."""
    weights_of = {}
    for task in tasks:
        home = folder if len(tasks) == 1 else folder / task
        home.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            shutil.copyfile(source / name, home / name)
        weights_of["model.safetensors" if len(tasks) == 1 else f"{task}/model.safetensors"] = (task, label)
        if len(tasks) > 1:
            seal(home, form, {"model.safetensors": (task, label)}, revision=revision)
    return seal(folder, form, weights_of, revision=revision)


def seal(folder, form, weights_of, *, model=NANO, revision=COMMIT):
    """Write the manifest of a folder anew."""
    (folder / "manifest.json").unlink(missing_ok=True)
    write_manifest(
        folder,
        form=form,
        model=model,
        source=Source("SRC-NAME", revision, {}),
        tokenizer="fingerprint",
        weights=weights_of,
    )
    return folder


def into_cache(cache, repo, commit, files):
    """Put files into a cache of the hub's layout, without its blobs."""
    root = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, root / name)
    return root


def tree(folder):
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
