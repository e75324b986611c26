"""Does an opened model give the numbers that its converter wrote down for three fixed texts?

The converter runs a plain forward pass over the very weights that it wrote, see convert/verify/probes.py, and keeps
the first components of the vectors in the manifest. A model of other weights, another tokenizer, pooling or engine
fault gives other numbers. Digests say that files are unchanged; this says that this machine computes them right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from . import backends
from .embedding.embedder import Embedder
from .embedding.request import Task
from .errors import JinaError, ModelDamaged, UsageError
from .formats import manifest
from .reranking.reranker import Reranker
from .spec import READERS, ModelFiles
from .store import find, package

TEXTS = (
    "The lighthouse keeper wrote down the wind, the height of the waves and the name of every ship that passed "
    "between sunset and midnight, and he did so for thirty-one years without leaving out a day.",
    "def moving_average(values, width): return [sum(values[i:i + width]) / width for i in range(len(values))]",
    "Die Brücke wurde 1894 aus Granit gebaut; 橋は今も歩いて渡ることができます。 El puente mide 212 metros.",
)
QUERY = "How long did the keeper watch the ships?"  # of a reranker, for which TEXTS are the documents
NUMBERS = 8  # components of each vector that are kept

# How far the numbers may lie from those of the plain forward pass, as a share of their length. That pass has the same
# weights, so that only the engines' arithmetic is left: half-precision activations and, beside quantised weights,
# activations of 8 bits. Two unrelated vectors are 1.4 apart.
ALLOWED = {"F32": 0.01, "32bit": 0.01, "INT16": 0.01, "F16": 0.03, "16bit": 0.03, "BF16": 0.1}
ALLOWED_QUANTISED = 0.25


@dataclass(frozen=True)
class Compared:
    """One task's numbers against those that were written down."""

    task: str
    distance: float  # of all numbers together, relative to their length
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the model gives what its converter expected."""
        return self.distance <= self.allowed


def compare(model: Embedder | Reranker, files: ModelFiles, tasks: Sequence[str] | None = None) -> list[Compared]:
    """Run the texts for each task (None: all that the files serve). Empty if no numbers are known for these files.

    model: opened from `files`.
    """
    allowed = ALLOWED.get(files.label, ALLOWED_QUANTISED)
    return [
        Compared(task, _distance(numbers(model, task), np.asarray(expected)), allowed)
        for task, expected in files.probes.items()
        if tasks is None or task in tasks
    ]


def require(model: Embedder | Reranker, files: ModelFiles, tasks: Sequence[str] | None = None) -> None:
    """Raise ModelDamaged if a task gives other numbers, and UsageError if none are known for these files."""
    compared = compare(model, files, tasks)
    if not compared:
        raise UsageError(
            f"{model.spec.name}: no vectors are known for these files, so there is nothing to verify them by. "
            "Files of our converter carry them; convert (again), or leave verify out."
        )
    if wrong := [one for one in compared if not one.ok]:
        raise ModelDamaged(f"{model.spec.name}: {'; '.join(map(sentence, wrong))}.")


@dataclass(frozen=True)
class Told:
    """What is said of the weights of one type in one folder. `ok`: None if there was nothing to compare."""

    ok: bool | None
    text: str

    def __str__(self) -> str:
        return self.text


def of_folder(folder: Path) -> Iterator[Told]:
    """Open the models of a folder, one for each type of weights, and compare what they give."""
    if (folder / package.DIGESTS).exists():
        yield from map(of_package, backends.BACKENDS)
    elif not (folder / manifest.NAME).exists():
        yield Told(None, "vectors not known: these files carry no numbers to compare with")
    else:
        record = manifest.read(folder)
        engine = READERS[record.form][0]
        labels = sorted({label for known in record.probes.values() for label in known})
        for label in labels:
            yield _opened(folder, engine, label)
        if not labels:
            yield Told(None, "vectors not known: an earlier version wrote this folder; convert again to have them")


def of_package(engine: str) -> Told:
    """The same for the model that the package carries, on one engine."""
    form = next(form for form in package.LABELS if engine in READERS[form])
    told = _opened("pico", engine, package.LABELS[form])
    return Told(told.ok, f"{engine} {told.text}")


def _opened(wanted: str | Path, engine: str, label: str) -> Told:
    if not backends.installed(engine):
        return Told(None, f"{label}: vectors not compared, because {engine} is not installed")
    try:
        files = find.find(wanted, backend=engine, weights=label, offline=True)
        kind = Embedder if files.model.scoring is None else Reranker
        with kind(files) as model:
            return told(label, compare(model, files))
    except JinaError as error:
        return Told(False, f"{label}: {error}")


def told(label: str, compared: Sequence[Compared]) -> Told:
    """The tasks of one type of weights in one line."""
    if not compared:
        return Told(None, f"{label}: vectors not known")
    if wrong := [one for one in compared if not one.ok]:
        return Told(False, f"{label}: {'; '.join(map(sentence, wrong))}")
    most = max(one.distance for one in compared)
    tasks = "1 task" if len(compared) == 1 else f"{len(compared)} tasks"
    of = f"{label}: the vectors of {tasks} are those that the converter wrote down"
    return Told(True, f"{of} (at most {most:.0e} apart, {compared[0].allowed:g} allowed)")


def sentence(compared: Compared) -> str:
    """What is wrong with one task, in words."""
    return (
        f"task {compared.task!r} gives other vectors than its converter wrote down: {compared.distance:.2f} apart, "
        f"{compared.allowed:g} allowed"
    )


def numbers(model: Embedder | Reranker, task: str) -> NDArray[np.float64]:
    """(3, NUMBERS): the first components of the unit vector of each text; of a reranker (3, 1), cosines or logits."""
    if isinstance(model, Embedder):
        return np.asarray(model.encode(TEXTS, task=cast(Task, task))[:, :NUMBERS], np.float64)
    ranked = {one.index: one.score for one in model.rerank(QUERY, TEXTS)}
    scores = np.array([[ranked[n]] for n in range(len(TEXTS))], np.float64)
    return np.log(scores / (1 - scores)) if model.spec.scoring == "pairwise" else scores


def _distance(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
