"""readers.py and source.py: every format, and every way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading

import pytest

from jina_local.errors import EngineMissing, UsageError
from jina_local.records import readers, source
from jina_local.records.readers import Reading


def opened(*paths, **how):
    return contextlib.closing(source.open_inputs([str(path) for path in paths], Reading(**how)))


def items(*paths, **how):
    with opened(*paths, **how) as found:
        return list(found.items)


def read(*args, **kwargs):
    """(number, text) of each item, none of which has its record with it."""
    found = items(*args, **kwargs)
    assert all(item.record is None for item in found)
    return [item[:2] for item in found]


def texts(*args, **kwargs):
    return [text for _, text in read(*args, **kwargs)]


def records(*args, **kwargs):
    return [item.record for item in items(*args, records=True, **kwargs)]


def faults(*args, **kwargs):
    """(number, fault) of each item that has no text, when bad rows are passed over."""
    return [(item.number, item.fault) for item in items(*args, skip=True, **kwargs) if item.fault is not None]


def put(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\n\n", ["one", ""]),
        (b"\n\nthree\n", ["", "", "three"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"\xef\xbb\xbfone\ntwo", ["one", "two"]),
        (b"one\n\xef\xbb\xbftwo", ["one", "\ufefftwo"]),
        (b"a\rb\n", ["a\rb"]),
        (b"end\r", ["end\r"]),
        ("a\u2028b\x0bc\x85\n".encode(), ["a\u2028b\x0bc\x85"]),
        (b"nul\x00in\n", ["nul\x00in"]),
        ("日本語\n👩‍👩‍👧\n".encode(), ["日本語", "👩‍👩‍👧"]),
    ],
)
def test_txt_has_one_text_a_line(tmp_path, raw, expected):
    assert read(put(tmp_path, "in.txt", raw)) == list(enumerate(expected, 1))


def test_bytes_that_are_not_utf8_are_named_by_line_and_offset(tmp_path):
    with pytest.raises(UsageError, match=r"in\.txt line 3: not UTF-8 at byte 9 of the input \(0xE9\).*iconv"):
        read(put(tmp_path, "in.txt", b"one\ntwo\nn\xe9\n"))
    # The byte order mark counts: the offset is that of a hex dump.
    with pytest.raises(UsageError, match="line 1: not UTF-8 at byte 4"):
        read(put(tmp_path, "in.txt", b"\xef\xbb\xbfn\xff"))
    with pytest.raises(UsageError, match="looks like UTF-16"):
        read(put(tmp_path, "in.txt", "hello".encode("utf-16")))


def test_what_stands_before_the_fault_is_still_read(tmp_path):
    with opened(put(tmp_path, "in.txt", b"one\n\xff\n")) as found:
        assert next(found.items).text == "one"
        with pytest.raises(UsageError, match="line 2"):
            next(found.items)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE", 1 << 20)
    path = put(tmp_path, "in.txt", b"x" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="line 1: longer than 1 MiB"):
        read(path)
    assert len(texts(put(tmp_path, "ok.txt", b"x" * ((1 << 20) - 1) + b"\n"))[0]) == (1 << 20) - 1


def test_jsonl_takes_strings_and_objects(tmp_path):
    raw = b'\xef\xbb\xbf"one"\r\n{"text": "two", "id": 7}\n\n"\\u00e9\\n"\n{"text":""}'
    assert read(put(tmp_path, "in.jsonl", raw)) == [(1, "one"), (2, "two"), (4, "é\n"), (5, "")]
    assert texts(put(tmp_path, "in.jsonl", b'{"body": "b"}'), field="body") == ["b"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'"a"\n{"text": "b"\n', r"line 2: not valid JSON: Expecting ',' delimiter at column"),
        (b'{"body": "b", "id": 1}', r"line 1: has no 'text'\. It has: 'body', 'id'\. Give --field NAME\."),
        (b"{}", r"line 1: has no 'text'\. It has: nothing"),
        (b'"a"\n17', r"line 2: the record is a number, expected a string or an object with one"),
        (b'{"text": null}', r"line 1: 'text' is null, expected a string"),
        (b'{"text": ["a"]}', r"line 1: 'text' is a list"),
        (b"true", r"line 1: the record is true or false"),
        (b"[" * 100_000, r"line 1: not usable JSON"),
        (b'"\xff"', r"line 1: not UTF-8 at byte 1"),
    ],
)
def test_jsonl_faults_name_the_line(tmp_path, raw, message):
    with pytest.raises(UsageError, match=message):
        read(put(tmp_path, "in.jsonl", raw))


def test_lone_surrogates_pass_here_and_are_refused_by_the_tokenizer(tmp_path):
    assert texts(put(tmp_path, "in.jsonl", b'"\\ud800"')) == ["\ud800"]


def test_csv_takes_quotes_line_ends_in_quotes_and_crlf(tmp_path):
    raw = b'\xef\xbb\xbfid,text\r\n1,"a, ""b"""\r\n2,"two\nlines"\r\n\r\n3,\r\n4,last'
    assert read(put(tmp_path, "in.csv", raw)) == [(2, 'a, "b"'), (3, "two\nlines"), (6, ""), (7, "last")]
    assert texts(put(tmp_path, "in.tsv", b"text\tid\na,b\t1\n")) == ["a,b"]
    assert texts(put(tmp_path, "in.csv", b"text\n"), field="text") == []
    long = b"y" * 200_000
    assert texts(put(tmp_path, "in.csv", b"text\n" + long)) == [long.decode()]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"is empty; expected a header line with a column 'text'"),
        (b"id,body\n1,a\n", r"has no column 'text'\. It has: 'id', 'body'\. Give --field NAME"),
        (b"text,text\n1,a\n", r"has more than one column 'text'"),
        (b"id,text\n1,a\n2\n", r"line 3: has 1 fields; 'text' is number 2"),
        (b'text\n"a" b\n', r"line 2: "),
        (b'text\nx\n"never closed\n\n', r"line 3: unexpected end of data"),
        (b"text\nx\n\xff\n", r"line 3: not UTF-8 at byte 7"),
    ],
)
def test_csv_faults_name_the_line(tmp_path, raw, message):
    with pytest.raises(UsageError, match=message):
        read(put(tmp_path, "in.csv", raw))


