"""Files opened with care: strict JSON, links that stay inside, and what is remembered of a file until it changes."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import files
from jina_local.formats.files import Remembered, identity, open_regular, read_all, read_json, unchanged, within


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "holds list, expected a JSON object"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands there twice"),
        (b'{"a": {"x": 1, "x": 1}}', "'x' stands there twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a": ' + b"[" * 200_000, "not valid JSON"),
    ],
)
def test_what_is_no_plain_json_object_is_refused(tmp_path, raw, told):
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(ModelDamaged) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)


def test_a_file_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    assert read_all(path, 4)[0] == b"1234"
    with pytest.raises(ModelDamaged, match="larger than 0 MiB"):
        read_all(path, 3)


def test_links_are_followed_inside_the_folder_alone(tmp_path):
    cache = tmp_path / "cache"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "ab").write_text("x")
    (tmp_path / "outside").write_text("secret")
    links = {"good": "blobs/ab", "up": "../outside", "absolute": str(tmp_path / "outside"), "gone": "blobs/no",
             "round": "round", "twice": "up"}  # fmt: skip
    for name, target in links.items():
        (cache / name).symlink_to(target)
    assert within(cache / "good", cache) == (cache / "blobs" / "ab").resolve()
    assert within(cache / "blobs" / "ab", cache) == (cache / "blobs" / "ab").resolve()
    for name in ("up", "absolute", "twice"):
        with pytest.raises(ModelDamaged, match=f"{name}: is a link to .*outside, which lies outside .*cache"):
            within(cache / name, cache)
    for name in ("gone", "round"):
        with pytest.raises(ModelDamaged, match=f"{name}: leads nowhere"):
            within(cache / name, cache)
    (tmp_path / "alias").symlink_to("cache")
    assert within(tmp_path / "alias" / "good", tmp_path / "alias").name == "ab", "the folder may be a link itself"
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "x").write_text("x")
    (cache / "moved").symlink_to(tmp_path / "disk")
    assert within(cache / "moved" / "x", cache / "moved", cache).name == "x", "or a folder of it that is a link"
    (tmp_path / "cache-of-another").mkdir()
    (tmp_path / "cache-of-another" / "x").write_text("x")
    with pytest.raises(ModelDamaged, match="which lies outside"):
        within(cache / ".." / "cache-of-another" / "x", cache)


def test_a_digest_is_computed_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FRESH", 0)
    path, read = tmp_path / "x", []
    path.write_bytes(b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    original = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda p, size: read.append(p) or original(p, size))
    assert unchanged(path, digest)
    assert unchanged(path, digest)
    assert not unchanged(path, "0" * 64)
    assert len(read) == 1
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not unchanged(path, digest), "the same size and time of change, and another content"
    assert len(read) == 2


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    with open_regular(path) as file:
        assert identity(file) is None
    assert unchanged(path, hashlib.sha256(b"one").hexdigest())
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not unchanged(path, hashlib.sha256(b"one").hexdigest())


def test_only_so_much_is_remembered():
    kept = Remembered[str](2)
    for n in range(3):
        kept.put((n,), str(n))
    kept.put(None, "none")
    assert [kept.get(key) for key in ((0,), (1,), (2,), None)] == [None, "1", "2", None]
    kept.get((1,))
    kept.put((3,), "3")
    assert [kept.get((n,)) for n in range(4)] == [None, "1", None, "3"], "what was asked for last stays"


def test_json_is_read_as_written(tmp_path):
    body = {"a": [1, 2.5, None, True, "é\u2581"], "b": {"c": {}}}
    (tmp_path / "x").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "x") == body
