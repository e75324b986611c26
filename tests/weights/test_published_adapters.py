"""lora: three ways of storing one adapter, the products held against ones written by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats import safetensors
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.weights import architecture
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny, tiny_v3_and_rerankers

TABLE, TYPES = "embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"
QKV, FC1 = "encoder.layers.1.mixer.Wqkv.weight", "encoder.layers.0.mlp.fc1.weight"
NATIVE_QKV = "base_model.model.layers.1.self_attn.{}_proj.lora_{}.weight"


@pytest.fixture
def copy(tmp_path):
    """A checkpoint of a kind, to be changed."""

    def make(kind):
        return Path(shutil.copytree(made.checkpoint(kind), tmp_path / kind))

    return make


def tensors(path):
    with SafetensorsFile(path) as file:
        return {name: file.read_f32(name).astype(np.float64) for name in file.tensors}


def rewrite(path, change):
    """Put `change`, a function of all tensors, in place of a file's tensors."""
    with SafetensorsFile(path) as file:
        held = {name: file.read_f32(name) for name in file.tensors}
    held = change(held)
    path.unlink()
    layout = {name: ("F32", data.shape) for name, data in held.items()}
    safetensors.write(path, layout, held.items(), {"format": "pt"})


def configure(path, **keys):
    body = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in body.items() if value != "absent"}))


def test_both_layouts_of_v3_merge_to_the_same_weights():
    with Checkpoint(made.checkpoint("v3")) as a, Checkpoint(made.checkpoint("v3-native")) as b:
        assert set(a.tasks) == set(b.tasks) == set(tiny_v3_and_rerankers.V3_TASKS)
        for task in (*a.tasks, "none", None):
            for (name, mine), (other, theirs) in zip(a.merged(task), b.merged(task), strict=True):
                assert name == other
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("task", tiny_v3_and_rerankers.V3_TASKS)
def test_the_factors_inside_a_checkpoint_by_hand(task):
    """Linear: B A; both tables: A B. A quarter of it, from the task's own place on the leading axis."""
    stored, n = tensors(made.checkpoint("v3") / "model.safetensors"), tiny_v3_and_rerankers.V3_TASKS.index(task)
    with Checkpoint(made.checkpoint("v3")) as checkpoint:
        held = dict(checkpoint.merged(task))
        targets = architecture.adaptable(checkpoint.arch)
        with checkpoint.adapter(task) as adapter:
            assert adapter.targets == tuple(targets)
            assert (adapter.rank, adapter.alpha, adapter.scale) == (4, 1.0, 0.25)
    assert {TABLE, TYPES, QKV, FC1} < set(targets)
    for name in targets:
        stem = f"roberta.{name.removesuffix('.weight')}.parametrizations.weight"
        base, a, b = (stored[f"{stem}.{x}"] for x in ("original", "0.lora_A", "0.lora_B"))
        delta = 0.25 * (a[n] @ b[n] if name in (TABLE, TYPES) else b[n] @ a[n])
        np.testing.assert_allclose(held[name], base + delta, atol=2e-6)
        assert np.abs(delta).mean() > 0.05 * np.abs(base).mean()