def parquet(tmp_path, **columns):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1000)
    return path


def test_parquet_takes_a_string_column(tmp_path):
    pa = pytest.importorskip("pyarrow")
    rows = [f"text {i}" for i in range(2500)]
    path = parquet(tmp_path, id=list(range(2500)), text=rows)
    assert texts(path) == rows
    assert read(path)[-1][0] == 2500
    with opened(path) as found:
        assert found.size == path.stat().st_size
        assert [next(found.items).unit for _ in range(1250)] == ["row"] * 1250
        assert found.position == found.size // 2
    assert texts(parquet(tmp_path, text=pa.array(["a", "b", "a"]).dictionary_encode())) == ["a", "b", "a"]
    assert texts(parquet(tmp_path, text=pa.array(["a"], pa.large_string()))) == ["a"]


def test_parquet_faults(tmp_path):
    with pytest.raises(UsageError, match=r"has no column 'text'\. It has: 'id'"):
        read(parquet(tmp_path, id=[1]))
    with pytest.raises(UsageError, match=r"column 'text' holds int64, expected strings"):
        read(parquet(tmp_path, text=[1]))
    with pytest.raises(UsageError, match=r"row 2: 'text' is null, expected a string"):
        read(parquet(tmp_path, text=["a", None]))
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        read(put(tmp_path, "bad.parquet", b"PAR1 this is not"))
    raw = bytearray(parquet(tmp_path, text=[f"text {i}" * 9 for i in range(2500)]).read_bytes())
    raw[100:2000] = b"\xff" * 1900
    with pytest.raises(UsageError, match=r"damaged after row|cannot be read"):
        read(put(tmp_path, "cut.parquet", bytes(raw)))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EngineMissing, match=r"needs pyarrow: pip install 'jina_local\[parquet\]'"):
        read(put(tmp_path, "in.parquet", b""))


