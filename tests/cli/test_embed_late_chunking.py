"""`embed --late-chunking`: the input as one document, in this process; then the real model in a real pipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jina_local import registry
from jina_local.cli import main
from jina_local.embedding.request import resolve
from jina_local.errors import TextError, UsageError
from jina_local.spec import Embedded

from .. import made, tiny_v3_and_rerankers
from ..fakes import FakeEmbedder
from .test_embed import piped, rows

pytestmark = pytest.mark.usefixtures("plain_environment")
ROOT = Path(__file__).resolve().parents[2]


class FakeV3(FakeEmbedder):
    """As v3: a chunk's vector depends on what is joined; a token is a character. `asked` has the last request."""

    def __init__(self):
        row = registry.lookup("v3")
        super().__init__(
            replace(
                registry.narrow(row, hidden=64, max_positions=100, tasks=row.spec.tasks),
                origin=FakeEmbedder().spec.origin,
            )
        )

    def embed(self, texts, *, show_progress=None, deterministic=False, **words):
        if not words.get("late_chunking"):
            return super().embed(texts, **words)
        self.asked = {name: words.get(name) for name in ("task", "prompt_name", "max_length")}
        spec = resolve(self.spec, **words)
        for n, text in enumerate(texts):
            if not text.strip():
                raise TextError(n, "has no token of its own.")
        if sum(map(len, texts)) > spec.max_tokens:
            raise UsageError(f"the {len(texts)} texts have too many tokens together; at most {spec.max_tokens}.")
        joined = " ".join(texts)
        plain = super().embed(
            [text if self.BROKEN in text else f"{joined}|{n}" for n, text in enumerate(texts)],
            task=spec.task, **{n: words[n] for n in ("truncate_dim", "normalize", "precision") if n in words},
        )  # fmt: skip
        return Embedded(plain.vectors, plain.token_counts, np.zeros(len(texts), bool), plain.failed, spec)


@pytest.fixture
def v3(monkeypatch):
    """What `load` returns, for any name."""
    from jina_local import loading

    embedder = FakeV3()

    def load(name_or_path=registry.DEFAULT_MODEL, **settings):
        embedder.loaded = {"name_or_path": name_or_path, **settings}
        return embedder

    monkeypatch.setattr(loading, "load", load)
    return embedder


LATE = ["embed", "--model", "v3", "--late-chunking"]


def test_the_lines_of_the_input_are_one_document(v3, capfdbinary, monkeypatch):
    piped(monkeypatch, b"one\ntwo\nthree\n")
    assert main.main(LATE) == 0
    out = capfdbinary.readouterr()
    assert np.array_equal(rows(out.out), FakeV3().embed(["one", "two", "three"], late_chunking=True).vectors)
    assert [json.loads(line)["index"] for line in out.out.splitlines()] == [0, 1, 2]
    assert out.err == b""
    assert (v3.calls, v3.asked["task"]) == ([3], None)
    assert main.main([*LATE, "one", "two", "three"]) == 0
    assert capfdbinary.readouterr().out == out.out


