"""Questions about code, and where the answers are: this project's code and packages that pip installs.

data/code_questions.tsv is what the ranking was tuned on, data/code_questions_held_out.tsv decides how good it is. A
line has a repository, a kind (a symbol's name, a behaviour, or both), a question as a person would ask it, and the
definitions that answer it: FILE::Class.method. The lines of a definition are read from the source, so that they hold
in every version. A definition that a version does not have is an error.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = {
    "tuned": Path(__file__).parent / "data" / "code_questions.tsv",
    "held out": Path(__file__).parent / "data" / "code_questions_held_out.tsv",
}
KINDS = ("symbol", "behaviour", "mixed")
_OURS = "jina_local"
_OF_CLASS = 60  # lines of a long class that answer a question for it


@dataclass(frozen=True)
class Place:
    """Lines of a file, from 1, the last one included."""

    file: str  # below the repository's folder
    first: int
    last: int


@dataclass(frozen=True)
class CodeQuestion:
    """A question, and the definitions of which each answers it."""

    repository: str
    kind: str
    text: str
    names: tuple[str, ...]  # FILE::Class.method

    @property
    def places(self) -> list[Place]:
        """Where the definitions are."""
        return [place_of(self.repository, name) for name in self.names]


def questions(group: str) -> list[CodeQuestion]:
    """The questions of "tuned" or "held out"."""
    with QUESTIONS[group].open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [CodeQuestion(r["repository"], r["kind"], r["question"], tuple(r["where"].split())) for r in rows]


def folder(repository: str) -> Path:
    """The folder that the paths of a repository begin in. Raises ModuleNotFoundError with the command that helps."""
    if repository == _OURS:
        return ROOT
    found = importlib.util.find_spec(repository)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"questions are asked about {repository}: pip install {repository}")
    return Path(found.submodule_search_locations[0]).parent


def files(repository: str) -> Iterator[Path]:
    """The Python files of a repository: of this project with its tests and its converters."""
    tops = (_OURS, "convert", "tests") if repository == _OURS else (repository,)
    for top in tops:
        yield from sorted((folder(repository) / top).rglob("*.py"))


@lru_cache(maxsize=512)
def definitions(file: Path) -> dict[str, tuple[int, int]]:
    """Qualified name -> its lines, decorators included. Of several the last counts, because overloads come first."""
    found: dict[str, tuple[int, int]] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([child.lineno, *(one.lineno for one in child.decorator_list)])
                last = child.end_lineno or first
                if isinstance(child, ast.ClassDef):
                    last = min(last, first + _OF_CLASS - 1)
                found[prefix + child.name] = (first, last)
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.If | ast.Try):
                visit(child, prefix)

    visit(ast.parse(file.read_text(encoding="utf-8")), "")
    return found


def place_of(repository: str, name: str) -> Place:
    """Where FILE::Class.method is. Raises KeyError if it is not there."""
    file, _, qualified = name.partition("::")
    known = definitions(folder(repository) / file)
    if qualified not in known:
        raise KeyError(f"{repository}: {file} has no {qualified}; the question's label needs another.")
    return Place(file, *known[qualified])