def test_the_suffix_decides_unless_the_format_is_given(tmp_path):
    with pytest.raises(UsageError, match=r"Known suffixes: \.txt, \.md, \.jsonl.*--input-format"):
        read(put(tmp_path, "in.dat", b"a\n"))
    assert texts(put(tmp_path, "in.dat", b"a\n"), input_format="txt") == ["a"]
    assert texts(put(tmp_path, "IN.TXT", b"a\n")) == ["a"]


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(UsageError, match=r"--input .*none\.txt: cannot be opened \(No such file"):
        read(tmp_path / "none.txt")
    for how in ({}, {"input_format": "txt"}):
        with pytest.raises(UsageError, match="is a folder. Give its files, each with --input"):
            read(tmp_path, **how)


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\ntwo")))
    assert texts("-") == ["one", "two"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"one"\n')))
    assert texts("-", input_format="jsonl") == ["one"]
    with pytest.raises(UsageError, match="parquet cannot be read from standard input"):
        read("-", input_format="parquet")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        read("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_read_like_a_pipe(tmp_path):
    fifo = tmp_path / "pipe.txt"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"one\ntwo\n"))
    writer.start()
    assert texts(fifo) == ["one", "two"]
    writer.join()


def test_the_whole_record_comes_along_where_it_is_asked_for(tmp_path):
    assert records(put(tmp_path, "in.txt", b"one\ntwo\n")) == [{"text": "one"}, {"text": "two"}]
    raw = b'"bare"\n{"body": "b", "id": 7, "at": {"line": [1, 2]}}\n'
    path = put(tmp_path, "in.jsonl", raw)
    assert records(path, field="body") == [{"body": "bare"}, {"body": "b", "id": 7, "at": {"line": [1, 2]}}]
    assert [item.text for item in items(path, field="body", records=True)] == ["bare", "b"]


def test_a_column_without_a_name_of_its_own_goes_by_its_number(tmp_path):
    raw = b"id,text,id,\n1,a,2,3\n4,b\n5,c,6,7,8\n9,d,10,11,\n"
    assert records(put(tmp_path, "in.csv", raw)) == [
        {"id": "1", "text": "a", "column 3": "2", "column 4": "3"},
        {"id": "4", "text": "b"},
        {"id": "5", "text": "c", "column 3": "6", "column 4": "7", "column 5": "8"},
        {"id": "9", "text": "d", "column 3": "10", "column 4": "11"},
    ]
    assert records(put(tmp_path, "in.tsv", b"text\tn\na,b\t1\n")) == [{"text": "a,b", "n": "1"}]


def test_the_whole_row_of_parquet(tmp_path):
    path = parquet(tmp_path, id=[1, None], text=["a", "b"], tags=[["x"], []])
    assert records(path) == [{"id": 1, "text": "a", "tags": ["x"]}, {"id": None, "text": "b", "tags": []}]
    assert read(path) == [(1, "a"), (2, "b")]


def test_blocks_grow_keep_the_order_and_end_at_their_characters():
    items = [readers.Item(i, "x" * 10) for i in range(1, 101)]
    cut = list(source.blocks(iter(items), first=4, most=32, chars=10_000))
    assert [len(block) for block in cut] == [4, 8, 16, 32, 32, 8]
    assert [item for block in cut for item in block] == items
    assert [len(b) for b in source.blocks(iter(items[:5]), first=4, most=32, chars=25)] == [3, 2]
    assert list(source.blocks(iter([]), first=4, most=32, chars=25)) == []


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"# Head\n\nOne\r\ntwo.\n\n\n- a\n- b", [(1, "# Head"), (3, "One\r\ntwo."), (7, "- a\n- b")]),
        (b"\xef\xbb\xbfa\n \t\nb\n", [(1, "a"), (3, "b")]),
        (b"Text\n```py\nx = 1\n\n~~~\n\ny\n```\n\nend\n", [(1, "Text\n```py\nx = 1\n\n~~~\n\ny\n```"), (10, "end")]),
        (b"  ~~~\n\nnever closed\n", [(1, "  ~~~\n\nnever closed")]),
    ],
)
def test_md_has_one_text_a_paragraph(tmp_path, raw, expected):
    assert read(put(tmp_path, "in.md", raw)) == expected


