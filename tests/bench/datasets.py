"""The public test collections in ../shared/data (or where BENCH_DATA points), as arrays.

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
    """Where the data is. Raises FileNotFoundError."""
    path = Path(os.environ.get("BENCH_DATA", SHARED))
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no data there. Set BENCH_DATA to the folder with retrieval/ and sts/.")
    return path


@lru_cache
def retrieval(name: str) -> Retrieval:
    """`xquad-...` or `cranfield`."""
    pair = _PAIR.fullmatch(name)
    where = folder() / "retrieval" / ("xquad" if pair else name)
    asked, held = (f".{pair[1]}", f".{pair[2] or pair[1]}") if pair else ("", "")
    queries, documents = _lines(where / f"queries{asked}.jsonl.gz"), _lines(where / f"corpus{held}.jsonl.gz")
    rows = {line["_id"]: n for n, line in enumerate(queries)}
    columns = {line["_id"]: n for n, line in enumerate(documents)}
    relevant = np.zeros((len(rows), len(columns)), np.bool_)
    with (where / "qrels.tsv").open(newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            relevant[rows[line["query-id"]], columns[line["corpus-id"]]] = int(line["score"]) > 0
    return Retrieval([q["text"] for q in queries], [f"{d['title']} {d['text']}".strip() for d in documents], relevant)


@lru_cache
def sts() -> Pairs:
    """The open part of STS 2016."""
    lines = _lines(folder() / "sts" / "sts2016_open.jsonl.gz")
    first, second = ([line[side] for line in lines] for side in "ab")
    return Pairs(first, second, np.array([float(x["score"]) for x in lines]), np.array([x["set"] for x in lines]))


@lru_cache
def banking77(split: str) -> Labelled:
    """The "train" or the "test" part."""
    lines = _lines(folder() / "classify" / "banking77.jsonl.gz")
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
