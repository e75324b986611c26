"""merge and mlx on jina-embeddings-v3 and on the rerankers: what is written, who else loads it, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from convert import source
from convert.merge import merge
from convert.mlx.folders import to_mlx
from convert.verify.reference import hidden_states
from jina_local.errors import UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.spec import NO_TASK, RERANK
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, projector
from jina_local.weights.adapters import mlx_file as format_
from jina_local.weights.adapters import published
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny_v3_and_rerankers
from tests.convert.test_mlx_folders import _MLX_LM
from tests.oracle import cosines

TASKS = tiny_v3_and_rerankers.V3_TASKS
RERANKERS = ("reranker-v3", "reranker-v2")
TEXTS = ["Which planet is the largest?", "x", "naïve café " * 9, "", "Jupiter, by far."]


@pytest.fixture(scope="module", params=["v3", "v3-native"])
def layout(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def merged(layout, tmp_path_factory):
    """Every adapter and the base alone, one folder each."""
    out = tmp_path_factory.mktemp(layout) / "merged"
    merge(made.checkpoint(layout), out, tasks=["all", NO_TASK], dtype="F32", source_name=layout)
    return out


def choose(kind: str, *wanted: str) -> list[str]:
    with Checkpoint(made.checkpoint(kind)) as checkpoint:
        return source.choose_tasks(checkpoint, wanted)


def test_words_for_tasks(layout):
    assert choose(layout, "all") == list(TASKS)
    assert choose(layout, "all", NO_TASK) == [*TASKS, NO_TASK]
    assert choose(layout, NO_TASK) == [NO_TASK]
    assert sorted(choose(layout, "retrieval")) == ["retrieval.passage", "retrieval.query"]
    assert choose(layout, "clustering", "separation") == ["separation"]
    with pytest.raises(UsageError, match=r"no task given\. .*: retrieval\.query, .*, none, or all but none"):
        choose(layout)
    with pytest.raises(UsageError, match=r"unknown task 'search'; .* text-matching, none, or all but none"):
        choose(layout, "search")


@pytest.mark.parametrize("kind", RERANKERS)
def test_a_reranker_has_one_task_named_or_not(kind):
    assert choose(kind) == choose(kind, "all") == choose(kind, RERANK) == [RERANK]
    with pytest.raises(UsageError, match=r"unknown task 'retrieval': jina-reranker-v\d.* has 'rerank'"):
        choose(kind, "retrieval")


# merge


def expected(task: str, prompt: str) -> np.ndarray:
    """Unit means of all tokens, by the plain reference on the original layout."""
    folder = made.checkpoint("v3")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    with Checkpoint(folder) as checkpoint:
        weights = dict(checkpoint.merged(task))
        rows = [hidden_states(checkpoint.arch, weights, tokenizer.ids(prompt + t)).mean(axis=0) for t in TEXTS]
    return np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.sampled
def test_merged_is_one_plain_model_for_either_layout(merged):
    top = manifest.load(merged)
    assert {e.task for e in top.files.values() if e.task} == {*TASKS, NO_TASK}
    with Checkpoint(made.checkpoint("v3")) as original:
        for task in (*TASKS, NO_TASK):
            with Checkpoint(merged / task) as plain:
                assert plain.tasks == ()
                assert plain.arch == original.arch
                assert source.choose_tasks(plain, ["all"]) == [task]
                for (name, a), (_, b) in zip(plain.merged(None), original.merged(task), strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
            config = json.loads((merged / task / "config.json").read_text())
            foreign = [key for key in config if key.startswith(("lora", "rotary", "task", "auto_map", "use_flash"))]
            assert (config["model_type"], config["rope_theta"], foreign) == ("jina_embeddings_v3", 20000.0, [])


@pytest.mark.sampled
@pytest.mark.reference
@pytest.mark.parametrize("task", ["retrieval.query", "separation", NO_TASK])
def test_transformers_loads_it_without_remote_code(merged, task):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(merged / task, dtype=torch.float32, trust_remote_code=False).eval()
    assert type(model).__name__ == "JinaEmbeddingsV3Model"
    tokenizer = Tokenizer.from_file(merged / task / "tokenizer.json")
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            rows.append(model(torch.tensor([tokenizer.ids(text)])).last_hidden_state[0].mean(0).numpy())
    assert cosines(np.stack(rows), expected(task, "")).min() > 0.999999


@pytest.mark.sampled
@pytest.mark.reference
def test_sentence_transformers_loads_it_with_prompts_and_pooling(merged):
    st = pytest.importorskip("sentence_transformers")
    query, passage = (tiny_v3_and_rerankers.V3_PROMPTS[f"retrieval.{x}"] for x in ("query", "passage"))
    model = st.SentenceTransformer(str(merged / "retrieval.query"), device="cpu", trust_remote_code=False)
    theirs = expected("retrieval.query", query)
    np.testing.assert_allclose(model.encode(TEXTS), theirs, atol=2e-5)
    np.testing.assert_allclose(model.encode_query(TEXTS), theirs, atol=2e-5)
    assert model.max_seq_length == tiny_v3_and_rerankers.SIZES["v3"]["max_position_embeddings"]
    model = st.SentenceTransformer(str(merged / "retrieval.passage"), device="cpu", trust_remote_code=False)
    np.testing.assert_allclose(model.encode_document(TEXTS), expected("retrieval.passage", passage), atol=2e-5)
    model = st.SentenceTransformer(str(merged / "classification"), device="cpu", trust_remote_code=False)
    np.testing.assert_allclose(model.encode(TEXTS), expected("classification", ""), atol=2e-5)


def test_a_folder_has_the_prompts_of_its_own_task_alone(merged):
    def prompts(task: str) -> dict[str, object]:
        return json.loads((merged / task / "config_sentence_transformers.json").read_text())

    query = tiny_v3_and_rerankers.V3_PROMPTS["retrieval.query"]
    assert prompts("retrieval.query")["prompts"] == {"retrieval.query": query, "query": query}
    assert prompts("retrieval.query")["default_prompt_name"] == "retrieval.query"
    assert set(prompts("retrieval.passage")["prompts"]) == {"retrieval.passage", "passage", "document"}
    assert prompts(NO_TASK)["prompts"] == {NO_TASK: ""}


def test_a_merged_folder_is_converted_as_the_task_that_it_is(merged, layout, tmp_path):
    to_mlx(merged / "separation", tmp_path / "a", tasks=["clustering"], bits=8)
    to_mlx(made.checkpoint(layout), tmp_path / "b", tasks=["clustering"], bits=8)
    with (
        SafetensorsFile(tmp_path / "a/model.safetensors") as a,
        SafetensorsFile(tmp_path / "b/model.safetensors") as b,
    ):
        assert a.tensors == b.tensors
        for name in a.tensors:
            np.testing.assert_array_equal(a.read(name), b.read(name), err_msg=name)
    assert manifest.load(tmp_path / "a").files["model.safetensors"].task == "separation"


@pytest.mark.parametrize("kind", RERANKERS)
def test_a_reranker_has_nothing_to_merge(kind, tmp_path):
    with pytest.raises(
        UsageError, match="jina-reranker-.* has no adapters to merge: its published checkpoint is what"
    ):
        merge(made.checkpoint(kind), tmp_path / "out", tasks=[RERANK])
    with pytest.raises(UsageError, match="has no adapters to keep beside a base. Leave --adapters separate out"):
        to_mlx(made.checkpoint(kind), tmp_path / "out", tasks=[], bits=8, separate=True)
    assert not (tmp_path / "out").exists()


# mlx


@pytest.mark.parametrize("kind", ["v3", *RERANKERS])
@pytest.mark.parametrize("bits", [4, 16])
def test_layout_of_a_folder(kind, bits, tmp_path):
    folder, out = made.checkpoint(kind), tmp_path / "out"
    task = "separation" if kind == "v3" else RERANK
    to_mlx(folder, out, tasks=[task], bits=bits)
    config = json.loads((out / "config.json").read_text())
    with Checkpoint(folder) as checkpoint:
        arch, dropped = checkpoint.arch, len(checkpoint.tasks)
    assert architecture.from_config(config) == arch
    names = {"v3": "JinaEmbeddingsV3Model", "reranker-v3": "JinaForRanking",
             "reranker-v2": "XLMRobertaForSequenceClassification"}  # fmt: skip
    assert config["architectures"] == [names[kind]]
    codes = {arch.table, *architecture.projections(arch)} if bits == 4 else set()
    prefix = "model." if kind == "reranker-v3" else "roberta."
    with SafetensorsFile(out / "model.safetensors") as file:
        found = {name: tensor.dtype for name, tensor in file.tensors.items()}
    stored = {n: n if n.startswith("classifier.") else prefix + n for n in architecture.tensors(arch)}
    assert {n for n in stored if found[stored[n]] == "U32"} == codes
    parts = {f"{stored[n].removesuffix('weight')}{part}" for n in codes for part in ("scales", "biases")}
    assert {name for name in found if found[name] == "F16"} == {stored[n] for n in stored if n not in codes} | parts
    if bits == 4:
        table = stored[arch.table].removesuffix(".weight")
        assert {k: v["bits"] for k, v in config["quantization"].items() if isinstance(v, dict)} == {table: 8}
    body = manifest.load(out)
    assert manifest.verify(out) == []
    assert {n: e.task for n, e in body.files.items() if e.task or e.weights} == {"model.safetensors": task}
    assert (projector.FILE in body.files) == (kind == "reranker-v3")
    assert bool(dropped) == (kind == "v3")


def test_a_projector_beside_the_weights_is_carried_over(tmp_path):
    """Published files of other makers have it there, under other names."""
    copy = shutil.copytree(made.checkpoint("reranker-v3"), tmp_path / "src")
    found = projector.read(copy, 256)
    halved = dict(zip(projector.NAMINGS[1], (found.first / 2, found.second / 2), strict=True))
    layout = {name: ("F32", data.shape) for name, data in halved.items()}
    safetensors.write(copy / projector.FILE, layout, halved.items(), {})
    to_mlx(copy, tmp_path / "out", tasks=[], bits=8)
    with SafetensorsFile(tmp_path / "out" / projector.FILE) as file:
        assert set(file.tensors) == set(projector.NAMINGS[0])
    np.testing.assert_array_equal(projector.read(tmp_path / "out" / projector.FILE, 256).first, found.first / 2)
    assert projector.FILE in manifest.load(tmp_path / "out").source.files


@pytest.mark.slow
@pytest.mark.mlx
@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx_lm is not installed")
def test_mlx_lm_loads_the_listwise_reranker(tmp_path):
    folders = {bits: tmp_path / f"out{bits}" for bits in (4, 8, 32)}
    for bits, folder in folders.items():
        to_mlx(made.checkpoint("reranker-v3"), folder, tasks=[], bits=bits)
    ids = np.random.default_rng(0).integers(0, 500, 37)
    np.save(tmp_path / "ids.npy", ids)
    command = [sys.executable, "-W", "ignore", "-c", _MLX_LM, tmp_path / "ids.npy", *folders.values()]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "MLX_DISABLE_COMPILE": "1"})
    from jina_local.backends.mlx import MlxBackend
    from tests.backends.test_mlx import batch

    for folder in folders.values():
        backend = MlxBackend(folder, device="cpu")
        np.testing.assert_allclose(
            backend.forward(batch([ids], "all")), np.load(tmp_path / f"{folder.name}.npy"), atol=2e-5
        )
        backend.close()


# mlx --adapters separate


@pytest.mark.sampled
@pytest.mark.parametrize("bits", [8, 32])
def test_the_adapters_of_v3_hold_the_factors_of_the_tables_too(layout, bits, tmp_path):
    to_mlx(made.checkpoint(layout), tmp_path / "out", tasks=["all", NO_TASK], bits=bits, separate=True)
    body = manifest.load(tmp_path / "out")
    assert {entry.task for entry in body.adapters.values()} == set(TASKS)
    with Checkpoint(made.checkpoint(layout)) as checkpoint:
        arch, digest = checkpoint.arch, source.base_digest(checkpoint)
        for task in TASKS:
            path = tmp_path / f"out/adapters/{task}.safetensors"
            with SafetensorsFile(path) as file, checkpoint.adapter(task) as adapter:
                header = format_.parse(file.metadata, str(path))
                assert (header.rank, header.alpha, header.base, header.task) == (4, 1.0, digest, task)
                assert header.prompts[header.default_prompt] == tiny_v3_and_rerankers.V3_PROMPTS[task]
                assert len(file.tensors) == 2 * len(architecture.adaptable(arch))
                for name in architecture.adaptable(arch):
                    for letter, factor in zip("AB", adapter.factors(name) or (), strict=True):
                        mine = file.read_f32(f"{name.removesuffix('.weight')}.lora_{letter}")
                        half = factor.astype(np.float32 if bits == 32 else np.float16)
                        np.testing.assert_array_equal(mine, half, err_msg=name)
    with SafetensorsFile(tmp_path / f"out/adapters/{TASKS[0]}.safetensors") as file:
        table = {x: file.tensors[f"embeddings.word_embeddings.lora_{x}"].shape for x in "AB"}
    assert table == {"A": (4, arch.hidden), "B": (arch.vocab, 4)}


def test_q_k_and_v_with_an_a_each_are_three_times_the_rank(tmp_path):
    folder = tiny_v3_and_rerankers.write(tmp_path / "src", "v3-native", tasks=("separation",), own_factors=True)
    to_mlx(folder, tmp_path / "out", tasks=["all"], bits=16, separate=True)
    with SafetensorsFile(tmp_path / "out/adapters/separation.safetensors") as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    assert shapes["encoder.layers.0.mixer.Wqkv.lora_A"] == (12, 256)
    assert shapes["encoder.layers.0.mixer.Wqkv.lora_B"] == (768, 12)
    assert shapes["encoder.layers.0.mixer.out_proj.lora_A"] == (4, 256)
    assert (folder / "separation" / published.CONFIG).exists()


def test_the_base_alone_has_no_adapter_file(tmp_path):
    with pytest.raises(UsageError, match="task 'none' is the base without an adapter"):
        to_mlx(made.checkpoint("v3"), tmp_path / "out", tasks=[NO_TASK], bits=8, separate=True)
    assert not (tmp_path / "out").exists()
