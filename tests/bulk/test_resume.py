"""resume.py: a run that was stopped, however it was, goes on, and its output is that of a run that was not."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from jina_local.bulk import resume, stream
from jina_local.errors import Locked, OutputError, UsageError
from jina_local.records.readers import Reading

from ..fakes import FakeEmbedder
from .test_stream import item

ROOT = Path(__file__).resolve().parents[2]
SKIP = Reading(skip=True, records=True)


class Wavering(FakeEmbedder):
    """The last bits of its vectors depend on the text's place in the call, as in quantised weights."""

    def embed(self, texts, **words):
        answer = super().embed(texts, **words)
        if answer.vectors.dtype == np.float32:
            answer.vectors[:] *= 1 + np.arange(len(texts), dtype=np.float32)[:, None] * 1e-6
        return answer


def run(texts, output, stop_after=None, embedder=None, **words):
    """(all vectors, how many texts the model was given) of a run to `output` that stops after some blocks."""
    fake = embedder or Wavering()
    items = [item(i, text) for i, text in enumerate(texts, 1)]
    with resume.journal(output, {**fake.space(**words), "precision": words.get("precision", "float32")}) as journal:
        made = stream.embed(fake, items, words, stream.Tally(100), reading=SKIP, journal=journal)
        blocks = list(itertools.islice(made, stop_after))
        if stop_after is not None:
            raise KeyboardInterrupt
    return np.concatenate([block.vectors for block in blocks]), sum(fake.calls)


def plain(texts, **words):
    items = [item(i, text) for i, text in enumerate(texts, 1)]
    made = stream.embed(Wavering(), items, words, stream.Tally(100), reading=SKIP)
    return np.concatenate([block.vectors for block in made])


def stopped(texts, output, **more):
    with pytest.raises(KeyboardInterrupt):
        run(texts, output, **more)


TEXTS = [f"text {i % 250}" for i in range(700)]  # some stand there three times; blocks of 64, 128, 256, 252


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stop_after, precision):
    output = tmp_path / "out.npy"
    stopped(TEXTS, output, stop_after=stop_after, precision=precision)
    vectors, asked = run(TEXTS, output, precision=precision)
    assert np.array_equal(vectors, plain(TEXTS, precision=precision))
    assert asked == [700, 636, 508, 252, 0][stop_after]
    assert list(tmp_path.iterdir()) == []


def test_a_run_may_be_stopped_again_and_again(tmp_path):
    output = tmp_path / "out.npy"
    for stop_after in (1, 3, 2):
        stopped(TEXTS, output, stop_after=stop_after)
    vectors, asked = run(TEXTS, output)
    assert np.array_equal(vectors, plain(TEXTS))
    assert asked == 252


def test_vectors_belong_to_texts_and_not_to_places(tmp_path):
    texts = [f"text {i}" for i in range(300)]
    stopped(texts, tmp_path / "out.npy", stop_after=2, embedder=FakeEmbedder())  # 192 texts
    other = ["new", *texts[150:], "text 150, edited", *texts[:100]]
    vectors, asked = run(other, tmp_path / "out.npy", embedder=FakeEmbedder())
    assert np.array_equal(vectors, FakeEmbedder().embed(other).vectors)
    assert asked == len(other) - 142


def test_texts_without_a_vector_are_tried_again(tmp_path):
    texts = ["good", FakeEmbedder.BROKEN, "\ud800", "x" * 101, "good"]
    stopped(texts, tmp_path / "out.npy", stop_after=1)
    vectors, asked = run(texts, tmp_path / "out.npy")
    assert np.array_equal(vectors, plain(texts))
    assert asked == 2 + 1  # refused for its half of a pair, then broken alone


def test_cuts_are_kept(tmp_path):
    rows = [item(1, "abc"), item(2, "x" * 101)]
    spec = {"precision": "float32"}
    for asked in (2, 0):
        fake, tally = FakeEmbedder(), stream.Tally(100)
        with contextlib.suppress(KeyboardInterrupt), resume.journal(tmp_path / "o", spec) as journal:
            (block,) = stream.embed(fake, rows, {}, tally, reading=SKIP, journal=journal)
            raise KeyboardInterrupt
        assert (block.truncated.tolist(), tally.cut, fake.calls) == ([False, True], 1, [asked])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"truncate_dim": 32},
            r"another request: dim was '64' and is '32'\. Give the same options as ",
        ),
        ({"precision": "int8"}, "precision was 'float32' and is 'int8'"),
        ({"task": "clustering"}, "task was 'retrieval' and is 'clustering'"),
        ({"prompt_name": "query"}, "prompt was 'Document: ' and is 'Query: '"),
    ],
)
def test_another_request_is_refused_with_the_difference(tmp_path, changed, message):
    stopped(TEXTS, tmp_path / "out.npy", stop_after=1)
    before = (tmp_path / "out.npy.resume").read_bytes()
    with pytest.raises(UsageError, match=message):
        run(TEXTS, tmp_path / "out.npy", **changed)
    assert (tmp_path / "out.npy.resume").read_bytes() == before


