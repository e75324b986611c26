"""cli.py and `embed`, in this process, against a FakeEmbedder."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jina_local import __version__
from jina_local.cli import main
from jina_local.errors import (
    UsageError,
)
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.records.writers import UNUSABLE

from ..fakes import FakeEmbedder

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[2]


def expected(texts, **request):
    return FakeEmbedder().embed(texts, **request).vectors


def rows(stdout):
    return np.array([json.loads(line)["embedding"] for line in stdout.decode().splitlines()], np.float32)


def piped(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_help_and_version(capsys):
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("embed", "rerank", "models", "doctor", "examples:"))
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jina-local {__version__}\n"
    for command in ("embed", "rerank", "models", "doctor"):
        assert main.main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert "examples:" in out
        assert f"jina-local {command}" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["embedd"], r"unknown command 'embedd' \(did you mean 'embed'\?\)\. Commands: .*embed, rerank, "),
        (["zzz"], r"unknown command 'zzz'\. Commands"),
        ([], r"no command was given\.\n\nusage: jina-local"),
        (["--bogus"], r"unknown option --bogus\. See `jina-local --help`"),
        (["--verison"], r"unknown option --verison \(did you mean '--version'\?\)"),
        (
            ["embed", "--outptu", "x.npy"],
            r"unknown option --outptu \(did you mean '--output'\?\)\. See `jina",
        ),
        (
            ["rerank", "q", "--feild=x"],
            r"unknown option --feild \(did you mean '--field'\?\)\. See `jina",
        ),
        (["doctor", "--jsn"], r"unknown option --jsn \(did you mean '--json'\?\)"),
        (["doctor", "now"], r"unexpected argument 'now'"),
        (["doctor", "--", "now"], r"takes no texts after --: now"),
        (["embed", "-zq"], r"unknown option -zq \(a text that begins with a dash goes after --\)"),
        (["embed", "a", "--precision", "ubinray"], r"invalid choice: 'ubinray' .*\(did you mean 'ubinary'\?\)"),
        (
            ["embed", "a", "--format", "xml"],
            r"invalid choice: 'xml' \(choose from .*jsonl.*See `jina-local embed --help`",
        ),
        (["embed", "a", "--threads", "two"], r"--threads: invalid int value: 'two'"),
        (["embed", "a", "--prompt", "query"], r"unknown option --prompt \(did you mean '--prompt-name'\?\)"),
        (["embed", "a", "--field", "body"], r"--field says how to read --input or stdin, and texts were given"),
        (["embed", "a", "--id", "key"], r"none of the first 1 records has 'key'\. They have: 'text'"),
        (["embed", "a", "--id", "key", "--keep", "id"], r"--id key and --keep id would both be 'id'"),
        (["embed", "a", "--keep", "text", "--format", "npy"], r"npy has no place for --id and --keep: give --format"),
        (
            ["embed", "a", "--output", "out.dat"],
            r"--output out\.dat: the format cannot be told.*; or give --format",
        ),
        (["embed", "a", "--input", "b.txt"], r"texts were given, and --input too"),
        (["embed", "a", "--input-format", "txt"], r"--input-format says how to read"),
        (["embed", "--input", "none.txt"], r"--input none\.txt: cannot be opened"),
        (["embed", "--input", "none.dat"], r"--input none\.dat: the format cannot be told"),
        (["embed", "a", "--task", "retrival"], r"unknown task 'retrival' \(did you mean 'retrieval'\?\)"),
        (["embed", "a", "--truncate-dim", "0"], r"truncate_dim 0 is not a trained width"),
        (["embed", "a", "--prompt-name", "passage"], r"unknown prompt_name 'passage'"),
        (["embed", "a", "--max-length", "0"], r"max_length 0 is out of range"),
        (["embed", "a", "--precision", "int8", "--no-normalize"], r"cannot be had with normalize=False"),
        (["embed", "a", "--resume"], r"--resume needs --output FILE: a stream cannot be gone on with"),
        (["embed", "a", "--resume", "--output", "/dev/stderr"], r"--resume needs --output FILE"),
        (["embed", "a", "--resume", "--output", "/dev/null", "--format", "npy"], r"--resume needs --output FILE"),
        (["embed", "a", "--late-chunking", "--shard", "1/2"], r"--shard: late chunking reads the input as one docu"),
        (
            ["embed", "a", "--late-chunking", "--resume", "--output", "a.npy"],
            r"--resume: late chunking reads the inp",
        ),
        (["embed", "a", "--late-chunking", "--cache"], r"--cache: late chunking reads the input as one document"),
        (["embed", "a", "--cache", "--deterministic"], r"the cache has vectors that were run in company"),
        (["embed", "a", "--shard", "0/2"], r"--shard: expected I/N, as 1/4 to 4/4, not '0/2'"),
        (["embed", "a", "--shard", "3/2"], r"--shard: expected I/N"),
        (["embed", "a", "--shard", "2"], r"--shard: expected I/N"),
        (["models", "lst"], r"'lst' .*did you mean 'list'"),
    ],
)
def test_misuse_says_what_is_possible(argv, message, fake_embedder):
    with pytest.raises(UsageError, match=re.compile(message, re.S)):
        main.main(argv)


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from jina_local.cli import main as cli; cli.main(['--help']); cli.main(['embed', '--help']);"
        "bad = {'numpy', 'tokenizers', 'mlx', 'llama_cpp', 'tqdm', 'huggingface_hub', 'pyarrow', 'socket', 'ssl'}"
        " & set(sys.modules); sys.exit(f'imported: {bad}' if bad else 0)"
    )
    best = 9.0
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        after = os.times()  # of the child alone: others may be busy on this machine
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, spent)
    assert best < 0.3


def test_texts_of_the_command_line(fake_embedder, capfdbinary):
    assert main.main(["embed", "one", "--task", "clustering", "two", "--prompt-name", "query"]) == 0
    out = capfdbinary.readouterr()
    assert np.array_equal(rows(out.out), expected(["one", "two"], task="clustering", prompt_name="query"))
    assert out.err == b""
    assert fake_embedder.closed
    assert main.main(["embed", "--", "--task", "-x"]) == 0
    assert np.array_equal(rows(capfdbinary.readouterr().out), expected(["--task", "-x"]))


def test_every_option_reaches_the_model(fake_embedder, capfdbinary):
    options = ["--model", "v5-small", "--weights", "8bit", "--backend", "mlx", "--device", "cpu", "--threads", "3",
               "--offline", "--task", "classification", "--truncate-dim", "32", "--precision", "ubinary"]  # fmt: skip
    assert main.main(["embed", "one", *options]) == 0
    assert fake_embedder.loaded == {
        "name_or_path": "v5-small", "weights": "8bit", "backend": "mlx", "device": "cpu", "threads": 3,
        "offline": True, "task": "classification", "show_progress": None,
    }  # fmt: skip
    got = json.loads(capfdbinary.readouterr().out)["embedding"]
    assert got == expected(["one"], task="classification", truncate_dim=32, precision="ubinary")[0].tolist()


def test_normalize_length_and_determinism_are_passed_on(fake_embedder, capfdbinary, monkeypatch):
    asked = {}
    plain = fake_embedder.embed

    def spy(texts, **request):
        asked.update(request)
        return plain(texts, **request)

    monkeypatch.setattr(fake_embedder, "embed", spy)
    main.main(["embed", "one", "--no-normalize", "--max-length", "50", "--deterministic", "--overflow", "error"])
    assert (asked["normalize"], asked["max_length"], asked["deterministic"], asked["overflow"]) == (
        False, 50, True, "error",
    )  # fmt: skip
    got = rows(capfdbinary.readouterr().out)
    assert np.array_equal(got, expected(["one"], normalize=False))
    assert abs(np.linalg.norm(got) - 1) > 0.1


def test_the_environment_stands_in_for_options(fake_embedder, capfdbinary, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_MODEL", "v5-small")
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "llama")
    monkeypatch.setenv("JINA_LOCAL_THREADS", "2")
    monkeypatch.setenv("JINA_LOCAL_WEIGHTS", "")
    main.main(["embed", "one"])
    assert fake_embedder.loaded["name_or_path"] == "v5-small"
    assert fake_embedder.loaded["backend"] == "llama"
    assert fake_embedder.loaded["threads"] == 2
    assert fake_embedder.loaded["weights"] is None
    assert fake_embedder.loaded["offline"] is None
    main.main(["embed", "one", "--backend", "mlx", "--model", "v5-nano"])
    assert (fake_embedder.loaded["backend"], fake_embedder.loaded["name_or_path"]) == ("mlx", "v5-nano")
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "cuda")
    with pytest.raises(UsageError, match=r"JINA_LOCAL_BACKEND is 'cuda'\. Possible: auto, mlx, llama"):
        main.main(["embed", "one"])
    monkeypatch.setenv("JINA_LOCAL_BACKEND", "")
    monkeypatch.setenv("JINA_LOCAL_THREADS", "many")
    with pytest.raises(UsageError, match=r"JINA_LOCAL_THREADS is 'many'"):
        main.main(["embed", "one"])


def test_many_lines_keep_their_order_over_blocks(fake_embedder, capfdbinary, tmp_path):
    lines = [f"line {i}" for i in range(3000)]
    path = tmp_path / "in.txt"
    path.write_text("\n".join(lines))
    assert main.main(["embed", "--input", str(path), "--truncate-dim", "32"]) == 0
    out = capfdbinary.readouterr().out
    assert [json.loads(line)["index"] for line in out.splitlines()] == list(range(3000))
    assert np.array_equal(rows(out), expected(lines, truncate_dim=32))
    assert fake_embedder.calls[:6] == [64, 128, 256, 512, 1024, 1016]


def test_several_inputs_are_read_in_order(fake_embedder, capfdbinary, tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.md").write_text("two\n\n" + "x" * 200)
    (tmp_path / "c.json").write_text('["three"]')
    inputs = [word for name in ("b.md", "a.txt", "c.json") for word in ("--input", str(tmp_path / name))]
    assert main.main(["embed", *inputs]) == 0
    out = capfdbinary.readouterr()
    assert np.array_equal(rows(out.out), expected(["two", "x" * 200, "one", "three"]))
    assert out.err.decode() == f"1 of 4 texts was cut to 100 tokens (first: {tmp_path}/b.md line 3)\n"
    with pytest.raises(UsageError, match=r"--input too: .*\. Several files: --input \S+b\.md --input \S+a\.txt\."):
        main.main(["embed", "--input", str(tmp_path / "b.md"), str(tmp_path / "a.txt")])


def test_texts_that_name_a_file_or_stdin_get_a_hint(fake_embedder, capfdbinary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one\n")
    for text, what in (("a.txt", "the file"), ("-", "standard input")):
        assert main.main(["embed", text]) == 0
        out = capfdbinary.readouterr()
        assert np.array_equal(rows(out.out), expected([text]))
        assert out.err.decode() == f"{text} is taken as a text. To read {what}: --input {text}\n"


def test_records_are_told_from_texts(fake_embedder, capfdbinary, monkeypatch):
    record = b'{"body": "b", "key": "k"}\n'
    for options in (["--field", "body"], ["--field", "body", "--id", "key"]):
        piped(monkeypatch, record)
        assert main.main(["embed", *options]) == 0
        out = json.loads(capfdbinary.readouterr().out)
        assert np.array_equal(np.array([out["embedding"]], np.float32), expected(["b"]))
        assert out.get("id") == ("k" if "--id" in options else None)
    piped(monkeypatch, record)
    with pytest.raises(UsageError, match=r"standard input line 1 is a JSON object\. .*jsonl .*--input-format txt"):
        main.main(["embed"])
    piped(monkeypatch, record)
    assert main.main(["embed", "--input-format", "txt", "--keep", "text"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["text"] == record.decode().strip()
    piped(monkeypatch, b"a line\n")
    with pytest.raises(UsageError, match="not valid JSON"):
        main.main(["embed", "--keep", "title"])


def test_fields_go_along(fake_embedder, capfdbinary, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "one", "key": 1, "title": "A"}\n{"text": "two", "key": 2}\n')
    options = ["embed", "--input", str(path), "--id", "key", "--keep", "title", "--keep", "text"]
    assert main.main(options) == 0
    first, second = map(json.loads, capfdbinary.readouterr().out.splitlines())
    assert list(first) == ["index", "id", "title", "text", "embedding"]
    assert [first["id"], first["title"], first["text"]] == [1, "A", "one"]
    assert [second["id"], second["title"], second["text"]] == [2, None, "two"]
    assert main.main([*options, "--output", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().splitlines()[2].startswith("1,2,,two,")
    assert main.main(["embed", "one", "--keep", "text"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["text"] == "one"


def test_bad_rows_end_the_run_or_are_passed_over_and_counted(fake_embedder, capfdbinary, tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.npy"
    path.write_text('"one"\n{"body": "x"}\n[\n"\\ud800"\n"two"\n')
    out.write_bytes(b"old")
    with pytest.raises(UsageError, match=r"in\.jsonl line 2: has no 'text'.*--errors skip"):
        main.main(["embed", "--input", str(path), "--output", str(out)])
    assert out.read_bytes() == b"old"
    assert main.main(["embed", "--input", str(path), "--output", str(out), "--errors", "skip"]) == 1
    one, two = expected(["one", "two"])
    assert np.array_equal(np.load(out), [one, 0 * one, 0 * one, 0 * one, two])
    err = capfdbinary.readouterr().err.decode()
    assert err.startswith("3 of 5 texts were passed over (first: line 2: has no 'text'. It has: 'body'.")
    assert main.main(["embed", "--input", str(path), "--errors", "skip"]) == 1
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [record.get("error", "").split(" at")[0] for record in lines] == [
        "", "has no 'text'. It has: 'body'. Give --field NAME.", "not valid JSON: Expecting value",
        "invalid surrogate", "",
    ]  # fmt: skip


def test_a_stopped_run_goes_on(fake_embedder, capfdbinary, tmp_path, monkeypatch):
    path, out = tmp_path / "in.txt", tmp_path / "out.npy"
    lines = [f"line {i}" for i in range(300)]
    path.write_text("\n".join(lines))
    out.write_bytes(b"old")
    plain = fake_embedder.embed

    def interrupted(texts, **words):
        if len(fake_embedder.calls) == 2:
            raise KeyboardInterrupt
        return plain(texts, **words)

    command = ["embed", "--input", str(path), "--output", str(out), "--resume"]
    monkeypatch.setattr(fake_embedder, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main.main(command)
    assert capfdbinary.readouterr().err.decode() == (
        f"{out} is as it was before; the same command goes on with what was done\n"
    )
    assert out.read_bytes() == b"old"
    monkeypatch.setattr(fake_embedder, "embed", plain)
    with pytest.raises(UsageError, match="dim was '64' and is '32'"):
        main.main([*command, "--truncate-dim", "32"])
    capfdbinary.readouterr()
    assert main.main(command) == 0
    assert capfdbinary.readouterr().err.decode() == f"{out}.resume has 192 vectors of a stopped run\n"
    assert np.array_equal(np.load(out), expected(lines))
    assert [n for n in fake_embedder.calls if n] == [64, 128, 108]
    assert {one.name for one in tmp_path.iterdir()} == {"in.txt", "out.npy"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--precision", "int8"], "precision was 'float32' and is 'int8'"),
        (["--overflow", "error"], "overflow was 'truncate' and is 'error'"),
        (["--deterministic"], "deterministic was 'False' and is 'True'"),
    ],
)
def test_a_run_goes_on_with_the_same_request_only(fake_embedder, tmp_path, monkeypatch, more, message):
    command = ["embed", "one", "--output", str(tmp_path / "out.npy"), "--resume"]
    monkeypatch.setattr("jina_local.records.writers.NpyWriter.close", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main.main(command)
    with pytest.raises(UsageError, match=message):
        main.main([*command, *more])


def test_a_bad_row_ends_a_run_that_goes_on_without_it(fake_embedder, capfdbinary, tmp_path):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.npy"
    path.write_text('"text"\n' * 64 + "[\n" + '"other"\n')
    command = ["embed", "--input", str(path), "--output", str(out), "--resume"]
    with pytest.raises(UsageError, match=r"in\.jsonl line 65: not valid JSON"):
        main.main(command)
    assert main.main([*command, "--errors", "skip"]) == 1
    assert [n for n in fake_embedder.calls if n] == [64, 1]
    text, other = expected(["text", "other"])
    assert np.array_equal(np.load(out), [text] * 64 + [0 * text, other])


def test_the_cache_of_all_runs(fake_embedder, capfdbinary, tmp_path, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path))
    for calls in ([2], [2, 0], [2, 0, 1]):
        texts = ["two", "one", "three"][: 2 + len(calls) // 3]
        assert main.main(["embed", *texts, "--cache"]) == 0
        assert fake_embedder.calls == calls
        assert np.array_equal(rows(capfdbinary.readouterr().out), expected(texts))


def test_shards_together_are_the_whole(fake_embedder, capfdbinary, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "{i}", "key": "k{i}"}}\n' for i in range(5)) + "[\n")
    found = []
    for shard in ("1/2", "2/2"):
        code = main.main(["embed", "--input", str(path), "--id", "key", "--shard", shard, "--errors", "skip"])
        assert code == (shard == "2/2")
        found += map(json.loads, capfdbinary.readouterr().out.splitlines())
    assert [one["index"] for one in found] == [0, 2, 4, 1, 3, 5]
    assert [one["id"] for one in found] == ["k0", "k2", "k4", "k1", "k3", None]
    assert np.array_equal(np.float32([one["embedding"] for one in found[:5]]), expected(list("02413")))


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_any_name(fake_embedder, capfdbinary, name):
    if name.startswith("/") and not Path(name).exists():
        pytest.skip(f"this system has no {name}")
    assert main.main(["embed", "one", "--output", name]) == 0
    assert np.array_equal(rows(capfdbinary.readouterr().out), expected(["one"]))


def test_the_table_has_the_first_numbers_tokens_and_kept_fields(fake_embedder, capfdbinary, monkeypatch):
    piped(monkeypatch, b"one\n" + b"x" * 200 + b"\n" + FakeEmbedder.BROKEN.encode() + b"\n")
    assert main.main(["embed", "--format", "table", "--keep", "text", "--truncate-dim", "32"]) == 1
    out = capfdbinary.readouterr()
    head, first, second, third = out.out.decode().splitlines()
    numbers = " ".join(f"{x:7.4f}" for x in expected(["one"], truncate_dim=32)[0][:6])
    assert head == "index  tokens  32 numbers, float32  text"
    assert first == f"    0       3  {numbers} ...  one"
    assert second.startswith("    1    100+  ")
    assert third == f"    2       7  {UNUSABLE}  \\x00broken"
    assert out.err.startswith(b"For all numbers: --format jsonl, a pipe, or --output FILE.\n")
    main.main(["embed", "one", "--format", "table", "--precision", "binary"])
    head, first = capfdbinary.readouterr().out.decode().splitlines()
    assert head.split("  ")[-1] == "8 bytes, binary, of 64 dimensions"
    assert first.split()[2:-1] == [str(x) for x in expected(["one"], precision="binary")[0][:6]]


def test_cut_texts_are_marked_and_counted(fake_embedder, capfdbinary, monkeypatch):
    piped(monkeypatch, b"short\n" + b"x" * 200 + b"\n" + b"y" * 101 + b"\n")
    assert main.main(["embed"]) == 0
    out = capfdbinary.readouterr()
    assert [json.loads(line).get("truncated") for line in out.out.splitlines()] == [None, True, True]
    assert out.err == b"2 of 3 texts were cut to 100 tokens (first: line 2)\n"


def test_overflow_error_names_the_line_of_the_input(fake_embedder, monkeypatch):
    lines = [b"ok"] * 100
    lines[80] = b"x" * 200
    piped(monkeypatch, b"\n".join(lines))
    with pytest.raises(UsageError, match=r"standard input line 81: has more than the 100 tokens"):
        main.main(["embed", "--overflow", "error"])


def test_lone_surrogates_name_their_line(fake_embedder, tmp_path, capfdbinary):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'"fine"\n' * 70 + b"\n" + b'"\\ud800"\n')
    with pytest.raises(UsageError, match=r"in\.jsonl line 72: invalid surrogate"):
        main.main(["embed", "--input", str(path)])
    assert len(capfdbinary.readouterr().out.splitlines()) == 64


def test_a_text_without_a_vector_fails_alone(fake_embedder, capfdbinary, tmp_path):
    assert main.main(["embed", "good", FakeEmbedder.BROKEN, "fine"]) == 1
    out = capfdbinary.readouterr()
    first, second, third = map(json.loads, out.out.splitlines())
    assert np.array_equal(np.array([first["embedding"], third["embedding"]], np.float32), expected(["good", "fine"]))
    assert set(second) == {"index", "error"}
    assert out.err.startswith(b"1 of 3 texts has no vector: the model gave no usable vector")
    assert b"(first: text 2)" in out.err
    path = tmp_path / "out.npy"
    assert main.main(["embed", "good", FakeEmbedder.BROKEN, "--output", str(path)]) == 1
    assert np.array_equal(np.load(path), [expected(["good"])[0], np.zeros(64)])


def test_nothing_non_finite_is_written_whatever_the_model_says(fake_embedder, capfdbinary, monkeypatch):
    plain = fake_embedder.embed

    def bad(texts, **request):
        answer = plain(texts, **request)
        answer.vectors[1, 3] = np.inf
        return answer

    monkeypatch.setattr(fake_embedder, "embed", bad)
    for chosen in ("jsonl", "json", "csv"):
        assert main.main(["embed", "a", "b", "--format", chosen]) == 1
        out = capfdbinary.readouterr().out.replace(UNUSABLE.encode(), b"")
        assert not re.search(rb"inf|nan", out, re.I)


def test_an_empty_input_gives_an_empty_output(fake_embedder, capfdbinary, monkeypatch, tmp_path):
    piped(monkeypatch, b"")
    assert main.main(["embed"]) == 0
    assert capfdbinary.readouterr().out == b""
    piped(monkeypatch, b"")
    assert main.main(["embed", "--output", str(tmp_path / "out.npy")]) == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 64)
    assert fake_embedder.calls == []


def test_refused_requests_leave_the_output_alone(fake_embedder, tmp_path):
    path = tmp_path / "out.npy"
    path.write_bytes(b"old")
    for argv in (["--truncate-dim", "7"], ["--task", "none"]):
        with pytest.raises(UsageError):
            main.main(["embed", "a", "--output", str(path), *argv])
    with pytest.raises(UsageError, match="has more than"):
        main.main(["embed", "a", "x" * 500, "--overflow", "error", "--output", str(path)])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]


def test_a_terminal_without_texts_gets_examples(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(
        UsageError, match=r"no texts: give some, or --input FILE, or pipe them in\.\n\nexamples:\n  jina"
    ):
        main.main(["embed"])


def test_a_file_of_vectors_names_the_weights_that_made_them(fake_embedder, tmp_path):
    assert main.main(["embed", "two", "texts", "--output", str(tmp_path / "x.safetensors")]) == 0
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata["weights"] == fake_embedder.spec.origin.weights == "32bit"
