"""Adapters beside an MLX base that are not what they should be: refused, with what is wrong and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.mlx.folders import to_mlx
from jina_local.errors import ModelDamaged, UsageError
from jina_local.formats import safetensors
from jina_local.formats.safetensors import SafetensorsFile
from tests.backends.test_mlx_adapters import beside, files_of
from tests.convert.test_mlx_folders import rewrite, small_source

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return small_source(tmp_path_factory.mktemp("source") / "small", "small")


@pytest.fixture(scope="module")
def separate(source, tmp_path_factory):
    """Bits -> a folder of base and adapters, made once."""
    made: dict[int, Path] = {}

    def make(bits: int) -> Path:
        if bits not in made:
            made[bits] = tmp_path_factory.mktemp("separate") / str(bits)
            to_mlx(source, made[bits], tasks=["retrieval", "clustering"], bits=bits, separate=True)
        return made[bits]

    return make


def change_metadata(path: Path, **changes: str | None) -> None:
    """Set keys, or remove those given as None."""
    with SafetensorsFile(path) as file:
        tensors = {name: (entry.dtype, file.read(name)) for name, entry in file.tensors.items()}
        metadata = {**file.metadata, **changes}
    path.unlink()
    layout = {name: (dtype, data.shape) for name, (dtype, data) in tensors.items()}
    kept = {key: value for key, value in metadata.items() if value is not None}
    safetensors.write(path, layout, ((name, data) for name, (_, data) in tensors.items()), kept)


@pytest.fixture
def copy(separate, tmp_path) -> Path:
    return shutil.copytree(separate(8), tmp_path / "copy")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelDamaged, match=message):
        beside(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "jina_local adapter 2"}, "format 'jina_local adapter 2'; this version reads .* Convert again"),
        ({"format": None}, "format None; this version reads"),
        ({"task": "clustering"}, "is the adapter of 'clustering', not of 'retrieval'"),
        (
            {"base": "0" * 64},
            "was made for the base 0{64}, and .* is of the base [0-9a-f]{64}. Put .* mlx SRC OUT",
        ),
        ({"base": None}, r"its metadata is malformed \('base'\)"),
        ({"rank": "0"}, "rank 0; expected a whole number from 1 to 512"),
        ({"rank": "513"}, "rank 513; expected"),
        ({"rank": "-32"}, "its metadata is malformed"),
        ({"rank": "9" * 5000}, "its metadata is malformed"),
        ({"rank": "16"}, "of another shape"),
        ({"alpha": "0"}, "alpha 0.0; expected a positive number up to 65536"),
        ({"alpha": "-1"}, "alpha -1.0"),
        ({"alpha": "nan"}, "alpha nan"),
        ({"alpha": "inf"}, "alpha inf"),
        ({"alpha": "1e300"}, r"alpha 1e\+300"),
        ({"alpha": "much"}, "its metadata is malformed"),
        ({"prompts": "[]"}, "its metadata is malformed"),
        ({"default_prompt": "essay"}, r"its metadata is malformed \('essay'\)"),
    ],
)
def test_metadata_that_is_not_what_it_should_be_is_refused(copy, changes, message):
    change_metadata(copy / "adapters/retrieval.safetensors", **changes)
    refused(copy, message)


def _poisoned(tensors):
    tensors["layers.1.mlp.up_proj.lora_B"][1][3, 2] = np.nan


def _half_a_pair(tensors):
    del tensors["layers.0.self_attn.o_proj.lora_B"]


def _of_another_layer(tensors):
    for x in "AB":
        tensors[f"layers.2.mlp.up_proj.lora_{x}"] = tensors[f"layers.1.mlp.up_proj.lora_{x}"]


def _of_the_table(tensors):
    tensors["embed_tokens.lora_A"] = tensors["layers.1.mlp.up_proj.lora_A"]


def _misshaped(tensors):
    dtype, data = tensors["layers.0.mlp.down_proj.lora_A"]
    tensors["layers.0.mlp.down_proj.lora_A"] = (dtype, np.ascontiguousarray(data.T))


def _whole_numbers(tensors):
    name = "layers.0.mlp.down_proj.lora_A"
    tensors[name] = ("I16", tensors[name][1].view(np.int16))


def _bfloat(tensors):
    name = "layers.0.mlp.down_proj.lora_A"
    tensors[name] = ("BF16", tensors[name][1].view(np.uint16))


def _none(tensors):
    tensors.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_poisoned, r"layers\.1\.mlp\.up_proj\.lora_B: 1 of \d+ values are NaN or infinite"),
        (_half_a_pair, r"1 missing: layers\.0\.self_attn\.o_proj\.lora_B"),
        (_of_another_layer, r"2 unknown: layers\.2\.mlp\.up_proj\.lora_A, layers\.2"),
        (_of_the_table, r"1 unknown: embed_tokens\.lora_A"),
        (_misshaped, r"1 of another shape: layers\.0\.mlp\.down_proj\.lora_A \(256, 32\) \(expected \(32, 256\)\)"),
        (_whole_numbers, r"down_proj\.lora_A is stored as I16; expected"),
        (_bfloat, r"down_proj\.lora_A is stored as BF16; expected F16 or F32"),
        (_none, "holds no LoRA factors"),
    ],
)
def test_tensors_that_are_not_what_they_should_be_are_refused(copy, change, message):
    rewrite(copy / "adapters/retrieval.safetensors", change)
    refused(copy, message)


def test_a_cut_file_and_a_missing_one_are_refused(copy):
    path = copy / "adapters/retrieval.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(copy, r"retrieval\.safetensors.*truncated")
    path.unlink()
    with pytest.raises(ModelDamaged, match=r"retrieval\.safetensors: cannot be opened"):
        beside(copy, {"retrieval": path})


def test_a_scale_that_overflows_is_refused(copy):
    path = copy / "adapters/retrieval.safetensors"

    def enlarge(tensors):
        wide = tensors["layers.0.mlp.up_proj.lora_B"][1].astype(np.float32)
        wide[0, 0] = 3e38
        tensors["layers.0.mlp.up_proj.lora_B"] = ("F32", wide)

    rewrite(path, enlarge)
    change_metadata(path, alpha="65536")
    refused(copy, r"the factors of layers\.0\.mlp\.up_proj\.weight times alpha / rank: 1 of \d+ values are NaN")


def test_adapters_of_another_checkpoint_are_refused_before_the_base_is_read(separate, tmp_path):
    """Same shapes, other weights: vectors would come, and mean nothing. Even where the base itself is damaged."""
    other = small_source(tmp_path / "other", "small")

    def change(tensors):
        tensors["norm.weight"][1][0] += 1

    rewrite(other / "model.safetensors", change)
    to_mlx(other, tmp_path / "out", tasks=["retrieval"], bits=8, separate=True)
    base = shutil.copytree(separate(8), tmp_path / "base")

    def poison(tensors):
        tensors["model.norm.weight"][1][0] = np.nan

    rewrite(base / "model.safetensors", poison)
    for folder, message in ((tmp_path / "out", "was made for the base"), (base, "norm.weight: holds NaN")):
        with pytest.raises(ModelDamaged, match=message):
            beside(base, {"retrieval": files_of(folder)["retrieval"]})


@pytest.mark.parametrize("bits", [8, 16])
def test_a_merged_folder_takes_no_adapter(separate, source, bits, tmp_path):
    to_mlx(source, tmp_path / "merged", tasks=["retrieval"], bits=bits)
    for base in (tmp_path / "merged", source):
        with pytest.raises(ModelDamaged, match=r"carries no digest of a base \(base\).*mlx SRC OUT --adapters sep"):
            beside(base, files_of(separate(bits)))


def test_a_published_adapter_belongs_to_the_checkpoint_around_it(separate, source, tmp_path):
    elsewhere = shutil.copytree(source / "adapters/retrieval", tmp_path / "retrieval")
    for base in (source, separate(8), separate(16)):
        with pytest.raises(
            UsageError, match="lies outside .* and names no base.* convert mlx SRC OUT --adapters separate"
        ):
            beside(base, {"retrieval": elsewhere})
