"""What the MLX engine opens and what it refuses: files that do not fit each other, before any forward pass."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.mlx.folders import to_mlx
from jina_local import backends
from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats.safetensors import to_bf16
from tests.backends.test_mlx import batch, cosines
from tests.convert.test_mlx_folders import rewrite, small_source

pytestmark = pytest.mark.mlx

_MODULES = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small_source(tmp_path_factory.mktemp("source") / "small", "small")


def test_reads_folders_as_mlx_lm_writes_them(source, tmp_path):
    """bfloat16 scales, no prefix, no mode, another setting for one module."""
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=8)
    texts = [np.arange(n) for n in (3, 9, 20)]

    def theirs(tensors):
        for name, (dtype, data) in list(tensors.items()):
            del tensors[name]
            halved = ("BF16", to_bf16(data.astype(np.float32))) if dtype == "F16" else (dtype, data)
            tensors[name.removeprefix("model.")] = halved

    backend = backends.open_backend("mlx", tmp_path / "out", task=None, device="cpu")
    before = backend.forward(batch(texts))
    backend.close()
    rewrite(tmp_path / "out/model.safetensors", theirs)
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["quantization"] = {"bits": 4, "group_size": 32}
    for name in ("embed_tokens", *(f"layers.{n}.{m}" for n in range(2) for m in _MODULES)):
        config["quantization"][f"model.{name}"] = {"bits": 8, "group_size": 64}
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    backend = backends.open_backend("mlx", tmp_path / "out", task=None, device="cpu")
    assert cosines(backend.forward(batch(texts)), before).min() > 0.999
    backend.close()


def test_a_task_needs_an_adapter(source, tmp_path):
    with pytest.raises(UsageError, match="no adapter for task 'search'"):
        backends.open_backend("mlx", source, task="search")
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=8)
    with pytest.raises(UsageError, match="is quantised: the adapter of task 'retrieval' cannot be merged"):
        backends.open_backend("mlx", tmp_path / "out", task="retrieval")


@pytest.fixture
def converted(source, tmp_path) -> Path:
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=8)
    return tmp_path / "out"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelDamaged, match=message):
        backends.open_backend("mlx", folder, task=None, device="cpu")


def reconfigure(folder: Path, **changes: object) -> None:
    """Set keys of the config, or remove those given as None."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_two_precisions_in_one_folder_are_refused(source, converted, tmp_path):
    shutil.copyfile(converted / "model.safetensors", converted / "model-4bit.safetensors")
    refused(converted, "found model-4bit.safetensors, model.safetensors. .* a folder each")
    to_mlx(source, tmp_path / "half", tasks=["retrieval"], bits=16)
    shutil.copyfile(converted / "model.safetensors", tmp_path / "half/model-8bit.safetensors")
    refused(tmp_path / "half", "a folder each")


def test_a_config_without_theta_is_refused(converted):
    reconfigure(converted, rope_theta=None)
    refused(converted, "no rope_theta, neither at the top nor under rope_parameters")
    reconfigure(converted, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    backends.open_backend("mlx", converted, task=None, device="cpu").close()


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"bits": 4, "group_size": 64}, "of another shape: embed_tokens.weight"),
        ({"bits": 8, "group_size": 32}, "of another shape: embed_tokens.biases"),
        (
            {"bits": 8, "group_size": 64, "mode": "mxfp8"},
            "quantization of embed_tokens: mode is 'mxfp8'; expected 'affine'",
        ),
        ({"bits": 7, "group_size": 64}, "bits is 7; expected one of 2, 3, 4, 5, 6, 8"),
        ({"bits": 8.0, "group_size": 64}, "bits is 8.0; expected one of"),
        ({"bits": [8], "group_size": 64}, r"bits is \[8\]; expected one of"),
        ({"bits": 8}, "group_size is missing"),
        ({"bits": 8, "group_size": 64, "embed_tokens": False}, "its entry under quantization is False"),
        ({"group_size": 64}, "this engine reads MLX's affine codes"),
    ],
)
def test_codes_that_do_not_fit_the_config_are_refused(converted, quantization, message):
    reconfigure(converted, quantization=quantization)
    refused(converted, message)


def _drop_scales(tensors):
    del tensors["model.layers.0.mlp.up_proj.scales"]


def _drop_norm(tensors):
    del tensors["model.norm.weight"]


def _signed_codes(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = ("I32", tensors[name][1].view(np.int32))


def _whole_norm(tensors):
    name = "model.norm.weight"
    tensors[name] = ("I32", np.ones(tensors[name][1].shape, np.int32))


def _poisoned_scale(tensors):
    tensors["model.layers.1.mlp.up_proj.scales"][1][0, 0] = np.nan


def _extra(tensors):
    tensors["model.norm.bias"] = ("F16", np.zeros(3, np.float16))


def _twice(tensors):
    tensors["norm.weight"] = tensors["model.norm.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_scales, "unknown: layers.0.mlp.up_proj.biases.*of another shape: layers.0.mlp.up_proj.weight"),
        (_drop_norm, "1 missing: norm.weight"),
        (_signed_codes, "up_proj.weight is stored as I32; expected U32"),
        (_whole_norm, "model.norm.weight is stored as I32; expected F16 or BF16 or F32"),
        (_poisoned_scale, r"model\.layers\.1\.mlp\.up_proj\.scales: holds NaN"),
        (_extra, "1 unknown: norm.bias"),
        (_twice, "with `model.` before it and without"),
    ],
)
def test_tensors_that_are_not_what_they_should_be_are_refused(converted, change, message):
    rewrite(converted / "model.safetensors", change)
    refused(converted, message)


def test_a_truncated_file_and_a_poisoned_checkpoint_are_refused(converted, source, tmp_path):
    os.truncate(converted / "model.safetensors", (converted / "model.safetensors").stat().st_size - 1)
    refused(converted, "truncated")
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)

    def poison(tensors):
        dtype, data = tensors["embed_tokens.weight"]
        data[0, 0] = 0x7F80 if dtype == "BF16" else np.inf

    rewrite(copy / "model.safetensors", poison)
    refused(copy, "embed_tokens.weight: 1 of .* NaN or infinite")
