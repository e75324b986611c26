"""The public test collections as arrays, read from the folder BENCH_DATA, or from ../shared/data without it.

They are not part of this repository. README.md beside this file lists the files, their form and where they come from.

- `xquad-QD`: questions in language Q against the 240 paragraphs in language D (en, de, zh, ar); `xquad-en` is short
  for `xquad-en-en`. One paragraph is relevant to each of the 1,190 questions.
- `cranfield`: 225 questions, 1,400 abstracts. Relevance is binary: every judged pair of qrels.tsv counts, Cleverdon's
  code -1 (the paper that the question came from) too. A document is its title and its text. BM25 has 0.472 then.
- `sts`: the open part of STS 2016, 707 pairs with a similarity from 0 to 5, in three sets.
- `banking77`: 10,003 texts to learn from and 3,080 to judge, 77 intents.
- `xquad-articles`: the 240 English paragraphs; five in a row are from one of 48 articles.

None of it is in the training data of pico.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.tiny import SHARED

from .metrics import Floats, Ints

LANGUAGES = ("en", "de", "zh", "ar")
RETRIEVAL = (
    *(f"xquad-{language}" for language in LANGUAGES),
    *(f"xquad-{a}-{b}" for other in LANGUAGES[1:] for a, b in ((other, "en"), ("en", other))),
    "cranfield",
)
KINDS = {
    "retrieval": RETRIEVAL,
    "text-matching": ("sts",),
    "classification": ("banking77",),
    "clustering": ("banking77-intents", "xquad-articles"),
}
_PAIR = re.compile(rf"xquad-({'|'.join(LANGUAGES)})(?:-({'|'.join(LANGUAGES)}))?")
_PARAGRAPHS_AN_ARTICLE = 5
_FILES = {
    "cranfield": [f"retrieval/cranfield/{file}" for file in ("queries.jsonl.gz", "corpus.jsonl.gz", "qrels.tsv")],
    "sts": ["sts/sts2016_open.jsonl.gz"],
    "banking77": ["classify/banking77.jsonl.gz"],
    "banking77-intents": ["classify/banking77.jsonl.gz"],
}


@dataclass(frozen=True)
class Retrieval:
    """Questions, documents, and which belong together: (n_queries, n_documents)."""

    queries: list[str]
    documents: list[str]
    relevant: NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts, how alike people found them, and the set that each is from."""

    first: list[str]
    second: list[str]
    scores: Floats  # (n,)
    groups: NDArray[np.str_]  # (n,)


@dataclass(frozen=True)
class Labelled:
    """Texts with their classes, 0 to n - 1, by the alphabet of the labels."""

    texts: list[str]
    labels: Ints


def kind_of(name: str) -> str:
    """The task that a set belongs to. Raises ValueError with the names there are."""
    if _PAIR.fullmatch(name):
        return "retrieval"
    for kind, names in KINDS.items():
        if name in names:
            return kind
    raise ValueError(
        f"unknown set {name!r}. Known: {', '.join(n for names in KINDS.values() for n in names)}, and xquad-Q-D "
        f"with Q and D of {', '.join(LANGUAGES)}."
    )


def folder() -> Path:
    """The folder that holds the data."""
    return Path(os.environ.get("BENCH_DATA", SHARED))


def require(names: Iterable[str]) -> None:
    """Raise FileNotFoundError with all that is missing if a set, or a file given by its path, is not there."""
    missing = {file for name in names for file in _files(name) if not (folder() / file).is_file()}
    if missing:
        raise FileNotFoundError(
            f"test data is missing in {folder()}: {', '.join(sorted(missing))}. It is not part of this repository: "
            "tests/bench/README.md says where it comes from. Set BENCH_DATA to the folder that holds these files."
        )


def _files(name: str) -> list[str]:
    """The files of a set, below `folder()`."""
    if pair := _PAIR.fullmatch("xquad-en" if name == "xquad-articles" else name):
        where = "retrieval/xquad"
        corpus = f"corpus.{pair[2] or pair[1]}.jsonl.gz"
        return [f"{where}/queries.{pair[1]}.jsonl.gz", f"{where}/{corpus}", f"{where}/qrels.tsv"]
    return _FILES.get(name, [name])


@lru_cache
def retrieval(name: str) -> Retrieval:
    """`xquad-...` or `cranfield`."""
    require([name])
    asked, corpus, judged = (folder() / file for file in _files(name))
    queries, documents = _lines(asked), _lines(corpus)
    rows = {line["_id"]: n for n, line in enumerate(queries)}
    columns = {line["_id"]: n for n, line in enumerate(documents)}
    relevant = np.zeros((len(rows), len(columns)), np.bool_)
    with judged.open(newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            relevant[rows[line["query-id"]], columns[line["corpus-id"]]] = int(line["score"]) > 0
    return Retrieval([q["text"] for q in queries], [f"{d['title']} {d['text']}".strip() for d in documents], relevant)


@lru_cache
def sts() -> Pairs:
    """The open part of STS 2016."""
    lines = _lines(folder() / _FILES["sts"][0])
    first, second = ([line[side] for line in lines] for side in "ab")
    return Pairs(first, second, np.array([float(x["score"]) for x in lines]), np.array([x["set"] for x in lines]))


@lru_cache
def banking77(split: str) -> Labelled:
    """The "train" or the "test" part."""
    lines = _lines(folder() / _FILES["banking77"][0])
    names = {name: n for n, name in enumerate(sorted({line["label"] for line in lines}))}
    part = [line for line in lines if line["split"] == split]
    return Labelled([line["text"] for line in part], np.array([names[line["label"]] for line in part]))


def topics(name: str) -> Labelled:
    """The texts to be clustered: `banking77-intents` (its test part) or `xquad-articles`."""
    if name == "banking77-intents":
        return banking77("test")
    paragraphs = retrieval("xquad-en").documents
    return Labelled(paragraphs, np.arange(len(paragraphs)) // _PARAGRAPHS_AN_ARTICLE)


def _lines(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
