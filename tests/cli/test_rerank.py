"""`rerank`, in this process, against a FakeReranker."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jina_local.cli import main
from jina_local.errors import JinaError, OutputError, UsageError

from ..fakes import FakeEmbedder, FakeReranker, noise

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["Mars looks red.", "Venus is hot.", "Saturn has rings.", "日本語のテキスト"]


def ranked(query, documents):
    """[(index, score, document)], best first."""
    scores = [FakeReranker.score(query, document) for document in documents]
    order = sorted(range(len(documents)), key=lambda i: -scores[i])
    return [(i, scores[i], documents[i]) for i in order]


def plain(query, documents):
    return [{"index": i, "score": s, "document": d} for i, s, d in ranked(query, documents)]


def lines(stdout):
    return [json.loads(line) for line in stdout.decode().splitlines()]


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def put(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


# --- in and out


def test_documents_of_the_command_line_best_first(fake_reranker, capfdbinary):
    assert main.main(["rerank", "planet", *DOCUMENTS]) == 0
    out = capfdbinary.readouterr()
    assert lines(out.out) == plain("planet", DOCUMENTS)
    assert "日本語".encode() in out.out
    assert out.err == b""
    assert fake_reranker.closed
    assert main.main(["rerank", "--top-n", "2", "--", "--planet", *DOCUMENTS]) == 0
    assert lines(capfdbinary.readouterr().out) == plain("--planet", DOCUMENTS)[:2]


def test_documents_of_a_pipe_and_of_a_file(fake_reranker, capfdbinary, monkeypatch, tmp_path):
    data = "\r\n".join(DOCUMENTS).encode()
    piped(monkeypatch, data)
    assert main.main(["rerank", "planet"]) == 0
    assert lines(capfdbinary.readouterr().out) == plain("planet", DOCUMENTS)
    assert main.main(["rerank", "planet", "--input", put(tmp_path, "in.txt", data), "--format", "json"]) == 0
    assert json.loads(capfdbinary.readouterr().out) == plain("planet", DOCUMENTS)


def test_the_rest_of_a_record_comes_along_and_an_earlier_score_steps_aside(fake_reranker, capfdbinary, tmp_path):
    found = [
        {"id": 7, "score": 0.5, "text": "Mars", "path": "a.md", "line": [1, 2]},
        "a bare string",
        {"text": "Venus", "index": 3, "document": "b.md", "score": 0.4, "retrieval_score": 0.3, "embedding": [1]},
    ]
    path = put(tmp_path, "found.jsonl", "\n".join(map(json.dumps, found)).encode())
    assert main.main(["rerank", "planet", "--input", path]) == 0
    out = {record["index"]: record for record in lines(capfdbinary.readouterr().out)}
    score = [FakeReranker.score("planet", text) for text in ("Mars", "a bare string", "Venus")]
    assert out == {
        0: {"index": 0, "score": score[0], "document": "Mars", "id": 7, "retrieval_score": 0.5, "path": "a.md",
            "line": [1, 2]},
        1: {"index": 1, "score": score[1], "document": "a bare string"},
        2: {"index": 2, "score": score[2], "document": "Venus", "retrieval_index": 3, "retrieval_document": "b.md",
            "retrieval_retrieval_score": 0.4, "retrieval_score": 0.3, "embedding": [1]},
    }  # fmt: skip
    assert list(out[0]) == ["index", "score", "document", "id", "retrieval_score", "path", "line"]


def test_what_it_prints_it_also_reads(fake_reranker, capfdbinary, monkeypatch):
    main.main(["rerank", "planet", *DOCUMENTS])
    first = capfdbinary.readouterr().out
    piped(monkeypatch, first)
    assert main.main(["rerank", "planet", "--input-format", "jsonl", "--field", "document"]) == 0
    again = lines(capfdbinary.readouterr().out)
    assert [(r["document"], r["score"]) for r in again] == [(d, s) for _, s, d in ranked("planet", DOCUMENTS)]
    assert [r["retrieval_score"] for r in again] == [r["score"] for r in again]
    assert [r["retrieval_index"] for r in again] == [i for i, _, _ in ranked("planet", DOCUMENTS)]


def test_tables_in(fake_reranker, capfdbinary, tmp_path):
    path = put(tmp_path, "in.csv", b"id,body\n1,Mars\n2,Venus\n")
    assert main.main(["rerank", "planet", "--input", path, "--field", "body"]) == 0
    assert {r["index"]: (r["document"], r["id"]) for r in lines(capfdbinary.readouterr().out)} == {
        0: ("Mars", "1"),
        1: ("Venus", "2"),
    }


def test_columns_of_parquet_beyond_jsons_types(fake_reranker, capfdbinary, tmp_path):
    import datetime
    from decimal import Decimal

    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {"text": ["Mars"], "day": [datetime.date(2026, 11, 21)], "raw": [b"\xff\x00"],
               "cost": [Decimal("1.50")], "far": [float("inf")], "list": [[1.5, float("nan")]]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    assert main.main(["rerank", "planet", "--input", str(tmp_path / "in.parquet")]) == 0
    raw = capfdbinary.readouterr().out
    assert re.search(rb"NaN|Infinity", raw) is None
    (record,) = lines(raw)
    assert record["day"] == "2026-11-21"
    assert record["raw"] == "/wA="
    assert record["cost"] == "1.50"
    assert record["far"] is None
    assert record["list"] == [1.5, None]


def test_half_a_surrogate_pair_in_a_record_is_written_as_it_was_read(fake_reranker, capfdbinary, tmp_path):
    path = put(tmp_path, "in.jsonl", b'{"text": "M\xc3\xa4rz", "note": "\\ud800"}')
    assert main.main(["rerank", "planet", "--input", path]) == 0
    out = capfdbinary.readouterr().out
    assert rb"\ud800" in out
    assert lines(out)[0]["note"] == "\ud800"


def test_a_table_has_a_line_a_document_within_the_width(fake_reranker, capfdbinary, monkeypatch):
    documents = ["Mars\nis\tred " + "x" * 80, "Venus\x1b[31m", "日本語" * 30]
    monkeypatch.setenv("COLUMNS", "40")
    assert main.main(["rerank", "planet", "--format", "table", *documents]) == 0
    head, *rows = capfdbinary.readouterr().out.decode().splitlines()
    assert head == "rank    score  text  document"
    by_place = {int(row.split()[2]): row for row in rows}
    assert [int(row.split()[0]) for row in rows] == [1, 2, 3]
    assert [float(row.split()[1]) for row in rows] == [round(s, 4) for _, s, _ in ranked("planet", documents)]
    # 21 columns stand before the text.
    assert by_place[1][21:] == "Mars\\nis\\tred xxxx…"
    assert by_place[2][21:] == "Venus\\x1b[31m"
    assert by_place[3][21:] == "日本語日本語日本語…"


def test_a_table_in_a_file_is_not_cut_and_counts_lines(fake_reranker, capfdbinary, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "40")
    source = put(tmp_path, "in.jsonl", b'\n"' + b"y" * 300 + b'"\n')
    out = tmp_path / "out.txt"
    assert main.main(["rerank", "planet", "--input", source, "--output", str(out)]) == 0
    head, row = out.read_text().splitlines()
    assert head.split() == ["rank", "score", "line", "document"]
    assert row.split()[2:] == ["2", "y" * 300]
    assert capfdbinary.readouterr().out == b""


def test_the_format_follows_the_suffix(fake_reranker, tmp_path):
    for suffix, read in (("json", json.loads), ("jsonl", lambda text: [json.loads(text)])):
        out = tmp_path / f"out.{suffix}"
        assert main.main(["rerank", "planet", "Mars", "--output", str(out)]) == 0
        assert read(out.read_text()) == plain("planet", ["Mars"])
    with pytest.raises(UsageError, match=r"out\.csv: the format cannot be told.*\.json, \.jsonl, \.txt; or give"):
        main.main(["rerank", "planet", "Mars", "--output", str(tmp_path / "out.csv")])
    with pytest.raises(OutputError, match="there is no folder"):
        main.main(["rerank", "planet", "Mars", "--output", str(tmp_path / "no" / "out.json")])


def test_embeddings_read_back_as_the_same_floats(fake_reranker, capfdbinary):
    assert main.main(["rerank", "planet", "Mars", "--return-embeddings"]) == 0
    (record,) = lines(capfdbinary.readouterr().out)
    assert np.array_equal(np.array(record["embedding"], np.float32), noise(b"planet", 4))
    assert all(len(str(x)) < 14 for x in record["embedding"])
    with pytest.raises(UsageError, match="no place in a table: give --format jsonl or json"):
        main.main(["rerank", "planet", "Mars", "--return-embeddings", "--format", "table"])


# --- what there is to say


def test_an_empty_input_gives_an_empty_output_and_loads_nothing(fake_reranker, capfdbinary, monkeypatch):
    for chosen, data in (("jsonl", b""), ("json", b"[]\n"), ("table", b"")):
        piped(monkeypatch, b"")
        assert main.main(["rerank", "planet", "--format", chosen]) == 0
        assert capfdbinary.readouterr() == (data, b"standard input: no documents\n")
    assert fake_reranker.loaded == {}


def test_one_document_an_empty_one_and_equal_ones(fake_reranker, capfdbinary):
    assert main.main(["rerank", "planet", "Mars", "--top-n", "9"]) == 0
    assert lines(capfdbinary.readouterr().out) == plain("planet", ["Mars"])
    assert main.main(["rerank", "planet", "", "Mars", ""]) == 0
    assert lines(capfdbinary.readouterr().out) == plain("planet", ["", "Mars", ""])


def test_what_was_cut_is_said(fake_reranker, capfdbinary, tmp_path):
    source = put(tmp_path, "in.txt", b"short\n" + b"x" * 101 + b"\n" + b"y" * 200 + b"\n")
    assert main.main(["rerank", "planet", "--input", source]) == 0
    assert capfdbinary.readouterr().err == b"2 of 3 documents were cut (first: line 2)\n"
    assert main.main(["rerank", "q" * 101, "a", "x" * 101]) == 0
    assert capfdbinary.readouterr().err == (
        b"the query was cut; its end was not read\n1 of 2 documents was cut (first: text 2)\n"
    )


def test_the_library_does_not_log_what_the_command_says(fake_reranker, monkeypatch, caplog):
    log = logging.getLogger("jina_local")
    plain = fake_reranker.rerank

    def _warn():
        log.warning("1 of 2 documents were cut")

    def loud(*args, **words):
        _warn()
        log.warning("the engine was started again")
        return plain(*args, **words)

    monkeypatch.setattr(fake_reranker, "rerank", loud)
    main.main(["rerank", "planet", "Mars"])
    assert [record.message for record in caplog.records] == ["the engine was started again"]
    _warn()
    assert len(caplog.records) == 2


def test_a_document_without_a_score_is_left_out_and_said(fake_reranker, capfdbinary):
    assert main.main(["rerank", "planet", "Mars", FakeReranker.BROKEN, "Venus"]) == 1
    out = capfdbinary.readouterr()
    assert [r["index"] for r in lines(out.out)] == [
        {0: 0, 1: 2}[i] for i, _, _ in ranked("planet", ["Mars", "Venus"])
    ]
    assert out.err == b"1 of 3 documents has no score: the model gave NaN or infinity (first: text 2)\n"


def test_a_text_at_fault_is_named_by_its_line(fake_reranker, tmp_path):
    source = put(tmp_path, "in.jsonl", b'"fine"\n\n"\\ud800"\n')
    with pytest.raises(UsageError, match=r"in\.jsonl line 3: "):
        main.main(["rerank", "planet", "--input", source])
    with pytest.raises(UsageError, match=r"in\.txt line 2: not UTF-8 at byte 5"):
        main.main(["rerank", "planet", "--input", put(tmp_path, "in.txt", b"fine\n\xff\n")])


def test_records_are_told_from_texts(fake_reranker, capfdbinary, monkeypatch):
    record = b'{"body": "Mars", "score": 1}\n'
    piped(monkeypatch, record)
    with pytest.raises(UsageError, match=r"standard input line 1 is a JSON object\. .*jsonl .*--input-format txt"):
        main.main(["rerank", "planet"])
    piped(monkeypatch, record)
    assert main.main(["rerank", "planet", "--field", "body"]) == 0
    (found,) = lines(capfdbinary.readouterr().out)
    assert (found["document"], found["retrieval_score"]) == ("Mars", 1)
    for options, data in ((["--input-format", "txt"], record), ([], b"{not json}\n"), ([], b'"Mars"\n')):
        piped(monkeypatch, data)
        assert main.main(["rerank", "planet", *options]) == 0
        out = capfdbinary.readouterr()
        assert (lines(out.out)[0]["document"], out.err) == (data.decode().strip(), b"")


def test_bad_rows_end_the_run_or_are_passed_over_and_counted(fake_reranker, capfdbinary, tmp_path):
    source = put(tmp_path, "in.jsonl", b'"Mars"\n{"body": "x"}\n"\\ud800"\n"Venus"\n')
    with pytest.raises(UsageError, match=r"in\.jsonl line 2: has no 'text'.*--errors skip"):
        main.main(["rerank", "planet", "--input", source])
    assert main.main(["rerank", "planet", "--input", source, "--errors", "skip"]) == 1
    out = capfdbinary.readouterr()
    places = {"Mars": 0, "Venus": 3}
    assert [(r["index"], r["document"]) for r in lines(out.out)] == [
        (places[text], text) for _, _, text in ranked("planet", ["Mars", "Venus"])
    ]
    assert out.err.startswith(b"2 of 4 documents were passed over (first: line 2: has no 'text'.")
    for data in (b"[\n", b'"\\ud800"\n'):
        bad = put(tmp_path, "bad.jsonl", data)
        assert main.main(["rerank", "planet", "--input", bad, "--errors", "skip"]) == 1
        assert capfdbinary.readouterr().out == b""


def test_several_inputs_are_ranked_together(fake_reranker, capfdbinary, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    inputs = [
        "--input", put(tmp_path, "a.txt", b"Mars\nVenus\n"), "--input", put(tmp_path, "b.csv", b"text\nSaturn\n")
    ]  # fmt: skip
    assert main.main(["rerank", "planet", *inputs]) == 0
    documents = ["Mars", "Venus", "Saturn"]
    assert lines(capfdbinary.readouterr().out) == plain("planet", documents)
    assert main.main(["rerank", "planet", *inputs, "--format", "table"]) == 0
    places = [f"{tmp_path}/a.txt:1", f"{tmp_path}/a.txt:2", f"{tmp_path}/b.csv:2"]
    rows = capfdbinary.readouterr().out.decode().splitlines()[1:]
    assert [row.split()[2:] for row in rows] == [[places[i], text] for i, _, text in ranked("planet", documents)]


# --- an embedding model


@pytest.fixture
def by_cosine(fake_embedder):
    """[(index, cosine, document)], best first, of an embedding model's own vectors; `load` returns that model."""

    def order(query, documents, **words):
        asked = FakeEmbedder().embed([query], prompt_name="query", **words).vectors[0]
        scores = (FakeEmbedder().embed(documents, prompt_name="document", **words).vectors @ asked).tolist()
        return sorted(zip(range(len(documents)), scores, documents, strict=True), key=lambda one: -one[1])

    return order