def test_a_paragraph_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE", 1 << 10)
    with pytest.raises(UsageError, match=r"in\.md line 103: its paragraph is longer than"):
        read(put(tmp_path, "in.md", b"123456789\n" * 200))


def test_json_takes_a_list_or_one_object(tmp_path):
    raw = b'\xef\xbb\xbf["one", {"text": "two", "id": 7}]'
    assert read(put(tmp_path, "in.json", raw)) == [(1, "one"), (2, "two")]
    assert records(put(tmp_path, "in.json", b'{"body": "b"}'), field="body") == [{"body": "b"}]
    assert read(put(tmp_path, "in.json", b"[]")) == []
    with opened(put(tmp_path, "in.json", raw)) as found:
        assert next(found.items).unit == "record"
        assert found.position == len(raw) // 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'["a",\n "b" "c"]', r"in\.json line 2: not valid JSON: Expecting ',' delimiter at column 6"),
        (
            b'{"text": "a"}\n{"text": "b"}',
            r"Extra data at column 1\. For one record a line give --input-f",
        ),
        (b'["a", 17]', r"in\.json record 2: the record is a number"),
        (b'{"data": ["a"]}', r"record 1: has no 'text'\. It has: 'data'"),
        (b"17", r"record 1: the record is a number"),
        (b'["\xff"]', r"in\.json: not UTF-8 at byte 2"),
        (b"[" * 100_000, r"in\.json: not usable JSON"),
    ],
)
def test_json_faults(tmp_path, raw, message):
    with pytest.raises(UsageError, match=message):
        read(put(tmp_path, "in.json", raw))


def test_bad_rows_are_passed_over_if_asked_and_keep_their_records(tmp_path):
    raw = b'"a"\n{"body": 1}\n[\n\n{"text": null, "id": 5}\n"\xff"\n"z"\n'
    path = put(tmp_path, "in.jsonl", raw)
    found = items(path, skip=True, records=True)
    assert [(item.number, item.text) for item in found] == [(1, "a"), (2, ""), (3, ""), (5, ""), (6, ""), (7, "z")]
    assert [item.fault and item.fault.split(":")[0].split(".")[0] for item in found] == [
        None, "has no 'text'", "not valid JSON", "'text' is null, expected a string",
        "not UTF-8 at byte 44 of the input (0xFF)", None,
    ]  # fmt: skip
    assert [item.record for item in found[:4]] == [{"text": "a"}, {"body": 1}, None, {"text": None, "id": 5}]
    with pytest.raises(UsageError, match=r"line 2: has no 'text'.* \(--errors skip passes over bad rows\)"):
        items(path)


def test_bad_rows_of_tables_lists_and_lines(tmp_path):
    raw = b'id,text\n1,a\n2\n3,"x" y\n4,\xff\n5,"two\nlines"\n6,z\n'
    assert [number for number, _ in faults(put(tmp_path, "in.csv", raw))] == [3, 4, 5]
    assert texts(put(tmp_path, "in.csv", raw), skip=True) == ["a", "", "", "", "two\nlines", "z"]
    assert faults(put(tmp_path, "in.json", b'["a", 1]')) == [
        (2, "the record is a number, expected a string or an object with one.")
    ]
    assert [number for number, _ in faults(put(tmp_path, "in.txt", b"a\n\xff\nb\n"))] == [2]
    assert faults(put(tmp_path, "in.md", b"a\n\nb\n\xff\n\nc\n"))[0][0] == 3
    assert faults(parquet(tmp_path, text=["a", None])) == [(2, "'text' is null, expected a string.")]


