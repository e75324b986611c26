"""--help of `embed` and `rerank`: it fits a terminal, and every example in it runs as it stands."""

from __future__ import annotations

import io
import shlex
import sys

import pytest

from jina_local import registry
from jina_local.cli import embed, main, rerank

from ..fakes import FakeEmbedder, FakeReranker
from .test_embed_late_chunking import FakeV3

pytestmark = pytest.mark.usefixtures("plain_environment")

FILES = {
    "notes.txt": "milk\nbread\n",
    "words.txt": "two\none\n",
    "docs.txt": "Mars looks red.\nVenus is hot.\n",
    "docs.jsonl": '{"body": "Mars", "key": "m"}\n{"body": "Venus", "key": "v"}\n',
    "found.jsonl": '{"body": "Mars", "score": 0.5}\n',
    "chapter.md": "# Mars\n\nIt looks red.\n",
}
EXAMPLES = [line.strip() for text in (embed.EXAMPLES, rerank.EXAMPLES) for line in text.splitlines()[1:]]


def load(name_or_path, **settings):
    """A fake of the kind that the name stands for."""
    if "reranker" in name_or_path:
        return FakeReranker()
    return FakeV3() if name_or_path == "v3" else FakeEmbedder(registry.lookup(name_or_path).spec)


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_runs(line, tmp_path, monkeypatch, capfdbinary):
    if "parquet" in line:
        pytest.importorskip("pyarrow")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jina_local.loading.load", load)
    words = shlex.split(line)
    if words[0] == "sort":  # sort FILE | jina-local ...
        text = "".join(sorted((tmp_path / words[1]).read_text().splitlines(keepends=True)))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert words[2] == "|"
        del words[:3]
    if words[-2] == ">":
        del words[-2:]
    assert words[0] == "jina-local"
    assert main.main(words[1:]) == 0
    out = capfdbinary.readouterr()
    written = {path.name for path in tmp_path.iterdir()} - set(FILES)
    assert bool(written) == ("--output" in words)
    assert bool(out.out) == (not written)
    assert (b"no reranker: documents are ranked by the cosine" in out.err) == (
        words[1:4] == ["rerank", "--model", "pico"]
    )


@pytest.mark.parametrize("command", ["embed", "rerank"])
def test_help_fits_a_terminal_and_starts_with_examples(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "examples:"
    assert [line for line in lines if len(line) > 80 and line.strip() not in EXAMPLES] == []
    groups = {line for line in lines if line.endswith(":") and not line.startswith(" ")}
    assert {"model:", "input:", "output:", "environment:", "exit codes:"} <= groups
