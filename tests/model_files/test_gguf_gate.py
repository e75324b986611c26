"""GGUF headers that would end the process or give other vectors without a word: each is refused, with the reason."""

from __future__ import annotations

import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")
pytest.importorskip("llama_cpp", reason="the files are made with it: pip install 'jina_local[convert]'")

import gguf as gguf_py

from convert.gguf import files
from jina_local.errors import ModelDamaged
from jina_local.formats import gguf
from jina_local.model_files import gguf_gate
from jina_local.model_files.gguf_model import identify
from jina_local.weights import gguf_keys

from .. import made
from ..fuzz.bases import ask
from ..fuzz.mutate import Gguf
from ..layout_files import write_gguf

KINDS = ("nano", "small", "v3", "reranker-v3", "reranker-v2")
ARCHITECTURE = {"nano": "eurobert", "small": "qwen3", "v3": "jina-bert-v3", "reranker-v3": "qwen3",
                "reranker-v2": "bert"}  # fmt: skip
TASK = {"nano": "retrieval", "small": "retrieval", "v3": "separation"}
NUMBERS = {label: number for number, (label, _, _) in gguf.TYPES.items()}


def whole(kind: str) -> Path:
    """A converted file in Q8_0 that has its task in it."""
    if kind in ("nano", "small"):
        return made.gguf_file(kind, "Q8_0")
    folder = (made.v3 if kind == "v3" else made.reranker)(kind, "Q8_0")
    return next(path for path in sorted(folder.glob("*.gguf")) if TASK.get(kind, "") in path.name)


def stored(value):
    """(type, value) as a GGUF file has a value of Python."""
    if isinstance(value, list):
        inner = {bytes: 8, float: 6, bool: 7, int: 5}[type(value[0])]
        return 9, (inner, value)
    return {bool: 7, int: 4, float: 6, str: 8}[type(value)], value.encode() if isinstance(value, str) else value


