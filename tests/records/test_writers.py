"""writers.py: what is written can be read by others, exactly; what cannot be written leaves nothing behind."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tracemalloc

import numpy as np
import pytest

from jina_local import registry
from jina_local.embedding.request import PRECISIONS, resolve
from jina_local.errors import EngineMissing, UsageError
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.records import writers
from jina_local.records.writers import UNUSABLE, Block

ROWS = registry.PUBLISHED[1].spec


def request(precision="float32", dim=32):
    return resolve(ROWS, truncate_dim=dim, precision=precision)


def awkward():
    """(5, 32) float32 with the numbers that trip writers: tiny, huge, negative zero, subnormal, long fractions."""
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((5, 32)) * 10.0 ** rng.integers(-30, 30, (5, 32))).astype(np.float32)
    rows[0, :6] = [0.1, -0.0, 1e-45, 3.4028235e38, 16777216.0, 1 / 3]
    return rows


def codes(precision):
    info = np.iinfo(np.int8 if precision in ("int8", "binary") else np.uint8)
    width = 4 if "binary" in precision else 32
    return np.random.default_rng(2).integers(info.min, info.max + 1, (5, width)).astype(info.dtype)


def block(vectors, start=0, cut=(), failed=(), **kept):
    truncated = np.zeros(len(vectors), np.bool_)
    truncated[list(cut)] = True
    counts = np.ones(len(vectors), np.int32)
    return Block(
        range(start, start + len(vectors)), vectors, counts, truncated, dict.fromkeys(failed, UNUSABLE), kept
    )


def written(chosen, spec, *blocks, complete=True, file=None, kept=()):
    if chosen == "parquet":
        pytest.importorskip("pyarrow")
    file = file or io.BytesIO()
    writer = writers.open_writer(chosen, file, spec, kept, weights="Q6_K")
    for one in blocks:
        writer.write(one)
    writer.close(complete)
    return file


class Pipe(io.BytesIO):
    """A file that cannot go back."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation("seek")

    def tell(self):
        raise io.UnsupportedOperation("tell")


def values(chosen, data):
    """(n, width) array as somebody else's library reads it."""
    if chosen == "jsonl":
        return [json.loads(line)["embedding"] for line in data.decode().splitlines()]
    if chosen == "json":
        return json.loads(data)
    if chosen == "csv":
        return [[float(cell) for cell in row[1:]] for row in list(csv.reader(io.StringIO(data.decode())))[1:]]
    if chosen == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if chosen == "safetensors":
        return pytest.importorskip("safetensors.numpy").load(data)["embeddings"]
    pq = pytest.importorskip("pyarrow.parquet")
    return pq.read_table(io.BytesIO(data)).column("embedding").to_pylist()