def test_an_embedding_model_ranks_by_cosine_and_says_so(by_cosine, capfdbinary):
    assert main.main(["rerank", "planet", *DOCUMENTS, "--model", "pico", "--truncate-dim", "32"]) == 0
    out = capfdbinary.readouterr()
    assert [(r["index"], r["document"], r["scoring"]) for r in lines(out.out)] == [
        (i, text, "cosine") for i, _, text in by_cosine("planet", DOCUMENTS, truncate_dim=32)
    ]
    said = b"jina-embeddings-v5-text-nano is no reranker: documents are ranked by the cosine of its vectors\n"
    assert out.err == said
    assert main.main(["rerank", "planet", *DOCUMENTS, "--model", "pico", "--format", "table", "--top-n", "2"]) == 0
    out = capfdbinary.readouterr()
    head, *rows = out.out.decode().splitlines()
    assert head == "rank   cosine  text  document"
    assert [float(row.split()[1]) for row in rows] == [round(s, 4) for _, s, _ in by_cosine("planet", DOCUMENTS)[:2]]
    assert out.err == said


def test_a_reranker_says_nothing_of_cosines(fake_reranker, capfdbinary):
    main.main(["rerank", "planet", "Mars"])
    out = capfdbinary.readouterr()
    assert ("scoring" in lines(out.out)[0], out.err) == (False, b"")


