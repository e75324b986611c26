"""convert verify on v3 and the rerankers: right files pass, and each thing that can be wrong is found by its step.

The plain run judges few and short texts, the slow run (`-m slow`) the right files on all texts.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from convert.verify import cases
from convert.verify.verify import FLOORS, floor_of, verify
from jina_local import registry
from jina_local.errors import ModelDamaged
from jina_local.formats import manifest, safetensors
from jina_local.formats.files import sha256
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.store import find
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny, tiny_v3_and_rerankers

STEPS = {"reranker-v2": ("ids", "rows", "ranking")}  # a logit has no direction
FORMS = [pytest.param("checkpoint", marks=pytest.mark.mlx), pytest.param(32, marks=pytest.mark.mlx),
         pytest.param("F32", marks=pytest.mark.llama)]  # fmt: skip


pytestmark = pytest.mark.usefixtures("judged_texts")
ALSO_WHOLE_TEXTS = pytest.mark.parametrize(
    "judged_texts", ["short", pytest.param("whole", marks=pytest.mark.slow)], indirect=True
)


def judged(out, against):
    _, findings = verify(out, against)
    return {task: {f.step: f.ok for f in findings if f.task == task} for task in {f.task for f in findings}}


@pytest.mark.sampled
@ALSO_WHOLE_TEXTS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["reranker-v3", "reranker-v2"])
def test_right_rerankers_pass_every_step(kind, form):
    found = judged(made.reranker(kind, form), made.checkpoint(kind))
    assert found == {"rerank": dict.fromkeys(STEPS.get(kind, ("ids", "rows", "vectors", "ranking")), True)}


@pytest.mark.sampled
@ALSO_WHOLE_TEXTS
@pytest.mark.parametrize("form", ["checkpoint", "F32"])
def test_every_task_of_v3_passes_with_its_own_prompt(form):
    pytest.importorskip("mlx.core" if form == "checkpoint" else "llama_cpp")
    found = judged(made.v3("v3", form), made.checkpoint("v3"))
    right = {"ids": True, "rows": True, "vectors": True, "ranking": True}
    assert found == dict.fromkeys([*tiny_v3_and_rerankers.V3_TASKS, "none"], right)


@pytest.mark.llama
def test_one_layout_of_v3_is_judged_against_the_other():
    found = judged(made.v3("v3", "F32"), made.checkpoint("v3-native"))
    assert all(all(steps.values()) for steps in found.values())


@pytest.mark.mlx
def test_two_tasks_of_v3_in_each_others_place(tmp_path):
    """Nothing but the comparison can tell: shapes, names and digests are right."""
    wrong = tmp_path / "wrong"
    shutil.copytree(made.checkpoint("v3"), wrong)
    others = [0, 1, 4, 3, 2]  # the axis of tasks, two of them exchanged
    rewrite(wrong / "model.safetensors", lambda name, data: data[others] if ".lora_" in name else data)
    found = judged(made.v3("v3", 32), wrong)
    assert {task for task, steps in found.items() if not all(steps.values())} == {"separation", "text-matching"}
    assert found["separation"]["ids"]
    assert not found["separation"]["rows"]
    assert not found["separation"]["vectors"]


@pytest.mark.mlx
@pytest.mark.parametrize("part", ["token_type", "Wqkv.bias", "norm2.bias"])
def test_a_small_part_of_v3_that_is_missing(part, tmp_path):
    """One task, none of whose tensors but one kind differs, set to zero."""
    wrong = shutil.copytree(made.v3("v3", 32) / "separation", tmp_path / "wrong")
    rewrite(wrong / "model.safetensors", lambda name, data: data * 0 if part in name else data)
    body = json.loads((wrong / manifest.NAME).read_text())
    body["files"]["model.safetensors"]["bytes"] = (wrong / "model.safetensors").stat().st_size
    (wrong / manifest.NAME).write_text(json.dumps(body))
    steps = judged(wrong, made.checkpoint("v3"))["separation"]
    assert (steps["ids"], steps["rows"], steps["vectors"]) == (True, False, False)


@pytest.mark.mlx
def test_another_projector_is_found_by_the_vectors_alone(tmp_path):
    wrong = shutil.copytree(made.reranker("reranker-v3", 32), tmp_path / "wrong")
    rewrite(wrong / "projector.safetensors", lambda name, data: data[::-1] if "0" in name else data)
    body = json.loads((wrong / manifest.NAME).read_text())
    body["files"]["projector.safetensors"]["sha256"] = sha256(wrong / "projector.safetensors")
    (wrong / manifest.NAME).write_text(json.dumps(body))
    steps = judged(wrong, made.checkpoint("reranker-v3"))["rerank"]
    # Any random projector keeps the order of these states; the vectors tell.
    assert (steps["ids"], steps["rows"], steps["vectors"]) == (True, True, False)


@pytest.mark.mlx
def test_another_classifier_is_found(tmp_path):
    wrong = shutil.copytree(made.reranker("reranker-v2", 32), tmp_path / "wrong")
    rewrite(wrong / "model.safetensors", lambda name, data: -data if "out_proj.weight" in name else data)
    steps = judged(wrong, made.checkpoint("reranker-v2"))["rerank"]
    assert steps == {"ids": True, "rows": False, "ranking": False}


@pytest.mark.mlx
def test_a_prompt_that_is_tokenised_otherwise_stops_at_the_ids(tmp_path):
    wrong = shutil.copytree(made.checkpoint("reranker-v3"), tmp_path / "wrong")
    body = json.loads((wrong / "tokenizer.json").read_text())
    next(t for t in body["added_tokens"] if t["content"] == "<|im_start|>")["content"] = "<|another|>"
    (wrong / "tokenizer.json").write_text(json.dumps(body))
    assert judged(made.reranker("reranker-v3", 32), wrong) == {"rerank": {"ids": False}}


@pytest.mark.mlx
def test_a_tokenizer_without_the_marks_is_refused(tmp_path):
    wrong = shutil.copytree(made.checkpoint("reranker-v3"), tmp_path / "wrong")
    tiny.tokenizer("small").save(str(wrong / "tokenizer.json"))
    with pytest.raises(ModelDamaged, match=r"has no token <\|embed_token\|>"):
        verify(made.reranker("reranker-v3", 32), wrong)


@pytest.mark.llama
def test_only_float32_files_with_the_half_precision_gelu_have_another_floor():
    floors = {kind: floor_of(*opened(kind)) for kind in ("reranker-v2", "reranker-v3", "small")}
    assert floors == {"reranker-v2": 0.99999, "reranker-v3": 0.999999, "small": 0.999999}


def opened(kind):
    out = made.gguf(kind) if kind == "small" else made.reranker(kind, "F32")
    with Checkpoint(made.checkpoint(kind)) as checkpoint:
        return find.find(out, backend="llama", weights="F32"), checkpoint.arch


def test_labels_without_a_floor_are_below_four_bits():
    assert {"F32", "Q8_0", "Q4_K_M", "4bit", "32bit"} <= FLOORS.keys()
    assert "Q2_K" not in FLOORS


def test_what_is_run_for_each_model():
    v3, v5 = (registry.lookup(name).spec for name in ("v3", "v5-nano"))
    prompted, bare = (cases.of(v3, t).passes(Tokenizer.from_file(made.checkpoint("v3") / "tokenizer.json"))
                      for t in ("retrieval.query", "separation"))  # fmt: skip
    assert len(prompted) == len(bare) == len(cases.QUERIES) + len(cases.DOCUMENTS)
    for long, short in zip(prompted, bare, strict=True):
        assert len(long.ids) > len(short.ids)
        np.testing.assert_array_equal(long.rows, np.arange(len(long.ids)))  # the mean is taken over all of them
    last = cases.of(v5, "clustering").passes(Tokenizer.from_file(made.checkpoint("nano") / "tokenizer.json"))
    assert [batch.rows.tolist() for batch in last] == [[len(batch.ids) - 1] for batch in last]


def rewrite(path, change):
    with SafetensorsFile(path) as file:
        held = {name: np.ascontiguousarray(change(name, file.read_f32(name))) for name in file.tensors}
        metadata = file.metadata
    path.unlink()
    safetensors.write(path, {n: ("F32", d.shape) for n, d in held.items()}, held.items(), metadata)
