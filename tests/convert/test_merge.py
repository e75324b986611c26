"""convert merge: a plain checkpoint that transformers and sentence-transformers load without remote code."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from convert.merge import merge
from convert.verify.reference import hidden_states
from jina_local.errors import OutputError, UsageError
from jina_local.formats import manifest
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny
from tests.oracle import cosines

TEXTS = ["Which planet is the largest?", "x", "naïve café " * 9, "", "Jupiter, by far."]


@pytest.fixture(scope="module", params=["small", "nano"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def merged(kind, tmp_path_factory):
    out = tmp_path_factory.mktemp(kind) / "merged"
    merge(made.checkpoint(kind), out, tasks=["clustering"], source_name=kind, dtype="F32")
    return out


def expected(kind, prompt="Document: "):
    """Unit vectors of the plain reference on the source."""
    folder = made.checkpoint(kind)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    with Checkpoint(folder) as checkpoint:
        weights = dict(checkpoint.merged("clustering"))
        rows = np.stack([hidden_states(checkpoint.arch, weights, tokenizer.ids(prompt + t))[-1] for t in TEXTS])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_weights_are_the_merged_ones_and_nothing_is_left_to_merge(kind, merged):
    with Checkpoint(merged) as plain, Checkpoint(made.checkpoint(kind)) as source:
        assert plain.tasks == ()
        assert plain.arch == source.arch
        for (name, a), (_, b) in zip(plain.merged(None), source.merged("clustering"), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    found = manifest.load(merged)
    assert (found.form, found.files["model.safetensors"].task) == ("checkpoint", "clustering")
    assert not (merged / "adapters").exists()


@pytest.mark.reference
def test_transformers_loads_it_without_remote_code(kind, merged):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(merged, dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    assert type(model).__name__ == {"small": "Qwen3Model", "nano": "EuroBertModel"}[kind]
    rows = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(**tokenizer("Document: " + text, return_tensors="pt")).last_hidden_state
        rows.append(states[0, -1].numpy())
    assert cosines(np.stack(rows), expected(kind)).min() > 0.999999


@pytest.mark.reference
def test_sentence_transformers_loads_it_with_prompts_and_pooling(kind, merged):
    st = pytest.importorskip("sentence_transformers")
    model = st.SentenceTransformer(str(merged), device="cpu", trust_remote_code=False)
    np.testing.assert_allclose(model.encode(TEXTS), expected(kind), atol=2e-5)
    np.testing.assert_allclose(model.encode(TEXTS, prompt_name="query"), expected(kind, "Query: "), atol=2e-5)
    assert model.max_seq_length == tiny.SIZES[kind]["max_position_embeddings"]


def test_the_dtype_is_the_sources_unless_another_is_asked_for(kind, tmp_path):
    merge(made.checkpoint(kind), tmp_path / "same", tasks=["retrieval"], source_name=kind)
    merge(made.checkpoint(kind), tmp_path / "half", tasks=["retrieval"], source_name=kind, dtype="F16")
    with Checkpoint(tmp_path / "same") as same, Checkpoint(tmp_path / "half") as half:
        assert (same.dtype, half.dtype) == ({"small": "BF16", "nano": "F32"}[kind], "F16")
        assert same.config["dtype"] == {"small": "bfloat16", "nano": "float32"}[kind]


def test_all_tasks_are_a_folder_each_whole_in_itself(kind, tmp_path):
    merge(made.checkpoint(kind), tmp_path / "all", tasks=list(tiny.TASKS), source_name=kind)
    top = manifest.load(tmp_path / "all")
    assert {e.task for e in top.files.values() if e.task} == set(tiny.TASKS)
    for task in tiny.TASKS:
        own = manifest.load(tmp_path / "all" / task)
        assert own.files["model.safetensors"].task == task
        with Checkpoint(tmp_path / "all" / task) as checkpoint:
            assert checkpoint.arch == architecture.from_config(
                json.loads((made.checkpoint(kind) / "config.json").read_text())
            )


def test_the_same_input_gives_the_same_bytes(kind, tmp_path):
    for name in ("a", "b"):
        merge(made.checkpoint(kind), tmp_path / name, tasks=["retrieval"], source_name=kind)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_nested_rope_parameters_become_the_key_that_every_loader_reads(tmp_path):
    folder = shutil.copytree(made.checkpoint("small"), tmp_path / "nested")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(config))
    merge(folder, tmp_path / "out", tasks=["retrieval"], source_name="x")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 3_500_000
    assert "auto_map" not in written
    assert "task_names" not in written


def test_refusals(kind, tmp_path):
    with pytest.raises(UsageError, match="unknown dtype 'F8'"):
        merge(made.checkpoint(kind), tmp_path / "x", tasks=["retrieval"], source_name=kind, dtype="F8")
    with pytest.raises(UsageError, match="unknown task 'search'; .* has: retrieval, text-matching"):
        merge(made.checkpoint(kind), tmp_path / "x", tasks=["search"], source_name=kind)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        merge(made.checkpoint(kind), tmp_path / "taken", tasks=["retrieval"], source_name=kind)
    assert not (tmp_path / "x").exists()
