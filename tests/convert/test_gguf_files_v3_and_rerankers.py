"""v3 and the rerankers -> GGUF: tensors, keys, what stays exact, the projector, stock llama.cpp, and refusals."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.gguf import engine
from convert.gguf.files import to_gguf
from convert.verify import reference
from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.gguf import plain, read_header
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.spec import RERANK
from jina_local.store import find
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, projector, tensor_names
from jina_local.weights.architecture import POSITION_OFFSET
from jina_local.weights.checkpoint import Checkpoint

from .. import tiny
from .test_gguf_files import llama_ids

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'jina_local[convert]'")
pytestmark = pytest.mark.llama

KINDS = ("v3", "reranker-v3", "reranker-v2")
ARCHITECTURES = {"v3": "jina-bert-v3", "reranker-v3": "qwen3", "reranker-v2": "bert"}
MODELS = {
    "v3": "jina-embeddings-v3",
    "reranker-v3": "jina-reranker-v3",
    "reranker-v2": "jina-reranker-v2-base-multilingual",
}
TYPES = {"F32": 0.0, "F16": 3e-4, "Q8_0": 0.007, "Q4_K_M": 0.085}
ADAPTERS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
# What is a table row or a head, and stays float32 in every type.
WHOLE = ("token_types.weight", "position_embd.weight", "cls.output.weight")
TEXTS = "A first text to read.\nAnother one, about the largest planet of the solar system.\n\nAnd a third."


@pytest.fixture(scope="module", params=KINDS)
def converted(request, tmp_path_factory):
    """(kind, source, output)."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    source = tiny.write(folder / "source", kind)
    tasks = ["retrieval"] if kind == "v3" else []
    to_gguf(source, folder / "out", tasks=tasks, types=list(TYPES), revision="abc", source_name="tiny")
    return kind, source, folder / "out"


def path_of(kind: str, out: Path, label: str, task: str = "retrieval.query") -> Path:
    return out / (f"v3-{task}-{label}.gguf" if kind == "v3" else f"{MODELS[kind]}-{label}.gguf")


def merged(kind: str, source: Path, task: str | None = "retrieval.query") -> dict[str, np.ndarray]:
    with Checkpoint(source) as checkpoint:
        return dict(checkpoint.merged(task if kind == "v3" else None))


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor in float32 under its GGUF name, as gguf's own reader gives it."""
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        for t in gguf.GGUFReader(path).tensors
    }


@pytest.mark.sampled
def test_the_folder_holds_what_its_manifest_says(converted):
    kind, _, out = converted
    found = manifest.load(out)
    assert manifest.verify(out) == []
    assert (found.form, found.model, found.source.revision) == ("gguf", MODELS[kind], "abc")
    tasks = ["retrieval.query", "retrieval.passage"] if kind == "v3" else [RERANK]
    for task in tasks:
        entry = found.files[path_of(kind, out, "Q4_K_M", task).name]
        assert (entry.task, entry.weights) == (task, "Q4_K_M")
    beside = {"tokenizer.json", "config.json"} | ({projector.FILE} if kind == "reranker-v3" else set())
    assert {name for name, entry in found.files.items() if not entry.weights} == beside
    assert len(found.files) == len(TYPES) * len(tasks) + len(beside)
    assert found.serves == {label: set(tasks) for label in TYPES}
    assert sorted(p.name for p in out.parent.iterdir()) == ["out", "source"]


def test_the_runtime_finds_what_was_written(converted):
    kind, _, out = converted
    found = find.find(out)
    assert (found.model.name, found.label, found.form) == (MODELS[kind], "Q8_0", "gguf")
    tasks = {"retrieval.query", "retrieval.passage"} if kind == "v3" else {RERANK}
    assert set(found.files) == tasks
    assert found.projector == (out / projector.FILE if kind == "reranker-v3" else None)
    one = find.find(path_of(kind, out, "Q4_K_M"))
    assert (one.model.name, one.label) == (MODELS[kind], "Q4_K_M")
    assert find.find(out, weights="F16").label == "F16"


def test_the_float32_file_holds_the_merged_weights_bit_for_bit(converted):
    kind, source, out = converted
    path = path_of(kind, out, "F32")
    header, raw = read_header(path), path.read_bytes()
    with Checkpoint(source) as checkpoint:
        renamed = tensor_names.gguf_names(checkpoint.arch)
        assert {n: t.shape for n, t in header.tensors.items()} == tensor_names.gguf_shapes(checkpoint.arch)
    stored = merged(kind, source)
    assert set(header.tensors) == {renamed[name] for name in stored}
    for name, data in stored.items():
        place = header.tensors[renamed[name]]
        data = data[POSITION_OFFSET:] if "position_embeddings" in name else data
        assert raw[place.start : place.start + place.nbytes] == data.tobytes(), name


