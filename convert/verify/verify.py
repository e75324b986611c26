"""Converted files against the checkpoint they came from: ids, rows, vectors, ranking, in that order.

The reference is the numpy forward pass of `reference.py` on the merged float32 weights; what is judged goes
through `jina_local` as a user's call would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import backends
from jina_local.errors import UsageError
from jina_local.inference import loaded
from jina_local.spec import ModelFiles, TokenBatch
from jina_local.store import find
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import projector
from jina_local.weights.architecture import Architecture
from jina_local.weights.checkpoint import Checkpoint
from jina_local.weights.projector import Projector

from .. import source
from . import cases, reference

Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

# The least cosine to float32 that each weight type has to reach. Random weights are the worst case: their errors
# grow through the layers more than a trained model's (measured on both published sizes; see the README).
FLOORS = {
    "F32": 0.999999, "32bit": 0.999999, "F16": 0.9999, "16bit": 0.9999, "BF16": 0.999, "Q8_0": 0.999, "8bit": 0.999,
    "Q6_K": 0.99, "6bit": 0.99, "Q5_K_M": 0.975, "Q5_K_S": 0.97, "Q5_0": 0.96, "Q5_1": 0.96, "5bit": 0.97,
    "Q4_K_M": 0.92, "Q4_K_S": 0.9, "Q4_0": 0.85, "Q4_1": 0.85, "IQ4_NL": 0.87, "IQ4_XS": 0.87, "4bit": 0.92,
    "INT16": 0.99999, "INT8": 0.99, "INT4": 0.9,
}  # fmt: skip
_BELOW_FOUR_BITS = 0.5
# F32 GGUF of XLM-R's blocks: llama.cpp looks their GELU up in a table of half precision (GGML_GELU_FP16).
_HALF_PRECISION_GELU = 0.99999
_TIE = 0.01  # documents whose cosines to a query differ by less have no order to keep


@dataclass(frozen=True)
class Finding:
    """One step for one task: what was measured, what was asked, whether it holds."""

    task: str
    step: str  # "ids" | "rows" | "vectors" (not of a pairwise reranker, which has none) | "ranking"
    measured: str
    asked: str
    ok: bool


def verify(
    out: Path, against: Path, *, backend: str = "auto", label: str | None = None, progress: Progress | None = None
) -> tuple[ModelFiles, list[Finding]]:
    """Judge every task of `out` (a folder or a .gguf file), merged or as a base with adapters.

    A task whose ids differ is not judged further. Raises UsageError where `out` and `against` are of different
    models. Peak memory: the model in float32.
    """
    found = find.find(out, backend=backend, weights=label, offline=True)
    with Checkpoint(against) as checkpoint:
        row = source.row_of(checkpoint)
        if row.spec.name != found.model.name:
            raise UsageError(f"{out} is {found.model.name}, {against} is {row.spec.name}: nothing to compare.")
        original = Tokenizer.from_file(against / "tokenizer.json")
        converted = loaded.open_tokenizer(found)
        findings: list[Finding] = []
        for done, task in enumerate(found.model.tasks, 1):
            findings.extend(_judge(found, task, checkpoint, converted, original))
            if progress:
                progress("verify", done, len(found.model.tasks))
    return found, findings


def _judge(
    found: ModelFiles, task: str, checkpoint: Checkpoint, converted: Tokenizer, original: Tokenizer
) -> Iterator[Finding]:
    case = cases.of(found.model, task)
    mine, theirs = case.passes(converted), case.passes(original)
    equal = sum(np.array_equal(a.ids, b.ids) for a, b in zip(mine, theirs, strict=True))
    yield Finding(task, "ids", f"{equal} of {len(theirs)} equal", "all", equal == len(theirs))
    if equal < len(theirs):
        return
    weight = dict(checkpoint.merged(source.adapter_of(checkpoint, task)))
    wanted = [_reference(checkpoint.arch, weight, batch) for batch in theirs]
    del weight
    # As a caller of all tasks would have it: the adapters beside the base wherever they are apart.
    adapter = task if found.adapters else None
    with closing(backends.open_backend(found.backend, found.files[task], adapters=found.adapters)) as engine:
        rows = [engine.forward(batch, 1, adapter) for batch in mine]
    floor = floor_of(found, checkpoint.arch)
    yield _rows(task, np.concatenate(rows), np.concatenate(wanted), floor)
    width = checkpoint.arch.hidden
    vectors = case.vectors(rows, projector.read(found.projector, width) if found.projector else None)
    expected = case.vectors(wanted, _published_projector(found, checkpoint))
    if case.directed:
        yield _vectors(task, vectors, expected, floor)
    yield _ranking(task, case.scores(vectors), case.scores(expected), floor)


def floor_of(found: ModelFiles, arch: Architecture) -> float:
    """The least cosine to float32 that files of this form and type have to reach."""
    if found.form == "gguf" and found.label == "F32" and arch.xlm_roberta:
        return _HALF_PRECISION_GELU
    return FLOORS.get(found.label, _BELOW_FOUR_BITS)


def _reference(arch: Architecture, weight: Mapping[str, Floats], batch: TokenBatch) -> Floats:
    """What an engine should give for a pass of one text."""
    if arch.labels:
        return reference.logits(arch, weight, batch.ids)[None]
    return reference.hidden_states(arch, weight, batch.ids)[batch.rows]


def _published_projector(found: ModelFiles, checkpoint: Checkpoint) -> Projector | None:
    if found.model.scoring != "listwise":
        return None
    return projector.read(source.projector_file(checkpoint), checkpoint.arch.hidden)


def _rows(task: str, rows: Floats, expected: Floats, floor: float) -> Finding:
    # Held against the usual length, for a single logit may be near nought.
    usual = np.sqrt(np.mean(np.square(np.linalg.norm(expected, axis=1))))
    errors = np.linalg.norm(rows - expected, axis=1) / usual
    # The length of a row of states is a mean over many numbers; of single logits the mean is taken over all rows.
    single = rows.shape[1] == 1
    error = float(np.sqrt(np.mean(np.square(errors))) if single else errors.max())
    # Two rows at cosine c differ by at least sqrt(2 - 2c) of their length; half as much again for the length.
    allowed = 1.5 * float(np.sqrt(2 - 2 * floor))
    measured = f"relative error {'in the mean' if single else 'at most'} {error:.2e}"
    return Finding(task, "rows", measured, f"<= {allowed:.2e}", error <= allowed)


def _vectors(task: str, vectors: Floats, expected: Floats, floor: float) -> Finding:
    cosines = np.einsum("ij,ij->i", cases.unit(vectors), cases.unit(expected))
    measured = f"cosine {cosines.min():.6f} min, {cosines.mean():.6f} mean"
    return Finding(task, "vectors", measured, f">= {floor}", bool(cosines.min() >= floor))


def _ranking(task: str, mine: Floats, theirs: Floats, floor: float) -> Finding:
    """Every query against every document: how many pairs of documents keep their order, near ties left out."""
    a, b = np.triu_indices(theirs.shape[1], 1)
    gaps, kept = theirs[:, a] - theirs[:, b], mine[:, a] - mine[:, b]
    clear = np.abs(gaps) > _TIE
    share = float((np.sign(gaps) == np.sign(kept))[clear].mean()) if clear.any() else 1.0
    asked = 1 - float(np.sqrt(1 - floor))
    measured = f"{share:.1%} of {int(clear.sum())} orders kept" if clear.any() else "no two documents clearly apart"
    return Finding(task, "ranking", measured, f">= {asked:.1%}", share >= asked)
