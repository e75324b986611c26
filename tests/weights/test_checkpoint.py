"""checkpoint: every layout read, every tensor accounted for, adapters merged as the formula says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats import safetensors
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.weights.checkpoint import Checkpoint
from tests import tiny


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("nano"), "nano")


@pytest.fixture
def copy(nano, tmp_path):
    return shutil.copytree(nano, tmp_path / "copy")


def rewrite(path, change):
    """Rewrite a safetensors file with `change(name, dtype, data)` -> (name, dtype, data) or None to drop."""
    with SafetensorsFile(path) as file:
        kept = [change(n, t.dtype, file.read(n)) for n, t in file.tensors.items()]
    kept = [k for k in kept if k]
    path.unlink()
    safetensors.write(path, {n: (d, x.shape) for n, d, x in kept}, [(n, x) for n, _, x in kept], {})


def edit(path, **changes):
    body = json.loads(path.read_text())
    body.update(changes)
    path.write_text(json.dumps(body))


def test_shards_and_a_model_prefix_give_the_same_weights(nano, tmp_path):
    sharded = tiny.write(tmp_path / "sharded", "nano", shards=3)
    prefixed = shutil.copytree(nano, tmp_path / "prefixed")
    rewrite(prefixed / "model.safetensors", lambda n, d, x: ("model." + n, d, x))
    with Checkpoint(nano) as a, Checkpoint(sharded) as b, Checkpoint(prefixed) as c:
        assert len(b.files) == 3
        for (n, x), (_, y), (_, z) in zip(
            a.merged("retrieval"), b.merged("retrieval"), c.merged("retrieval"), strict=True
        ):
            np.testing.assert_array_equal(x, y, err_msg=n)
            np.testing.assert_array_equal(x, z, err_msg=n)


def test_merge_is_the_formula_and_always_from_the_base(nano, copy):
    edit(copy / "adapters/clustering/adapter_config.json", lora_alpha=48)
    with Checkpoint(copy) as checkpoint:
        name = "layers.1.mlp.down_proj.weight"
        first = dict(checkpoint.merged("clustering"))
        dict(checkpoint.merged("retrieval"))
        again = dict(checkpoint.merged("clustering"))
        with SafetensorsFile(copy / "adapters/clustering/adapter_model.safetensors") as file:
            a, b = (file.read(f"base_model.model.layers.1.mlp.down_proj.lora_{x}.weight") for x in "AB")
        expected = checkpoint.tensor(name).astype(np.float64) + 1.5 * b.astype(np.float64) @ a
        np.testing.assert_allclose(first[name], expected, atol=1e-6)
        assert all(np.array_equal(first[n], again[n]) for n in first)
        np.testing.assert_array_equal(first["norm.weight"], checkpoint.tensor("norm.weight"))


def test_the_vocabulary_head_is_listed_as_dropped(copy):
    with SafetensorsFile(copy / "model.safetensors") as file:
        table = file.read("embed_tokens.weight")
    rewritten = copy / "model.safetensors"
    with SafetensorsFile(rewritten) as file:
        kept = [(n, t.dtype, file.read(n)) for n, t in file.tensors.items()] + [("lm_head.weight", "F32", table)]
    rewritten.unlink()
    safetensors.write(rewritten, {n: (d, x.shape) for n, d, x in kept}, [(n, x) for n, _, x in kept], {})
    with Checkpoint(copy) as checkpoint:
        assert list(checkpoint.dropped) == ["lm_head.weight"]


def test_missing_unknown_and_misshaped_tensors_are_all_named(copy):
    def change(name, dtype, data):
        if name == "norm.weight":
            return None
        if name == "layers.0.mlp.up_proj.weight":
            return name, dtype, data[:-1]
        if name == "layers.1.mlp.up_proj.weight":
            return "layers.9.mlp.up_proj.weight", dtype, data
        return name, dtype, data

    rewrite(copy / "model.safetensors", change)
    with pytest.raises(ModelDamaged) as error:
        Checkpoint(copy)
    text = str(error.value)
    assert "2 missing: layers.1.mlp.up_proj.weight, norm.weight" in text
    assert "1 unknown: layers.9.mlp.up_proj.weight" in text
    assert "layers.0.mlp.up_proj.weight (255, 256) (expected (256, 256))" in text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(copy, bad):
    def change(name, dtype, data):
        if name == "layers.1.self_attn.v_proj.weight":
            data[3, 4] = bad
        return name, dtype, data

    rewrite(copy / "model.safetensors", change)
    with Checkpoint(copy) as checkpoint, pytest.raises(ModelDamaged, match=r"v_proj.weight: 1 of \d+ values are NaN"):
        dict(checkpoint.merged(None))


def test_a_truncated_file_is_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelDamaged, match="truncated"):
        Checkpoint(copy)


def test_an_absent_adapter_names_those_that_are_there(copy):
    shutil.rmtree(copy / "adapters" / "clustering")
    with (
        Checkpoint(copy) as checkpoint,
        pytest.raises(UsageError, match="no adapter for task 'clustering'.*classification, retrieval"),
    ):
        dict(checkpoint.merged("clustering"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "rank 0"),
        ({"r": 10**6}, "rank 1000000"),
        ({"r": True}, "rank True"),
        ({"lora_alpha": 0}, "alpha 0; expected a positive number"),
        ({"lora_alpha": -8}, "alpha -8"),
        ({"lora_alpha": "32"}, "alpha '32'"),
        ({"lora_alpha": float("nan")}, "NaN is not JSON"),
        ({"lora_alpha": float("inf")}, "Infinity is not JSON"),
        ({"lora_alpha": 10**400}, "alpha 1000"),
        ({"use_dora": True}, "use_dora is True"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 16}, "of another shape"),
    ],
)
def test_adapters_that_would_merge_wrongly_are_refused(copy, changes, message):
    edit(copy / "adapters/retrieval/adapter_config.json", **changes)
    with Checkpoint(copy) as checkpoint, pytest.raises(ModelDamaged, match=message):
        dict(checkpoint.merged("retrieval"))


def test_half_a_lora_pair_is_refused(copy):
    rewrite(
        copy / "adapters/retrieval/adapter_model.safetensors",
        lambda n, d, x: None if n.endswith("layers.0.mlp.up_proj.lora_B.weight") else (n, d, x),
    )
    with Checkpoint(copy) as checkpoint, pytest.raises(ModelDamaged, match=r"1 missing: layers.0.mlp.up_proj.lora_B"):
        dict(checkpoint.merged("retrieval"))


def test_factors_for_what_adapters_do_not_change_are_refused(copy):
    path = copy / "adapters/retrieval/adapter_model.safetensors"

    def rename(name, dtype, data):
        return name.replace("layers.0.mlp.up_proj", "embed_tokens"), dtype, data

    rewrite(path, rename)
    with Checkpoint(copy) as checkpoint, pytest.raises(ModelDamaged, match=r"2 unknown: embed_tokens\.lora_A"):
        dict(checkpoint.merged("retrieval"))


def test_factors_of_whole_numbers_are_refused_before_they_are_read(copy):
    rewrite(
        copy / "adapters/retrieval/adapter_model.safetensors",
        lambda n, d, x: (
            (n, "I32", x.view(np.int32)) if n.endswith("layers.0.mlp.up_proj.lora_A.weight") else (n, d, x)
        ),
    )
    with (
        Checkpoint(copy) as checkpoint,
        pytest.raises(ModelDamaged, match=r"up_proj\.lora_A\.weight is stored as I32; expected F16 or BF16 or F32"),
    ):
        checkpoint.adapter("retrieval")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model-00001-of-00009.safetensors", "a\\b"])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, name):
    folder = tiny.write(tmp_path / "x", "nano", shards=2)
    index = folder / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    body["weight_map"]["norm.weight"] = name
    index.write_text(json.dumps(body))
    with pytest.raises(ModelDamaged, match="names the shards"):
        Checkpoint(folder)


def test_two_precisions_in_one_folder_are_refused(copy):
    shutil.copy(copy / "model.safetensors", copy / "model-4bit.safetensors")
    with pytest.raises(ModelDamaged, match="need a folder each"):
        Checkpoint(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' * 3000])
def test_a_config_that_is_no_object_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelDamaged, match=r"config\.json"):
        Checkpoint(copy)
