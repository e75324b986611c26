"""Tokens that an agent reads until it has the right passage: `search` of the MCP server, or grep and whole files.

    python -m tests.bench.agents                  # about ten minutes on two cores, one if run again
    python -m tests.bench.agents --model jina-embeddings-v5-text-nano --work ~/bench-agents

The questions are those of `code`. "search" reads the server's answers of default size, page after page, and gets the
lines of the hit that it wants if that is only named. "search, blind" does not recognise it by its name, and gets
every passage that is named, in order. "grep" reads whole files, those first in which most of the question's words
occur, then those with most lines that match; finding and sorting them costs it nothing here. All have the passage
when they have read a line of a definition that answers. A token is four bytes, as the server counts; Qwen3's
tokenizer has 3.9 bytes a token on this project's code.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import Embedder, Index, load
from jina_local.integrations.mcp import Tools

from . import code

RECALL = 0.95
BUDGETS = (500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
PAGES = 10  # that an agent reads before it gives up
WAYS = ("search", "search, blind", "grep")

Costs = dict[str, NDArray[np.float64]]  # way -> the tokens of each question, (n,)
_HEAD = re.compile(r"(\S+\.py):(\d+)(?:-(\d+))?(?:  .*)?")
_COMMON = frozenset(  # what nobody gives to grep
    re.findall(
        r"\w+",
        "a an and are as at be by can do does file for from has have how if in into is it its not of on one or that "
        "the this to use used using what when where which while who why with without",
    )
)


def count(text: str) -> int:
    """Tokens of a text."""
    return len(text.encode()) // 4


def with_search(tools: Tools, question: code.CodeQuestion, *, blind: bool) -> float:
    """Tokens until the passage is read; infinite if it is on none of the pages."""
    spent, offset = 0, 0
    for _ in range(PAGES):
        answer = tools.search(question.text, offset=offset)
        spent += count(answer)
        lines = answer.splitlines()
        heads = [_HEAD.fullmatch(line) for line in lines]
        for n, head in enumerate(heads):
            if head is None:
                continue
            wanted, last = _meets(head, question), n + 1 == len(lines)
            named = last or heads[n + 1] or lines[n + 1].startswith("(")  # without its text
            if named and (wanted or blind):
                spent += count(tools.get(head[1], int(head[2]), int(head[3] or head[2]) - int(head[2]) + 1))
            if wanted:
                return spent
        more = re.search(r"offset=(\d+)\.\)", answer)
        if more is None:
            break
        offset = int(more[1])
    return math.inf


def with_grep(question: code.CodeQuestion) -> float:
    """Tokens until the passage is read; infinite if it is in no file that has one of the words."""
    root = code.folder(question.repository)
    words = {word for word in re.findall(r"\w+", question.text.lower()) if word not in _COMMON}
    ranked = []
    for file in code.files(question.repository):
        text = file.read_text(encoding="utf-8")
        low = text.lower()
        found = [word for word in words if word in low]
        matching = sum(any(word in line for word in found) for line in low.splitlines()) if found else 0
        if found:
            ranked.append((-len(found), -matching, str(file.relative_to(root)), text))
    wanted, spent = {place.file for place in question.places}, 0
    for _, _, name, text in sorted(ranked):
        spent += count(text)
        if name in wanted:
            return spent
    return math.inf


def _meets(head: re.Match[str], question: code.CodeQuestion) -> bool:
    first, last = int(head[2]), int(head[3] or head[2])
    return any(p.file == head[1] and p.first <= last and first <= p.last for p in question.places)


@contextmanager
def _tools(repository: str, model: Embedder, work: Path) -> Iterator[Tools]:
    """The server's tools over an index of a repository, in the folder that its paths begin in."""
    root, before = code.folder(repository), os.getcwd()
    tops = dict.fromkeys(root / file.relative_to(root).parts[0] for file in code.files(repository))
    with Index.open(work / f"{repository}.sqlite", model=model) as index:
        index.update(*tops, include=["*.py"])
        tools = Tools(lambda: index)
        os.chdir(root)
        try:
            yield tools
        finally:
            os.chdir(before)
            tools.close()


def measure(group: str, model: Embedder, work: Path) -> Costs:
    """The tokens of each question of a group."""
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    questions = code.questions(group)
    for repository in dict.fromkeys(question.repository for question in questions):
        with _tools(repository, model, work) as tools:
            for question in questions:
                if question.repository == repository:
                    costs["search"].append(with_search(tools, question, blind=False))
                    costs["search, blind"].append(with_search(tools, question, blind=True))
                    costs["grep"].append(with_grep(question))
    return {way: np.array(found) for way, found in costs.items()}


def at_recall(costs: NDArray[np.float64], recall: float) -> float:
    """The tokens within which this share of the questions has its passage."""
    return float(np.sort(costs)[math.ceil(recall * len(costs)) - 1])


def report(group: str, costs: Costs) -> str:
    """A table for the README."""
    every = np.all([np.isfinite(found) for found in costs.values()], axis=0)
    lines = [
        f"| {group}, {len(every)} questions | {' | '.join(WAYS)} | fewer | fewer, blind |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, found: Callable[[NDArray[np.float64]], float]) -> None:
        search, blind, grep = (found(costs[way]) for way in WAYS)
        tokens = f"{search:,.0f} | {blind:,.0f} | {grep:,.0f}"
        lines.append(f"| {name} | {tokens} | {1 - search / grep:.1%} | {1 - blind / grep:.1%} |")

    row("tokens, median", lambda one: float(np.median(one)))
    row("tokens, mean of what all three reach", lambda one: float(one[every].mean()))
    row(f"tokens at recall {RECALL}", lambda one: at_recall(one, RECALL))
    for budget in BUDGETS:
        shares = [f"{(costs[way] <= budget).mean():.2f}" for way in WAYS]
        lines.append(f"| recall within {budget:,} tokens | {' | '.join(shares)} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="pico")
    parser.add_argument("--work", type=Path, help="a folder for the indexes (default: a temporary one)")
    args = parser.parse_args()
    with ExitStack() as stack:
        model = stack.enter_context(load(args.model, task="retrieval"))
        if not isinstance(model, Embedder):
            parser.error(f"{args.model} is a reranker")
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        every: dict[str, list[NDArray[np.float64]]] = {way: [] for way in WAYS}
        for group in code.QUESTIONS:
            costs = measure(group, model, work)
            print(report(group, costs), "\n", flush=True)
            for way, found in costs.items():
                every[way].append(found)
        print(report("all", {way: np.concatenate(found) for way, found in every.items()}))


if __name__ == "__main__":
    main()