def test_every_type_reads_back_close_and_what_is_small_stays_exact(converted):
    kind, _, out = converted
    exact = read(path_of(kind, out, "F32"))
    for label, bound in TYPES.items():
        path = path_of(kind, out, label)
        header, found = read_header(path), read(path)
        assert header.weights == label
        assert found.keys() == exact.keys()
        for name, data in exact.items():
            assert plain(found[name].shape) == plain(data.shape)
            small = data.ndim == 1 or name in WHOLE or (name == "cls.weight" and label not in ("F16",))
            if small:
                assert np.array_equal(found[name].reshape(data.shape), data), f"{label} {name}"
            else:
                error = float(np.sqrt(np.mean((found[name] - data) ** 2) / np.mean(data**2)))
                assert error <= bound, f"{label} {name}: {error}"
                assert label == "F32" or header.tensors[name].type != "F32", name


def test_the_keys_are_complete(converted):
    kind, source, out = converted
    arch, model = ARCHITECTURES[kind], MODELS[kind]
    config = json.loads((source / "config.json").read_text())
    keys = read_header(path_of(kind, out, "Q4_K_M")).keys
    positions = config["max_position_embeddings"]
    expected = {
        "general.architecture": arch, "general.type": "model", "general.file_type": 15,
        "general.basename": model, "general.license": "cc-by-nc-4.0", "general.quantization_version": 2,
        "general.base_model.count": 1, "general.base_model.0.name": model,
        "general.base_model.0.organization": "jinaai", "general.base_model.0.version": "abc",
        "general.base_model.0.repo_url": f"https://huggingface.co/jinaai/{model}",
        f"{arch}.block_count": 2, f"{arch}.embedding_length": 256, f"{arch}.vocab_size": config["vocab_size"],
        f"{arch}.context_length": positions - 2 if kind == "reranker-v2" else positions,
        f"{arch}.feed_forward_length": config["intermediate_size"], f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": config.get("num_key_value_heads", 4),
        f"{arch}.attention.key_length": config.get("head_dim", 64),
        f"{arch}.attention.value_length": config.get("head_dim", 64),
        f"{arch}.pooling_type": {"v3": 1, "reranker-v3": 0, "reranker-v2": 4}[kind],
        "jina_local.model": model, "jina_local.task": "retrieval.query" if kind == "v3" else RERANK,
        "jina_local.tokenizer_fingerprint": manifest.load(out).tokenizer,
    }  # fmt: skip
    if kind == "v3":
        expected |= {
            "general.name": "jina-embeddings-v3-retrieval.query", "general.finetune": "retrieval.query",
            "general.tags": [b"feature-extraction", b"sentence-similarity", b"embeddings"],
            f"{arch}.rope.freq_base": 20000.0, f"{arch}.rope.scaling.type": "none",
            "jina_local.matryoshka_dims": [32, 64, 128, 256],
        }  # fmt: skip
        assert json.loads(str(keys["jina_local.prompts"]))["retrieval.passage"] == (
            "Represent the document for retrieval: "
        )
    else:
        expected |= {"general.name": model, "general.tags": [b"text-ranking", b"reranker"]}
        assert not {"general.finetune", "jina_local.prompts", "jina_local.matryoshka_dims"} & keys.keys()
    if kind == "reranker-v3":
        expected |= {f"{arch}.rope.freq_base": 1e6, f"{arch}.attention.layer_norm_rms_epsilon": pytest.approx(1e-6)}
    else:
        expected |= {f"{arch}.attention.layer_norm_epsilon": pytest.approx(1e-5), f"{arch}.attention.causal": False}
    if kind == "reranker-v2":
        expected |= {"bert.classifier.output_labels": [b"relevance"]}
        expected["jina_local.padding_position"] = merged(kind, source)["embeddings.position_embeddings.weight"][
            1
        ].tolist()
        assert "bert.rope.freq_base" not in keys
    apart = ("general.size_label", "jina_local.prompts", "jina_local.tokenizer.added_token_flags")
    assert {k: v for k, v in keys.items() if not k.startswith("tokenizer.") and k not in apart} == expected


def test_llama_cpp_reads_our_vocabulary_as_we_do(converted):
    kind, source, out = converted
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    texts = ["", "A text.", "Represent the document for retrieval: more  words", "naïve café", "a <mask> b </s> c"]
    assert llama_ids(path_of(kind, out, "Q8_0"), texts) == [tokenizer.ids(text) for text in texts]