def test_the_factors_of_peft_by_hand():
    """PEFT keeps a table's factors for the transposed table, and q, k and v apart."""
    folder, task = made.checkpoint("v3-native"), "text-matching"
    stored = tensors(folder / "text_matching" / "adapter_model.safetensors")
    base = tensors(folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint:
        held = dict(checkpoint.merged(task))
    for name in (TABLE, TYPES):
        stem = "base_model.model." + name.removesuffix(".weight")
        a, b = (stored[f"{stem}.lora_embedding_{x}"] for x in "AB")
        assert (a.shape[0], b.shape[1]) == (4, 4)
        np.testing.assert_allclose(held[name], base[f"roberta.{name}"] + 0.25 * (b @ a).T, atol=2e-6)
    parts = [stored[NATIVE_QKV.format(x, "B")] @ stored[NATIVE_QKV.format(x, "A")] for x in "qkv"]
    np.testing.assert_allclose(held[QKV], base[f"roberta.{QKV}"] + 0.25 * np.concatenate(parts), atol=2e-6)


def test_q_k_and_v_with_an_a_each(tmp_path):
    folder = tiny_v3_and_rerankers.write(tmp_path / "own", "v3-native", own_factors=True, tasks=("separation",))
    stored = tensors(folder / "separation" / "adapter_model.safetensors")
    a, b = ({x: stored[NATIVE_QKV.format(x, letter)] for x in "qkv"} for letter in "AB")
    assert not np.array_equal(a["q"], a["k"])
    with Checkpoint(folder) as checkpoint, checkpoint.adapter("separation") as adapter:
        merged, first, second = dict(checkpoint.merged("separation"))[QKV], *adapter.factors(QKV)
        base = checkpoint.tensor(QKV)
        assert [x.shape for x in adapter.factors(FC1)] == [(4, 256), (512, 4)]
    assert (first.shape, second.shape) == ((12, 256), (768, 12))
    delta = 0.25 * np.concatenate([b[x] @ a[x] for x in "qkv"])
    np.testing.assert_allclose(merged, base + delta, atol=2e-6)
    np.testing.assert_allclose(0.25 * (second @ first), delta, atol=2e-6)


def test_names_of_the_checkpoint_itself_are_read_too(copy):
    """An adapter made for the fused names, as a script over the published checkpoint would write it."""
    folder = copy("v3-native")
    with Checkpoint(folder) as checkpoint:
        expected = dict(checkpoint.merged("separation"))

    def fuse(held):
        out = {}
        for name, data in held.items():
            if ".self_attn.k_proj" in name or ".self_attn.v_proj" in name:
                continue
            if ".self_attn.q_proj" in name and "lora_B" in name:
                data = np.concatenate([held[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            name = name.replace("self_attn.q_proj", "mixer.Wqkv").replace("self_attn.o_proj", "mixer.out_proj")
            out[name.replace("model.layers.", "model.roberta.encoder.layers.")] = data
        return out

    rewrite(folder / "separation" / "adapter_model.safetensors", fuse)
    with Checkpoint(folder) as checkpoint:
        for name, data in checkpoint.merged("separation"):
            np.testing.assert_array_equal(data, expected[name])


def test_v5s_folders_by_hand():
    stored = tensors(made.checkpoint("nano") / "adapters" / "clustering" / "adapter_model.safetensors")
    name = "layers.1.mlp.down_proj"
    a, b = (stored[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    with Checkpoint(made.checkpoint("nano")) as checkpoint:
        assert checkpoint.adapter_place("clustering") == made.checkpoint("nano") / "adapters" / "clustering"
        held, base = dict(checkpoint.merged("clustering")), checkpoint.tensor(f"{name}.weight")
    np.testing.assert_allclose(held[f"{name}.weight"], base + b @ a, atol=2e-6)


def test_where_the_files_of_an_adapter_are():
    with Checkpoint(made.checkpoint("v3")) as inside, Checkpoint(made.checkpoint("v3-native")) as beside:
        assert inside.adapter_files("separation") == []
        assert inside.adapter_place("separation") == inside.folder
        assert beside.adapter_place("retrieval.query") == beside.folder / "retrieval_query"
        names = [path.name for path in beside.adapter_files("retrieval.query")]
        assert names == ["adapter_config.json", "adapter_model.safetensors"]


def test_none_is_the_base_and_other_words_are_no_adapters():
    with Checkpoint(made.checkpoint("v3")) as checkpoint:
        np.testing.assert_array_equal(dict(checkpoint.merged("none"))[TYPES], checkpoint.tensor(TYPES))
        for word in ("retrieval", "none", "retrieval_query"):
            with pytest.raises(UsageError, match=rf"no adapter for task '{word}' .* There: retrieval.query, "):
                checkpoint.adapter(word)


def test_fewer_tasks_inside_are_taken_in_the_published_order(tmp_path):
    folder = tiny.write(tmp_path / "two", "v3", tasks=("separation", "text-matching"))
    with Checkpoint(folder) as two, Checkpoint(made.checkpoint("v3")) as five:
        assert two.tasks == ("separation", "text-matching")
        for task in two.tasks:
            np.testing.assert_array_equal(dict(two.merged(task))[TABLE], dict(five.merged(task))[TABLE])


def drop(*ends):
    return lambda held: {name: data for name, data in held.items() if not name.endswith(ends)}


def stretch(end):
    return lambda held: {n: np.concatenate([d, d]) if n.endswith(end) else d for n, d in held.items()}


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (drop("fc1.parametrizations.weight.0.lora_A"), {}, "2 missing: encoder.layers.0.mlp.fc1.weight|A"),
        (stretch("layers.0.mlp.fc2.parametrizations.weight.0.lora_B"), {}, "1 of another shape: .*fc2.weight|B"),
        (None, {"lora_adaptations": list(tiny_v3_and_rerankers.V3_TASKS[:3])}, "of another shape"),
        (None, {"lora_adaptations": []}, "its config names no tasks for them"),
        (None, {"lora_adaptations": "absent"}, "its config names no tasks for them"),
        (None, {"lora_rank": 8}, "of another shape"),
        (None, {"lora_rank": 0}, "rank"),
        (None, {"lora_alpha": "1"}, "alpha"),
        (None, {"lora_alpha": "absent"}, "alpha"),
        (None, {"lora_alpha": 2}, "lora_alpha is 2; jina-embeddings-v3 was trained with 1"),
        (
            None,
            {"lora_adaptations": list(tiny_v3_and_rerankers.V3_TASKS[::-1])},
            "is text-matching, classification, .*; the factors stand in the order retrieval.query, ",
        ),
        (None, {"lora_adaptations": [*tiny_v3_and_rerankers.V3_TASKS[:4], "separation"]}, "the factors stand in"),
    ],
)
def test_damage_inside_a_checkpoint(copy, change, keys, message):
    folder = copy("v3")
    if change:
        rewrite(folder / "model.safetensors", change)
    configure(folder / "config.json", **keys)
    with pytest.raises(ModelDamaged, match=message), Checkpoint(folder) as checkpoint:
        checkpoint.adapter("separation")


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (drop("layers.0.self_attn.q_proj.lora_A.weight"), {}, "1 missing: encoder.layers.0.mixer.Wqkv.q.lora_A"),
        (
            drop("layers.0.self_attn.k_proj.lora_A.weight", "layers.0.self_attn.k_proj.lora_B.weight"),
            {},
            "factors for some of q, k and v only",
        ),
        (drop("lora_embedding_B"), {}, "2 missing: embeddings.token_type_embeddings.lora_embedding_B"),
        (stretch("word_embeddings.lora_embedding_A"), {}, "1 of another shape"),
        (lambda held: {**held, "base_model.model.lm_head.lora_A.weight": np.ones((4, 4), np.float32)}, {}, "unknown"),
        (
            lambda held: {**held, "roberta.layers.0.mlp.fc1.lora_A.weight": np.ones((4, 256), np.float32)},
            {},
            "a factor is there twice",
        ),
        (lambda held: {n: d * np.nan if "fc2" in n else d for n, d in held.items()}, {}, "NaN or infinite"),
        (lambda held: {"pooler.dense.lora_A.weight": np.ones((4, 256), np.float32)}, {}, "holds no LoRA factors"),
        (None, {"use_rslora": True}, "use_rslora is True; only plain LoRA"),
        (None, {"modules_to_save": ["embeddings"]}, "modules_to_save"),
        (None, {"r": 8}, "of another shape"),
    ],
)
def test_damage_in_a_folder_of_the_native_layout(copy, change, keys, message):
    folder = copy("v3-native")
    if change:
        rewrite(folder / "separation" / "adapter_model.safetensors", change)
    configure(folder / "separation" / "adapter_config.json", **keys)
    with Checkpoint(folder) as checkpoint, pytest.raises(ModelDamaged, match=message):
        dict(checkpoint.merged("separation"))


def test_a_base_under_two_names_is_refused(copy):
    folder = copy("v3")
    name = "roberta.encoder.layers.0.mlp.fc1"
    twin = f"{name}.parametrizations.weight.original"
    rewrite(folder / "model.safetensors", lambda held: {**held, f"{name}.weight": held[twin]})
    with pytest.raises(ModelDamaged, match="is there twice"):
        Checkpoint(folder)


def test_what_is_left_out_is_listed():
    with Checkpoint(made.checkpoint("v3")) as checkpoint:
        assert {name.split(".")[1] for name in checkpoint.dropped} == {"pooler"}
        assert len(checkpoint.dropped) == 4
