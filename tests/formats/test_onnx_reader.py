"""ONNX files of others: what is read of a graph, and every refusal. No byte of these files reaches an engine."""

from __future__ import annotations

import os
import re
import time

import numpy as np
import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import onnx_reader
from jina_local.formats.onnx_file import Graph, _bytes, _number, _tensor, _varint

F32 = np.dtype(np.float32)


def written(folder, size=32, place=("model.onnx_data", 8, 24)):
    """A graph with one weight outside, of 24 bytes, and a constant inside."""
    g = Graph()
    x = g.input("x", np.int64, ("n", "m"))
    w = g.weight("w", np.zeros((2, 3), np.float32))
    g.output("y", g.node("Gather", w, g.node("QuickGelu", x, alpha=1.0)), np.float32, ("n", "m", 3))
    g.constant(np.array([1, -1]))
    (folder / "model.onnx").write_bytes(g.model(lambda name: place))
    (folder / "model.onnx_data").write_bytes(np.arange(size, dtype=np.uint8).tobytes())
    return folder / "model.onnx"


def test_what_is_read(tmp_path):
    file = onnx_reader.read(written(tmp_path))
    assert file.raw == (tmp_path / "model.onnx").read_bytes()
    assert file.operators == {("", "Gather"), ("", "Identity"), ("com.microsoft", "QuickGelu")}
    assert file.inputs == {"x": (np.dtype(np.int64), 2)}
    assert file.outputs == {"y": (F32, 3)}
    assert file.tensors["w"] == onnx_reader.Tensor(F32, (2, 3), ("model.onnx_data", 8, 24))
    assert file.tensors["constant_0"] == onnx_reader.Tensor(np.dtype(np.int64), (2,), None)
    (data,) = file.outside().values()
    assert data.tobytes() == bytes(range(8, 32))
    assert data.shape == (2, 3)


def model(*members, **graph):
    """A file with these members beside a graph of these."""
    return b"".join(members) + _bytes(7, b"".join(graph.values()))


def tensor(*, dims=(2,), number=1, data=b"", more=b""):
    head = b"".join(_number(1, n) for n in dims) + _number(2, number) + _bytes(8, b"w")
    return _bytes(5, head + (_bytes(9, data) if data else b"") + more)


def outside(**entries):
    where = b"".join(_bytes(13, _bytes(1, k.encode()) + _bytes(2, str(v).encode())) for k, v in entries.items())
    return tensor(dims=(2, 3), more=where + _number(14, 1))


def node(*members):
    return _bytes(1, _bytes(4, b"If") + b"".join(members))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "holds no graph"),
        (b"\x3a", "a number is cut"),
        (b"\x3a\x05\x00", "a member is cut"),
        (b"\x3b", "a member is cut, or of a type that ONNX does not have"),
        (b"\x80" * 10 + b"\x01", "too long"),
        (b"\xff" * 9 + b"\x7f", "too large"),
        (model(_bytes(25, b"")), "Model has a member 25"),  # functions
        (model(_bytes(20, b"")), "Model has a member 20"),  # training
        (model(_number(1, 9), _number(1, 9)), "Model.ir_version is there twice"),
        (model(_bytes(7, b"")), "Model.graph is there twice"),
        (model(_bytes(1, b"")), "Model.ir_version is of another type"),
        (model(_bytes(2, b"\xff")), "a text is not UTF-8"),
        (model(a=_bytes(15, b"")), "Graph has a member 15"),  # sparse weights
        (model(a=node(_bytes(5, _bytes(6, b"")))), "Attribute has a member 6"),  # a graph
        (model(a=node(_bytes(5, _bytes(11, b"")))), "Attribute has a member 11"),  # graphs
        (model(a=node(_bytes(5, _bytes(21, b"x")))), "Attribute has a member 21"),  # of a function
        (model(a=node(_bytes(8, b"x"))), "Node has a member 8"),  # one of several functions of a name
        (model(a=tensor(more=_bytes(3, b""))), "Tensor has a member 3"),  # a segment
        (model(a=tensor(number=8)), "has the type 8"),  # texts
        (model(a=tensor(number=16, data=bytes(4))), "has the type 16"),
        (model(a=tensor(data=bytes(7))), "is not that of its shape"),
        (model(a=tensor(data=bytes(12))), "is not that of its shape"),
        (model(a=tensor(dims=(-1,), data=bytes(4))), "expected a whole number from 0"),
        (model(a=tensor(dims=(1,) * 9, data=bytes(4))), "expected a list of 0 to 8"),
        (model(a=tensor(data=bytes(8)), b=tensor(data=bytes(8))), "two values of the graph have one name"),
        (model(a=tensor(data=bytes(8), more=_number(14, 1))), "is not that of its shape"),  # inside and outside
        (model(a=outside(length=24)), "the file of tensor 'w' is None"),
        (model(a=outside(location="../model.onnx_data")), "expected a plain file name"),
        (model(a=outside(location="/etc/model.onnx_data")), "expected a plain file name"),
        (model(a=outside(location="a\\model.onnx_data")), "expected a plain file name"),
        (model(a=outside(location="model.safetensors")), "expected a plain file name"),
        (model(a=outside(location="none.onnx_data")), "cannot be opened"),
        (model(a=outside(location="model.onnx_data", offset=9)), "ends before the end of 'w'"),
        (model(a=outside(location="model.onnx_data", offset=-1)), "expected a number"),
        (model(a=outside(location="model.onnx_data", offset=10**16)), "expected a number"),
        (model(a=outside(location="model.onnx_data", length=23)), "has 23 bytes outside; its shape takes 24"),
        (model(a=outside(location="model.onnx_data", what=1)), "members that are unknown"),
        (model(a=_bytes(11, _bytes(1, b"x"))), "has no type or shape"),
    ],
)
def test_refusals(tmp_path, raw, message):
    (tmp_path / "model.onnx").write_bytes(raw)
    (tmp_path / "model.onnx_data").write_bytes(bytes(32))
    with pytest.raises(ModelDamaged, match=re.escape(message)):
        onnx_reader.read(tmp_path / "model.onnx")