@pytest.mark.parametrize(
    "option", [["--instruction", "x"], ["--max-doc-length", "9"], ["--max-query-length", "9"], ["--block-size", "2"],
               ["--return-embeddings"], ["--overlap-tokens", "9"], ["--no-window"]]
)  # fmt: skip
def test_options_of_rerankers_are_refused_for_an_embedding_model(by_cosine, fake_embedder, option):
    for model in ("pico", "./folder"):
        with pytest.raises(UsageError, match=f"{option[0]} is for rerankers, and [a-z0-9-]+ is an embedding model"):
            main.main(["rerank", "planet", "Mars", "--model", model, *option])
    assert fake_embedder.calls == []


def test_a_query_that_cannot_be_read_is_named_as_such(by_cosine):
    with pytest.raises(UsageError, match=r"the query: invalid surrogate at character 1\."):
        main.main(["rerank", "q\udcff", "Mars", "--model", "pico", "--errors", "skip"])


# --- options


def test_every_option_reaches_the_model(fake_reranker, capfdbinary):
    load = ["--model", "./folder", "--weights", "8bit", "--backend", "mlx", "--device", "cpu", "--threads", "3",
            "--offline"]  # fmt: skip
    ask = ["--top-n", "1", "--instruction", "be kind", "--max-doc-length", "50", "--max-query-length", "20",
           "--max-length", "900", "--block-size", "7", "--deterministic", "--no-progress"]  # fmt: skip
    assert main.main(["rerank", "planet", "Mars", "Venus", *load, *ask]) == 0
    assert fake_reranker.loaded == {
        "name_or_path": "./folder", "weights": "8bit", "backend": "mlx", "device": "cpu", "threads": 3,
        "offline": True, "show_progress": False,
    }  # fmt: skip
    assert fake_reranker.asked == {
        "query": "planet", "documents": ["Mars", "Venus"], "top_n": 1, "instruction": "be kind",
        "max_doc_length": 50, "max_query_length": 20, "max_length": 900, "block_size": 7, "deterministic": True,
        "show_progress": False, "overlap_tokens": None, "window": None, "return_embeddings": False,
    }  # fmt: skip