def test_one_process_at_a_time(tmp_path):
    spec = {"precision": "float32"}
    with (
        resume.journal(tmp_path / "out.npy", spec),
        pytest.raises(Locked, match=r"out\.npy\.resume: another process is writing the same output"),
        resume.journal(tmp_path / "out.npy", spec),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / "out.npy.resume"
    path.write_bytes(b"my notes, which are long enough for a header of a hundred bytes " * 9)
    with pytest.raises(OutputError, match="file is not a database. Remove the file to begin anew"):
        run(TEXTS, tmp_path / "out.npy")
    assert path.read_bytes().startswith(b"my notes")
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE vectors (mine)")
    other.close()
    with pytest.raises(OutputError, match="was not made by --resume"):
        run(TEXTS, tmp_path / "out.npy")


def test_a_folder_that_takes_no_file(tmp_path):
    with pytest.raises(
        OutputError, match=r"out\.npy\.resume: unable to open database file\. Make its folder writable"
    ):
        run(TEXTS, tmp_path / "none" / "out.npy")


def test_a_damaged_file_is_an_error(tmp_path):
    stopped(TEXTS, tmp_path / "out.npy", stop_after=2)
    path = tmp_path / "out.npy.resume"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(OutputError, match=r"(malformed|disk I/O error)\. Remove the file to begin anew"):
        run(TEXTS, tmp_path / "out.npy")


def test_a_full_disk_keeps_what_was_done(tmp_path):
    output, texts = tmp_path / "out.npy", [f"text {i}" for i in range(1000)]
    asked = {"precision": "float32"}

    def made(journal):
        items = [item(i, text) for i, text in enumerate(texts)]
        return stream.embed(FakeEmbedder(), items, {}, stream.Tally(100), reading=SKIP, journal=journal)

    with (
        pytest.raises(OutputError, match="full. What was done before is kept"),
        resume.journal(output, asked) as journal,
    ):
        journal._file.execute("PRAGMA max_page_count = 60")
        list(made(journal))
    with resume.journal(output, asked) as journal:
        assert journal.count == 64 + 128 + 256
        assert np.array_equal(
            np.concatenate([one.vectors for one in made(journal)]), FakeEmbedder().embed(texts).vectors
        )


# The real command line over a fake that takes a moment for each call.
FAKE = """
import sys, time
from jina_local import loading
from jina_local.cli import main
from tests.bulk.test_resume import Wavering
class Slow(Wavering):
    def embed(self, texts, **words):
        time.sleep(0.02)
        return super().embed(texts, **words)
loading.load = lambda name_or_path, **settings: Slow()
sys.stderr.write("ready\\n")
sys.stderr.flush()
main.run()
"""


def kill_and_go_on(folder, chosen, most, rng):
    """Stop a run `most` times at random moments, mostly with kill -9; its output has to be that of a plain run."""
    source, out, expected = folder / "in.jsonl", folder / f"out.{chosen}", folder / f"plain.{chosen}"
    source.write_text("".join(f'{{"text": "{text}", "id": {n}}}\n' for n, text in enumerate(TEXTS * 2)))
    command = [sys.executable, "-c", FAKE, "embed", "--input", str(source), "--field", "text"]
    command += ["--id", "id"] if chosen in ("jsonl", "csv", "parquet") else []
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "--output", str(expected)], env=env, check=True, capture_output=True)
    kills = 0
    while True:
        with subprocess.Popen([*command, "--output", str(out), "--resume"], env=env, stderr=subprocess.PIPE) as child:
            assert child.stderr.readline() == b"ready\n"
            if kills < most:
                time.sleep(rng.uniform(0.02, 0.3))
                child.send_signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
            said = child.stderr.read().decode()
        kills += child.returncode != 0
        assert child.returncode in ((0, -9, -15, 130, 143) if kills <= most else (0,)), (child.returncode, said)
        if child.returncode == 0:
            break
        assert not out.exists() or out.read_bytes() == expected.read_bytes()  # if it was stopped on its way out
    assert out.read_bytes() == expected.read_bytes()
    assert {path.name for path in folder.iterdir()} == {source.name, out.name, expected.name}
    out.unlink()
    return kills


@pytest.mark.sampled
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("chosen", ["jsonl", "csv", "parquet", "npy"])
@pytest.mark.usefixtures("plain_environment")
def test_a_killed_run_goes_on_to_the_same_file(chosen, tmp_path):
    if chosen == "parquet":
        pytest.importorskip("pyarrow")
    assert kill_and_go_on(tmp_path, chosen, 2, random.Random(chosen)) > 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = 0
    for seed in itertools.count():
        with tempfile.TemporaryDirectory() as where:
            chosen = ["jsonl", "csv", "parquet", "npy", "json", "safetensors"][seed % 6]
            done += kill_and_go_on(Path(where), chosen, 6, random.Random(seed))
        if done >= int(sys.argv[1]):
            break
    print(f"{done} kills in {seed + 1} runs, every output equal to that of a plain run")