def test_both_layouts_of_v3_give_the_same_tensors(tmp_path):
    found = {}
    for kind in ("v3", "v3-native"):
        source = tiny.write(tmp_path / kind, kind)
        to_gguf(source, tmp_path / f"{kind}-out", tasks=["separation", "none"], types=["F32", "Q8_0"])
        for task in ("separation", "none"):
            for label in ("F32", "Q8_0"):
                path = tmp_path / f"{kind}-out" / f"v3-{task}-{label}.gguf"
                raw, header = path.read_bytes(), read_header(path)
                held = {n: raw[t.start : t.start + t.nbytes] for n, t in header.tensors.items()}
                assert found.setdefault((task, label), held) == held
    assert found["none", "F32"] != found["separation", "F32"]
    weights_of = merged("v3", tmp_path / "v3", None)
    assert found["none", "F32"]["token_types.weight"] == (
        weights_of["embeddings.token_type_embeddings.weight"].tobytes()
    )


@pytest.mark.parametrize("converted", ["reranker-v3"], indirect=True)
def test_the_projector_lies_beside_in_float32(converted):
    _, source, out = converted
    with SafetensorsFile(out / projector.FILE) as file, Checkpoint(source) as checkpoint:
        held = checkpoint.projector()
        assert sorted(file.tensors) == ["projector.0.weight", "projector.2.weight"]
        for name, data in held.items():
            assert file.tensors[name].dtype == "F32"
            assert np.array_equal(file.read_f32(name), data)
    assert projector.read(find.find(out).projector, 256).first.shape[1] == 256


@pytest.mark.parametrize("converted", ["v3"], indirect=True)
def test_stock_llama_cpp_gives_v3s_vectors(converted, stock_llama):
    """The mean over all tokens, as the file says; nothing is asked for but an embedding."""
    kind, source, out = converted
    text = "Represent the query for retrieving evidence documents: which planet is the largest?"
    with engine.heard():
        stock = stock_llama(str(path_of(kind, out, "F32")), embedding=True, n_ctx=512, verbose=False)
        found = np.array(stock.embed(text, normalize=True), np.float32)
        stock.close()
    ids = Tokenizer.from_file(source / "tokenizer.json").ids(text)
    with Checkpoint(source) as checkpoint:
        states = reference.hidden_states(checkpoint.arch, merged(kind, source), ids)
    wanted = states.mean(0) / np.linalg.norm(states.mean(0))
    assert found.shape == wanted.shape
    assert found @ wanted > 0.99999


@pytest.mark.parametrize("converted", ["reranker-v2"], indirect=True)
def test_stock_llama_cpp_gives_the_pairwise_logit(converted, stock_llama):
    """RANK follows from the file; llama.cpp's GELU goes through a table of half precision."""
    kind, source, out = converted
    found = {}
    text = "which planet? Jupiter is the largest"  # the binding takes </s> for plain text, so not a pair
    with engine.heard():
        for label in TYPES:
            stock = stock_llama(str(path_of(kind, out, label)), embedding=True, n_ctx=512, verbose=False)
            # The first number is the logit; the binding reads on to the width of a state.
            found[label] = stock.embed(text, normalize=False)[0]
            stock.close()
    assert all(map(math.isfinite, found.values()))
    ids = Tokenizer.from_file(source / "tokenizer.json").ids(text)
    held = merged(kind, source)
    with Checkpoint(source) as checkpoint:
        wanted = float(reference.logits(checkpoint.arch, held, ids)[0])
    assert found["F32"] == pytest.approx(wanted, abs=5e-3)
    assert found["F16"] == pytest.approx(wanted, abs=1e-2)
    assert found["Q4_K_M"] == pytest.approx(wanted, abs=0.3)


@pytest.mark.parametrize("converted", ["reranker-v3"], indirect=True)
def test_stock_llama_cpp_gives_every_state_of_the_listwise_reranker(converted, stock_llama):
    kind, source, out = converted
    text = "a query and a passage<|embed_token|> and<|rerank_token|>"
    ids = Tokenizer.from_file(source / "tokenizer.json").ids(text)
    with engine.heard():
        stock = stock_llama(str(path_of(kind, out, "F32")), embedding=True, n_ctx=512, verbose=False)
        found = np.array(stock.embed(text, normalize=False), np.float32)
        assert llama_ids(path_of(kind, out, "F32"), [text]) == [ids]
        stock.close()
    # The binding takes the marks for plain text; what is compared are the tokens before them.
    shared = Tokenizer.from_file(source / "tokenizer.json").ids("a query and a passage")
    with Checkpoint(source) as checkpoint:
        states = reference.hidden_states(checkpoint.arch, merged(kind, source), shared)
    assert found.shape[1] == 256
    assert np.allclose(found[: len(shared) - 1], states[:-1], atol=2e-3)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_an_importance_matrix_covers_every_linear_layer(kind, tmp_path):
    source = tiny.write(tmp_path / "source", kind)
    (tmp_path / "texts").write_text(TEXTS)
    tasks = ["separation"] if kind == "v3" else []
    to_gguf(source, tmp_path / "out", tasks=tasks, types=["IQ2_XXS", "Q4_K_M"], imatrix=tmp_path / "texts")
    to_gguf(source, tmp_path / "plain", tasks=tasks, types=["Q4_K_M"])
    path = path_of(kind, tmp_path / "out", "IQ2_XXS", "separation")
    header = read_header(path)
    with Checkpoint(source) as checkpoint:
        layers = len(architecture.projections(checkpoint.arch))
    assert header.keys["quantize.imatrix.entries_count"] == layers
    assert header.keys["quantize.imatrix.chunks_count"] == 3
    if kind == "reranker-v2":
        assert header.tensors["cls.weight"].type == "F32"
    weighed, flat = (read(path_of(kind, tmp_path / folder, "Q4_K_M", "separation")) for folder in ("out", "plain"))
    assert any(not np.array_equal(weighed[name], flat[name]) for name in flat)