def changed(source: Path, path: Path, keys=None, types=None) -> Path:
    """A copy of a file with other keys (None leaves a key out) and tensors stored in other types."""
    file = Gguf(source.read_bytes())
    for name, value in (keys or {}).items():
        file.keys = [key for key in file.keys if key[0] != name.encode()]
        if value is not None:
            kind, value = stored(value)
            file.keys.append([name.encode(), 2 if name.startswith("split.") and kind == 4 else kind, value])
    data = b""
    for entry in file.tensors if types else ():
        name, dims, kind, offset = entry
        _, block, width = gguf.TYPES[kind]
        raw = file.data[offset : offset + int(np.prod(dims)) // block * width]
        if other := types.get(name.decode()):
            rows = np.frombuffer(raw, np.uint8).reshape(-1, dims[0] // block * width)
            values = gguf_py.quants.dequantize(rows, gguf_py.GGMLQuantizationType(kind))
            raw = gguf_py.quants.quantize(values, gguf_py.GGMLQuantizationType[other]).tobytes()
            entry[2] = NUMBERS[other]
        entry[3] = len(data)
        data += raw + bytes(-len(raw) % 32)
    file.data = data or file.data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.dump())
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelDamaged) as error:
        identify(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_our_converter_is_in_the_table(kind):
    folders = [made.gguf(kind), made.gguf_separate(kind, "Q8_0")] if kind in ("nano", "small") else []
    known = {*gguf_keys._TOKENIZER, *gguf_keys._FREE}
    known |= {f"{ARCHITECTURE[kind]}.{name}" for name in gguf_keys._ARCHITECTURE}
    for path in [whole(kind), *(p for folder in folders for p in folder.glob("*.gguf") if "adapter" not in p.name)]:
        assert identify(path).arch.kind == ARCHITECTURE[kind]
        strange = gguf.read_header(path).keys.keys() - known
        assert all(key.startswith("general.base_model.0.") for key in strange), strange


def test_the_file_that_the_package_carries_passes():
    folder = Path(files.registry.__file__).parent / "bundled_models" / "pico" / "gguf"
    assert identify(folder / "pico-base-Q8_0.gguf").row.spec.name == "pico"


def test_the_converter_writes_no_key_that_the_table_lacks(tmp_path, monkeypatch):
    before = files.adapters.add_own

    def more(writer, model, task):
        before(writer, model, task)
        writer.add_uint32("eurobert.expert_used_count", 2)

    monkeypatch.setattr(files.adapters, "add_own", more)
    with pytest.raises(ModelDamaged, match=r"eurobert\.expert_used_count is 2, where only 0 would change nothing"):
        files.to_gguf(made.checkpoint("nano"), tmp_path / "out", tasks=["retrieval"], types=["F32"])
    assert not (tmp_path / "out").exists()


# Under the architecture's name. The first lines gave other vectors without a word; the others ended the process.
FATAL = {
    "rope.scaling.attn_factor": 2.0, "rope.scale_linear": 4.0, "rope.scaling.factor": 4.0,
    "rope.scaling.yarn_attn_factor": 0.5, "attention.scale": 0.5, "logit_scale": 2.0, "swin_norm": True,
    "embedding_length_out": 64, "pooling_type": 2, "embedding_scale": 2.0, "attention.max_alibi_bias": 8.0,
    "rope.scaling.type": "yarn", "rope.dimension_sections": [8, 8, 8, 8],
    "expert_used_count": 2, "expert_count": 8, "expert_group_count": 2, "nextn_predict_layers": 1,
    "expert_shared_count": 1, "a_key_that_a_later_version_reads": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FATAL)
def test_a_key_that_changes_the_model_is_refused(kind, name, tmp_path):
    key = f"{ARCHITECTURE[kind]}.{name}"
    assert f"{key} is " in refused(changed(whole(kind), tmp_path / whole(kind).name, {key: FATAL[name]}))


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_width_other_than_the_width_is_refused(kind, tmp_path):
    key = f"{ARCHITECTURE[kind]}.embedding_length_out"
    for width in (0, 1, 255, 257, 2048):
        text = refused(changed(whole(kind), tmp_path / whole(kind).name, {key: width}))
        assert f"{key} is {width}; for this model it is 256" in text


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_change_nothing_are_taken_and_change_nothing(kind, tmp_path):
    source, task = whole(kind), TASK.get(kind)
    kept = {"{}.embedding_length_out": 256, "general.alignment": 32}
    kept |= {key: values[0] for key, values in gguf_keys._NEUTRAL.items()}
    if kind != "reranker-v2":
        kept["{}.rope.dimension_count"] = identify(source).arch.head_dim
    plain, more = tmp_path / "plain", tmp_path / "more"
    changed(source, plain / source.name)
    changed(source, more / source.name, {k.format(ARCHITECTURE[kind]): v for k, v in kept.items()})
    for folder in (plain, more):
        for name in ("tokenizer.json", "config.json", "projector.safetensors"):
            if (source.parent / name).exists():
                shutil.copyfile(source.parent / name, folder / name)
    assert np.array_equal(ask(plain / source.name, "llama", task), ask(more / source.name, "llama", task))


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16, 32.0, True, "32", [32]])
def test_an_alignment_other_than_32_is_refused(alignment, tmp_path):
    text = refused(changed(whole("nano"), tmp_path / "v5-nano-retrieval-Q8_0.gguf", {"general.alignment": alignment}))
    assert "general.alignment is " in text


@pytest.mark.parametrize("kind", KINDS)
def test_norms_biases_and_token_types_are_float32_or_refused(kind, tmp_path):
    found = gguf.read_header(whole(kind)).tensors
    names = [name for name, tensor in found.items() if tensor.type == "F32" and not name.startswith(("cls.", "pos"))]
    roles = {re.sub(r"\d+", "", name): name for name in names if found[name].shape[-1] % 256 == 0 or "norm" in name}
    assert len(roles) >= 3
    for name in roles.values():
        for kind_of in ("F16", "Q5_1", "Q8_0"):
            path = changed(whole(kind), tmp_path / whole(kind).name, types={name: kind_of})
            assert f"{name} is stored as {kind_of}; llama.cpp takes norms" in refused(path)


def test_the_classifier_and_the_positions_may_be_of_any_type(tmp_path):
    names = {"cls.weight": "F16", "cls.output.weight": "Q8_0", "position_embd.weight": "Q8_0"}
    path = changed(whole("reranker-v2"), tmp_path / whole("reranker-v2").name, types=names)
    assert identify(path).arch.labels == 1
    for name in ("cls.bias", "cls.output.bias"):
        path = changed(whole("reranker-v2"), tmp_path / whole("reranker-v2").name, types={name: "F16"})
        assert f"{name} is stored as F16" in refused(path)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_a_value_of_another_type_is_a_damaged_model_and_no_python_error(kind, tmp_path):
    odd = ([[b"x"], "x", 1.5], [[1], 1, True], [[1.5], "x", True])  # of which one is taken for each key in turn
    path = tmp_path / whole(kind).name
    for number, (name, right, _) in enumerate(Gguf(whole(kind).read_bytes()).keys):
        key = name.decode()
        if key.startswith("general.base_model.0."):
            continue
        for value in odd[number % 3]:
            if stored(value)[0] != right:
                text = refused(changed(whole(kind), path, {key: value}))
                assert any(word in text for word in (key, "base that tasks share", "which task", "is not a"))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_the_architecture_are_compared(kind, tmp_path):
    path, keys = tmp_path / whole(kind).name, gguf.read_header(whole(kind)).keys
    for name in gguf_keys._ARCHITECTURE:
        key = f"{ARCHITECTURE[kind]}.{name}"
        value = keys.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or name == "context_length":
            continue
        for other in (value * 2, value + 1, 0 * value):
            if other != value:
                refused(changed(whole(kind), path, {key: other}))


