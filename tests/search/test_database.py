"""The file of an index: lock, transactions, snapshots, checksums, and files that are no index."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from jina_local.errors import EngineMissing, IndexDamaged, IndexMismatch, IndexNotFound, Locked, OutputError
from jina_local.search import database
from jina_local.search.database import SLOTS, Counts, Database, SkippedRow
from jina_local.search.verify import faults
from jina_local.search.writer import writing
from tests.search.kills import DIM, chunk, document

A, B = b"/notes/a.md", b"/notes/b.md"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "indexes" / "x.sqlite"


def fill(path, files=3, vectors=True):
    """Files of three chunks, all with the vector of their number."""
    with writing(path, "fill") as writer, writer.transaction():
        for n in range(files):
            writer.add(document(b"/notes/%d.md" % n), [chunk(k, f"router {n} cable {k}") for k in range(3)])
        if vectors:
            ids = writer.without_vector()
            writer.add_vectors(ids, *codes(ids))


def codes(ids):
    rows = np.zeros((len(ids), DIM), np.float16)
    rows[np.arange(len(ids)), np.asarray(ids) % DIM] = 1
    return (rows * 127).astype(np.int8), rows


def rowids(reader, word):
    return [row[0] for row in reader.connection.execute("SELECT rowid FROM words WHERE words MATCH ?", (word,))]


def test_an_index_is_a_private_file_in_a_private_folder(path):
    fill(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_documents_chunks_words_and_vectors_come_and_go_together(path):
    fill(path)
    with Database(path) as index:
        with index.reader() as reader:
            assert reader.counts() == Counts(3, 9, 9, 0)
            assert [row.path for row in reader.documents()] == [b"/notes/0.md", b"/notes/1.md", b"/notes/2.md"]
            gone = [row.id for row in reader.chunks_of(reader.document(b"/notes/1.md").id)]
            assert gone == [4, 5, 6]
            assert set(gone) <= set(rowids(reader, "cable"))
        with writing(path, "test") as writer, writer.transaction():
            writer.remove(b"/notes/1.md")
            writer.remove(b"/notes/absent.md")
        with index.reader() as reader:
            assert reader.counts() == Counts(2, 6, 6, 0)
            assert rowids(reader, "cable") == [1, 2, 3, 7, 8, 9]
            assert reader.halves(range(20)).keys() == {1, 2, 3, 7, 8, 9}
            assert [int(i) for block in reader.blocks() for i in block.chunks if i] == [1, 2, 3, 7, 8, 9]


def test_a_moved_document_keeps_its_chunks_and_vectors_and_is_found_by_its_new_name(path):
    fill(path)
    with writing(path, "test") as writer:
        old = writer.document(b"/notes/1.md")
        with writer.transaction():
            writer.update(old, replace(old, path=b"/notes/manual.md", size=77))
        new = writer.document(b"/notes/manual.md")
        assert (new.id, new.size) == (old.id, 77)
        assert rowids(writer, "path:manual") == [4, 5, 6]
        assert writer.without_vector().tolist() == []
        assert list(faults(writer)) == []
        with writer.transaction():  # onto another document, which goes
            writer.update(new, replace(new, path=b"/notes/2.md"))
        assert writer.counts() == Counts(2, 6, 6, 0)
        assert list(faults(writer)) == []


def test_a_skipped_file_takes_the_place_of_its_document_and_the_reverse(path):
    fill(path)
    row = SkippedRow(b"/notes/1.md", b"/notes", 1, 1, 1, 1, "binary")
    with writing(path, "test") as writer:
        with writer.transaction():
            writer.skip(row)
        assert writer.counts() == Counts(2, 6, 6, 1)
        assert list(writer.skipped()) == [row]
        with writer.transaction():
            writer.add(document(row.path), [chunk(0, "text")])
        assert writer.counts() == Counts(3, 7, 6, 0)


def test_slots_of_removed_chunks_are_used_again(path):
    with writing(path, "test") as writer:
        for _ in range(3):
            with writer.transaction():
                writer.add(document(A), [chunk(n, f"text {n}") for n in range(SLOTS + 10)])
            with writer.transaction():
                ids = writer.without_vector()
                writer.add_vectors(ids, *codes(ids))
        blocks = list(writer.blocks())
        assert [block.number for block in blocks] == [1, 2]
        assert sum(int((block.chunks > 0).sum()) for block in blocks) == SLOTS + 10
        for block in blocks:
            for chunk_id, code in zip(block.chunks, block.int8, strict=True):
                assert not chunk_id or code[chunk_id % DIM] == 127


def test_blocks_that_changed_after_a_generation_are_told_from_the_others(path):
    with writing(path, "test") as writer:
        with writer.transaction():
            writer.add(document(A), [chunk(n, f"text {n}") for n in range(2 * SLOTS)])
            ids = writer.without_vector()
            writer.add_vectors(ids, *codes(ids))
        before = writer.generation()
        with writer.transaction():
            writer.add(document(B), [chunk(0, "more")])
            writer.add_vectors([2 * SLOTS + 1], *codes([2 * SLOTS + 1]))
        assert [block.number for block in writer.blocks()] == [1, 2, 3]
        assert [block.number for block in writer.blocks(before)] == [3]


def test_a_transaction_that_fails_leaves_nothing(path):
    fill(path)
    with writing(path, "test") as writer:
        generation = writer.generation()
        with pytest.raises(ZeroDivisionError), writer.transaction():
            writer.remove(b"/notes/0.md")
            writer.add(document(A), [chunk(0, "half a document")])
            raise ZeroDivisionError
        assert writer.generation() == generation
        assert writer.counts() == Counts(3, 9, 9, 0)
        with writer.transaction():  # slots are those of the file again
            writer.add(document(A), [chunk(0, "text")])
            writer.add_vectors([10], *codes([10]))
        assert list(faults(writer)) == []


def test_a_full_disk_keeps_what_was_committed(path):
    fill(path)
    with writing(path, "test") as writer:
        pages = writer.connection.execute("PRAGMA page_count").fetchone()[0]
        writer.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match="disk is full.*What was committed is kept"), writer.transaction():
            writer.add(document(A), [chunk(n, "long text " * 500) for n in range(50)])
        assert writer.counts() == Counts(3, 9, 9, 0)
    with writing(path, "test") as writer:
        assert list(faults(writer)) == []


def test_a_file_that_may_not_grow_keeps_what_was_committed(path):
    """As at a full disk, for real: the child may write files of a certain size and no larger ones."""
    code = (
        "import sys, resource\nfrom pathlib import Path\nfrom jina_local.errors import OutputError\n"
        "from jina_local.search.writer import writing\nfrom tests.search.kills import chunk, document\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "try:\n"
        " with writing(Path(sys.argv[1]), 'child') as w:\n"
        "  for n in range(100):\n"
        "   with w.transaction():\n"
        "    w.add(document(b'/notes/%d.md' % n), [chunk(k, f'{n} ' * 900) for k in range(9)])\n"
        "   print(n, flush=True)\n"
        "except OutputError as error:\n sys.exit(f'refused: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "refused: " in done.stderr
    committed = len(done.stdout.splitlines())
    assert committed > 0
    with writing(path, "test") as writer:
        assert writer.counts().documents == committed
        assert list(faults(writer)) == []


def test_a_reader_sees_one_state_while_the_writer_goes_on(path):
    fill(path)
    with Database(path) as index, index.reader() as reader:
        before = reader.counts()
        with writing(path, "test") as writer, writer.transaction():
            writer.remove(b"/notes/0.md")
        assert reader.counts() == before
        assert len(list(reader.documents())) == 3
        with index.reader() as later:
            assert later.counts().documents == 2


def test_readers_in_many_threads_never_meet_half_a_document(path):
    fill(path)
    stop, seen, problems = threading.Event(), [], []

    def read(index):
        while not stop.is_set():
            try:
                with index.reader() as reader:
                    for row in reader.documents():
                        chunks = reader.chunks_of(row.id)
                        texts = {c.text for c in chunks}
                        assert (len(chunks), len(texts)) == (3, 1), texts
                        seen.append(row.id)
            except BaseException as error:
                problems.append(error)
                return

    with writing(path, "test") as writer, writer.transaction():
        writer.clear()
    with Database(path) as index:
        threads = [threading.Thread(target=read, args=(index,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        with writing(path, "test") as writer:
            for n in range(60):
                with writer.transaction():
                    writer.add(document(b"/notes/%d.md" % (n % 5)), [chunk(k, f"state {n}") for k in range(3)])
        while len(seen) < 100 and not problems:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
    assert not problems
    assert seen


def test_a_second_writer_is_told_who_the_first_is(path):
    with (
        writing(path, "index ~/notes"),
        pytest.raises(Locked, match=rf"process {os.getpid()} on .*\(index ~/notes\)"),
        writing(path, "second"),
    ):
        pass


def test_a_writer_waits_for_the_lock_and_death_frees_it(path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom jina_local.search.writer import writing\n"
        "with writing(Path(sys.argv[1]), 'child') as w:\n print('held', flush=True)\n time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"process {child.pid} on .*child"), writing(path, "test", wait=0.1):
            pass
        threading.Timer(0.2, child.send_signal, [signal.SIGKILL]).start()
        with writing(path, "test", wait=30) as writer:
            assert writer.counts().documents == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_the_lock_of_a_deleted_index_is_not_taken_for_that_of_a_new_one(path):
    fill(path)
    with writing(path, "first"):
        path.with_name(path.name + ".lock").unlink()
        with writing(path, "second") as writer:
            assert writer.counts().documents == 3


@pytest.mark.parametrize("table", ["documents", "skipped", "chunks", "halves", "vectors", "header"])
def test_a_changed_row_is_an_error_and_never_a_hit(path, table):
    fill(path)
    with writing(path, "test") as writer:
        with writer.transaction():
            writer.skip(SkippedRow(A, b"/notes", 1, 1, 1, 1, "binary"))
        key, *_, last = database.COLUMNS[table].split(", ")
        value = {"documents": "'rust'", "skipped": "'tiny'", "chunks": "x'00'"}.get(
            table, f"substr({last}, 2) || 'x'"
        )
        last = "language" if table == "documents" else last
        writer.connection.execute(
            f"UPDATE {table} SET {last} = {value} WHERE {key} = (SELECT max({key}) FROM {table})"
        )
    with (
        Database(path) as index,
        index.reader() as reader,
        pytest.raises(IndexDamaged, match=f"of {table} is damaged"),
    ):
        list(reader.rows(table))
    with writing(path, "test") as writer:
        assert any(fault.startswith(f"{table}: row") for fault in faults(writer))


def test_verify_names_the_file_of_a_damaged_passage(path):
    fill(path)
    with writing(path, "test") as writer:
        writer.connection.execute("UPDATE chunks SET text = 'other' WHERE id = 5")
        assert list(faults(writer)) == ["chunks: row 5 was changed (/notes/1.md)"]


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("DELETE FROM documents WHERE id = 2", "3 chunks without their document"),
        ("DELETE FROM chunks WHERE id = 5", "1 words without their chunk"),
        ("DELETE FROM halves WHERE chunk = 5", "vectors: 1 of block 1 have no float16"),
        ("INSERT INTO words(words, rowid, text, context, path) VALUES('delete', 5, 'router 1 cable 1', '', '1 md')",
         "1 chunks without their words"),
        ("INSERT INTO words(rowid, text, context, path) VALUES(10, 'router', '', '')", "1 words without their chunk"),
        ("UPDATE words_docsize SET sz = x'050000' WHERE id = 5", "words: some are at other places"),
        ("UPDATE words_data SET block = x'08180009' WHERE id = 1", "words: the total lengths"),
    ],
)  # fmt: skip
def test_verify_finds_what_does_not_belong_together(path, sql, fault):
    fill(path)
    with writing(path, "test") as writer:
        assert list(faults(writer)) == []
        writer.connection.execute(sql)
        assert fault in "\n".join(faults(writer))


def test_verify_finds_vectors_that_are_not_finite_or_not_each_others(path):
    fill(path, vectors=False)
    with writing(path, "test") as writer:
        with writer.transaction():
            int8, float16 = codes([1, 2, 3])
            float16[0] = np.nan
            int8[2] = 5
            writer.add_vectors([1, 2, 3], int8, float16)
        assert list(faults(writer)) == [
            "halves: the vector of chunk 1 is none of length 1 (/notes/0.md)",
            "vectors: the two vectors of chunk 1 differ (/notes/0.md)",
            "vectors: the two vectors of chunk 3 differ (/notes/0.md)",
        ]


def test_files_that_are_no_index_are_refused_in_less_than_a_second(path, tmp_path):
    with pytest.raises(IndexNotFound, match="there is no index here"):
        Database(tmp_path / "absent.sqlite")
    fill(path, files=50)
    whole = path.read_bytes()
    target = tmp_path / "bad.sqlite"
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as other:
        other.execute("CREATE TABLE documents(id)")
    cases = [b"", b"x", b"\0" * 5000, b"SQLite format 3\0" + b"\0" * 84, whole[: len(whole) // 2], whole[:8192],
             b"\0" * 4096 + whole[4096:], (tmp_path / "other.sqlite").read_bytes()]  # fmt: skip
    for data in cases:
        target.write_bytes(data)
        start = time.monotonic()
        with pytest.raises(IndexDamaged, match=r"bad\.sqlite"):
            Database(target)
        assert time.monotonic() - start < 1


def test_an_index_of_another_version_is_refused_with_the_way_out(path):
    fill(path)
    for version, way in ((99, "Update jina_local"), (0, "index --rebuild")):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(IndexMismatch, match=f"version {version}; this jina_local reads 1. .*{way}"):
            Database(path)


def test_tables_that_are_not_ours_are_refused(path):
    fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TRIGGER evil AFTER INSERT ON chunks BEGIN SELECT 1; END")
    with pytest.raises(IndexDamaged, match="list of tables"):
        Database(path)


def test_a_rebuild_replaces_a_file_that_is_damaged_and_empties_one_that_is_not(path):
    fill(path)
    with writing(path, "test") as writer, writer.transaction():
        writer.set_header({"folders": "[]", "space": "old"})
    with writing(path, "test", rebuild=True) as writer:
        assert writer.counts() == Counts(0, 0, 0, 0)
        assert writer.header().keys() == {"created", "folders", "generation"}
    path.write_bytes(b"nonsense")
    with pytest.raises(IndexDamaged), writing(path, "test"):
        pass
    with writing(path, "test", rebuild=True) as writer:
        assert writer.counts() == Counts(0, 0, 0, 0)


def test_a_reader_meets_the_new_file_if_another_has_taken_its_place(path):
    fill(path)
    with Database(path) as index:
        with index.reader() as reader:
            before = reader.generation()
        path.write_bytes(b"damaged")
        fill_again = b"/notes/new.md"
        with writing(path, "test", rebuild=True) as writer, writer.transaction():
            writer.add(document(fill_again), [chunk(0, "text")])
        with index.reader() as reader:
            assert [row.path for row in reader.documents()] == [fill_again]
            assert reader.generation() > before
        for file in path.parent.iterdir():
            file.unlink()
        with pytest.raises(IndexNotFound), index.reader():
            pass


def test_only_the_writer_checkpoints_and_nothing_is_mapped(path):
    fill(path)
    with Database(path) as index, index.reader() as reader:
        assert reader.connection.execute("PRAGMA mmap_size").fetchone() in ((0,), None)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.connection.execute("DELETE FROM chunks")


def test_an_old_sqlite_is_refused(path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    database._require_sqlite.cache_clear()
    with pytest.raises(EngineMissing, match=r"needs SQLite 3\.37\.0"):
        fill(path)
    monkeypatch.undo()
    fill(path)