def test_two_weights_on_the_same_bytes_are_refused(tmp_path):
    """Else a small file could ask for any amount of memory."""
    entries = _bytes(13, _bytes(1, b"location") + _bytes(2, b"model.onnx_data"))
    both = b"".join(_bytes(5, _tensor(name, F32, (4,)) + entries + _number(14, 1)) for name in ("a", "b"))
    (tmp_path / "model.onnx").write_bytes(_bytes(7, both))
    (tmp_path / "model.onnx_data").write_bytes(bytes(32))
    with pytest.raises(ModelDamaged, match="the tensor 'b' lies on another one's bytes"):
        onnx_reader.read(tmp_path / "model.onnx")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_weights_that_are_no_regular_file(tmp_path, make):
    path = written(tmp_path)
    (tmp_path / "model.onnx_data").unlink()
    make(tmp_path / "model.onnx_data")
    with pytest.raises(ModelDamaged, match="is not a regular file|cannot be opened"):
        onnx_reader.read(path)


def test_weights_that_are_cut_after_the_check(tmp_path):
    file = onnx_reader.read(written(tmp_path))
    os.truncate(tmp_path / "model.onnx_data", 20)
    with pytest.raises(ModelDamaged, match="ends inside the tensor 'w'"):
        file.outside()


@pytest.mark.parametrize(
    "raw", [_bytes(1, b"") * 3_000_000, _bytes(5, b"\x08\x01" * 3_000_000)], ids=["nodes", "dims"]
)
def test_a_file_of_nothing_but_members_is_refused_soon(tmp_path, raw):
    (tmp_path / "model.onnx").write_bytes(_bytes(7, raw))
    start = time.process_time()
    with pytest.raises(ModelDamaged, match="more than 1,000,000 members"):
        onnx_reader.read(tmp_path / "model.onnx")
    assert time.process_time() - start < 20


def test_packed_and_single_numbers_are_the_same(tmp_path):
    head = _number(2, 1) + _bytes(8, b"w") + _bytes(9, bytes(24))
    for dims in (_number(1, 2) + _number(1, 3), _bytes(1, _varint(2) + _varint(3))):
        (tmp_path / "model.onnx").write_bytes(_bytes(7, _bytes(5, dims + head)))
        assert onnx_reader.read(tmp_path / "model.onnx").tensors["w"].shape == (2, 3)


def test_the_onnx_package_reads_the_same(tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(written(tmp_path)), load_external_data=False).graph
    file = onnx_reader.read(tmp_path / "model.onnx")
    assert {("" if n.domain == "ai.onnx" else n.domain, n.op_type) for n in graph.node} == file.operators
    assert {t.name: tuple(t.dims) for t in graph.initializer} == {n: t.shape for n, t in file.tensors.items()}