@pytest.mark.parametrize(
    ("kind", "tasks", "told"),
    [
        (
            "v3",
            ["all"],
            r"--adapters separate is not for jina-embeddings-v3 in GGUF: .* token types too.*convert mlx",
        ),
        ("v3-native", ["all"], r"--adapters separate is not for jina-embeddings-v3 in GGUF"),
        ("reranker-v3", [], "jina-reranker-v3 has no adapters to keep beside a base"),
        ("reranker-v2", [], "jina-reranker-v2-base-multilingual has no adapters"),
    ],
)
def test_separate_adapters_are_refused_with_the_reason(kind, tasks, told, tmp_path):
    source = tiny.write(tmp_path / "source", kind)
    with pytest.raises(UsageError, match=told):
        to_gguf(source, tmp_path / "out", tasks=tasks, types=["F32"], separate=True)
    assert not (tmp_path / "out").exists()


def test_all_tasks_of_v3_are_its_adapters_and_none_has_to_be_named(tmp_path):
    source = tiny.write(tmp_path / "source", "v3")
    to_gguf(source, tmp_path / "all", tasks=["all"], types=["F16"])
    assert set(manifest.load(tmp_path / "all").serves["F16"]) == set(ADAPTERS)
    to_gguf(source, tmp_path / "words", tasks=["clustering", "none"], types=["F16"])
    assert set(manifest.load(tmp_path / "words").serves["F16"]) == {"separation", "none"}


def test_a_listwise_checkpoint_without_a_projector_is_refused(tmp_path):
    source = tiny.write(tmp_path / "source", "reranker-v3")
    with Checkpoint(source) as checkpoint:
        held = checkpoint.projector()
    weights_file = source / "model.safetensors"
    with SafetensorsFile(weights_file) as file:
        kept = {n: (t.dtype, t.shape) for n, t in file.tensors.items() if not n.startswith("projector")}
        tensors = [(name, file.read(name)) for name in kept]
    weights_file.unlink()
    safetensors.write(weights_file, kept, tensors, {})
    with pytest.raises(ModelDamaged, match="has no projector"):
        to_gguf(source, tmp_path / "out", tasks=[], types=["F16"])
    assert not (tmp_path / "out").exists()
    # Beside the weights, under the names of the MLX repository, it is taken.
    other = dict(zip(("linear1.weight", "linear2.weight"), held.values(), strict=True))
    layout = {name: ("F32", data.shape) for name, data in other.items()}
    safetensors.write(source / projector.FILE, layout, other.items(), {})
    to_gguf(source, tmp_path / "out", tasks=[], types=["F16"])
    found = projector.read(tmp_path / "out" / projector.FILE, 256)
    assert np.array_equal(found.first, held["projector.0.weight"])
    assert projector.FILE in manifest.load(tmp_path / "out").source.files


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["reranker-v3", "reranker-v2"])
def test_the_command_line_needs_no_task_for_a_reranker(kind, tmp_path):
    source = tiny.write(tmp_path / "source", kind)
    done = convert("gguf", source, tmp_path / "out", "--type", "F16")
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'out'} (rerank)" in done.stderr
    assert path_of(kind, tmp_path / "out", "F16").exists()
    shutil.rmtree(tmp_path / "out")
    done = convert("gguf", source, tmp_path / "out", "--type", "F16", "--task", "retrieval")
    assert done.returncode == 2
    assert "unknown task 'retrieval'" in done.stderr


def test_the_command_line_asks_for_v3s_task(tmp_path):
    source = tiny.write(tmp_path / "source", "v3")
    for given in (source, "jina-embeddings-v3"):
        done = convert("gguf", given, tmp_path / "out", "--offline")
        assert done.returncode == 2
        assert "--task is required: give a task, or all." in done.stderr
        assert "jina-embeddings-v3 has: retrieval.query, retrieval.passage, separation" in done.stderr
