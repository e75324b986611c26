"""The safetensors room: what it reads, what it refuses, and the bytes that it writes."""

from __future__ import annotations

import json
import os
import random
import struct

import numpy as np
import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import safetensors
from jina_local.formats.safetensors import SafetensorsFile

from .damage import damaged_json


def build(path, header, data=b"", pad=True):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), span=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(span)}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"\0" * 7, "truncated"),
        ({"a": entry()}, b"\0" * 9, "something appended"),
        ({"a": entry(shape=(3,))}, b"\0" * 8, "do not hold F32"),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, r"tensor 'a': shape\[0\] is -2; expected a whole number from 0"),
        ({"a": entry(shape=(2.0,))}, b"\0" * 8, r"shape\[0\] is 2.0; expected a whole number"),
        ({"a": entry(shape=(True, 2))}, b"\0" * 8, r"shape\[0\] is True; expected a whole number"),
        ({"a": entry(shape=[1] * 8 + [2])}, b"\0" * 8, "shape is a list of 9; expected a list of 0 to 8"),
        ({"a": {**entry(), "shape": 2}}, b"\0" * 8, "shape is 2; expected a list"),
        ({"a": entry(dtype="F4")}, b"\0" * 8, "dtype is 'F4'; expected one of 'F64', 'I64'"),
        ({"a": entry(dtype=["F32"])}, b"\0" * 8, "dtype is \\['F32'\\]; expected one of"),
        ({"a": entry(dtype={"F32": 1})}, b"\0" * 8, "dtype is an object of 1 members; expected one of"),
        ({"a": entry(span=(0, 4, 8))}, b"\0" * 8, "data_offsets is a list of 3|data_offsets is \\[0, 4, 8\\]"),
        ({"a": entry(span=(8, 0))}, b"\0" * 8, "-8 bytes do not hold F32"),
        ({"a": {**entry(), "data_offsets": None}}, b"\0" * 8, "data_offsets is None; expected a list of 2"),
        ({"a": {**entry(), "shared": 1}}, b"\0" * 8, "tensor 'a': it has members that are not known here: 'shared'"),
        ({"\ud800": entry()}, b"\0" * 8, r"tensor '\\ud800': its name is '\\ud800'; expected a text of valid"),
        ({"a": entry(span=(4, 12))}, b"\0" * 12, "starts at byte"),
        ({"a": entry(), "b": entry()}, b"\0" * 8, "starts at byte"),
        ({"a": entry(), "b": entry(span=(16, 24))}, b"\0" * 24, "starts at byte"),
        ({"a": 5}, b"\0" * 8, "tensor 'a': holds 5; expected an object"),
        ({"a": {"dtype": "F32"}}, b"\0" * 8, "tensor 'a': shape is missing"),
        ({"__metadata__": {"x": 1}, "a": entry()}, b"\0" * 8, r"__metadata__\['x'\] is 1; expected a text"),
        ({"__metadata__": ["x"], "a": entry()}, b"\0" * 8, r"__metadata__ is \['x'\]; expected an object"),
        (
            b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}",
            b"\0" * 8,
            "twice",
        ),
        (b'{"a":NaN}', b"\0" * 8, "NaN is not JSON"),
        (b"[1,2]     ", b"", "does not start with"),
        (b"{" + b"[" * 5000, b"", "the header: not valid JSON"),
        (b'{"a":' + b"[" * 5000, b"", "the header: not valid JSON"),
        (b'{"\xff":1}', b"", "the header: not valid JSON"),
        ('{"a":1}'.encode("utf-16")[2:], b"", "the header: not valid JSON"),
    ],
)
def test_refusals(tmp_path, header, data, message):
    with pytest.raises(ModelDamaged, match=message):
        SafetensorsFile(build(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("size", [0, 3, 8, 9])
def test_a_file_too_short_for_a_header(tmp_path, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * size)
    with pytest.raises(ModelDamaged, match="not a complete safetensors file"):
        SafetensorsFile(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(ModelDamaged, match="not a regular file"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_what_is_written_is_read_back_by_the_library_of_the_format(tmp_path):
    reader = pytest.importorskip("safetensors.numpy")
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(5, dtype=np.uint8),
        "c": np.arange(4, dtype=np.float16),
        "d": np.arange(3, dtype=np.uint32),
    }
    names = {"float32": "F32", "uint8": "U8", "float16": "F16", "uint32": "U32"}
    layout = {k: (names[str(v.dtype)], v.shape) for k, v in tensors.items()}
    safetensors.write(tmp_path / "one", layout, tensors.items(), {"format": "mlx", "x": "ü"})
    backwards = dict(reversed(layout.items()))
    safetensors.write(tmp_path / "two", backwards, reversed(tensors.items()), {"x": "ü", "format": "mlx"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded = reader.load_file(tmp_path / "one")
    for name, value in tensors.items():
        np.testing.assert_array_equal(loaded[name], value)
    with SafetensorsFile(tmp_path / "one") as file:
        assert file.metadata == {"format": "mlx", "x": "ü"}
        for name, tensor in file.tensors.items():
            np.testing.assert_array_equal(file.read(name), tensors[name])
            assert tensor.start % tensors[name].dtype.itemsize == 0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", np.zeros(3, np.float32))], "expected F32"),
        ([("a", np.zeros(2, np.float16))], "expected F32"),
        ([], "never written"),
    ],
)
def test_the_writer_knows_what_it_was_promised(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        safetensors.write(tmp_path / "x", {"a": ("F32", (2,))}, tensors, {})


def test_bfloat16_rounds_to_nearest_even_as_torch_does(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(5000).astype(np.float32), np.float32([0, -0.0, 1e-40, 3e38, 1 + 2**-8, 1 + 3 * 2**-8])]
    )
    mine = safetensors.to_bf16(values)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(
        safetensors.to_f32(mine, "BF16", ""), torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    )


def test_float16_overflow_is_an_error():
    with pytest.raises(ModelDamaged, match="do not fit float16"):
        safetensors.to_f16(np.float32([1, 70000]), "w")


def test_integers_are_not_taken_for_weights(tmp_path):
    path = build(tmp_path / "x", {"a": entry("I32", (2,), (0, 8))}, b"\0" * 8)
    with SafetensorsFile(path) as file, pytest.raises(ModelDamaged, match="stored as I32; expected F32, F16 or BF16"):
        file.read_f32("a")


def test_damaged_headers_are_refused_or_read_as_the_reference_reads_them(tmp_path):
    reference = pytest.importorskip("safetensors")
    good = build(
        tmp_path / "g", {"__metadata__": {"k": "v"}, "a": entry(), "b": entry("F16", (2, 2), (8, 16))}, bytes(16)
    ).read_bytes()
    rng = random.Random(0)
    accepted = 0
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(good) - 16)] = rng.randrange(256)
        path = tmp_path / "x"
        path.write_bytes(damaged)
        try:
            with SafetensorsFile(path) as file:
                mine = {name: (t.dtype, list(t.shape)) for name, t in file.tensors.items()}
        except ModelDamaged:
            continue
        accepted += 1
        with reference.safe_open(path, "np") as theirs:
            assert sorted(theirs.keys()) == sorted(mine)
            for name in mine:
                part = theirs.get_slice(name)
                assert (part.get_dtype(), part.get_shape()) == mine[name]
    assert accepted > 10


def test_three_hundred_damaged_headers_raise_nothing_else(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("F16", (2, 2), (8, 16))}
    refused = 0
    for seed in range(300):
        path = build(tmp_path / "x", damaged_json(header, random.Random(seed)), bytes(16))
        try:
            with SafetensorsFile(path) as file:
                for name in file.tensors:
                    file.read(name)
        except ModelDamaged:
            refused += 1
    assert 200 < refused < 300
