"""A trained checkpoint in every weight type, width and precision: what each costs and what is lost, on real texts."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jina_local import load
from jina_local.embedding import vectors
from jina_local.embedding.request import resolve
from jina_local.loading import Embedder

from . import datasets, measure, metrics, turns
from .forms import Form, judge, make, megabytes
from .metrics import Matrix, Score

TASKS = ["retrieval", "text-matching"]
SETS = ("xquad-en", "sts")
_SET = SETS[0]
_PRECISIONS = ("float32", "int8", "binary")
_BYTES = {"float32": 4.0, "int8": 1.0, "binary": 1 / 8}
_TIMED = 48  # of each sort of text
# A rounding to 16 bits needs no importance, and Q8_0 does not look at it.
_EXACT = ("F32", "F16", "BF16", "Q8_0")


@dataclass(frozen=True)
class Run:
    """What stays the same for all forms."""

    checkpoint: Path
    name: str
    work: Path
    rounds: int
    threads: int | None

    def open(self, out: Path) -> Embedder:
        """One form that was written."""
        backend = "llama" if any(out.glob("*.gguf")) else "mlx"
        return load(out, backend=backend, threads=self.threads if backend == "llama" else None, offline=True)


@dataclass(frozen=True)
class Sample:
    """The vectors of all texts of both sets, full width, unit length: (n, dim) float32."""

    queries: Matrix
    documents: Matrix
    first: Matrix
    second: Matrix

    def stacked(self) -> Matrix:
        """All of them, (n_texts, dim)."""
        return np.concatenate([self.queries, self.documents, self.first, self.second])


def sample(model: Embedder) -> Sample:
    """Encode XQuAD-en for retrieval and STS for text matching."""
    held, data, pairs = measure.Vectors(model), datasets.retrieval(_SET), datasets.sts()
    return Sample(
        held(data.queries, "retrieval", "query"),
        held(data.documents, "retrieval", "document"),
        held(pairs.first, "text-matching", "document"),
        held(pairs.second, "text-matching", "document"),
    )


def scores(found: Sample) -> tuple[Score, Score]:
    """(nDCG@10 on XQuAD-en, Spearman on STS)."""
    cosines = np.einsum("ij,ij->i", found.first, found.second)
    return _scores(found.queries @ found.documents.T, cosines)


def _scores(similarities: Matrix, cosines: Matrix) -> tuple[Score, Score]:
    ndcg = metrics.mean(metrics.ndcg(similarities, datasets.retrieval(_SET).relevant))
    return ndcg, metrics.spearman(cosines, datasets.sts().scores)


def report(run: Run, forms: list[Form], texts: Path | None) -> dict[str, object]:
    """Print both tables in Markdown and give back their numbers. `texts`: for the imatrix; None: without."""
    run.work.mkdir(parents=True, exist_ok=True)
    if texts is not None:
        again = [Form(f.engine, f.label, True) for f in forms if f.engine == "GGUF" and f.label not in _EXACT]
        forms = sorted([*forms, *again], key=lambda f: next(i for i, g in enumerate(forms) if g.label == f.label))
    exact = run.work / "float32"
    make(Form("GGUF", "F32"), run.checkpoint, exact, TASKS, run.name)
    least, mean, ok = judge(exact, run.checkpoint, "F32")
    if not ok:
        raise ValueError(f"GGUF F32 is at cosine {least:.7f} to the plain reference: no yardstick to measure with.")
    print(f"GGUF F32 to the plain reference: cosine {least:.7f} least, {mean:.7f} mean\n")
    with run.open(exact) as model:
        wanted = sample(model)
        widths = model.spec.dims
        rows = form_rows(run, forms, wanted, texts)
        precision_rows = width_rows(model, widths, wanted)
    shutil.rmtree(exact)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return {"model": run.name, "machine": machine, "float32": {"least": least, "mean": mean}, "forms": rows,
            "widths": precision_rows}  # fmt: skip


def form_rows(run: Run, forms: list[Form], wanted: Sample, texts: Path | None) -> list[dict[str, object]]:
    """One row a form, printed as it is measured."""
    print("| form | MB | least cosine | mean cosine | XQuAD-en nDCG@10 | change | STS Spearman | change | speed |")
    print("|---|---|---|---|---|---|---|---|---|")
    exact = scores(wanted)
    base: dict[str, Path] = {}
    rows = []
    for form in forms:
        out = run.work / "form"
        make(form, run.checkpoint, out, TASKS, run.name, texts)
        with run.open(out) as model:
            found = sample(model)
            speed = relative_speed(run, form, model, base)
        row = _form_row(form, megabytes(out), found, wanted, exact)
        if speed is not None:
            row["speed"] = round(speed, 2)
        rows.append(row)
        print(_printed(form, row), flush=True)
    for out in (run.work / "form", *base.values()):
        shutil.rmtree(out, ignore_errors=True)
    return rows


def _form_row(
    form: Form, size: float, found: Sample, wanted: Sample, exact: tuple[Score, Score]
) -> dict[str, object]:
    cosines = np.einsum("ij,ij->i", found.stacked(), wanted.stacked())
    row: dict[str, object] = {"form": str(form), "engine": form.engine, "label": form.label}
    row |= {
        "imatrix": form.imatrix,
        "mb": round(size, 2),
        "least": float(cosines.min()),
        "mean": float(cosines.mean()),
    }
    for name, score, whole in zip(("ndcg", "spearman"), scores(found), exact, strict=True):
        change = score.minus(whole)
        row |= {name: score.value, f"{name}_change": change.value, f"{name}_change_error": change.error}
    return row


def _printed(form: Form, row: dict[str, object]) -> str:
    cells = [str(form), f"{row['mb']:.1f}", f"{row['least']:.6f}", f"{row['mean']:.6f}"]
    for name in ("ndcg", "spearman"):
        cells += [f"{row[name]:.4f}", f"{row[f'{name}_change']:+.4f} ± {row[f'{name}_change_error']:.4f}"]
    return "| " + " | ".join([*cells, f"{row['speed']:.2f}" if "speed" in row else ""]) + " |"


def relative_speed(run: Run, form: Form, model: Embedder, base: dict[str, Path]) -> float | None:
    """Tokens per second over those of F16 (MLX: 16 bits), in turns; `base` keeps the folder it is held against."""
    if not run.rounds:
        return None
    if form.engine not in base:
        base[form.engine] = run.work / f"half-{form.engine}"
        half = Form(form.engine, "F16" if form.engine == "GGUF" else "16bit")
        make(half, run.checkpoint, base[form.engine], TASKS, run.name)
    data, pairs = datasets.retrieval(_SET), datasets.sts()
    texts = [*data.documents[:_TIMED], *data.queries[:_TIMED], *pairs.first[:_TIMED]]
    with run.open(base[form.engine]) as half_model:
        runs = {"form": lambda: model.encode(texts), "half": lambda: half_model.encode(texts)}
        found = turns.seconds(runs, run.rounds)
    return statistics.median(half / own for half, own in zip(found["half"], found["form"], strict=True))


def width_rows(model: Embedder, widths: tuple[int, ...], wanted: Sample) -> list[dict[str, object]]:
    """Every Matryoshka width in every precision, cut and quantised by the runtime's own `finish`; printed."""
    print("\n| dimensions | precision | bytes | XQuAD-en nDCG@10 | change | STS Spearman | change |")
    print("|---|---|---|---|---|---|---|")
    whole = scores(wanted)
    rows = []
    for dim in reversed(widths):
        for precision in _PRECISIONS:
            found = finished(model, wanted, dim, precision)
            row: dict[str, object] = {"dim": dim, "precision": precision, "bytes": int(dim * _BYTES[precision])}
            cells = [str(dim), precision, str(row["bytes"])]
            for name, score, exact in zip(("ndcg", "spearman"), found, whole, strict=True):
                change = score.minus(exact)
                row |= {name: score.value, f"{name}_change": change.value, f"{name}_change_error": change.error}
                cells += [f"{score.value:.4f}", f"{change.value:+.4f} ± {change.error:.4f}"]
            rows.append(row)
            print("| " + " | ".join(cells) + " |")
    return rows


def finished(model: Embedder, wanted: Sample, dim: int, precision: str) -> tuple[Score, Score]:
    """The scores of vectors cut to `dim` and quantised, compared as `Embedder.similarity` compares them."""

    def compare(task: str, a: Matrix, b: Matrix) -> Matrix:
        spec = resolve(model.spec, task=task, truncate_dim=dim, precision=precision)
        return model.similarity(vectors.finish(a, spec), vectors.finish(b, spec), precision=precision)

    paired = np.diagonal(compare("text-matching", wanted.first, wanted.second))
    return _scores(compare("retrieval", wanted.queries, wanted.documents), paired)