def test_requests_are_passed_on_and_files_are_written(v3, capfdbinary, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.npy"
    source.write_text('{"body": "one"}\n\n{"body": "two"}\n')
    options = ["--field", "body", "--input", str(source), "--output", str(target), "--truncate-dim", "32"]
    assert main.main([*LATE, *options, "--task", "clustering", "--max-length", "50", "--no-normalize"]) == 0
    request = {"task": "clustering", "truncate_dim": 32, "normalize": False, "max_length": 50}
    assert np.array_equal(np.load(target), FakeV3().embed(["one", "two"], **request, late_chunking=True).vectors)
    assert v3.asked == {"task": "clustering", "prompt_name": None, "max_length": 50}
    assert v3.loaded["task"] == "clustering"


def test_more_than_a_blocks_worth_of_lines_is_still_one_document(v3, capfdbinary, monkeypatch):
    piped(monkeypatch, b"\n".join([b"x"] * 95))
    assert main.main(LATE) == 0
    assert v3.calls == [95]
    assert len(capfdbinary.readouterr().out.splitlines()) == 95


def test_too_much_is_refused_and_writes_nothing(v3, capfdbinary, monkeypatch, tmp_path):
    piped(monkeypatch, b"word " * 30)
    with pytest.raises(UsageError, match="too many tokens together; at most 100"):
        main.main([*LATE, "--output", str(tmp_path / "out.npy")])
    assert list(tmp_path.iterdir()) == []
    piped(monkeypatch, (b"x" * 999 + b"\n") * 5000)
    with pytest.raises(
        UsageError,
        match=r"standard input line 4005: more than 4000000 characters so far, .* one document",
    ):
        main.main(LATE)
    assert len(v3.calls) == 0


def test_an_empty_line_is_refused_by_its_number(v3, tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("one\n\ntwo\n")
    with pytest.raises(UsageError, match=r"in\.txt line 2: has no token of its own"):
        main.main([*LATE, "--input", str(path)])


def test_chunks_without_vectors_are_said(v3, capfdbinary):
    assert main.main([*LATE, "good", FakeEmbedder.BROKEN]) == 1
    out = capfdbinary.readouterr()
    assert [set(json.loads(line)) for line in out.out.splitlines()] == [{"index", "error"}] * 2
    assert out.err.startswith(b"2 of 2 texts have no vector")


def test_no_input_is_no_output(v3, capfdbinary, monkeypatch):
    piped(monkeypatch, b"")
    assert main.main(LATE) == 0
    assert capfdbinary.readouterr().out == b""
    assert v3.calls == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["embed", "--late-chunking", "a"], r"text-nano has no late chunking: its vector is .* jina-embeddings-v3\."),
        (["embed", "--late-chunking", "a", "--model", "pico"], "pico has no late chunking"),
        (["embed", "--late-chunking", "a", "--model", "v5-small:Q8_0"], "text-small has no late chunking"),
        (
            ["embed", "--late-chunking", "a", "--model", "reranker-v3"],
            "ranks documents and has no vectors: use `rerank`",
        ),
        ([*LATE, "a", "--overflow", "truncate"], "--overflow truncate: late chunking cuts nothing"),
        ([*LATE, "a", "--task", "search"], "unknown task 'search'"),
        ([*LATE, "a", "--truncate-dim", "7"], "truncate_dim 7 is not a trained width"),
    ],
)
def test_what_cannot_be_is_refused(v3, argv, message):
    with pytest.raises(UsageError, match=re.compile(message, re.S)):
        main.main(argv)
    assert v3.calls == []


def test_a_folder_with_another_model_is_refused_once_it_is_known(fake_embedder, tmp_path):
    with pytest.raises(UsageError, match="has no late chunking"):
        main.main(["embed", "--late-chunking", "a", "--model", str(tmp_path)])
    assert fake_embedder.calls == []


def test_a_reranker_is_refused_by_name_and_by_path(fake_reranker, tmp_path):
    for name in ("reranker-v2", str(tmp_path)):
        with pytest.raises(UsageError, match=r"jina-reranker-\S+ ranks documents and has no vectors: use `rerank`"):
            main.main(["embed", "a", "--model", name])


def test_v3_needs_a_task_but_for_late_chunking(v3):
    with pytest.raises(UsageError, match=r"jina-embeddings-v3 needs a task: one of retrieval\.query"):
        main.main(["embed", "a", "--model", "v3"])
    assert main.main(["embed", "a", "--model", "v3", "--task", "none"]) == 0
    assert main.main(["embed", "a", "--model", "v3", "--task", "retrieval", "--prompt-name", "query"]) == 0


def test_the_help_has_an_example_and_the_tasks(capsys):
    assert main.main(["embed", "--help"]) == 0
    out = capsys.readouterr().out
    assert "jina-local embed --model v3 --late-chunking --input chapter.md > parts.jsonl" in out
    assert all(task in out for task in registry.lookup("v3").spec.tasks)
    assert "not v5" in out


def embed(*arguments, data=b""):
    command = [sys.executable, "-m", "jina_local", "embed", "--model", str(made.checkpoint("v3")), *arguments]
    return subprocess.run(command, cwd=ROOT, input=data, capture_output=True, timeout=60, check=False)


@pytest.mark.mlx
def test_the_real_model_in_a_pipe():
    from jina_local import load

    texts = ["Berlin is the capital of Germany.", "It has 3.85 million inhabitants.", "日本語のテキスト"]
    done = embed("--late-chunking", "--task", "retrieval", "--truncate-dim", "64", data="\n".join(texts).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    with load(made.checkpoint("v3")) as m:
        expected = m.encode(texts, truncate_dim=64, late_chunking=True)
        alone = m.encode(texts, task="retrieval.passage", truncate_dim=64)
    np.testing.assert_allclose(rows(done.stdout), expected, atol=1e-6)
    assert not np.allclose(expected, alone, atol=1e-3)
    prompt = tiny_v3_and_rerankers.V3_PROMPTS["retrieval.passage"]
    count = len(tiny_v3_and_rerankers.tokenizer("v3").encode(prompt + " ".join(texts)).ids)
    done = embed("--late-chunking", "--max-length", str(count - 1), data="\n".join(texts).encode())
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"the 3 texts have {count} tokens together".encode() in done.stderr
    assert f"at most {count - 1}".encode() in done.stderr
