"""GGUF files of v3 and of the rerankers: what each turns out to be, and the text of every refusal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

import gguf

from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats import safetensors
from jina_local.formats.gguf import FILE_TYPES, plain
from jina_local.model_files import labels
from jina_local.spec import RERANK
from jina_local.store import find
from jina_local.weights import architecture, projector, tensor_names

from .. import layout_files

places = layout_files.places
pytestmark = pytest.mark.usefixtures("places")

SIZE = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64,
        "vocab_size": 40, "max_position_embeddings": 128}  # fmt: skip
XLM = {"model_type": "xlm-roberta", "layer_norm_eps": 1e-5}
CONFIGS = {
    "v3": {**SIZE, **XLM, "position_embedding_type": "rotary", "rotary_emb_base": 20000.0},
    "reranker-v3": {**SIZE, "model_type": "qwen3", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "num_key_value_heads": 1},
    "reranker-v2": {**SIZE, **XLM, "architectures": ["XLMRobertaForSequenceClassification"]},
}
NAMES = {"v3": "v3-separation-Q8_0.gguf", "reranker-v3": "jina-reranker-v3-Q8_0.gguf",
         "reranker-v2": "jina-reranker-v2-base-multilingual-Q8_0.gguf"}  # fmt: skip
MODELS = {"v3": "jina-embeddings-v3", "reranker-v3": "jina-reranker-v3",
          "reranker-v2": "jina-reranker-v2-base-multilingual"}  # fmt: skip


def write(path: Path, kind: str, *, label: str = "Q8_0", keys=None, drop=(), extra=None, shapes=None) -> Path:
    """A file of one layer as other programs write it, without a key of ours; the arguments damage it."""
    arch = architecture.from_config(CONFIGS[kind])
    name = arch.kind
    tokens = [f"t{n}" for n in range(arch.vocab)]
    body = {
        f"{name}.block_count": 1, f"{name}.context_length": arch.max_positions, f"{name}.embedding_length": 64,
        f"{name}.feed_forward_length": 64, f"{name}.attention.head_count": 1,
        "general.file_type": {v: k for k, v in FILE_TYPES.items()}[label],
    }  # fmt: skip
    if arch.rope_theta:
        body[f"{name}.rope.freq_base"] = arch.rope_theta
    if kind == "reranker-v3":
        tokens[-2:] = ["<|embed_token|>", "<|rerank_token|>"]
        body |= {f"{name}.attention.head_count_kv": 1, f"{name}.attention.key_length": 64,
                 f"{name}.attention.layer_norm_rms_epsilon": arch.eps, "tokenizer.ggml.model": "gpt2",
                 "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.token_type": [1] * 40}  # fmt: skip
    else:
        tokens[:4] = ["<s>", "<pad>", "</s>", "<unk>"]
        body |= {f"{name}.attention.layer_norm_epsilon": arch.eps, f"{name}.attention.causal": False,
                 "tokenizer.ggml.model": "t5", "tokenizer.ggml.pre": "default",
                 "tokenizer.ggml.token_type": [3, 3, 3, 2] + [1] * 36, "tokenizer.ggml.scores": [-1.0] * 40,
                 "tokenizer.ggml.token_type_count": 1, "tokenizer.ggml.seperator_token_id": 2}  # fmt: skip
    body |= {"tokenizer.ggml.tokens": tokens, **(keys or {})}
    writer = gguf.GGUFWriter(str(path), name)
    layout_files._add_keys(writer, body)
    for tensor, shape in (tensor_names.gguf_shapes(arch) | (extra or {})).items():
        if tensor not in drop:
            layout_files.add_zeros(writer, tensor, (shapes or {}).get(tensor, shape), label)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if kind == "reranker-v3" and not (path.parent / projector.FILE).exists():
        held = {"projector.0.weight": np.zeros((32, 64), "f4"), "projector.2.weight": np.zeros((16, 32), "f4")}
        layout = {n: ("F32", data.shape) for n, data in held.items()}
        safetensors.write(path.parent / projector.FILE, layout, held.items(), {})
    return path


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_file_says_model_task_and_type_by_name_and_header(kind, tmp_path):
    path = write(tmp_path / NAMES[kind], kind)
    found = find.find(path)
    task = "separation" if kind == "v3" else RERANK
    assert (found.model.name, found.files, found.label) == (MODELS[kind], {task: path}, "Q8_0")
    assert found.model.default_task == task
    assert found.model.max_tokens == (126 if kind == "reranker-v2" else 128)
    assert (found.projector is not None) == (kind == "reranker-v3")


@pytest.mark.parametrize("kind", ["reranker-v3", "reranker-v2"])
def test_a_reranker_has_its_one_task_under_any_name(kind, tmp_path):
    path = write(tmp_path / "anything.gguf", kind, label="Q4_K_M")
    found = find.find(path)
    assert (found.model.name, list(found.files), found.label) == (MODELS[kind], [RERANK], "Q4_K_M")


def test_of_the_published_reranker_files_one_is_taken_by_its_label(tmp_path):
    labels = ("BF16", "IQ1_S", "IQ4_NL", "Q4_K_M", "Q5_K_M")
    paths = {
        label: write(tmp_path / f"jina-reranker-v3-{label}.gguf", "reranker-v3", label=label) for label in labels
    }
    found = find.find(tmp_path)
    assert (found.label, found.files) == ("BF16", {RERANK: paths["BF16"]})
    assert any("weights BF16: the first choice" in why and "IQ1_S (rerank)" in why for why in found.reasons)
    for label in labels:
        assert find.find(tmp_path, weights=label).files == {RERANK: paths[label]}
        assert find.find(tmp_path, weights=label.lower()).label == label
    with pytest.raises(UsageError, match=r"has no weights 'Q8_0'. There: BF16 \(rerank\)"):
        find.find(tmp_path, weights="Q8_0")


def test_names_of_files_without_a_task():
    def read(name):
        found = labels.own_name(Path(name))
        return found and (found[0].spec.name, *found[1:])

    assert read("jina-reranker-v3-Q4_K_M.gguf") == ("jina-reranker-v3", RERANK, "Q4_K_M")
    assert read("jina-reranker-v3-bf16.gguf") == ("jina-reranker-v3", RERANK, "BF16")
    assert read("jina-reranker-v2-base-multilingual-F16.gguf") == (MODELS["reranker-v2"], RERANK, "F16")
    assert read("v3-retrieval.query-Q8_0.gguf") == ("jina-embeddings-v3", "retrieval.query", "Q8_0")
    assert read("v3-none-F32.gguf") == ("jina-embeddings-v3", "none", "F32")
    for name in ("v3-retrievalxquery-Q8_0.gguf", "jina-reranker-v3-rerank-Q8_0.gguf", "jina-reranker-v3.5-Q8_0.gguf",
                 "jina-reranker-v3-adapter.gguf", "jina-reranker-v3.gguf"):  # fmt: skip
        assert read(name) is None, name


@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        ("v3", {"jina-bert-v3.pooling_type": 3}, "pooling_type is 3; for this model it is 1"),
        ("v3", {"jina-bert-v3.attention.causal": True}, "attention.causal is True"),
        ("v3", {"jina-bert-v3.rope.freq_base": 10000.0}, "RoPE base 20000, not 10000"),
        ("v3", {"jina-bert-v3.rope.freq_base": None}, "no rope_theta"),
        ("v3", {"jina-bert-v3.attention.layer_norm_epsilon": None}, "layer_norm_eps is None"),
        ("v3", {"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; for this model it is 't5'"),
        ("v3", {"tokenizer.ggml.scores": [0.0] * 39}, "scores is not one number for each of 40 tokens"),
        ("v3", {"tokenizer.ggml.scores": [1] * 40}, "scores is a list of 40; expected a list of numbers"),
        ("v3", {"tokenizer.ggml.scores": [float("nan")] * 40}, "scores is not one number"),
        ("v3", {"tokenizer.ggml.token_type_count": None}, "token_type_count is None; for this model it is 1"),
        ("v3", {"tokenizer.ggml.seperator_token_id": 40}, "seperator_token_id is 40, outside the 40 tokens"),
        ("v3", {"jina_local.task": "retrieval.query"}, "its key jina_local.task says 'retrieval.query'"),
        ("v3", {"jina_local.base": "5e" * 32}, "is a base that tasks share, and its name"),
        ("reranker-v3", {"qwen3.pooling_type": 3}, "pooling_type is 3; for this model it is 0"),
        ("reranker-v3", {"qwen3.pooling_type": 4}, "pooling_type is 4; for this model it is 0"),
        ("reranker-v3", {"qwen3.rope.freq_base": 3.5e6}, "holds jina-embeddings-v5-text-small"),
        ("reranker-v3", {"tokenizer.ggml.tokens": [f"t{n}" for n in range(40)]}, "another model of the Qwen3 family"),
        ("reranker-v3", {"jina_local.task": "retrieval"}, "its key jina_local.task says 'retrieval'"),
        ("reranker-v2", {"bert.pooling_type": 0}, "pooling_type is 0; for this model it is 4"),
        ("reranker-v2", {"bert.pooling_type": 2}, "pooling_type is 2; for this model it is 4"),
        ("reranker-v2", {"bert.context_length": 128}, "position_embd.weight (126, 64) (expected (128, 64))"),
    ],
)
def test_a_header_that_would_give_other_numbers_is_refused(kind, keys, expected, tmp_path):
    path = write(tmp_path / NAMES[kind], kind, keys=keys)
    with pytest.raises(ModelDamaged, match=re.escape(expected)) as error:
        find.find(path)
    assert NAMES[kind] in str(error.value)


@pytest.mark.parametrize(
    ("kind", "damage", "expected"),
    [
        ("v3", {"drop": ("token_types.weight",)}, "1 missing: token_types.weight"),
        ("v3", {"extra": {"cls.weight": (64, 64)}}, "1 unknown: cls.weight"),
        ("reranker-v2", {"drop": ("cls.weight", "cls.bias")}, "2 missing: cls.bias, cls.weight"),
        ("reranker-v2", {"shapes": {"cls.output.weight": (2, 64)}}, "cls.output.weight (2, 64) (expected (64,))"),
        ("reranker-v3", {"extra": {"output.weight": (40, 64)}}, "holds output.weight"),
        ("reranker-v3", {"extra": {"cls.output.weight": (2, 64)}}, "1 unknown: cls.output.weight"),
    ],
)
def test_a_file_with_other_tensors_is_refused(kind, damage, expected, tmp_path):
    path = write(tmp_path / NAMES[kind], kind, **damage)
    with pytest.raises(ModelDamaged, match=re.escape(expected)):
        find.find(path)


@pytest.mark.parametrize("name", ["token_types.weight", "cls.output.weight"])
def test_one_row_is_read_with_and_without_its_dimension_of_one(name, tmp_path):
    """llama.cpp's quantiser writes (1, n) as (n)."""
    path = write(tmp_path / NAMES["reranker-v2"], "reranker-v2", shapes={name: (64,)})
    assert find.find(path).model.name == MODELS["reranker-v2"]
    assert (plain((1, 64)), plain((1, 1)), plain((2, 1)), plain(())) == ((64,), (1,), (2, 1), ())


