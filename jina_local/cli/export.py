"""`export`: an index for LanceDB, Milvus Lite, Elasticsearch, or as Parquet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import console
from . import options

SUMMARY = "hand an index to another search engine"
TARGETS = ("lance", "milvus", "elastic", "parquet")

EXAMPLES = """examples:
  jina-local export notes --to lance --output notes.lance
  jina-local export ~/notes --to parquet --output notes.parquet
  jina-local export notes --to milvus --output notes.db
  jina-local export notes --to elastic --output notes.elastic
"""

_EPILOG = """targets:
  lance    a folder of LanceDB with the table passages
  milvus   a database of Milvus Lite, whose name has to end in .db; before the
           first search: client.load_collection("passages")
  elastic  a folder with mapping.json and files for _bulk requests:
             curl -X PUT HOST/notes --json @notes.elastic/mapping.json
             for f in notes.elastic/*.ndjson; do curl -X POST HOST/notes/_bulk \\
               -H "Content-Type: application/x-ndjson" --data-binary @$f; done
  parquet  a file
  Each passage has id, path, start_line, end_line, language, context, text and
  vector. Elasticsearch gets an approximate index (bbq_hnsw, below 384 dimensions
  int8_hnsw); the others compare a question with all vectors.
exit codes:
  0 done, 1 some passages have no vector yet and were left out, 2 bad options,
  3 the index, 69 a library is missing, 73 cannot write.
"""


def parser(add: Any) -> options.Parser:
    """The options of `export`; `add` makes the parser."""
    p: options.Parser = add("export", SUMMARY, _EPILOG)
    p.usage = f"{p.prog} INDEX --to TARGET --output PATH"
    p.description = f"{p.description}\n\n{EXAMPLES}"
    p.add_argument("index", metavar="INDEX", help="its name, its file, or a folder that it covers")
    p.add_argument("--to", choices=TARGETS, required=True, help="see below")
    p.add_argument("--output", metavar="PATH", type=Path, required=True, help="a place that is not there yet")
    return p


def run(args: argparse.Namespace) -> int:
    """Export; 1 if passages were left out."""
    from ..search import places
    from ..search.database import Database
    from ..search.export import export

    with console.quiet_stdout(), Database(places.known(args.index)) as database:
        done = export(database, args.to, args.output)
    space = done.space
    console.say(f"{args.output}: {done.passages:,} passages")
    console.say(
        f"questions have to be vectors of the same space: jina-local embed --model {space['model']} "
        f"--task {space['task'].partition('.')[0]} --prompt-name query --truncate-dim {space['dim']}"
    )
    if done.left_out:
        console.say(f"{done.left_out:,} passages have no vector yet and were left out: `index` goes on with them")
    return console.SOME_FAILED if done.left_out else console.OK