@pytest.mark.parametrize("chosen", writers.FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", [io.BytesIO, Pipe])
def test_every_format_reads_back_equal(chosen, precision, target):
    rows = awkward() if precision == "float32" else codes(precision)
    data = written(chosen, request(precision), block(rows[:2]), block(rows[2:], 2), file=target()).getvalue()
    back = np.asarray(values(chosen, data))
    assert back.shape == rows.shape
    if chosen in ("npy", "safetensors"):
        assert back.dtype == rows.dtype
    assert np.array_equal(back.astype(rows.dtype).view(np.uint8), rows.view(np.uint8))  # bits, so -0.0 too


@pytest.mark.parametrize("chosen", writers.FORMATS)
def test_no_texts_give_an_empty_but_whole_file(chosen):
    data = written(chosen, request()).getvalue()
    assert len(values(chosen, data)) == 0
    if chosen == "npy":
        assert np.load(io.BytesIO(data)).shape == (0, 32)


def test_floats_have_the_fewest_digits_that_read_back():
    data = written("jsonl", request(dim=32), block(np.full((1, 32), 0.1, np.float32))).getvalue().decode()
    assert data.startswith('{"index": 0, "embedding": [0.1, 0.1, ')
    rows = awkward()
    texts = [n for row in writers._numbers(block(rows)) for n in row]
    for text, value in zip(texts, rows.reshape(-1), strict=True):
        assert np.float32(text) == value
        digits = len(text.lower().split("e")[0].replace(".", "").replace("-", "").strip("0"))
        shorter = np.float32(f"{value:.{max(digits - 2, 0)}e}")
        assert digits <= 1 or shorter != value


def test_jsonl_marks_what_was_cut_and_what_failed():
    rows = np.zeros((3, 32), np.float32)
    lines = written("jsonl", request(), block(rows, 7, cut=[0], failed=[1])).getvalue().decode().splitlines()
    first, second, third = map(json.loads, lines)
    assert first == {"index": 7, "embedding": [0.0] * 32, "truncated": True}
    assert second == {"index": 8, "error": "the model gave no usable vector (NaN, infinity or zero)"}
    assert third == {"index": 9, "embedding": [0.0] * 32}


def test_rows_without_a_vector_in_the_other_formats():
    rows = np.ones((3, 32), np.float32)
    rows[1] = 0
    one = block(rows, failed=[1])
    assert [row is None for row in json.loads(written("json", request(), one).getvalue())] == [False, True, False]
    table = list(csv.reader(io.StringIO(written("csv", request(), one).getvalue().decode())))
    assert table[0][:3] == ["index", "d0", "d1"]
    assert table[2] == ["1", *[""] * 32]
    assert not values("npy", written("npy", request(), one).getvalue())[1].any()
    column = values("parquet", written("parquet", request(), one).getvalue())
    assert [row is None for row in column] == [False, True, False]
    assert column[2] == [1.0] * 32


def test_parquet_has_index_flag_metadata_and_a_row_group_a_block():
    pq = pytest.importorskip("pyarrow.parquet")
    rows = awkward()
    file = pq.ParquetFile(
        io.BytesIO(written("parquet", request(), block(rows[:2], cut=[1]), block(rows[2:], 2)).getvalue())
    )
    assert file.num_row_groups == 2
    table = file.read()
    assert table.column("index").to_pylist() == [0, 1, 2, 3, 4]
    assert table.column("truncated").to_pylist() == [False, True, False, False, False]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[32]"
    assert table.schema.metadata[b"model"] == ROWS.name.encode()
    assert table.schema.metadata[b"precision"] == b"float32"
    assert table.schema.metadata[b"weights"] == b"Q6_K"


def test_safetensors_is_readable_by_our_own_strict_reader(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_bytes(written("safetensors", request("binary"), block(codes("binary"))).getvalue())
    with SafetensorsFile(path) as file:
        assert np.array_equal(file.read("embeddings"), codes("binary"))
        assert file.metadata == {
            "dim": "32", "model": ROWS.name, "precision": "binary", "prompt": "Document: ", "task": "retrieval",
            "weights": "Q6_K",
        }  # fmt: skip


def test_npy_header_is_aligned_and_of_the_first_version():
    data = written("npy", request(), block(awkward())).getvalue()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert (10 + int.from_bytes(data[8:10], "little")) % 64 == 0


@pytest.mark.parametrize("chosen", ["json", "npy", "safetensors", "parquet"])
@pytest.mark.parametrize("target", [io.BytesIO, Pipe])
def test_a_run_that_broke_off_does_not_look_whole(chosen, target):
    rows = awkward()
    data = written(chosen, request(), block(rows), complete=False, file=target()).getvalue()
    try:
        count = len(values(chosen, data))
    except Exception:  # each library has its own errors for a file without its end
        count = 0
    assert count == 0


def test_npy_rows_are_not_kept_in_memory():
    spec = request()
    rows = np.ones((1024, 32), np.float32)  # 128 KiB
    with open(os.devnull, "wb") as sink:
        writer = writers.open_writer("npy", sink, spec, weights="Q6_K")
        tracemalloc.start()
        for i in range(200):
            writer.write(block(rows, 1024 * i))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        writer.close(True)
    assert peak < 1 << 20


def test_the_format_is_told_by_the_suffix():
    assert writers.format_of("out.npy", None) == "npy"
    assert writers.format_of("OUT.PARQUET", None) == "parquet"
    assert writers.format_of("out.npy", "csv") == "csv"
    assert writers.format_of(None, None) == writers.format_of("-", None) == "jsonl"
    with pytest.raises(UsageError, match=r"Known suffixes: \.jsonl, .*; or give --format"):
        writers.format_of("out.bin", None)


KEPT = {"id": ["a", 2], "note": ['say "hi", Ö', None], "tags": [[1, "x"], {"far": float("inf")}]}


def test_kept_fields_stand_before_the_vectors():
    rows = np.ones((2, 32), np.float32)
    lines = written("jsonl", request(), block(rows, 5, failed=[1], **KEPT), kept=KEPT).getvalue().splitlines()
    first, second = map(json.loads, lines)
    assert list(first) == ["index", "id", "note", "tags", "embedding"]
    assert (first["id"], first["note"], first["tags"]) == ("a", 'say "hi", Ö', [1, "x"])
    assert second == {"index": 6, "id": 2, "note": None, "tags": {"far": None}, "error": UNUSABLE}
    text = written("csv", request(), block(rows, failed=[1], **KEPT), kept=KEPT).getvalue().decode()
    head, *table = csv.reader(io.StringIO(text))
    assert head[:5] == ["index", "id", "note", "tags", "d0"]
    assert [row[:5] for row in table] == [
        ["0", "a", 'say "hi", Ö', '[1, "x"]', "1.0"],
        ["1", "2", "", '{"far": null}', ""],
    ]


def test_kept_fields_are_columns_of_parquet_with_the_types_of_the_first_block():
    pq = pytest.importorskip("pyarrow.parquet")
    rows = np.ones((2, 32), np.float32)
    first = block(rows, year=[1999, None], tags=[["a"], []], none=[None, None])
    second = block(rows, 2, year=[None, 2001], tags=[None, ["b"]], none=["x", None])
    data = written("parquet", request(), first, second, kept=["year", "tags", "none"]).getvalue()
    table = pq.read_table(io.BytesIO(data))
    assert table.column_names == ["index", "year", "tags", "none", "embedding", "truncated"]
    assert str(table.schema.field("year").type) == "int64"
    assert table.column("year").to_pylist() == [1999, None, None, 2001]
    assert table.column("tags").to_pylist() == [["a"], [], None, ["b"]]
    assert table.column("none").to_pylist() == [None, None, "x", None]
    bad = block(rows, 2, year=["n/a", 2001])
    with pytest.raises(UsageError, match="--keep year: a Parquet column has one type, and .* before are int64"):
        written("parquet", request(), block(rows, year=[1, 2]), bad, kept=["year"], complete=False)
    with pytest.raises(UsageError, match=r"--keep year: a Parquet column has one type \(.*Give --format jsonl"):
        written("parquet", request(), bad, kept=["year"], complete=False)


@pytest.mark.parametrize(
    ("chosen", "name", "message"),
    [
        ("npy", "id", "npy has no place for --id and --keep: give --format jsonl or csv or parquet"),
        ("safetensors", "id", "no place"),
        ("json", "id", "no place"),
        ("jsonl", "embedding", r"--keep embedding: jsonl has a field of that name\. --id embedding keeps it as 'id'"),
        ("csv", "d12", "csv has a field of that name"),
    ],
)
def test_fields_without_a_place_are_refused(chosen, name, message):
    with pytest.raises(UsageError, match=message):
        writers.check(chosen, [name])
    writers.check(chosen, [])
    writers.check("jsonl", ["d12", "year"])


def test_parquet_without_pyarrow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EngineMissing, match=r"needs pyarrow: pip install 'jina_local\[parquet\]'"):
        writers.check("parquet", [])
