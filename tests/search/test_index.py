"""Index: what a run takes in, what it leaves alone, what it costs, and what is refused."""

from __future__ import annotations

import os
import stat
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import jina_local
from jina_local.bulk.cache import VectorCache
from jina_local.embedding import vectors
from jina_local.errors import IndexDamaged, IndexMismatch, IndexNotFound, Locked, NonFiniteError, UsageError
from jina_local.search import update
from jina_local.search.index import Index
from jina_local.search.query import Hit
from jina_local.search.writer import writing
from jina_local.store import local_store
from tests import tiny_v3_and_rerankers
from tests.search.standin import SearchEmbedder, guide

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A folder of three documents of two chunks, whose files are not of this moment."""
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "notes"
    folder.mkdir()
    for n in range(3):
        write(folder / f"{n}.md", guide(n))
    return folder


def write(path, text, age=100):
    path.write_text(text)
    os.utime(path, (time.time() - age, time.time() - age - 0.5))


@pytest.fixture
def model():
    return SearchEmbedder()


def did(done):
    """What a run did, without the zeros."""
    kinds = ("added", "changed", "moved", "removed", "unchanged", "skipped", "vectors", "cached")
    return {kind: getattr(done, kind) for kind in kinds if getattr(done, kind)}


def paths(answer):
    return [os.path.basename(hit.document.path).decode() for hit in answer.hits]


def test_a_first_run_takes_everything_in_and_a_second_does_nothing(notes, model):
    (notes / "picture.bin").write_bytes(b"\0\1\2")
    os.utime(notes / "picture.bin", (1, 1.5))
    with Index.open("x", model=model) as index:
        assert did(index.update(notes)) == {"added": 3, "skipped": 1, "vectors": 6}
        with index.database().reader() as reader:
            generation = reader.generation()
        assert did(index.update()) == {"unchanged": 3, "skipped": 1}
        with index.database().reader() as reader:
            assert reader.generation() == generation  # nothing was written
        status = index.status()
        assert (status.counts.documents, status.counts.chunks, status.without_vector) == (3, 6, 0)
        assert [(os.path.basename(row.path), row.reason) for row in status.skipped] == [(b"picture.bin", "binary")]
        assert status.folders == (str(notes),)
        assert index.verify() == []
    assert stat.S_IMODE(index.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(index.path.parent.stat().st_mode) == 0o700


def test_vectors_are_those_of_the_documents_side_and_as_int8_those_of_the_library(notes, model):
    with Index.open("x", model=model, truncate_dim=32) as index:
        index.update(notes)
        with index.database().reader() as reader:
            chunks = {chunk.id: chunk for chunk in reader.chunks()}
            halves = reader.halves(chunks)
            (block,) = reader.blocks()
        placed = {int(chunk): code for chunk, code in zip(block.chunks, block.int8, strict=True) if chunk}
    assert chunks[1].context == "Guide 0" or "Guide" in chunks[1].context
    for number, chunk in chunks.items():
        words = {"prompt_name": "document", "truncate_dim": 32}
        text = f"{chunk.context}\n{chunk.text}"
        assert np.array_equal(placed[number], model.embed([text], precision="int8", **words).vectors[0])
        assert np.array_equal(halves[number], model.embed([text], **words).vectors[0].astype(np.float16))


def test_changed_moved_and_removed_files(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        write(notes / "0.md", guide(0).replace("restarts", "stops at once"))
        os.rename(notes / "1.md", notes / "manual.md")
        (notes / "2.md").unlink()
        write(notes / "new.md", guide(7))
        model.texts.clear()
        done = index.update()
        assert did(done) == {
            "added": 1, "changed": 1, "moved": 1, "removed": 1, "vectors": 4, "cached": 1
        }  # fmt: skip
        assert len(model.texts) == 3  # the unchanged half of 0.md came from the cache, the moved file needed nothing
        assert sorted(set(paths(index.search("router", mode="lexical")))) == ["0.md", "manual.md", "new.md"]
        assert paths(index.search("manual", mode="lexical")) == ["manual.md", "manual.md"]
        assert index.verify() == []


def test_a_file_that_is_no_longer_text_goes(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        (notes / "0.md").write_bytes(b"\0binary")
        assert did(index.update()) == {"unchanged": 2, "skipped": 1}
        assert index.status().counts.documents == 2
        write(notes / "0.md", guide(0))
        assert did(index.update()) == {"added": 1, "unchanged": 2, "vectors": 2, "cached": 2}


def test_a_file_that_is_written_again_in_the_same_moment_is_seen(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        (notes / "0.md").write_text("router aaaa")
        now = time.time_ns()
        os.utime(notes / "0.md", ns=(now, now))
        index.update()
        (notes / "0.md").write_text("router bbbb")  # same size, and then the same time
        os.utime(notes / "0.md", ns=(now, now))
        assert did(index.update())["changed"] == 1


def test_a_touched_file_is_read_and_nothing_else(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        os.utime(notes / "0.md", (5, 5.5))
        model.texts.clear()
        assert did(index.update()) == {"unchanged": 3}
        assert not model.texts
        with index.database().reader() as reader:
            assert reader.document(os.fsencode(notes / "0.md")).mtime_ns == 5_500_000_000


def test_names_that_are_no_utf8_and_have_line_ends(notes, model):
    for name in (b"\xff\xfe.md", b"line\nend.md", "emoji 👩‍👩‍👧.md".encode(), b"x" * 250 + b".md"):
        with open(os.path.join(os.fsencode(notes), name), "w") as file:
            file.write("unusual names\n")
    with Index.open("x", model=model) as index:
        assert index.update(notes).added == 7
        assert {hit.document.path for hit in index.search("unusual", mode="lexical").hits} >= {
            os.path.join(os.fsencode(notes), b"\xff\xfe.md")
        }
        assert index.verify() == []


def test_words_are_in_before_the_first_vector_and_newest_files_have_vectors_first(notes, model, monkeypatch):
    monkeypatch.setattr(update, "_FIRST", 2)
    monkeypatch.setattr(update, "_MOST", 2)
    write(notes / "newest.md", "# Newest\n\nrouter\n", age=1)
    write(notes / "oldest.md", "# Oldest\n\nrouter\n", age=10_000)
    seen = []

    def embed(texts, **words):
        with Index.open("x") as reading:
            status, answer = reading.status(), reading.search("router", mode="lexical")
        seen.append((status.without_vector, len(answer.hits)))
        return SearchEmbedder.embed(model, texts, **words)

    monkeypatch.setattr(model, "embed", embed)
    with Index.open("x", model=model) as index:
        index.update(notes)
    assert seen == [(8, 5), (6, 5), (4, 5), (2, 5)]
    assert "Newest" in model.texts[0]
    assert "Oldest" in model.texts[-1]


def test_a_run_that_is_stopped_goes_on(notes, model, monkeypatch):
    monkeypatch.setattr(update, "_FIRST", 2)
    monkeypatch.setattr(update, "_MOST", 2)

    def stop(progress):
        if progress.phase == "vectors" and progress.done == 4:
            raise KeyboardInterrupt

    with Index.open("x", model=model) as index:
        with pytest.raises(KeyboardInterrupt):
            index.update(notes, progress=stop)
        assert index.status().without_vector == 2
        answer = index.search("router")
        assert answer.mode == "hybrid"
        assert answer.missing == ("2 of 6 passages have no vector yet: run `index` to go on.",)
        assert did(index.update()) == {"unchanged": 3, "vectors": 2}
        assert index.search("router").missing == ()


def test_passages_without_a_usable_vector_are_counted_and_tried_again(notes, model):
    write(notes / "bad.md", f"broken {model.BROKEN[1:]} text")
    model.BROKEN = "broken"
    with Index.open("x", model=model) as index:
        done = index.update(notes)
        assert (done.vectors, len(done.failed)) == (6, 1)
        assert index.status().without_vector == 1
        assert paths(index.search("broken", mode="lexical")) == ["bad.md"]
        model.BROKEN = "nothing of this"
        assert did(index.update()) == {"unchanged": 4, "vectors": 1}
        assert index.verify() == []


def test_equal_passages_are_embedded_once(notes, model):
    for n in range(5):
        write(notes / f"copy{n}.md", "# Licence\n\nthe same text\n")
    with Index.open("x", model=model) as index:
        assert index.update(notes).vectors == 11
    assert len(model.texts) == 7


def test_a_second_worktree_costs_no_vectors(notes, model, tmp_path):
    other = tmp_path / "worktree"
    other.mkdir()
    for file in notes.iterdir():
        write(other / file.name, file.read_text())
    with Index.open("x", model=model) as index:
        index.update(notes)
    model.texts.clear()
    with Index.open("y", model=model) as index:
        assert did(index.update(other)) == {"added": 3, "vectors": 6, "cached": 6}
    assert not model.texts


def test_folders_join_and_have_to_be_there(notes, model, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    write(more / "x.md", guide(9))
    with Index.open("x", model=model) as index:
        with pytest.raises(UsageError, match="no folder yet"):
            index.update()
        assert not index.path.exists()
        index.update(notes)
        assert did(index.update(more)) == {"added": 1, "unchanged": 3, "vectors": 2}
        assert index.status().folders == (str(notes), str(more))
        with pytest.raises(UsageError, match=f"{notes}/sub lies in {notes}: give the outer one"):
            (notes / "sub").mkdir()
            index.update(notes / "sub")
        os.rename(more, tmp_path / "away")
        with pytest.raises(UsageError, match=f"{more}: is no folder"):
            index.update()
        assert index.status().counts.documents == 4  # nothing was taken for deleted


def test_files_out_of_reach_are_not_taken_for_deleted(notes, model, monkeypatch):
    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    with Index.open("x", model=model) as index:
        index.update(notes)
        monkeypatch.setattr(update, "_out_of_reach", lambda path: path.endswith(b"0.md"))
        for n in (0, 1):
            (notes / f"{n}.md").unlink()
        assert did(index.update()) == {"removed": 1, "unchanged": 1}
        monkeypatch.undo()
    assert not update._out_of_reach(os.fsencode(notes / "1.md"))
    monkeypatch.setattr(update.os, "lstat", refused)
    assert update._out_of_reach(b"/locked/x.md")


def test_include_and_exclude_are_kept_until_they_are_given_again(notes, model):
    write(notes / "code.py", "def reset():\n    return 1\n")
    with Index.open("x", model=model) as index:
        assert index.update(notes, include=["*.md"], exclude=["0.*"]).added == 2
        assert did(index.update()) == {"unchanged": 2}
        assert did(index.update(include=[])) == {"added": 1, "unchanged": 2, "vectors": 1}
        assert did(index.update(exclude=[])) == {"added": 1, "unchanged": 3, "vectors": 2}


def test_another_space_is_refused_with_the_difference(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
    with Index.open("x", model=model, truncate_dim=32) as index:
        with pytest.raises(IndexMismatch, match=r"dim: 64 in the index, 32 asked for.*index --rebuild"):
            index.update()
        with pytest.raises(IndexMismatch, match="dim: 64 in the index"):
            index.search("router")
        assert paths(index.search("router", mode="lexical"))
        assert did(index.update(rebuild=True)) == {"added": 3, "vectors": 6}
        assert index.status().dim == 32
        assert index.search("router").mode == "hybrid"
    with (
        Index.open("x", model=model, task="clustering") as index,
        pytest.raises(IndexMismatch, match="task: retrieval"),
    ):
        index.update()


@pytest.mark.parametrize("key", ["words", "splitter", "extractor"])
def test_words_and_passages_of_another_version_are_refused(notes, model, key):
    with Index.open("x", model=model) as index:
        index.update(notes)
        with writing(index.path, "test") as writer, writer.transaction():
            writer.set_header({key: "0"})
        with pytest.raises(IndexMismatch, match=f"its {key} is of version '0'"):
            index.update()
        index.update(rebuild=True)
        assert index.verify() == []


def test_a_rebuild_takes_the_vectors_from_the_cache(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        model.texts.clear()
        assert did(index.update(rebuild=True)) == {"added": 3, "vectors": 6, "cached": 6}
        assert not model.texts
        assert index.search("router").mode == "hybrid"


def test_a_damaged_file_is_refused_at_once_and_made_again(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
    data = index.path.read_bytes()
    index.path.write_bytes(data[: len(data) // 2])
    start = time.monotonic()
    with pytest.raises(IndexDamaged, match="index --rebuild"):
        Index.open("x", model=model)
    assert time.monotonic() - start < 1
    with Index(index.path, model=model) as index:
        with pytest.raises(UsageError, match="no folder yet"):
            index.update(rebuild=True)
        assert index.update(notes, rebuild=True).cached == 6
        assert index.verify() == []


def test_verify_finds_damage_in_the_file(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        with writing(index.path, "test") as writer:
            writer.connection.execute("UPDATE halves SET float16 = x'00' WHERE chunk = 3")
        assert index.verify() == [f"halves: row 3 was changed ({notes}/1.md)"]
        with pytest.raises(IndexDamaged, match="row 3 of halves is damaged"):
            index.search("router number 1")


def test_the_lock_says_who_writes(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        with writing(index.path, "index ~/notes"), pytest.raises(Locked, match=r"\(index ~/notes\)"):
            index.update()
        with writing(index.path, "index ~/notes"):
            assert index.search("router").hits  # readers do not wait


def test_get_gives_lines_of_indexed_files_only(notes, model, tmp_path):
    (tmp_path / "secret.txt").write_text("key")
    with Index.open("x", model=model) as index:
        index.update(notes)
        passage = index.get("1.md", 3, 2)
        assert (passage.text, passage.start_line, passage.end_line) == ("The router number 1 restarts.\n", 3, 4)
        assert not passage.changed
        assert index.get(notes / "1.md").text == guide(1).rstrip()
        assert index.get("1.md", 7, 100).end_line == 7
        for path in ("../secret.txt", tmp_path / "secret.txt", "/etc/passwd", "absent.md"):
            with pytest.raises(UsageError, match="is not in the index x"):
                index.get(path)
        with pytest.raises(UsageError, match=r"1\.md: has 7 lines, and 99 was asked for"):
            index.get("1.md", 99)
        write(notes / "1.md", "other")
        assert index.get("1.md").changed
        (notes / "1.md").unlink()
        with pytest.raises(UsageError, match=r"1\.md: .*run `index` again"):
            index.get("1.md")


def test_related_passages_leave_out_the_passage_itself(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        hits = index.related("1.md", 7, k=5).hits
        assert len(hits) == 5
        assert all(isinstance(hit, Hit) and (hit.document.path, hit.chunk.ordinal) != (b"1.md", 1) for hit in hits)


def test_searches_in_many_threads_while_an_update_runs(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        problems, counted, stop = [], [], threading.Event()

        def search():
            while not stop.is_set():
                try:
                    answer = index.search("router restarts")
                    assert answer.hits
                    counted.append(len(answer.hits))
                except BaseException as error:
                    problems.append(error)
                    return

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(10):
            write(notes / "new.md", guide(100 + n), age=n)
            index.update()
        while len(counted) < 20 and not problems:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems


def test_an_index_that_is_not_there(notes, model):
    with Index.open("absent", model=model) as index:
        for call in (index.status, index.verify, index.remove, lambda: index.search("x")):
            with pytest.raises(IndexNotFound, match="there is no index here"):
                call()
    with pytest.raises(UsageError, match="no name for an index"):
        Index.open("no such?name")
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieghts'"):
        Index.open("x", wieghts="Q8_0")


def test_an_index_in_its_own_folder_does_not_index_itself(notes, model):
    with Index.open(notes / "own.sqlite", model=model) as index:
        assert did(index.update(notes)) == {"added": 3, "vectors": 6}
        assert did(index.update()) == {"unchanged": 3}
        assert index.wrote(os.fsencode(notes / "own.sqlite-wal"))
        assert not index.wrote(os.fsencode(notes / "0.md"))


def test_a_model_that_does_not_open_is_not_kept_for_the_next_run(notes, model):
    with Index.open("x", model="no-such-model") as index, pytest.raises(UsageError, match="no-such-model"):
        index.update(notes)
    with Index.open("x", model=model) as index:
        assert did(index.update()) == {"added": 3, "vectors": 6}


def test_an_index_is_opened_by_name_by_path_or_by_a_folder_that_it_covers(notes, model, tmp_path):
    with pytest.raises(UsageError, match=f"{notes}: is a folder that no index covers"):
        Index.open(notes)
    with Index.open("x", model=model) as index:
        index.update(notes)
    (notes / "sub").mkdir()
    for given in ("x", index.path, str(index.path), notes, str(notes / "sub")):
        with Index.open(given) as again:
            assert again.path == index.path
    with Index.open(tmp_path / "elsewhere", model=model) as other:
        other.update(notes)
    assert (tmp_path / "elsewhere").is_file()


def test_remove_leaves_nothing_of_the_index(notes, model):
    with Index.open("x", model=model) as index:
        index.update(notes)
        index.remove()
        assert list(local_store.indexes().iterdir()) == []
        assert sorted(os.listdir(notes)) == ["0.md", "1.md", "2.md"]
        assert index.update(notes).cached == 6
    with pytest.raises(IndexNotFound, match="closed"):
        index.status()


def test_ten_thousand_unchanged_files_cost_a_stat_each(notes, model):
    for n in range(100):
        folder = notes / f"d{n}"
        folder.mkdir()
        for k in range(100):
            write(folder / f"{k}.txt", "")
    with Index.open("x", model=model) as index:
        index.update(notes)
        opened = []
        original = update.read_stable
        update.read_stable = lambda *args: opened.append(args) or original(*args)
        try:
            times = []
            for _ in range(5):
                start = time.process_time()  # the wall's clock counts other processes, too
                assert index.update().unchanged == 10_003
                times.append(time.process_time() - start)
        finally:
            update.read_stable = original
    assert not opened
    assert min(times) < 1


class LateEmbedder(SearchEmbedder):
    """A model with late chunking. `read` keeps the documents and spans that it was given."""

    def __init__(self):
        super().__init__()
        self.spec = replace(self.spec, late_chunking=True)
        self.read = []

    def encode_chunks(self, document, spans, *, prompt_name, task, truncate_dim, show_progress):
        """Vectors of a document and its spans; none for documents that hold `BROKEN`."""
        self.read.append((document, spans))
        answer = SearchEmbedder.embed(self, [f"{document} {span}" for span in spans], truncate_dim=truncate_dim)
        if answer.failed:
            raise NonFiniteError(answer.failed, len(spans))
        return answer.vectors


def test_a_model_with_late_chunking_reads_documents_of_several_passages_as_a_whole(notes, monkeypatch):
    monkeypatch.setattr(update, "_FIRST", 1)
    write(notes / "short.md", "# Short\n\none passage\n")
    late = LateEmbedder()
    with Index.open("x", model=late) as index:
        assert index.update(notes).vectors == 7
        assert index.verify() == []
        assert sorted(document for document, _ in late.read) == [guide(n).rstrip() for n in range(3)]
        document, spans = next(one for one in late.read if "Guide 1" in one[0])
        assert document[slice(*spans[1])] == "## Install\n\nPlug in the cable number 1."
        assert "Short\n# Short\n\none passage" in late.texts
        # A passage's vector depends on its document, so the unchanged half of 0.md gets another, too.
        write(notes / "0.md", guide(0).replace("restarts", "stops at once"))
        assert did(index.update()) == {"changed": 1, "unchanged": 3, "vectors": 2, "cached": 1}
        assert len(late.read) == 4  # once a document, whatever the batches
        late.BROKEN = "Guide 9"
        write(notes / "9.md", guide(9))
        assert len(index.update().failed) == 2
        late.BROKEN = "nothing of this"
        assert index.update().vectors == 2


@pytest.mark.mlx
def test_late_chunking_with_an_engine(notes, tmp_path):
    pytest.importorskip("mlx.core")
    folder = tiny_v3_and_rerankers.write(tmp_path / "v3", "v3")
    with Index.open("x", model=folder, backend="mlx") as index:
        index.update(notes)
        document = index.document("1.md")
        with index.database().reader() as reader:
            chunks = reader.chunks_of(document.id)
            halves = reader.halves([chunk.id for chunk in chunks])
        spans = [(chunk.start_char, chunk.end_char) for chunk in chunks]
        expected = index.embedder().encode_chunks(guide(1).rstrip(), spans)
        for chunk, row in zip(chunks, expected, strict=True):
            assert halves[chunk.id].astype(np.float32) @ row > 0.9999
        assert index.search("router restarts").mode == "hybrid"


@pytest.mark.llama
def test_with_the_bundled_model(notes):
    with jina_local.Index.open("x", model="pico") as index:
        index.update(notes)
        status = index.status()
        assert (status.model, status.dim, status.without_vector) == ("pico", 256, 0)
    with jina_local.Index.open("x") as index:  # it knows its model
        answer = index.search("how is the device started again")
        assert (answer.mode, answer.missing) == ("hybrid", ())
        assert "restarts" in answer.hits[0].chunk.text
        embedder = index.embedder()
        with index.database().reader() as reader:
            chunk = next(reader.chunks([1]))
            (block,) = reader.blocks()
        row = embedder.encode_document([update.fed(chunk)], precision="int8")
        code = block.int8[np.flatnonzero(block.chunks == 1)[0]].astype(np.float32)
        assert vectors.similarity(code[None], row.astype(np.float32), "float32")[0, 0] > 0.9999
    with VectorCache(local_store.vector_cache()) as cache:
        assert cache.info().vectors == 6
