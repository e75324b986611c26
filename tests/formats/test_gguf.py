"""The GGUF header room: what it reads, what it refuses, and that damage never gets past it unseen."""

from __future__ import annotations

import os
import random
import struct
import threading
import time

import numpy as np
import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import gguf as gguf_format
from jina_local.formats.gguf import FILE_TYPES, TYPES, read_header


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def u32(key, value):
    return string(key) + struct.pack("<II", 4, value)


def info(name, dims, kind=0, offset=0):
    return (
        string(name)
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


def build(path, *, keys=(), infos=(), data=b"", version=3, counts=None, magic=b"GGUF"):
    n_tensors, n_keys = counts or (len(infos), len(keys))
    raw = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(infos)
    raw += b"\0" * (-len(raw) % 32)
    path.write_bytes(raw + data)
    return path


GOOD = {
    "keys": [string("general.architecture") + struct.pack("<I", 8) + string("eurobert"), u32("general.file_type", 7),
             string("a") + struct.pack("<IIQ", 9, 8, 2) + string("x") + string(b"\xff"),
             string("b") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, -2, 3)],
    "infos": [info("t", (32, 2), 8, 0), info("u", (4,), 0, 96)],
    "data": bytes(68 + 28 + 16),
}  # fmt: skip


def test_a_good_header(tmp_path):
    header = read_header(build(tmp_path / "x", **GOOD))
    assert header.text("general.architecture") == "eurobert"
    assert header.weights == "Q8_0"
    assert header.keys["a"] == [b"x", b"\xff"]
    assert header.keys["b"] == [1, -2, 3]
    assert (header.tensors["t"].type, header.tensors["t"].shape, header.tensors["t"].nbytes) == ("Q8_0", (2, 32), 68)
    assert header.tensors["u"].start - header.tensors["t"].start == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": b"GGML"}, "not a GGUF file"),
        ({"version": 2}, "GGUF version 2; this runtime reads version 3"),
        ({"counts": (10**12, 1)}, "the number of tensors is 1000000000000"),
        ({"counts": (2, 300)}, "the number of keys is 300"),
        ({"counts": (2, 200)}, "truncated|longer|length|UTF-8|unknown"),
        ({"data": bytes(100)}, "truncated or damaged"),
        ({"keys": [u32("k", 1), u32("k", 2)]}, "key 'k' stands there twice"),
        ({"keys": [string("k") + struct.pack("<I", 77)]}, "unknown value type 77"),
        ({"keys": [string("k") + struct.pack("<IIQ", 9, 9, 1)]}, "an array of type 9 is not allowed"),
        ({"keys": [string("k") + struct.pack("<IIQ", 9, 4, 1 << 60)]}, "the length of an array"),
        ({"keys": [string("k") + struct.pack("<IQ", 8, 1 << 60)]}, "the length of a string"),
        ({"keys": [u32("general.alignment", 33)]}, "general.alignment is 33"),
        ({"keys": [string(b"\xff") + struct.pack("<II", 4, 1)]}, "not UTF-8"),
        ({"infos": [info("t", (4,)), info("t", (4,), 0, 32)]}, "tensor 't' stands there twice"),
        ({"infos": [info("t", (33,), 8)]}, "cannot be stored as Q8_0"),
        ({"infos": [info("t", (4,), 999)]}, "unknown tensor type 999"),
        ({"infos": [info("t", (4,), 0, 32)]}, "expected at 0"),
        ({"infos": [info("t", (1, 1, 1, 1, 1))]}, "the rank of a tensor is 5"),
        ({"infos": [info("t", (1 << 40,))]}, "a dimension is"),
        ({"infos": [info("t", ())]}, "cannot be stored"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, change, message):
    with pytest.raises(ModelDamaged, match=message):
        read_header(build(tmp_path / "x", **{**GOOD, **change}))


@pytest.fixture
def parsed(monkeypatch):
    """The names of the files whose headers were parsed; none is remembered from before."""
    paths = []

    class Counting(gguf_format._Parser):
        def header(self):
            paths.append(self.path.name)
            return super().header()

    monkeypatch.setattr(gguf_format, "_Parser", Counting)
    gguf_format._parsed.cache_clear()
    return paths


def aged(path, seconds=60):
    """The file as if it was written a while ago."""
    then = os.stat(path).st_mtime - seconds
    os.utime(path, (then, then))
    return path


def test_a_header_is_parsed_once_until_its_file_changes(tmp_path, parsed):
    path = aged(build(tmp_path / "x", **GOOD))
    assert read_header(path) is read_header(path)
    assert parsed == ["x"]
    aged(build(path, **{**GOOD, "keys": [u32("general.file_type", 2)]}), 30)
    assert read_header(path).weights == "Q4_0"
    aged(path, 90)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelDamaged):
        read_header(path)


def test_a_file_that_was_just_written_is_parsed_each_time(tmp_path, parsed):
    """Two writes within one tick of the clock leave the same identity."""
    path, tick = tmp_path / "x", time.time_ns()
    for number, label in ((2, "Q4_0"), (3, "Q4_1"), (8, "Q5_0")):
        build(path, **{**GOOD, "keys": [u32("general.file_type", number), *GOOD["keys"][2:]]})
        os.utime(path, ns=(tick, tick))
        assert read_header(path).weights == label
    assert len(parsed) == 3


def test_the_headers_kept_are_bounded(tmp_path, parsed):
    paths = [aged(build(tmp_path / str(n), **GOOD)) for n in range(20)]
    for path in (*paths, paths[19], paths[0]):
        read_header(path)
    assert parsed == [*map(str, range(20)), "0"]


def test_threads_that_read_the_same_file_get_the_same_header(tmp_path, parsed):
    path = aged(build(tmp_path / "x", **GOOD))
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_header(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("length", range(4, 200, 7))
def test_every_truncation_is_refused(tmp_path, length):
    path = build(tmp_path / "x", **GOOD)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelDamaged):
        read_header(path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ModelDamaged, match="not a GGUF file"):
        read_header(tmp_path / "x")


def test_type_tables_agree_with_the_library_of_the_format():
    gguf = pytest.importorskip("gguf")
    for number, (name, block, width) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, block, width)
    for number, name in FILE_TYPES.items():
        assert gguf.LlamaFileType(number).name in (f"MOSTLY_{name}", f"ALL_{name}")


def test_damaged_headers_are_refused_or_stay_within_the_file(tmp_path):
    good = build(tmp_path / "g", **GOOD).read_bytes()
    end = len(good) - len(GOOD["data"])
    rng = random.Random(1)
    passed = 0
    for _ in range(4000):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(end)] = rng.randrange(256)
        path = tmp_path / "x"
        path.write_bytes(damaged)
        try:
            header = read_header(path)
        except ModelDamaged:
            continue
        passed += 1
        for tensor in header.tensors.values():
            assert 0 <= tensor.start <= tensor.start + tensor.nbytes <= header.size
            assert int(np.prod(tensor.shape)) > 0 or tensor.nbytes == 0
    assert 0 < passed < 4000


def test_a_file_that_cannot_be_mapped_is_named(tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))

    def full(*args, **words):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(gguf_format.mmap, "mmap", full)
    with pytest.raises(ModelDamaged, match=r"x\.gguf: cannot be read \(Cannot allocate memory\)\."):
        read_header(path)