@pytest.mark.parametrize("value", [0, 1, 4, 63, (1 << 20) + 1, 1 << 31])
def test_a_context_length_out_of_bounds_is_refused(value, tmp_path):
    for kind in ("nano", "reranker-v3"):
        path = changed(whole(kind), tmp_path / whole(kind).name, {f"{ARCHITECTURE[kind]}.context_length": value})
        assert re.search(r"context_length is|max_position_embeddings is", refused(path))


def test_a_model_of_the_published_width_has_the_published_length(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    found = identify(path)
    narrow = files.registry.narrow(found.row, hidden=64, max_positions=128, tasks=found.row.spec.tasks)
    row = files.registry.Published(**{**vars(found.row), "spec": files.registry.replace(narrow, max_tokens=129)})
    monkeypatch.setattr("jina_local.registry.identify", lambda **_: row)
    assert "context_length is 128; jina-embeddings-v5-text-nano reads 129 tokens" in refused(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_file_that_lost_a_key_is_refused(kind, tmp_path):
    lost = [f"{ARCHITECTURE[kind]}.{name}" for name in ("vocab_size", "pooling_type", "attention.value_length")]
    for key in (*lost, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.token_type", "general.type"):
        assert f"has lost {key}" in refused(changed(whole(kind), tmp_path / whole(kind).name, {key: None}))


@pytest.mark.parametrize(("number", "label"), [(0, "F32"), (1, "F16"), (32, "BF16")])
def test_a_file_type_that_its_tensors_do_not_have_is_refused(number, label, tmp_path):
    """Quantised weights run as unquantised ones end the process on some processors."""
    path = changed(whole("nano"), tmp_path / f"v5-nano-retrieval-{label}.gguf", {"general.file_type": number})
    assert f"general.file_type says {label}, and its tensors are Q8_0" in refused(path)
    path = changed(made.gguf_file("nano", "F16"), tmp_path / "v5-nano-retrieval-Q8_0.gguf", {"general.file_type": 7})
    assert "general.file_type says Q8_0, and its tensors are F16" in refused(path)


def test_32_bits_are_not_called_16_whoever_wrote_the_file(tmp_path):
    path = changed(made.gguf_file("nano", "F32"), tmp_path / "v5-nano-retrieval-F16.gguf",
                   {"general.file_type": 1, gguf_keys.MADE_HERE: None})  # fmt: skip
    assert "general.file_type says F16, and its tensors are F32" in refused(path)


@pytest.mark.parametrize(
    ("kind", "keys", "expected"),
    [
        ("nano", {"split.count": 2}, "split.count is 2, where only 0 or 1 would change nothing"),
        ("nano", {"adapter.type": "lora"}, "adapter.type is 'lora'"),
        ("nano", {"tokenizer.ggml.suppress_tokens": [1]}, "tokenizer.ggml.suppress_tokens is a list of 1"),
        ("nano", {"tokenizer.ggml.fim_pad_token_id": 544}, "fim_pad_token_id is 544, outside the 544 tokens"),
        ("nano", {"tokenizer.ggml.token_type": [7] * 544}, "token_type is not a type from 1 to 6 for each"),
        ("nano", {"tokenizer.ggml.token_type": [1] * 543}, "token_type is not a type from 1 to 6 for each"),
        ("nano", {"tokenizer.ggml.tokens": [b"a" * 65537, *(b"%d" % n for n in range(543))]}, "a token of 65537 by"),
        ("nano", {"tokenizer.ggml.pre": None}, "has no tokenizer.ggml.pre; it is not a complete model"),
        ("nano", {"general.quantization_version": 3}, "quantization_version is 3; for this model it is 2"),
        ("nano", {"general.type": "mmproj"}, "general.type is 'mmproj'; for this model it is 'model'"),
        ("v3", {"tokenizer.ggml.precompiled_charsmap": [1, 2, 3]}, "has 3 bytes, and is not the table"),
        ("v3", {"tokenizer.ggml.precompiled_charsmap": [255] * 8}, "has 8 bytes, and is not the table"),
        ("v3", {"tokenizer.ggml.precompiled_charsmap": [300] * 8}, "is not an array of bytes"),
        ("v3", {"jina-bert-v3.classifier.output_labels": [b"a", b"b"]}, "this model has no such key"),
        ("v3", {"jina-bert-v3.attention.layer_norm_rms_epsilon": 1e-5}, "this model has no such key"),
        ("v3", {"jina-bert-v3.attention.layer_norm_epsilon": 1e-6}, "of this architecture have 1e-05"),
        ("reranker-v2", {"bert.classifier.output_labels": [b"a", b"b"]}, "is a list of 2; this model has 1 of them"),
        ("reranker-v2", {"bert.rope.freq_base": 10000.0}, "this model has no such key"),
    ],
)
def test_what_else_is_refused(kind, keys, expected, tmp_path):
    assert expected in refused(changed(whole(kind), tmp_path / whole(kind).name, keys))


def test_what_other_programs_write_is_taken(tmp_path):
    keys = {
        "tokenizer.chat_template": "{{ messages }}", "tokenizer.ggml.eot_token_id": 3, "general.sampling.temp": 0.6,
        "tokenizer.ggml.fim_pre_token_id": 4, "qwen3.rope.dimension_count": 128, "general.languages": [b"en"],
        "quantize.imatrix.file": "x.dat", "mradermacher.convert_type": "hf", "general.license.link": "https://x",
        "tokenizer.ggml.add_eos_token": False, "general.alignment": 32, "jina_local.model": None,
    }  # fmt: skip
    assert identify(changed(whole("small"), tmp_path / whole("small").name, keys)).task == "retrieval"


@pytest.mark.parametrize("kind", KINDS)
def test_two_tensors_that_have_exchanged_their_names_are_refused(kind, tmp_path):
    sources = [whole(kind)] + ([made.gguf_file(kind, "F32")] if kind in ("nano", "small") else [])
    for source in sources:
        file = Gguf(source.read_bytes())
        entries = {entry[0].decode(): entry for entry in file.tensors}
        ends = (
            ("attn_output.weight", "attn_output.bias") if "blk.0.attn_output.bias" in entries else ("ffn_up.weight",)
        )
        for end in ends:
            first, second = entries[f"blk.0.{end}"], entries[f"blk.1.{end}"]
            first[0], second[0] = second[0], first[0]
            (tmp_path / source.name).write_bytes(file.dump())
            assert "its tensors were exchanged: blk." in refused(tmp_path / source.name)
            first[0], second[0] = second[0], first[0]


def test_a_text_that_is_not_utf8_is_refused(tmp_path):
    raw = whole("nano").read_bytes()
    path = tmp_path / "v5-nano-retrieval-Q8_0.gguf"
    at = raw.index(b"jina-v5-nano", raw.index(b"tokenizer.ggml.pre"))
    path.write_bytes(raw[:at] + b"\xff" + raw[at + 1 :])
    assert "is not UTF-8" in refused(path)


def test_a_header_of_random_numbers_is_read_or_refused_and_nothing_else(tmp_path):
    raw, rng = whole("nano").read_bytes(), np.random.default_rng(0)
    path = tmp_path / "v5-nano-retrieval-Q8_0.gguf"
    names = []
    for _ in range(200):
        place = int(rng.integers(8, 4000)) // 4 * 4
        path.write_bytes(raw[:place] + struct.pack("<I", int(rng.integers(1 << 32))) + raw[place + 4 :])
        try:
            names.append(identify(path).row.spec.name)
        except ModelDamaged as error:
            names.append(str(error)[: len(str(path))])
    assert set(names) == {str(path), "jina-embeddings-v5-text-nano"}


def test_a_header_that_passed_is_not_checked_again_and_a_changed_file_is(tmp_path, monkeypatch):
    asked = []
    real = gguf_gate._check
    monkeypatch.setattr(gguf_gate, "_check", lambda *given: (asked.append(given[0].path), real(*given)))
    path = changed(whole("nano"), tmp_path / "v5-nano-retrieval-Q8_0.gguf")
    os.utime(path, (1e9, 1e9))
    assert [identify(path).task for _ in range(3)] == ["retrieval"] * 3
    assert asked == [path]
    changed(whole("nano"), path, {"eurobert.expert_count": 8})
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert "expert_count is 8" in refused(path)
    assert "expert_count is 8" in refused(path)
    assert asked == [path] * 3