def test_options_of_the_other_kind_are_refused_by_name(fake_reranker, monkeypatch, capfdbinary):
    for option in (["--overlap-tokens", "9"], ["--no-window"]):
        with pytest.raises(UsageError, match="is for a pairwise reranker"):
            main.main(["rerank", "planet", "Mars", *option])
    pairwise = FakeReranker("reranker-v2")
    monkeypatch.setattr("jina_local.loading.load", lambda *_, **__: pairwise)
    assert main.main(["rerank", "planet", "Mars", "--overlap-tokens", "9"]) == 0
    assert (pairwise.asked["overlap_tokens"], pairwise.asked["window"]) == (9, None)
    assert main.main(["rerank", "planet", "Mars", "--no-window"]) == 0
    assert pairwise.asked["window"] is False
    with pytest.raises(UsageError, match="block_size is for a listwise reranker"):
        main.main(["rerank", "planet", "Mars", "--block-size", "9"])


def test_the_environment_names_the_reranker_apart_from_the_embedding_model(fake_reranker, monkeypatch):
    main.main(["rerank", "planet", "Mars"])
    assert fake_reranker.loaded["name_or_path"] == "jina-reranker-v3"
    for name, value in (("MODEL", "v5-small"), ("WEIGHTS", "4bit"), ("BACKEND", "llama"), ("THREADS", "2")):
        monkeypatch.setenv(f"JINA_LOCAL_{name}", value)
    main.main(["rerank", "planet", "Mars"])
    assert (fake_reranker.loaded["name_or_path"], fake_reranker.loaded["weights"]) == ("jina-reranker-v3", None)
    assert (fake_reranker.loaded["backend"], fake_reranker.loaded["threads"]) == ("llama", 2)
    monkeypatch.setenv("JINA_LOCAL_RERANK_MODEL", "reranker-v2")
    monkeypatch.setenv("JINA_LOCAL_RERANK_WEIGHTS", "Q8_0")
    main.main(["rerank", "planet", "Mars"])
    assert (fake_reranker.loaded["name_or_path"], fake_reranker.loaded["weights"]) == ("reranker-v2", "Q8_0")
    main.main(["rerank", "planet", "Mars", "--model", "reranker-v3", "--weights", "F16"])
    assert (fake_reranker.loaded["name_or_path"], fake_reranker.loaded["weights"]) == ("reranker-v3", "F16")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"no query was given\.\n\nexamples:\n  jina-local rerank"),
        (["q", "a", "--top-n", "0"], r"--top-n 0: expected a whole number from 1"),
        (["q", "a", "--top-n", "-3"], r"--top-n -3: expected a whole number from 1"),
        (["q", "a", "--top-n", "three"], r"--top-n: invalid int value: 'three'"),
        (["q", "a", "--input", "b.txt"], r"documents were given, and --input too"),
        (["q", "a", "--input-format", "txt"], r"and documents were given instead"),
        (["q", "--input", "none.txt"], r"--input none\.txt: cannot be opened"),
        (["q", "a", "--format", "xml"], r"invalid choice: 'xml'.*See `jina-local rerank --help`"),
        (["q", "a", "--block-size", "126"], r"block_size"),
        (["q\udcff", "a"], r"the query: "),
        (
            ["q", "a", "--truncate-dim", "32"],
            r"--truncate-dim is for embedding models, and jina-reranker-v3 is a",
        ),
        (
            ["q", "a", "--model", "v5-nano", "--no-window"],
            r"--no-window is for rerankers, and jina-embeddings-v5",
        ),
    ],
)
def test_misuse_says_what_is_possible(fake_reranker, argv, message):
    with pytest.raises(UsageError, match=re.compile(message, re.S)):
        main.main(["rerank", *argv])


def test_a_refused_request_leaves_the_output_alone(fake_reranker, tmp_path):
    path = tmp_path / "out.json"
    path.write_bytes(b"old")
    with pytest.raises(UsageError):
        main.main(["rerank", "q", "a", "--block-size", "0", "--output", str(path)])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_terminal_without_documents_gets_examples(monkeypatch, fake_reranker):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UsageError, match=r"no documents: give some, or --input FILE, or pipe them in\.\n\nexamples:"):
        main.main(["rerank", "planet"])


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jina_local.cli import main as cli; cli.main(['rerank', '--help']);"
        "bad = {'numpy', 'tokenizers', 'mlx', 'llama_cpp', 'tqdm', 'huggingface_hub', 'pyarrow', 'socket', 'ssl'}"
        " & set(sys.modules); sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_is_one_of_ours(fake_reranker, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_THREADS", "many")
    with pytest.raises(JinaError, match="JINA_LOCAL_THREADS is 'many'"):
        main.main(["rerank", "q", "a"])
