"""export.py: other engines find the same passages by the same vectors; Elasticsearch has a stand-in."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from jina_local.cli import export as command
from jina_local.cli import main
from jina_local.errors import EngineMissing, IndexNotFound, OutputError, UsageError
from jina_local.search import export as exporting
from jina_local.search.export import export
from jina_local.search.index import Index
from tests.fakes import FakeEmbedder

from .standin import SearchEmbedder, guide

FIELDS = ["id", "path", "start_line", "end_line", "language", "context", "text", "vector"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """60 files of two passages, with vectors, and one that came later and has none yet."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "guides"
    folder.mkdir()
    for n in range(60):
        (folder / f"guide {n}.md").write_text(guide(n))
    (folder / "tool.py").write_text("def restart(router):\n    return router\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JINA_LOCAL_HOME", str(home))
        with Index.open(home / "guides.sqlite", model=SearchEmbedder()) as index:
            index.update(folder)
            yield index


@pytest.fixture(scope="module")
def stored(index):
    """(ids, vectors as float32, chunk and document of each id)"""
    with index.database().reader() as reader:
        halves = reader.halves()
        documents = {document.id: document for document in reader.documents()}
        chunks = {chunk.id: (chunk, documents[chunk.document]) for chunk in reader.chunks()}
    ids = sorted(halves)
    return np.array(ids), np.array([halves[i] for i in ids], np.float32), chunks


def exact(stored, question):
    ids, vectors, _ = stored
    cosines = vectors @ question / np.linalg.norm(vectors, axis=1)
    return ids[np.argsort(-cosines)[:10]].tolist()


QUESTIONS = FakeEmbedder().embed([f"question {n}" for n in range(20)]).vectors


def check_rows(rows, stored):
    """Every passage once, as the index has it."""
    ids, vectors, chunks = stored
    rows = sorted(rows, key=lambda row: row["id"])
    assert [row["id"] for row in rows] == ids.tolist()
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), vectors)
    for row in rows:
        chunk, document = chunks[row["id"]]
        assert row["path"].encode() == document.path
        assert (row["start_line"], row["end_line"]) == (chunk.start_line, chunk.end_line)
        assert (row["context"], row["text"], row["language"]) == (chunk.context, chunk.text, document.language)


