"""An index for other search engines: LanceDB, Milvus Lite, Elasticsearch's bulk files, Parquet.

lance    A folder of LanceDB with the table `passages`. It has no index for vectors yet, so its searches are exact.
milvus   A database of Milvus Lite with the collection `passages` and FLAT, the exact index, by cosine.
elastic  A folder: mapping.json makes the index, and bulk-00001.ndjson and so on are bodies of _bulk requests.
parquet  One file.

A row is a passage that has a vector: id, path, start_line, end_line, language, context, text, vector (float32, as
exact as the float16 of the index). Questions have to be vectors of the same space; it goes along as metadata, for
which Milvus Lite has no place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EngineMissing, IndexNotFound, OutputError, UsageError
from .database import Database, Reader

if TYPE_CHECKING:
    import pyarrow as pa

PASSAGES = "passages"
_BLOCK = 1000  # rows
_BULK = 16 << 20  # bytes of a bulk file; Elasticsearch takes requests of up to 100 MB, and advises smaller ones
_BBQ = 384  # dimensions from which Elasticsearch itself takes bbq_hnsw, and int8_hnsw below
_LONGEST = 65_535  # bytes of a Milvus VARCHAR

_Row = dict[str, Any]
_Write = Callable[[Path, Iterator[list[_Row]], Mapping[str, str]], None]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    passages: int
    left_out: int  # passages that have no vector yet
    space: Mapping[str, str]


def export(database: Database, to: str, output: Path) -> Exported:
    """Write all passages that have a vector, to a place that is not there yet and appears whole.

    Raises UsageError, EngineMissing, OutputError, and IndexNotFound if there are no vectors.
    """
    if to not in TARGETS:
        raise UsageError(f"--to {to}: unknown. Possible: {', '.join(TARGETS)}.")
    if os.path.lexists(output):
        raise OutputError(f"{output}: exists already. Give another --output, or remove it.")
    if to == "milvus" and output.suffix != ".db":
        raise UsageError(f"--output {output}: Milvus Lite opens only names that end in .db.")
    write, libraries = TARGETS[to]
    for library in libraries:
        try:
            import_module(library)
        except ImportError as error:
            raise EngineMissing(f"--to {to} needs {library}: pip install 'jina_local[{to}]'.") from error
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.parent}; create it first.")
    temp = output.with_name(f".jina-{os.getpid()}-{output.name}")
    with database.reader() as reader:
        counts, header = reader.counts(), reader.header()
        if not counts.vectors:
            raise IndexNotFound(f"{database.path}: no passage has a vector yet. Run `index` first.")
        space = json.loads(header["space"])
        try:
            write(temp, _blocks(reader), space)
            temp.rename(output)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            temp.unlink(missing_ok=True)
            raise
    return Exported(counts.vectors, counts.chunks - counts.vectors, space)


def _blocks(reader: Reader) -> Iterator[list[_Row]]:
    documents = {document.id: document for document in reader.documents()}
    ids = np.fromiter(
        (row[0] for row in reader.connection.execute("SELECT chunk FROM halves ORDER BY chunk")), np.int64
    )
    for start in range(0, len(ids), _BLOCK):
        part = ids[start : start + _BLOCK].tolist()
        halves = reader.halves(part)
        yield [
            {
                "id": chunk.id,
                "path": documents[chunk.document].path.decode("utf-8", "backslashreplace"),
                "start_line": chunk.start_line,
                "end_line": chunk.end_line,
                "language": documents[chunk.document].language,
                "context": chunk.context,
                "text": chunk.text,
                "vector": halves[chunk.id].astype(np.float32),
            }
            for chunk in sorted(reader.chunks(part), key=lambda chunk: chunk.id)
        ]


def _lance(output: Path, blocks: Iterator[list[_Row]], space: Mapping[str, str]) -> None:
    import lancedb
    import pyarrow as pa

    schema = _schema(space)
    rows = pa.RecordBatchReader.from_batches(schema, (_batch(block, schema) for block in blocks))
    lancedb.connect(output).create_table(PASSAGES, rows)


def _parquet(output: Path, blocks: Iterator[list[_Row]], space: Mapping[str, str]) -> None:
    import pyarrow.parquet as pq

    schema = _schema(space)
    with pq.ParquetWriter(output, schema) as writer:
        for block in blocks:
            writer.write_batch(_batch(block, schema))


def _schema(space: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    names = {"id": pa.int64(), "path": pa.string(), "start_line": pa.int32(), "end_line": pa.int32()}
    names |= dict.fromkeys(("language", "context", "text"), pa.string())
    vector = pa.list_(pa.float32(), int(space["dim"]))
    return pa.schema([*names.items(), ("vector", vector)], metadata={"space": json.dumps(space)})


def _batch(block: list[_Row], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [pa.array([row[name] for row in block], schema.field(name).type) for name in schema.names[:-1]]
    numbers = pa.array(np.concatenate([row["vector"] for row in block]))
    vectors = pa.FixedSizeListArray.from_arrays(numbers, type=schema.field("vector").type)
    return pa.RecordBatch.from_arrays([*columns, vectors], schema=schema)


def _milvus(output: Path, blocks: Iterator[list[_Row]], space: Mapping[str, str]) -> None:
    import pymilvus as milvus
    from milvus_lite.server_manager import server_manager_instance as servers

    kinds = milvus.DataType
    try:
        client = milvus.MilvusClient(str(output))  # it starts a server in this process, and `close` leaves it
        schema = client.create_schema()
        schema.add_field("id", kinds.INT64, is_primary=True)
        for name in ("start_line", "end_line"):
            schema.add_field(name, kinds.INT64)
        for name in ("path", "language", "context", "text"):
            schema.add_field(name, kinds.VARCHAR, max_length=_LONGEST, nullable=name == "language")
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=int(space["dim"]))
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        client.create_collection(PASSAGES, schema=schema, index_params=index)
        for block in blocks:
            client.insert(PASSAGES, block)
        client.close()
    except milvus.MilvusException as error:
        raise OutputError(f"{output}: Milvus Lite: {error.message}") from error
    finally:
        servers.release_server(str(output))


def _elastic(output: Path, blocks: Iterator[list[_Row]], space: Mapping[str, str]) -> None:
    dim = int(space["dim"])
    keyword, text, integer = {"type": "keyword"}, {"type": "text"}, {"type": "integer"}
    vector = {
        "type": "dense_vector",
        "dims": dim,
        "element_type": "float",
        "index": True,
        "similarity": "cosine",
        "index_options": {"type": "bbq_hnsw" if dim >= _BBQ else "int8_hnsw"},
    }
    kinds = {"path": keyword, "language": keyword, "start_line": integer, "end_line": integer}
    properties = {**kinds, "context": text, "text": text, "vector": vector}
    output.mkdir()
    mapping = {"mappings": {"dynamic": "strict", "_meta": {"space": space}, "properties": properties}}
    (output / "mapping.json").write_text(json.dumps(mapping, indent=1) + "\n", encoding="utf-8")
    for number, bodies in enumerate(_parts(map(_bulk, chain.from_iterable(blocks))), 1):
        (output / f"bulk-{number:05}.ndjson").write_bytes(b"".join(bodies))


def _bulk(row: _Row) -> bytes:
    """The two lines of a passage."""
    rest = json.dumps({name: value for name, value in row.items() if name not in ("id", "vector")})
    # str of a numpy float32 is the shortest that reads back as the same float32.
    numbers = ", ".join(map(str, row["vector"]))
    return f'{{"index": {{"_id": "{row["id"]}"}}}}\n{rest[:-1]}, "vector": [{numbers}]}}\n'.encode()


def _parts(bodies: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The bodies in lists of about _BULK bytes."""
    part: list[bytes] = []
    size = 0
    for body in bodies:
        part.append(body)
        size += len(body)
        if size >= _BULK:
            yield part
            part, size = [], 0
    if part:
        yield part


# What writes each kind, and the libraries that it needs.
TARGETS: dict[str, tuple[_Write, tuple[str, ...]]] = {
    "lance": (_lance, ("lancedb", "pyarrow")),
    "milvus": (_milvus, ("pymilvus", "milvus_lite")),
    "elastic": (_elastic, ()),
    "parquet": (_parquet, ("pyarrow.parquet",)),
}
