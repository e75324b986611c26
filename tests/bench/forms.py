"""One weight type of a checkpoint: written, found again, and how near it stays to float32."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from convert.gguf.files import to_gguf
from convert.mlx.folders import to_mlx
from convert.verify.verify import verify

from . import datasets

# Files below the data folder, and how many texts of each the default imatrix is made of.
CALIBRATION = {
    "corpus/openstax.jsonl.xz": 300,
    "corpus/opensource_guide.jsonl.xz": 500,
    "corpus/fastapi_docs.jsonl.xz": 200,
}


@dataclass(frozen=True)
class Form:
    """A GGUF type or a number of MLX bits."""

    engine: str  # "GGUF" | "MLX"
    label: str  # "Q4_K_M", "8bit"
    imatrix: bool = False

    def __str__(self) -> str:
        name = f"{self.label.removesuffix('bit')} bits" if self.engine == "MLX" else self.label
        return f"{self.engine} {name}{', imatrix' if self.imatrix else ''}"


def make(form: Form, checkpoint: Path, out: Path, tasks: list[str], name: str, texts: Path | None = None) -> float:
    """Write `tasks` of the checkpoint into `out`, in place of what was there: seconds. `texts`: for the imatrix."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    if form.engine == "MLX":
        to_mlx(checkpoint, out, tasks=tasks, bits=int(form.label.removesuffix("bit")), source_name=name)
    else:
        chosen = texts if form.imatrix else None
        to_gguf(checkpoint, out, tasks=tasks, types=[form.label], imatrix=chosen, source_name=name)
    return time.perf_counter() - start


def megabytes(out: Path) -> float:
    """The size of one task's weights."""
    file = next(iter(sorted(out.glob("*.gguf")) or sorted(out.rglob("model.safetensors"))))
    return file.stat().st_size / 1e6


def judge(out: Path, checkpoint: Path, label: str | None = None) -> tuple[float, float, bool]:
    """(least cosine, mean cosine to the plain float32 reference, whether all steps of verify pass)."""
    _, findings = verify(out, checkpoint, label=label)
    found = [re.findall(r"\d\.\d+", f.measured) for f in findings if f.step == "vectors"]
    least, mean = min(float(x[0]) for x in found), sum(float(x[1]) for x in found) / len(found)
    return least, mean, all(f.ok for f in findings)


def calibration(path: Path) -> Path:
    """1,000 paragraphs in many languages, one a line, of the training text: none of what is measured is in it."""
    lines: list[str] = []
    for name, wanted in CALIBRATION.items():
        with lzma.open(datasets.folder() / name, "rt", encoding="utf-8") as file:
            texts = [" ".join(json.loads(line)["text"].split()) for line in file]
        long = [text for text in texts if len(text) >= 80]
        lines += long[:: len(long) // wanted][:wanted]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
