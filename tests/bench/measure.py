"""One set and one way to encode -> its measured numbers; what quality.py and fidelity.py share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jina_local.loading import Embedder

from . import datasets, metrics, probes
from .metrics import Matrix, Score

# texts, "query" | "document" -> (n, dim) float32 of unit length
Encode = Callable[[list[str], str], Matrix]
_SEEDS = 10  # k-means starts
_NO_PROMPT = "none"


@dataclass(frozen=True)
class Row:
    """One number: what was measured on which set."""

    set: str
    metric: str
    score: Score


class Vectors:
    """A model's vectors, each text encoded once for a task and a prompt however many sets hold it.

    The prompt "none" is no prompt at all. `encode` has no name for it, since no published model is meant to be
    used so; the model's public spec is given one more prompt, with an empty text.
    """

    def __init__(self, model: Embedder, max_length: int | None = None) -> None:
        self._model = model
        self._max_length = max_length
        model.spec = replace(model.spec, prompts={**model.spec.prompts, _NO_PROMPT: ""})
        self._known: dict[tuple[str, str], dict[str, Matrix]] = {}

    def __call__(self, texts: Sequence[str], task: str, prompt: str) -> Matrix:
        """(n, dim) float32 of unit length."""
        known = self._known.setdefault((task, prompt), {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            found = self._model.embed(new, task=task, prompt_name=prompt, max_length=self._max_length)
            if found.failed:
                raise ValueError(f"{len(found.failed)} of {len(new)} texts have no vector with task {task!r}.")
            known.update(zip(new, np.asarray(found.vectors, np.float32), strict=True))
        return np.stack([known[text] for text in texts])

    def encoder(self, task: str, prompt: str | None = None) -> Encode:
        """Query and document prompts as the model has them, or the one named on both sides."""
        return lambda texts, side: self(texts, task, prompt or side)


def measure(name: str, encode: Encode) -> list[Row]:
    """All numbers of one set, the one that stands for it first."""
    kind = datasets.kind_of(name)
    if kind == "retrieval":
        data = datasets.retrieval(name)
        return retrieval(name, encode(data.queries, "query") @ encode(data.documents, "document").T)
    if kind == "text-matching":
        pairs = datasets.sts()
        first, second = encode(pairs.first, "document"), encode(pairs.second, "document")
        return similarity(name, np.einsum("ij,ij->i", first, second))
    return classification(name, encode) if kind == "classification" else clustering(name, encode)


def retrieval(name: str, similarities: Matrix) -> list[Row]:
    """From (n_queries, n_documents), the larger the better."""
    relevant = datasets.retrieval(name).relevant
    found = metrics.ndcg(similarities, relevant), metrics.recall(similarities, relevant)
    return [Row(name, metric, metrics.mean(f)) for metric, f in zip(("nDCG@10", "recall@10"), found, strict=True)]


def similarity(name: str, cosines: Matrix) -> list[Row]:
    """From the cosine of each pair: over all pairs, then within each set of STS."""
    pairs = datasets.sts()
    rows = [Row(name, "Spearman", metrics.spearman(cosines, pairs.scores))]
    for group in np.unique(pairs.groups):
        own = pairs.groups == group
        rows.append(Row(f"{name} {group}", "Spearman", metrics.spearman(cosines[own], pairs.scores[own])))
    return rows


def classification(name: str, encode: Encode) -> list[Row]:
    """A linear probe and the ten nearest neighbours, fitted on the training part, judged on the test part."""
    train, test = datasets.banking77("train"), datasets.banking77("test")
    x, y = encode(train.texts, "document"), encode(test.texts, "document")
    ways = {"accuracy, linear probe": probes.linear_probe, "accuracy, 10 neighbours": probes.neighbours}
    return [Row(name, way, metrics.mean(fit(x, train.labels, y) == test.labels)) for way, fit in ways.items()]


def clustering(name: str, encode: Encode) -> list[Row]:
    """k-means with as many clusters as there are classes."""
    data = datasets.topics(name)
    x = encode(data.texts, "document")
    runs = [probes.k_means(x, int(data.labels.max()) + 1, seed) for seed in range(_SEEDS)]
    return [Row(name, "V-measure", metrics.clusterings(data.labels, runs))]