def test_keys_that_say_what_is_so_anyway_are_fine(tmp_path):
    for kind, keys in {
        "v3": {"jina-bert-v3.pooling_type": 1, "jina-bert-v3.rope.scaling.type": "none"},
        "reranker-v3": {"qwen3.pooling_type": 0, "jina_local.task": RERANK},
        "reranker-v2": {"bert.pooling_type": 4, "bert.classifier.output_labels": ["LABEL_0"]},
    }.items():
        assert find.find(write(tmp_path / NAMES[kind], kind, keys=keys)).model.name == MODELS[kind]


def test_a_v3_file_that_nothing_says_the_task_of_is_refused(tmp_path):
    path = write(tmp_path / "model.gguf", "v3")
    with pytest.raises(UsageError, match="nothing says which task") as error:
        find.find(path)
    assert "v3-retrieval.query-Q8_0.gguf" in str(error.value)


def test_the_name_of_another_model_is_refused(tmp_path):
    path = write(tmp_path / "jina-reranker-v3-Q8_0.gguf", "reranker-v2")
    with pytest.raises(ModelDamaged, match=r"Rename it to jina-reranker-v2-base-multilingual-Q8_0\.gguf"):
        find.find(path)


def test_the_listwise_reranker_without_its_projector_is_refused(tmp_path):
    path = write(tmp_path / NAMES["reranker-v3"], "reranker-v3")
    (tmp_path / projector.FILE).unlink()
    with pytest.raises(ModelDamaged, match=r"has no projector\.safetensors"):
        find.find(path)
