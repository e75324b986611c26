"""The cache of vectors: found by space and text, bounded, shared by processes, and no loss if it is lost."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from jina_local.bulk import cache
from jina_local.bulk.cache import VectorCache, digest_of
from jina_local.errors import IndexDamaged, Locked, OutputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "vectors.sqlite"


def made(count, dim=8, start=0):
    """Digests and vectors of so many texts."""
    texts = [f"text {n}" for n in range(start, start + count)]
    return [digest_of(text) for text in texts], np.arange(count * dim, dtype=np.float32).reshape(count, dim) + start


def test_vectors_are_found_by_space_and_text_with_every_bit(path):
    digests, vectors = made(1200)
    vectors[0, 0] = np.float32(1e-40)
    with VectorCache(path) as first:
        first.put("pico 8", digests, vectors)
    with VectorCache(path) as again:
        found = again.get("pico 8", [*digests, digest_of("another"), digests[3]])
        assert found.keys() == {*range(1200), 1201}
        assert all(np.array_equal(found[n], vectors[n]) and found[n].dtype == np.float32 for n in range(1200))
        assert np.array_equal(found[1201], vectors[3])
        assert again.get("pico 4", digests) == {}
        assert again.get("pico 8", []) == {}
        assert again.info().vectors == 1200


def test_the_file_is_private_and_holds_no_text(path):
    secret = "the secret text of a user"
    with VectorCache(path) as opened:
        opened.put("space", [digest_of(secret)], np.ones((1, 8), np.float32))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert secret.encode() not in path.read_bytes()


def test_it_is_bounded_and_the_oldest_go(path, monkeypatch):
    day = 20_000
    monkeypatch.setattr(cache, "_today", lambda: day)
    limit = 600_000
    with VectorCache(path, limit) as opened:
        digests, vectors = made(300, dim=256)
        opened.put("s", digests, vectors)
        day += 1
        assert len(opened.get("s", digests[:50])) == 50  # asked for today
        day += 1
        for start in range(1000, 1300, 50):
            opened.put("s", *made(50, 256, start))
            assert opened.info().bytes <= limit
        assert opened.info().limit == limit
        kept = opened.get("s", digests)
        assert set(range(50)) <= kept.keys()
        assert 0 < len(kept) < 300
        assert len(opened.get("s", made(50, 256, 1250)[0])) == 50
        size = path.stat().st_size
    assert size < 2 * limit


def test_clear_forgets_everything_and_gives_the_room_back(path):
    with VectorCache(path) as opened:
        digests, vectors = made(500, 256)
        opened.put("s", digests, vectors)
        before = path.stat().st_size
        opened.clear()
        assert opened.info().vectors == 0
        assert opened.get("s", digests) == {}
        assert path.stat().st_size < before / 5


def test_a_damaged_vector_is_no_hit_and_is_replaced(path):
    digests, vectors = made(3)
    with VectorCache(path) as opened:
        opened.put("s", digests, vectors)
        opened._connection.execute("UPDATE vectors SET vector = x'00112233' WHERE rowid = 2")
        assert opened.get("s", digests).keys() == {0, 2}
        opened.put("s", digests, vectors)
        assert np.array_equal(opened.get("s", digests)[1], vectors[1])


@pytest.mark.parametrize("data", [b"nonsense" * 1000, None])
def test_a_damaged_file_is_named_with_the_way_out(path, data):
    path.parent.mkdir()
    if data is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE notes(x)")
        other.close()
    else:
        path.write_bytes(data)
    with pytest.raises(IndexDamaged, match=r"vectors\.sqlite"):
        VectorCache(path)


def test_a_full_disk_is_told_and_the_rest_is_kept(path):
    digests, vectors = made(10)
    with VectorCache(path) as opened:
        opened.put("s", digests, vectors)
        pages = opened._connection.execute("PRAGMA page_count").fetchone()[0]
        opened._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OutputError, match="full.*Free some space"):
            opened.put("s", *made(1000, 256, 50))
        assert len(opened.get("s", digests)) == 10


def test_another_process_that_does_not_let_go_is_told(path, monkeypatch):
    monkeypatch.setattr(cache, "_BUSY", 0.1)
    with VectorCache(path) as opened, VectorCache(path) as other:
        other._connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Locked, match="Another process holds it"):
            opened.put("s", *made(1))
        other._connection.execute("ROLLBACK")
        opened.put("s", *made(1))


def test_threads_and_processes_write_at_once(path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.bulk.test_cache import *\n"
        "with VectorCache(Path(sys.argv[1])) as opened:\n"
        "    for n in range(20):\n        opened.put('s', *made(10, 8, int(sys.argv[2]) + 10 * n))"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), str(at)]) for at in (0, 200)]
    problems = []
    with VectorCache(path) as opened:

        def write(start):
            try:
                for n in range(20):
                    opened.put("s", *made(10, 8, start + 10 * n))
                    opened.get("s", made(10, 8, start)[0])
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=write, args=(at,)) for at in (400, 600)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [child.wait(60) for child in children] == [0, 0]
        assert not problems
        digests, _ = made(800)
        assert len(opened.get("s", digests)) == 800


def test_a_cache_that_cannot_be_made(tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "folder").mkdir()
        with pytest.raises(OutputError, match="unable to open"):
            VectorCache(tmp_path / "folder")
    else:
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError):
            VectorCache(tmp_path / "new" / "vectors.sqlite")
