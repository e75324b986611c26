"""What a GGUF file turns out to be, which of several is taken, and the text of every refusal."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local import registry
from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats.gguf import FILE_TYPES
from jina_local.model_files import labels
from jina_local.store import find

from .. import layout_files
from ..layout_files import NANO, SMALL, into_cache, write_adapter, write_base, write_gguf

# Fixtures, under the names that tests ask for them by.
published = layout_files.published
places = layout_files.places
pytestmark = pytest.mark.usefixtures("places")


@pytest.mark.parametrize(("kind", "model"), [("nano", NANO), ("small", SMALL)])
def test_a_published_gguf_file_says_model_task_and_type_by_name_and_header(tmp_path, kind, model):
    path = write_gguf(tmp_path / f"v5-{kind}-text-matching-Q8_0.gguf", kind)
    found = find.find(path)
    assert (found.form, found.backend, found.label) == ("gguf", "llama", "Q8_0")
    assert found.model.name == model
    assert found.files == {"text-matching": path}
    assert found.model.default_task == "text-matching"
    assert (found.model.dims, found.model.max_tokens) == ((32, 64), 128)
    assert found.tokenizer is None
    assert any("rebuilt from the file's own vocabulary" in why for why in found.reasons)
    assert find.find(str(path)) == found


def test_the_task_of_our_own_key_serves_under_any_name(tmp_path):
    path = write_gguf(tmp_path / "mine.gguf", keys={"jina_local.task": "clustering"}, label="Q4_K_M")
    found = find.find(path)
    assert (found.files, found.label) == ({"clustering": path}, "Q4_K_M")


def test_a_gguf_that_nothing_says_the_task_of_is_refused(tmp_path):
    path = write_gguf(tmp_path / "model.gguf")
    with pytest.raises(UsageError) as error:
        find.find(path)
    text = str(error.value)
    assert "nothing says which task" in text
    assert "v5-nano-retrieval-Q8_0.gguf" in text
    assert "python -m convert gguf" in text


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("v5-nano-retrieval-Q8_0.gguf", {"jina_local.task": "clustering"}, "its name says 'retrieval'"),
        ("x.gguf", {"jina_local.task": "poetry"}, "is for the task 'poetry'"),
        ("v5-small-retrieval-Q8_0.gguf", {}, "Rename it to v5-nano-retrieval-Q8_0.gguf"),
        ("v5-nano-retrieval-Q8_0.gguf", {"eurobert.pooling_type": 1}, "pooling_type is 1"),
        ("v5-nano-retrieval-Q8_0.gguf", {"eurobert.rope.freq_base": 250000.0}, "RoPE base 1e+06, not 250000"),
        ("v5-nano-retrieval-Q8_0.gguf", {"eurobert.rope.freq_base": None}, "no rope_theta"),
        ("v5-nano-retrieval-Q8_0.gguf", {"eurobert.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ("v5-nano-retrieval-Q8_0.gguf", {"eurobert.attention.causal": True}, "attention.causal is True"),
        ("v5-nano-retrieval-Q8_0.gguf", {"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ("v5-nano-retrieval-Q8_0.gguf", {"tokenizer.ggml.pre": "qwen2"}, "'jina-v5-nano' or 'llama-bpe'"),
        ("v5-nano-retrieval-Q8_0.gguf", {"tokenizer.ggml.eos_token_id": 40}, "outside the 40 tokens"),
        ("v5-nano-retrieval-Q8_0.gguf", {"eurobert.block_count": 2}, "9 missing: blk.1."),
    ],
)
def test_a_gguf_whose_header_would_give_other_vectors_is_refused(tmp_path, name, keys, expected):
    path = write_gguf(tmp_path / name, keys=keys)
    with pytest.raises(ModelDamaged) as error:
        find.find(path)
    assert expected in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("pre", ["jina-v5-nano", "llama-bpe"])
def test_both_names_of_the_pre_tokenizer_are_read(tmp_path, pre):
    path = write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf", keys={"tokenizer.ggml.pre": pre})
    assert find.find(path).model.name == NANO


def test_absent_pooling_and_explicit_plain_rope_are_fine(tmp_path):
    keys = {"eurobert.pooling_type": None, "eurobert.attention.causal": False, "eurobert.rope.scaling.type": "none"}
    assert find.find(write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf", keys=keys)).model.name == NANO


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"drop": ("norm.weight",)}, "1 missing: output_norm.weight"),
        ({"drop": ("embed_tokens.weight",)}, "holds no token_embd.weight"),
        ({"extra": {"output.weight": (40, 64)}}, "holds output.weight"),
        ({"extra": {"rope_freqs.weight": (16,)}}, "1 unknown: rope_freqs.weight"),
        ({"shapes": {"norm.weight": (32,)}}, "output_norm.weight (32,) (expected (64,))"),
        ({"tokens": ["same"] * 40}, "lists 1 different tokens for a table of 40 rows"),
        ({"tokens": ["a", "b"]}, "lists 2 different tokens for a table of 40 rows"),
    ],
)
def test_a_gguf_with_other_tensors_or_tokens_is_refused(tmp_path, damage, expected):
    path = write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf", **damage)
    with pytest.raises(ModelDamaged) as error:
        find.find(path)
    assert expected in str(error.value)


def test_a_truncated_gguf_is_refused(tmp_path):
    path = write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    content = path.read_bytes()
    for length in (3, 20, 900, len(content) - 40):
        path.write_bytes(content[:length])
        with pytest.raises(ModelDamaged) as error:
            find.find(path)
        assert str(path) in str(error.value)


def test_the_order_of_precisions_names_every_type_once():
    assert sorted(labels.GGUF) == sorted(FILE_TYPES.values())


def test_of_several_types_the_first_of_the_order_is_taken_and_the_reason_said(tmp_path):
    for label in ("Q4_K_M", "IQ1_S", "Q5_K_M"):
        write_gguf(tmp_path / f"v5-nano-retrieval-{label}.gguf", label=label)
    write_gguf(tmp_path / "v5-nano-clustering-Q4_K_M.gguf", label="Q4_K_M")
    found = find.find(tmp_path)
    assert (found.label, sorted(found.files)) == ("Q5_K_M", ["retrieval"])
    assert any("weights Q5_K_M: the first choice" in why and "Q4_K_M (clustering, retrieval)" in why
               for why in found.reasons)  # fmt: skip
    write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    assert find.find(tmp_path).label == "Q8_0"
    both = find.find(tmp_path, tasks=["retrieval", "clustering"])
    assert (both.label, sorted(both.files)) == ("Q4_K_M", ["clustering", "retrieval"])
    chosen = find.find(tmp_path, weights="q4_k_m")
    assert (chosen.label, sorted(chosen.files)) == ("Q4_K_M", ["clustering", "retrieval"])
    assert chosen.model.default_task == "retrieval"


def test_an_unknown_label_or_task_lists_what_is_there(tmp_path):
    write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    for label in ("Q6_K", "8bit", "nonsense"):
        with pytest.raises(UsageError) as error:
            find.find(tmp_path, weights=label)
        assert f"has no weights '{label}'. There: Q8_0 (retrieval)." in str(error.value)
    with pytest.raises(UsageError) as error:
        find.find(tmp_path, tasks=["clustering"])
    assert "has no file for clustering. There: Q8_0 (retrieval)." in str(error.value)


def test_two_files_for_one_task_and_two_models_in_a_folder_are_refused(tmp_path):
    write_gguf(tmp_path / "a" / "v5-nano-retrieval-Q8_0.gguf")
    write_gguf(tmp_path / "a" / "copy.gguf", keys={"jina_local.task": "retrieval"})
    with pytest.raises(UsageError) as error:
        find.find(tmp_path / "a")
    assert "two files for retrieval in Q8_0: copy.gguf and v5-nano-retrieval-Q8_0.gguf" in str(error.value)
    write_gguf(tmp_path / "b" / "v5-nano-retrieval-Q8_0.gguf")
    write_gguf(tmp_path / "b" / "v5-small-clustering-Q8_0.gguf", "small")
    with pytest.raises(UsageError) as error:
        find.find(tmp_path / "b")
    assert "are different models" in str(error.value)


def test_a_base_and_its_adapters_are_found_by_name_without_a_manifest(tmp_path):
    bases = {label: write_base(tmp_path / f"v5-nano-base-{label}.gguf", label=label) for label in ("Q4_K_M", "F16")}
    adapters = {task: write_adapter(tmp_path / f"v5-nano-{task}-adapter.gguf", task=task)
                for task in ("clustering", "retrieval")}  # fmt: skip
    found = find.find(tmp_path)
    assert (found.form, found.label, found.model.name) == ("gguf", "F16", NANO)
    assert found.files == dict.fromkeys(adapters, bases["F16"])
    assert found.adapters == adapters
    assert (found.model.tasks, found.model.default_task) == (("retrieval", "clustering"), "retrieval")
    assert any("weights F16: the first choice" in why for why in found.reasons)
    assert find.find(tmp_path, weights="q4_k_m").files == dict.fromkeys(adapters, bases["Q4_K_M"])
    alone = find.find(bases["Q4_K_M"])
    assert (alone.files, alone.adapters) == (dict.fromkeys(adapters, bases["Q4_K_M"]), adapters)
    with pytest.raises(UsageError, match=r"has no weights 'Q8_0'. There: Q4_K_M \(clustering, retrieval\)\."):
        find.find(bases["Q4_K_M"], weights="Q8_0")
    with pytest.raises(UsageError, match="has no file for classification. There: F16"):
        find.find(tmp_path, tasks=["classification"])


def test_under_other_names_a_base_and_its_adapters_are_known_by_their_keys(tmp_path):
    base = write_base(tmp_path / "base.gguf")
    adapter = write_adapter(tmp_path / "a.gguf", task="clustering", keys={"jina_local.task": None})
    (tmp_path / "broken.gguf").write_bytes(b"GGUFxx")
    for place in (tmp_path, base):
        found = find.find(place)
        assert (found.files, found.adapters) == ({"clustering": base}, {"clustering": adapter})
        assert any("not used: " in why and "broken.gguf" in why for why in found.reasons)
    write_adapter(adapter, keys={"jina_local.task": None, "adapter.lora.task_name": None})
    with pytest.raises(
        UsageError, match=r"no adapter lies beside it.*Not used: .*a\.gguf: is an adapter, and neither "
    ):
        find.find(base)
    write_adapter(adapter, task="search")
    with pytest.raises(ModelDamaged, match=r"a\.gguf: is for the task 'search'; .* has retrieval, text-matching"):
        find.find(base)


def test_a_base_without_adapters_and_adapters_without_a_base_say_what_is_missing(tmp_path):
    base = write_base(tmp_path / "b" / "v5-nano-base-Q4_K_M.gguf", label="Q4_K_M")
    for place in (base, base.parent):
        with pytest.raises(UsageError) as error:
            find.find(place)
        assert "v5-nano-base-Q4_K_M.gguf is a base that tasks share, and no adapter lies beside it, as " in str(
            error.value
        )
        assert "v5-nano-retrieval-adapter.gguf would" in str(error.value)
        assert "python -m convert gguf SRC OUT --task all --adapters separate" in str(error.value)
    adapter = write_adapter(tmp_path / "a" / "v5-small-clustering-adapter.gguf", "small", task="clustering")
    with pytest.raises(UsageError) as error:
        find.find(adapter.parent)
    assert "holds adapters (v5-small-clustering-adapter.gguf) and no base" in str(error.value)
    assert "as v5-small-base-Q8_0.gguf would be" in str(error.value)
    with pytest.raises(
        UsageError, match=r"adapter\.gguf: is an adapter, not a model\. Give the path of the base beside"
    ):
        find.find(adapter)


def test_merged_files_and_a_base_do_not_mix(tmp_path):
    merged = write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    adapter = write_adapter(tmp_path / "v5-nano-clustering-adapter.gguf", task="clustering")
    found = find.find(tmp_path)
    assert (found.files, found.adapters) == ({"retrieval": merged}, {})
    assert f"not used: {adapter}: an adapter, and there is no base beside it" in found.reasons
    base = write_base(tmp_path / "v5-nano-base-Q8_0.gguf")
    with pytest.raises(
        UsageError, match=r"merged files and a base that tasks share \(v5-nano-base-Q8_0\.gguf\)\. Keep"
    ):
        find.find(tmp_path)
    assert find.find(merged).adapters == {}
    assert find.find(base).adapters == {"clustering": adapter}
    write_adapter(tmp_path / "copy.gguf", task="clustering")
    with pytest.raises(
        UsageError, match=r"two files for the adapter of clustering: copy\.gguf and v5-nano-clustering-ad"
    ):
        find.find(base)


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("v5-nano-base-Q8_0.gguf", {}, "says that it is a base that tasks share, and it carries no digest of one"),
        ("v5-nano-base-Q8_0.gguf", {"jina_local.task": "clustering"}, "and it is merged for clustering"),
        (
            "v5-nano-retrieval-Q8_0.gguf",
            {"jina_local.base": "00"},
            "says that it is merged for retrieval. Rename it to",
        ),
        ("v5-small-base-Q8_0.gguf", {"jina_local.base": "00"}, f"has the name of {SMALL} and holds {NANO}"),
    ],
)
def test_a_base_whose_name_and_keys_disagree_is_refused(tmp_path, name, keys, expected):
    write_gguf(tmp_path / name, keys=keys)
    write_adapter(tmp_path / "v5-nano-retrieval-adapter.gguf")
    with pytest.raises(ModelDamaged) as error:
        find.find(tmp_path / name)
    assert expected in str(error.value)


def test_a_stranger_among_the_files_is_passed_over_aloud(tmp_path):
    write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUFxx")
    found = find.find(tmp_path)
    assert any(why.startswith("not used: ") and "broken.gguf" in why for why in found.reasons)
    (tmp_path / "v5-nano-retrieval-Q8_0.gguf").unlink()
    with pytest.raises(ModelDamaged, match=r"broken\.gguf"):
        find.find(tmp_path)


def test_the_tokenizer_comes_from_beside_the_file_then_from_the_base_repository(tmp_path, published, places):
    path = write_gguf(tmp_path / "ggufs" / "v5-nano-retrieval-Q8_0.gguf")
    row = registry.lookup("v5-nano")
    tokenizer = published["nano"] / "tokenizer.json"
    base = into_cache(places / "cache", row.repo, row.revision, {"tokenizer.json": tokenizer})
    assert find.find(path).tokenizer == base / "tokenizer.json"
    shutil.copyfile(tokenizer, path.parent / "tokenizer.json")
    assert find.find(path).tokenizer == path.parent / "tokenizer.json"


def test_a_gguf_is_not_for_mlx(tmp_path):
    path = write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    for place in (path, tmp_path):
        with pytest.raises(UsageError) as error:
            find.find(place, backend="mlx")
        assert "which llama reads and mlx does not" in str(error.value)
        assert "python -m convert mlx SRC OUT --task all" in str(error.value)
