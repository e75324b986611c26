"""The MLX converter: layout, bytes, refusals, and mlx-lm loading what it wrote."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.merge import merge
from convert.mlx.folders import to_mlx
from convert.mlx.quantise import Quantised, dequantise
from jina_local.errors import ModelDamaged, OutputError, UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.weights import architecture
from jina_local.weights.checkpoint import Checkpoint
from tests import tiny

SIZE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64,
        "intermediate_size": 256, "max_position_embeddings": 256}  # fmt: skip


@pytest.fixture(scope="module", params=["nano", "small"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(kind, tmp_path_factory) -> Path:
    return small_source(tmp_path_factory.mktemp("source") / kind, kind)


def small_source(folder: Path, kind: str) -> Path:
    """A published checkpoint with grouped heads where the kind has them."""
    heads = {"num_key_value_heads": 1 if kind == "small" else 2}
    return tiny.write(folder, kind, config={**SIZE, **heads})


def rewrite(path: Path, change) -> None:
    """Read all tensors, let `change` edit the dict of name -> (dtype, array), write them back."""
    with SafetensorsFile(path) as file:
        tensors = {name: (entry.dtype, file.read(name)) for name, entry in file.tensors.items()}
        metadata = file.metadata
    change(tensors)
    path.unlink()
    layout = {name: (dtype, data.shape) for name, (dtype, data) in tensors.items()}
    safetensors.write(path, layout, ((name, data) for name, (_, data) in tensors.items()), metadata)


def test_layout_of_a_four_bit_folder(source, kind, tmp_path):
    calls: list[tuple[str, int, int]] = []
    out = tmp_path / "out"
    to_mlx(
        source, out, tasks=["clustering"], bits=4, source_name="me", revision="abc",
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    with Checkpoint(source) as checkpoint:
        arch, merged = checkpoint.arch, dict(checkpoint.merged("clustering"))
    config = json.loads((out / "config.json").read_text())
    assert list(config) == sorted(config)
    assert architecture.from_config(config) == arch
    assert config["model_type"] == arch.kind
    assert config["quantization"] == config["quantization_config"] == {
        "bits": 4, "group_size": 32, "mode": "affine",
        "model.embed_tokens": {"bits": 8, "group_size": 32, "mode": "affine"},
    }  # fmt: skip
    with SafetensorsFile(out / "model.safetensors") as file:
        assert file.metadata == {"format": "mlx"}
        left = set(file.tensors)
        for name, weight in merged.items():
            if weight.ndim == 1:
                np.testing.assert_array_equal(file.read(f"model.{name}"), weight.astype(np.float16))
                left.remove(f"model.{name}")
                continue
            parts = [f"model.{name.removesuffix('weight')}{p}" for p in ("weight", "scales", "biases")]
            assert [file.tensors[p].dtype for p in parts] == ["U32", "F16", "F16"]
            bits = 8 if "embed" in name else 4
            again = dequantise(Quantised(*(file.read(p) for p in parts)), bits, 32)
            assert np.linalg.norm(again - weight) < {4: 0.09, 8: 0.006}[bits] * np.linalg.norm(weight)
            left -= set(parts)
        assert not left
    assert calls[-1] == ("mlx clustering 4bit", len(merged), len(merged))
    for name in ("tokenizer.json", "tokenizer_config.json", "config_sentence_transformers.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    body = manifest.load(out)
    assert (body.form, body.source.name, body.source.revision) == ("mlx", "me", "abc")
    assert (body.files["model.safetensors"].task, body.files["model.safetensors"].weights) == ("clustering", "4bit")
    assert "adapters/clustering/adapter_model.safetensors" in body.source.files
    assert manifest.verify(out) == []


@pytest.mark.parametrize("bits", [16, 32])
def test_floating_point_folders_hold_the_merged_weights(source, bits, tmp_path):
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=bits)
    with Checkpoint(source) as checkpoint, Checkpoint(tmp_path / "out") as written:
        assert "quantization" not in written.config
        assert written.config["dtype"] == {16: "float16", 32: "float32"}[bits]
        assert written.dtype == {16: "F16", 32: "F32"}[bits]
        for (name, mine), (_, theirs) in zip(written.merged(None), checkpoint.merged("retrieval"), strict=True):
            expected = theirs if bits == 32 else theirs.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(mine, expected, err_msg=name)


def test_all_tasks_stand_side_by_side(source, tmp_path):
    out = tmp_path / "out"
    to_mlx(source, out, tasks=list(tiny.TASKS), bits=8, group_size=32)
    body = manifest.load(out)
    held = {(e.task, name) for name, e in body.files.items() if e.task}
    assert held == {(task, f"{task}/model.safetensors") for task in tiny.TASKS}
    assert manifest.verify(out) == []
    digests = {body.files[f"{task}/model.safetensors"].sha256 for task in tiny.TASKS}
    assert len(digests) == len(tiny.TASKS)
    for task in tiny.TASKS:
        own = manifest.load(out / task)
        assert own.files["model.safetensors"].task == task
        assert own.files["model.safetensors"].weights == "8bit"
        assert manifest.verify(out / task) == []
        assert json.loads((out / task / "config.json").read_text())["quantization"]["group_size"] == 32


@pytest.mark.sampled
def test_the_same_input_gives_the_same_bytes_in_another_process(source, tmp_path):
    code = (
        "import sys; from pathlib import Path; from convert.mlx.folders import to_mlx\n"
        "to_mlx(Path(sys.argv[1]), Path(sys.argv[2]), tasks=['retrieval', 'clustering'], bits=6)"
    )
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, source, tmp_path / seed], check=True, env=environment)
    files = [
        {p.relative_to(tmp_path / s).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}
        for s in ("1", "2")
        if (found := [p for p in (tmp_path / s).rglob("*") if p.is_file()])
    ]
    assert files[0] == files[1]
    assert len(files[0]) >= 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits 3: possible are 4, 5, 6, 8, 16, 32"),
        ({"group_size": 16}, "group_size 16: possible are 32, 64, 128"),
        (
            {"tasks": ["search"]},
            "unknown task 'search'; .* has: retrieval, text-matching, clustering, classification",
        ),
        ({"tasks": []}, "no task given"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(source, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        to_mlx(source, tmp_path / "out", **{"tasks": ["retrieval"], "bits": 8, **changes})
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_no_whole_number_of_groups_are_refused(tmp_path):
    source = tiny.write(tmp_path / "src", "nano", config={**SIZE, "hidden_size": 96, "num_key_value_heads": 2})
    with pytest.raises(UsageError, match=r"embed_tokens\.weight: its rows of 96 .* groups of 64"):
        to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=4, group_size=64)
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=4)


def test_an_existing_folder_needs_force(source, tmp_path):
    out = tmp_path / "out"
    to_mlx(source, out, tasks=["retrieval"], bits=8)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="--force"):
        to_mlx(source, out, tasks=["clustering"], bits=8)
    assert (out / "manifest.json").read_bytes() == before
    to_mlx(source, out, tasks=["clustering"], bits=8, force=True)
    assert manifest.load(out).files["model.safetensors"].task == "clustering"


def test_a_merged_source_serves_the_task_that_its_manifest_names(source, tmp_path):
    plain = tmp_path / "merged"
    merge(source, plain, tasks=["clustering"], dtype="F32", source_name="me")
    to_mlx(plain, tmp_path / "a", tasks=["clustering"], bits=8)
    to_mlx(source, tmp_path / "b", tasks=["clustering"], bits=8)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="unknown task 'retrieval'; .* has: clustering"):
        to_mlx(plain, tmp_path / "c", tasks=["retrieval"], bits=8)
    (plain / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no adapters and no manifest"):
        to_mlx(plain, tmp_path / "c", tasks=["clustering"], bits=8)


def test_a_weight_that_is_not_a_number_stops_the_run(kind, tmp_path):
    source = small_source(tmp_path / "src", kind)

    def poison(tensors):
        dtype, data = tensors["layers.1.mlp.up_proj.weight"]
        data[3, 5] = 0x7FC0 if dtype == "BF16" else np.nan

    rewrite(source / "model.safetensors", poison)
    with pytest.raises(ModelDamaged, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of \d+ values are NaN"):
        to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=8)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_weight_beyond_float16_is_refused_at_16_bits_and_kept_at_32(tmp_path):
    source = small_source(tmp_path / "src", "nano")

    def enlarge(tensors):
        tensors["layers.0.mlp.up_proj.weight"][1][0, 0] = 1e5

    rewrite(source / "model.safetensors", enlarge)
    with pytest.raises(ModelDamaged, match="up_proj.*float16; use a 32-bit form"):
        to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=16)
    to_mlx(source, tmp_path / "out", tasks=["retrieval"], bits=32)


def test_the_vocabulary_head_is_dropped_and_nothing_else_may_be_extra(source, kind, tmp_path):
    copy = tmp_path / "src"
    shutil.copytree(source, copy)
    with Checkpoint(copy) as checkpoint:
        shape = (checkpoint.arch.vocab, checkpoint.arch.hidden)
    rewrite(copy / "model.safetensors", lambda t: t.update({"lm_head.weight": ("F32", np.ones(shape, np.float32))}))
    to_mlx(copy, tmp_path / "a", tasks=["retrieval"], bits=8)
    to_mlx(source, tmp_path / "b", tasks=["retrieval"], bits=8)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    rewrite(copy / "model.safetensors", lambda t: t.update({"rotary": ("F32", np.ones(3, np.float32))}))
    with pytest.raises(ModelDamaged, match="1 unknown: rotary"):
        to_mlx(copy, tmp_path / "c", tasks=["retrieval"], bits=8)


_MLX_LM = """
import json, sys
from pathlib import Path
import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
ids = np.load(sys.argv[1])
for folder in map(Path, sys.argv[2:]):
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)  # on the CPU, low-precision activations would be added up in low precision
    np.save(folder.parent / (folder.name + ".npy"), np.array(model.model(mx.array(ids[None]))[0]))
