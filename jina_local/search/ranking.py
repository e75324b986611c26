"""What ranks code beyond words and vectors: definitions, names of files, tests, vendored files, repeated files.

Each factor is a share of the best score that a question found, so that it means the same in an index of any size.
tests/bench/README.md has the gain of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .words import ASKING, parts_of

# Factor -> its weight, a share of the best score.
WEIGHTS: Mapping[str, float] = {
    "defined": 0.8,  # the passage defines a name that the question spells
    "defines": 0.6,  # words of a defined name are in the question: for one word half of it, for two three quarters
    "file": 0.3,  # the words of the file's name are in the question
    "inside": -0.2,  # it defines nothing, or constants alone: imports, or the middle of a definition
    "test": -0.4,  # it is a test, an example or a benchmark, and the question asks for none
    "vendored": -0.4,  # it is a copy of another project's code
    "repeated": -0.2,  # for each better passage of the same definition
}
PROSE = frozenset({"markdown", "html", "text", "docx", "pdf", "notebook", "csv", None})  # and what is no code
_TESTS = frozenset(
    ("test", "tests", "testing", "spec", "specs", "example", "examples", "demo", "bench", "benchmark", "benchmarks")
)
_VENDORED = frozenset(("vendor", "vendored", "vendors", "third_party", "thirdparty", "node_modules", "extern"))
_STOP = ASKING | {"class", "code", "function", "get", "method", "module"}
_ENDINGS = ("ations", "ation", "ings", "ing", "ers", "ies", "ied", "er", "ed", "es", "s", "e", "y")
_LEAST_STEM = 3
_SPELLED = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Asked:
    """A question as the factors see it."""

    names: frozenset[str]  # words that look like identifiers, lower-case, without underscores
    stems: frozenset[str]
    tests: bool  # whether it asks for tests or examples

    @classmethod
    def of(cls, question: str) -> Asked:
        """Read a question."""
        words = _SPELLED.findall(question)
        names = (word for word in words if len(words) == 1 or _is_name(word) or f"{word}(" in question)
        parts = [part for word in words for part in parts_of(word)]
        return cls(
            frozenset(name.replace("_", "").lower() for name in names),
            frozenset(stem(part) for part in parts if part not in _STOP),
            bool(_TESTS & set(parts)),
        )


def factors(asked: Asked, path: str, language: str | None, defines: Sequence[str]) -> dict[str, float]:
    """Factor -> its share for one passage, "repeated" left out. Empty for prose.

    path: below the indexed folder. defines: qualified names.
    """
    if language in PROSE:
        return {}
    *folders, file = path.split("/")
    name = file.split(".")[0]
    last = [one.split(".")[-1] for one in defines]
    inside = {folder.lower() for folder in folders}
    of_test = bool(_TESTS & inside) or bool(_TESTS & set(parts_of(name)))
    spelled = any(one.replace("_", "").lower() in asked.names for one in last)
    shares = {
        "defined": float(spelled),
        "defines": 0.0 if spelled else max((_shared(one, asked) for one in last), default=0.0),
        "file": _covered(name, asked),
        "inside": float(all(one.isupper() for one in last)),
        "test": float(of_test and not asked.tests),
        "vendored": float(bool(_VENDORED & inside)),
    }
    return {factor: WEIGHTS[factor] * share for factor, share in shares.items() if share}


def _is_name(word: str) -> bool:
    return "_" in word.strip("_") or (word[1:] != word[1:].lower() and not word.isupper())


def stem(word: str) -> str:
    """A word without its English ending, so that `batches`, `batching` and `batch` are one."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            return word[: -len(ending)]
    return word


def _shared(name: str, asked: Asked) -> float:
    """The share of a name's words that the question has, the more the more words they are."""
    stems = {stem(part) for part in parts_of(name)} - _STOP
    common = len(stems & asked.stems)
    return common / len(stems) * (1 - 0.5**common) if common else 0.0


def _covered(name: str, asked: Asked) -> float:
    """The share of a name's words that the question has."""
    stems = {stem(part) for part in parts_of(name)} - _STOP
    return len(stems & asked.stems) / len(stems) if stems else 0.0