def test_lancedb_finds_the_same(index, stored, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed: pip install 'jina_local[lance]'")
    done = export(index.database(), "lance", tmp_path / "x.lance")
    assert (done.passages, done.left_out) == (len(stored[0]), 0)
    table = lancedb.connect(tmp_path / "x.lance").open_table("passages")
    check_rows(table.to_arrow().to_pylist(), stored)
    assert json.loads(table.schema.metadata[b"space"]) == done.space
    for question in QUESTIONS:
        found = table.search(question).distance_type("cosine").limit(10).to_list()
        assert [one["id"] for one in found] == exact(stored, question)


@pytest.mark.filterwarnings("ignore")
def test_milvus_lite_finds_the_same(index, stored, tmp_path):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install 'jina_local[milvus]'")
    from milvus_lite.server_manager import server_manager_instance
    from pymilvus import MilvusClient

    export(index.database(), "milvus", tmp_path / "x.db")
    client = MilvusClient(str(tmp_path / "x.db"))
    client.load_collection("passages")
    try:
        check_rows(client.query("passages", filter="id >= 0", output_fields=FIELDS, limit=1000), stored)
        for question in QUESTIONS:
            (found,) = client.search("passages", [question], limit=10)
            assert [one["id"] for one in found] == exact(stored, question)
    finally:
        client.close()
        server_manager_instance.release_server(str(tmp_path / "x.db"))


def test_parquet_has_every_passage(index, stored, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    done = export(index.database(), "parquet", tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == FIELDS
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[64]"
    assert json.loads(table.schema.metadata[b"space"]) == done.space
    check_rows(table.to_pylist(), stored)


class Elasticsearch:
    """What Elasticsearch documents of mappings and _bulk, as far as it can be checked without one.

    https://www.elastic.co/docs/reference/elasticsearch/mapping-reference/dense-vector
    https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-bulk
    """

    def __init__(self, mapping):
        assert mapping.keys() == {"mappings"}
        body = mapping["mappings"]
        assert body.keys() <= {"dynamic", "_meta", "properties"}
        assert body["dynamic"] == "strict"
        self.properties, self.documents = body["properties"], {}
        vector = self.properties["vector"]
        assert vector.keys() == {"type", "dims", "element_type", "index", "similarity", "index_options"}
        assert (vector["type"], vector["element_type"], vector["similarity"]) == ("dense_vector", "float", "cosine")
        assert vector["index"] is True
        assert 1 <= vector["dims"] <= 4096
        self.kind = vector["index_options"]["type"]
        assert self.kind in ("int8_hnsw", "bbq_hnsw")
        assert vector["dims"] >= 64 or self.kind != "bbq_hnsw"

    def bulk(self, body):
        assert len(body) <= 100 << 20
        assert body.endswith(b"\n")
        lines = body[:-1].split(b"\n")
        assert len(lines) % 2 == 0
        for action, source in zip(lines[::2], lines[1::2], strict=True):
            ((verb, where),) = json.loads(action).items()
            assert verb == "index"
            assert where.keys() == {"_id"}
            assert 0 < len(where["_id"].encode()) <= 512
            document = json.loads(source, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
            for name, value in document.items():
                self.check(self.properties[name], value)
            assert where["_id"] not in self.documents
            self.documents[where["_id"]] = document

    def check(self, field, value):
        if value is None:
            return
        if field["type"] == "dense_vector":
            assert len(value) == field["dims"]
            assert all(isinstance(one, float) and math.isfinite(one) for one in value)
            assert any(value)
        elif field["type"] == "integer":
            assert isinstance(value, int)
            assert -(1 << 31) <= value < 1 << 31
        else:
            assert isinstance(value, str)
            assert field["type"] == "text" or len(value.encode()) <= 32766

    def search(self, question):
        ids = list(self.documents)
        vectors = np.array([self.documents[one]["vector"] for one in ids], np.float32)
        cosines = vectors @ question / np.linalg.norm(vectors, axis=1)
        return [int(ids[i]) for i in np.argsort(-cosines)[:10]]


@pytest.mark.parametrize("size", [1, 20_000, 1 << 20])
def test_elasticsearch_would_take_it(index, stored, tmp_path, monkeypatch, size):
    monkeypatch.setattr(exporting, "_BULK", size)
    done = export(index.database(), "elastic", tmp_path / "x")
    standin = Elasticsearch(json.loads((tmp_path / "x" / "mapping.json").read_text()))
    bodies = sorted((tmp_path / "x").glob("bulk-*.ndjson"))
    assert len(bodies) == (len(stored[0]) if size == 1 else 1 if size > 1 << 19 else len(bodies))
    assert size != 20_000 or 1 < len(bodies) < len(stored[0])
    for path in bodies:
        standin.bulk(path.read_bytes())
    check_rows([{"id": int(one), **document} for one, document in standin.documents.items()], stored)
    for question in QUESTIONS:
        assert standin.search(question) == exact(stored, question)
    assert standin.kind == "int8_hnsw"
    assert json.loads((tmp_path / "x" / "mapping.json").read_text())["mappings"]["_meta"] == {"space": done.space}


@pytest.mark.parametrize(("dim", "kind"), [(32, "int8_hnsw"), (256, "int8_hnsw"), (512, "bbq_hnsw")])
def test_many_dimensions_are_packed(tmp_path, dim, kind):
    exporting._elastic(tmp_path / "x", iter([]), {"dim": str(dim)})
    assert Elasticsearch(json.loads((tmp_path / "x" / "mapping.json").read_text())).kind == kind


def test_what_cannot_be_exported(index, tmp_path, monkeypatch):
    database = index.database()
    with pytest.raises(UsageError, match=r"--to solr: unknown\. Possible: lance, milvus, elastic, parquet"):
        export(database, "solr", tmp_path / "x")
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OutputError, match="x: exists already"):
        export(database, "elastic", tmp_path / "x")
    with pytest.raises(OutputError, match="there is no folder"):
        export(database, "elastic", tmp_path / "none" / "x")
    with pytest.raises(UsageError, match="Milvus Lite opens only names that end in .db"):
        export(database, "milvus", tmp_path / "y")
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(EngineMissing, match=r"--to lance needs lancedb: pip install 'jina_local\[lance\]'"):
        export(database, "lance", tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["lance", "milvus", "elastic", "parquet"])
def test_an_export_that_breaks_off_leaves_nothing(index, tmp_path, monkeypatch, to):
    for library in exporting.TARGETS[to][1]:
        pytest.importorskip(library)

    def blocks(reader, real=exporting._blocks):
        yield from real(reader)
        raise RuntimeError("broke on the way")

    monkeypatch.setattr(exporting, "_blocks", blocks)
    with pytest.raises(Exception, match="broke on the way"):
        export(index.database(), to, tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []


def test_an_index_without_vectors(tmp_path, monkeypatch):
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path))

    class Broken(SearchEmbedder):
        def embed(self, texts, **words):
            raise KeyboardInterrupt

    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(guide(1))
    with Index.open(tmp_path / "x.sqlite", model=Broken()) as index:
        with pytest.raises(KeyboardInterrupt):
            index.update(tmp_path / "notes")
        with pytest.raises(IndexNotFound, match="no passage has a vector yet"):
            export(index.database(), "elastic", tmp_path / "x")


def test_the_command(index, tmp_path, capfd):
    assert tuple(exporting.TARGETS) == command.TARGETS
    out = tmp_path / "x.elastic"
    assert main.main(["export", str(index.path), "--to", "elastic", "--output", str(out)]) == 0
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0] == f"{out}: 121 passages"
    assert "jina-local embed --model" in shown.err
    assert "--task retrieval --prompt-name query --truncate-dim 64" in shown.err
    assert (out / "bulk-00001.ndjson").stat().st_size > 10_000
    with pytest.raises(UsageError, match="there is no index 'none'"):
        main.main(["export", "none", "--to", "elastic", "--output", str(tmp_path / "y")])
    with pytest.raises(UsageError, match=r"invalid choice: 'elastc' .*\(did you mean 'elastic'\?\)"):
        main.main(["export", "none", "--to", "elastc", "--output", str(tmp_path / "y")])
    with pytest.raises(UsageError, match="required: --to, --output"):
        main.main(["export", "none"])
    assert main.main(["export", "--help"]) == 0