"""


@pytest.mark.slow
@pytest.mark.mlx
@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx_lm is not installed")
def test_mlx_lm_loads_the_small_folders_and_sees_the_same_states(tmp_path):
    source = small_source(tmp_path / "src", "small")
    untied = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False}
    (source / "config.json").write_text(json.dumps(untied))
    folders = {bits: tmp_path / f"out{bits}" for bits in (4, 8, 16, 32)}
    for bits, folder in folders.items():
        to_mlx(source, folder, tasks=["text-matching"], bits=bits)
    folders[0] = tmp_path / "base"
    to_mlx(source, folders[0], tasks=["text-matching"], bits=8, separate=True)
    ids = np.random.default_rng(0).integers(0, 500, 37)
    np.save(tmp_path / "ids.npy", ids)
    # In a process of its own: importing mlx_lm lowers the limit of open files for good.
    command = [sys.executable, "-W", "ignore", "-c", _MLX_LM, tmp_path / "ids.npy", *folders.values()]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "MLX_DISABLE_COMPILE": "1"})
    from jina_local.backends.mlx import MlxBackend
    from tests.backends.test_mlx import batch

    for folder in folders.values():
        backend = MlxBackend(folder, device="cpu")
        mine = backend.forward(batch([ids], "all"))
        backend.close()
        theirs = np.load(tmp_path / f"{folder.name}.npy")
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
