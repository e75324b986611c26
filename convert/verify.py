"""Converted files against the checkpoint they came from: ids, rows, vectors, ranking, in that order.

The reference is the numpy forward pass of `reference.py` on the merged float32 weights; what is judged goes
through `jina_local` as a user's call would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import backends, model, registry, tokens, weights
from jina_local.checkpoint import Checkpoint
from jina_local.errors import UsageError
from jina_local.spec import EmbeddingSpec, Weights
from jina_local.tokens import Tokenizer

from . import source
from .reference import hidden_states

Progress = Callable[[str, int, int], None]

# The least cosine to float32 that each weight type has to reach. Random weights are the worst case: their errors
# grow through the layers more than a trained model's (measured on both published sizes; see the README).
FLOORS = {
    "F32": 0.999999, "32bit": 0.999999, "F16": 0.9999, "16bit": 0.9999, "BF16": 0.999, "Q8_0": 0.999, "8bit": 0.999,
    "Q6_K": 0.99, "6bit": 0.99, "Q5_K_M": 0.975, "Q5_K_S": 0.97, "Q5_0": 0.96, "Q5_1": 0.96, "5bit": 0.97,
    "Q4_K_M": 0.92, "Q4_K_S": 0.9, "Q4_0": 0.85, "Q4_1": 0.85, "IQ4_NL": 0.87, "IQ4_XS": 0.87, "4bit": 0.92,
}  # fmt: skip
_BELOW_FOUR_BITS = 0.5
_TIE = 0.01  # documents whose cosines to a query differ by less have no order to keep

QUERIES = (
    "Which planet is the largest?",
    "How do I boil an egg?",
    "Wie hoch ist die Zugspitze?",
    "¿Cuándo empezó la Revolución francesa?",
    "remove duplicate lines from a file",
    "プログラミング言語の選び方",
)
DOCUMENTS = (
    "Jupiter has more than twice the mass of all the other planets of the solar system together.",
    "Put the egg into boiling water, wait seven minutes, then cool it under the tap.",
    "Die Zugspitze ist mit 2962 Metern der höchste Berg Deutschlands; eine Zahnradbahn fährt hinauf.",
    "La toma de la Bastilla, el 14 de julio de 1789, suele darse como comienzo de la Revolución francesa.",
    "sort -u keeps one copy of every line; awk '!seen[$0]++' does the same without changing the order.",
    "最初の言語には、読みやすく、良い教材の多いものが向いている。",
    "Мост был построен за три года и открыт весной.",
    "A contract is void where one of the parties could not have known what it was agreeing to.",
    "यह किताब भारत की नदियों के बारे में है।",
    "x",
    "The committee met on Tuesday, heard the treasurer, and put off every decision until the autumn. " * 6,
    "e\u0301tude, nai\u0308ve, A\u030angstro\u0308m and \u00e9tude, na\u00efve, \u00c5ngstr\u00f6m",
)


@dataclass(frozen=True)
class Finding:
    """One step for one task: what was measured, what was asked, whether it holds."""

    task: str
    step: str  # "ids" | "rows" | "vectors" | "ranking"
    measured: str
    asked: str
    ok: bool


def verify(
    out: Path, against: Path, *, backend: str = "auto", label: str | None = None, progress: Progress | None = None
) -> tuple[Weights, list[Finding]]:
    """Judge every task of `out` (a folder or a .gguf file), merged or as a base with adapters.

    A task whose ids differ is not judged further. Raises UsageError where `out` and `against` are of different
    models. Peak memory: the model in float32.
    """
    found = weights.find(out, backend=backend, weights=label, offline=True)
    with Checkpoint(against) as checkpoint:
        row = source.row_of(checkpoint)
        if row.spec.name != found.model.name:
            raise UsageError(f"{out} is {found.model.name}, {against} is {row.spec.name}: nothing to compare.")
        original = Tokenizer.from_file(against / "tokenizer.json")
        findings: list[Finding] = []
        for done, task in enumerate(found.model.tasks, 1):
            findings.extend(_judge(found, task, checkpoint, original))
            if progress:
                progress("verify", done, len(found.model.tasks))
    return found, findings


def _judge(found: Weights, task: str, checkpoint: Checkpoint, original: Tokenizer) -> Iterator[Finding]:
    converted = model.open_tokenizer(found)
    texts = [*QUERIES, *DOCUMENTS]
    specs = [registry.resolve(found.model, task=task, prompt_name=name) for name in ("query", "document")]
    mine, theirs = (_encode(t, specs) for t in (converted, original))
    equal = sum(bool(np.array_equal(a, b)) for a, b in zip(mine.ids, theirs.ids, strict=True))
    yield Finding(task, "ids", f"{equal} of {len(texts)} equal", "all", equal == len(texts))
    if equal < len(texts):
        return
    weight = dict(checkpoint.merged(source.adapter_of(checkpoint, task)))
    expected = np.stack([hidden_states(checkpoint.arch, weight, ids)[-1] for ids in theirs.ids])
    del weight
    # As a caller of all tasks would have it: the adapters beside the base wherever they are apart.
    adapter = task if found.adapters else None
    with closing(backends.open_backend(found.backend, found.files[task], adapters=found.adapters)) as engine:
        batches = [tokens.pack(mine, [i], "last") for i in range(len(texts))]
        rows = np.concatenate([engine.forward(batch, 1, adapter) for batch in batches])
    floor = FLOORS.get(found.label, _BELOW_FOUR_BITS)
    error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # Two rows at cosine c differ by at least sqrt(2 - 2c) of their length; half as much again for the length.
    allowed = 1.5 * float(np.sqrt(2 - 2 * floor))
    yield Finding(
        task, "rows", f"relative error at most {error.max():.2e}", f"<= {allowed:.2e}", bool(error.max() <= allowed)
    )
    cosines = np.einsum("ij,ij->i", _unit(rows), _unit(expected))
    yield Finding(
        task,
        "vectors",
        f"cosine {cosines.min():.6f} min, {cosines.mean():.6f} mean",
        f">= {floor}",
        bool(cosines.min() >= floor),
    )
    yield _ranking(task, rows, expected, floor)


def _ranking(task: str, rows: NDArray[np.float32], expected: NDArray[np.float32], floor: float) -> Finding:
    """Every query against every document: how many pairs of documents keep their order, near ties left out."""
    n = len(QUERIES)
    mine, theirs = (_unit(x[:n]) @ _unit(x[n:]).T for x in (rows, expected))
    a, b = np.triu_indices(len(DOCUMENTS), 1)
    gaps, kept = theirs[:, a] - theirs[:, b], mine[:, a] - mine[:, b]
    clear = np.abs(gaps) > _TIE
    share = float((np.sign(gaps) == np.sign(kept))[clear].mean())
    asked = 1 - float(np.sqrt(1 - floor))
    measured = f"{share:.1%} of {int(clear.sum())} orders kept"
    return Finding(task, "ranking", measured, f">= {asked:.1%}", share >= asked)


def _encode(tokenizer: Tokenizer, specs: list[EmbeddingSpec]) -> tokens.Encoded:
    # Short enough for the plain reference, long enough to pass one attention tile.
    query, document = (replace(spec, max_tokens=min(spec.max_tokens, 256)) for spec in specs)
    first, second = tokenizer.encode(QUERIES, query), tokenizer.encode(DOCUMENTS, document)
    return tokens.Encoded([*first.ids, *second.ids], np.concatenate([first.truncated, second.truncated]))


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