def test_faults_that_end_the_reading_are_errors_in_any_case(tmp_path):
    for name, raw in (("in.csv", b""), ("in.csv", b"id\n1\n"), ("in.csv", b"\xff\n"), ("in.json", b"[")):
        with pytest.raises(UsageError):
            items(put(tmp_path, name, raw), skip=True)


def test_several_inputs_are_read_in_order_each_in_its_format(tmp_path):
    paths = [
        put(tmp_path, "b.txt", b"one\ntwo"),
        put(tmp_path, "a.jsonl", b'"three"\n\n{"text": "four"}'),
        put(tmp_path, "a.csv", b"text\nfive\n"),
    ]
    with opened(*paths) as found:
        assert found.size == sum(path.stat().st_size for path in paths)
        assert next(found.items).text == "one"
        assert found.position == 4
        rest = list(found.items)
        assert found.position == found.size
        assert [item.text for item in rest] == ["two", "three", "four", "five"]
        assert found.where(rest[2]) == f"{paths[1]} line 3"
        assert found.name == "3 inputs"
    with opened(paths[0]) as found:
        assert found.where(next(found.items)) == "line 1"
    put(tmp_path, "a.jsonl", b"17")
    with pytest.raises(UsageError, match=r"a\.jsonl line 1: the record is a number"):
        texts(*paths)


def test_all_inputs_are_looked_at_before_the_first_is_read(tmp_path, monkeypatch):
    good = put(tmp_path, "a.txt", b"one\n")
    with pytest.raises(UsageError, match=r"none\.txt: cannot be opened"), opened(good, tmp_path / "none.txt"):
        pass
    with pytest.raises(UsageError, match=r"in\.dat: the format cannot be told"), opened(good, "in.dat"):
        pass
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two\n")))
    assert texts(good, "-", good) == ["one", "two", "one"]
    with pytest.raises(UsageError, match="standard input was named twice"), opened("-", "/dev/stdin"):
        pass


def test_a_named_field_means_records(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"body": "b"}\n')))
    assert texts("-", field="body") == ["b"]
    for name, how in (("in.txt", {}), ("in.md", {}), ("in.csv", {"input_format": "txt"})):
        with pytest.raises(UsageError, match=r"is read as \w+, whose texts have no fields\. For records give"):
            texts(put(tmp_path, name, b"a\n"), field="body", **how)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"id,body\n1,b\n")))
    with pytest.raises(UsageError, match=r"not valid JSON.* a field was named; a table needs --input-format csv"):
        texts("-", field="body")


def test_a_first_line_that_is_a_record_is_no_text_unless_txt_is_asked_for(tmp_path, monkeypatch):
    line = b' {"text": "a"}\n'
    both = r"line 1 is a JSON object\. For records give --input-format jsonl .*; to take .* --input-format txt"
    with pytest.raises(UsageError, match=both):
        texts(put(tmp_path, "in.txt", line))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
    with pytest.raises(UsageError, match=both):
        texts("-")
    assert texts(put(tmp_path, "in.txt", line), input_format="txt") == [' {"text": "a"}']
    assert texts(put(tmp_path, "in.txt", b'{no\n{"text": "a"}\n')) == ["{no", '{"text": "a"}']
    assert texts(put(tmp_path, "in.txt", b'["a"]\n"b"\n1\n')) == ['["a"]', '"b"', "1"]


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="this system has no /dev/fd")
def test_a_descriptor_is_read_like_a_pipe_and_a_redirected_file_has_a_size(tmp_path, monkeypatch):
    there, back = os.pipe()
    os.write(back, b"one\ntwo\n")
    os.close(back)
    assert texts(f"/dev/fd/{there}") == ["one", "two"]
    os.close(there)
    with put(tmp_path, "in", b"skipped\none\n").open("rb") as file:
        file.readline()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        with opened("-") as found:
            assert (found.size, found.position) == (4, 0)
            assert [item.text for item in found.items] == ["one"]
            assert found.position == 4
