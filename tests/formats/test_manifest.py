"""manifest.json: every member typed, names inside the folder, small files held against their digests."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import manifest
from jina_local.formats.files import sha256
from jina_local.formats.manifest import Entry, Manifest, Source

from .damage import damaged_json, refusal

DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path):
    """A folder with weights, a config and a manifest."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"weights")
    (tmp_path / "sub" / "config.json").write_bytes(b'{"a": 1}')
    files = {
        "model.gguf": Entry(7, sha256(tmp_path / "model.gguf"), "retrieval", "Q8_0"),
        "sub/config.json": Entry(8, sha256(tmp_path / "sub" / "config.json")),
    }
    source = Source("jinaai/x", "a1b2", {"model.safetensors": DIGEST})
    made = Manifest("gguf", "pico", source, DIGEST, files)
    (tmp_path / "manifest.json").write_text(made.dump())
    assert manifest.load(tmp_path) == made
    return tmp_path


def body_of(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b.pop("form"), "form is missing"),
        (lambda b: b.pop("source"), "source is missing"),
        (lambda b: b["source"].pop("revision"), "source.revision is missing"),
        (lambda b: b.update(files=[]), "files is []; expected an object of at most 1000 members"),
        (lambda b: b.update(files={"a": 5}), "files['a'] is 5; expected an object"),
        (lambda b: b["files"]["model.gguf"].pop("bytes"), "files['model.gguf'].bytes is missing"),
        (lambda b: b["files"]["model.gguf"].update(bytes="7"), "bytes is '7'; expected a whole number from 0"),
        (lambda b: b["files"]["model.gguf"].update(bytes=-7), "bytes is -7; expected a whole number from 0"),
        (lambda b: b["files"]["model.gguf"].update(bytes=True), "bytes is True; expected a whole number"),
        (lambda b: b["files"]["model.gguf"].update(sha256=None), "sha256 is None; expected a text"),
        (lambda b: b["files"]["model.gguf"].update(sha256="AB"), "expected a SHA-256 of 64 hex digits"),
        (lambda b: b["files"]["model.gguf"].update(task=["retrieval"]), "task is ['retrieval']; expected a text"),
        (lambda b: b["files"]["model.gguf"].update(weights={}), "weights is an object of 0 members; expected a text"),
        (lambda b: b["files"]["model.gguf"].update(mode=1), "has members that are not known here: 'mode'"),
        (lambda b: b.update(extra=1), "it has members that are not known here: 'extra'"),
        (lambda b: b["source"].update(extra=1), "source has members that are not known here: 'extra'"),
        (lambda b: b["source"].update(files={"x": 5}), "source.files['x'] is 5; expected a text"),
        (lambda b: b.update(model=["pico"]), "model is ['pico']; expected a text"),
        (lambda b: b.update(tokenizer=None), "tokenizer is None; expected a text"),
        (lambda b: b.update(format=1), "format is 1; expected a text"),
        (lambda b: b.update(format="jina_local manifest 2"), "format 'jina_local manifest 2', form 'gguf'; this ver"),
        (lambda b: b.update(form="torch"), "form 'torch'; this version reads 'jina_local manifest 1' with mlx, gguf"),
    ],
)  # fmt: skip
def test_an_odd_or_missing_member_is_named(folder, change, told):
    body = body_of(folder)
    change(body)
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(ModelDamaged) as error:
        manifest.load(folder)
    assert told in str(error.value)
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "./x", "a//b", "a\\b", "C:x", "", ".", "..", ".hidden", "a/.git/x", "a\0b",
     "é", "x" * 301, "-x", "a b"],
)  # fmt: skip
def test_a_name_that_may_lead_outside_is_refused(folder, name):
    body = body_of(folder)
    body["files"][name] = body["files"].pop("model.gguf")
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(ModelDamaged, match="that does not lead outside its folder"):
        manifest.load(folder)


def test_a_small_file_that_changed_is_refused_and_weights_are_left_to_verify(folder):
    (folder / "model.gguf").write_bytes(b"WEIGHTS")
    manifest.load(folder)
    assert len(manifest.verify(folder)) == 1
    (folder / "sub" / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(ModelDamaged, match=r"config.json: its content has changed since it was written\. Put the"):
        manifest.load(folder)


def test_three_hundred_damaged_manifests_raise_nothing_else(folder):
    body, refused = body_of(folder), 0
    for seed in range(300):
        (folder / "manifest.json").write_bytes(damaged_json(body, random.Random(seed)))
        told = refusal(manifest.load, folder)
        refused += told is not None
        assert len(told or "") < 600
    assert 200 < refused < 300


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
def test_a_change_in_the_header_of_a_weight_file_is_seen_at_load_and_one_in_its_tensors_by_verify(tmp_path, suffix):
    from tests import made

    folder = tmp_path / "copy"
    shutil.copytree(made.gguf("nano") if suffix == "gguf" else made.mlx("nano", 8), folder)
    path = next(folder.glob(f"*.{suffix}"))
    entry = manifest.load(folder).files[path.name]
    assert 0 < entry.header_bytes < entry.bytes
    raw = path.read_bytes()
    for place, seen in ((entry.header_bytes // 2, True), (entry.header_bytes, False)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        if seen:
            with pytest.raises(ModelDamaged, match="its content has changed"):
                manifest.load(folder)
        else:
            assert manifest.verify(folder) == [f"{path}: its content has changed since it was written"]
