"""LoadedModel opens the tokenizer that the weights were made with, or none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from jina_local import registry
from jina_local.errors import ModelDamaged
from jina_local.formats import gguf, manifest
from jina_local.formats.files import sha256
from jina_local.inference.loaded import open_tokenizer
from jina_local.spec import ModelFiles
from jina_local.store import find
from tests import made, tiny


@pytest.fixture
def files():
    """The files of a converted GGUF folder, with what its manifest says of the tokenizer."""
    path = made.gguf_file("nano", "F32")
    return ModelFiles(
        registry.lookup("v5-nano").spec, "gguf", {"retrieval": path}, "F32", path.parent / "tokenizer.json", None, (),
        fingerprint=manifest.load(path.parent).tokenizer, vocabularies=(path,),
    )  # fmt: skip


def other_tokenizer(tmp_path):
    """Of the same form and size, two of its tokens with each other's ids."""
    path = tmp_path / "tokenizer.json"
    text = tiny.tokenizer("nano").to_str()
    path.write_text(text.replace('"T":51,', '"T":35,').replace('"D":35,', '"D":51,'))
    assert path.read_text() != text
    return path


def test_the_tokenizer_beside_the_weights_and_the_one_within_are_the_same(files):
    beside, within = open_tokenizer(files), open_tokenizer(replace(files, tokenizer=None))
    assert beside.fingerprint() == within.fingerprint() == files.fingerprint
    assert beside.where.endswith("tokenizer.json")
    assert within.where.startswith("the vocabulary in ")


def test_another_models_tokenizer_is_refused_by_the_manifest(files, tmp_path):
    other = replace(files, tokenizer=other_tokenizer(tmp_path), vocabularies=())
    with pytest.raises(ModelDamaged, match="gives other ids than the tokenizer .* and the manifest has"):
        open_tokenizer(other)
    open_tokenizer(replace(other, fingerprint=None))


def test_another_models_tokenizer_is_refused_by_the_gguf_alone(files, tmp_path, monkeypatch):
    other = replace(files, tokenizer=other_tokenizer(tmp_path), fingerprint=None)
    with pytest.raises(ModelDamaged, match="gives other ids than the tokenizer .* and the header of .*gguf has"):
        open_tokenizer(other)
    original = gguf.read_header

    def without_key(path):
        header = original(path)
        keys = {key: value for key, value in header.keys.items() if "fingerprint" not in key}
        return replace(header, keys=keys)

    monkeypatch.setattr(gguf, "read_header", without_key)
    with pytest.raises(
        ModelDamaged, match=r"is not the tokenizer in .*gguf \(the id 35 is b'T' and b'D'\): it reads"
    ):
        open_tokenizer(other)
    open_tokenizer(files)


def test_a_vocabulary_that_was_changed_is_refused_by_the_manifest(files, monkeypatch):
    original = gguf.read_header

    def changed(path):
        header = original(path)
        tokens = list(header.keys["tokenizer.ggml.tokens"])
        tokens[35], tokens[51] = tokens[51], tokens[35]
        return replace(header, keys={**header.keys, "tokenizer.ggml.tokens": tokens})

    monkeypatch.setattr(gguf, "read_header", changed)
    with pytest.raises(ModelDamaged, match="the vocabulary in .*: gives other ids than .* and the manifest has"):
        open_tokenizer(replace(files, tokenizer=None))


def test_a_tokenizer_of_another_form_is_refused(files, tmp_path):
    tiny.tokenizer("small").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelDamaged, match="splits and normalises text as 'qwen2' does, and this model's tokenizer"):
        open_tokenizer(replace(files, tokenizer=tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("form", ["gguf", "mlx"])
def test_a_converted_folder_hands_over_its_fingerprint_and_vocabularies(form):
    folder = made.gguf("nano") if form == "gguf" else made.mlx("nano", 8)
    files = find.find(folder, offline=True)
    assert files.fingerprint == manifest.load(folder).tokenizer
    assert files.vocabularies == (tuple(files.files.values()) if form == "gguf" else ())
    alone = find.find(made.gguf_file("nano", "F32"), offline=True)
    assert alone.fingerprint == manifest.load(made.gguf("nano")).tokenizer
    assert alone.vocabularies == (made.gguf_file("nano", "F32"),)
    open_tokenizer(files)


def test_a_tokenizer_with_a_manifest_to_match_is_refused_by_its_fingerprint(tmp_path):
    folder = shutil.copytree(made.gguf("nano"), tmp_path / "copy")
    other_tokenizer(folder)
    body = json.loads((folder / manifest.NAME).read_text())
    body["files"]["tokenizer.json"]["sha256"] = sha256(folder / "tokenizer.json")
    body["files"]["tokenizer.json"]["bytes"] = (folder / "tokenizer.json").stat().st_size
    (folder / manifest.NAME).write_text(json.dumps(body))
    with pytest.raises(ModelDamaged, match="gives other ids than the tokenizer .* and the manifest has"):
        open_tokenizer(find.find(folder, offline=True))
    (folder / manifest.NAME).unlink()
    with pytest.raises(ModelDamaged, match="gives other ids than the tokenizer .* and the header of .*gguf has"):
        open_tokenizer(find.find(folder, offline=True))
