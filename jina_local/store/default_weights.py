"""The type of GGUF weights that is fetched or converted to if none is asked for: fast and visibly lossless here."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ..spec import ModelSpec


@dataclass(frozen=True)
class Default:
    """A type, and why it is taken, as the end of a sentence."""

    label: str
    why: str


# Tokens per second relative to Q8_0, nano at full size, random weights, the mix of `tests.bench.speed`, 2 cores:
#   AMD EPYC, AVX-512 VNNI        Q4_K_M 2.37, Q5_K_M 2.27, Q6_K 2.08, Q4_0 1.92, BF16 1.84, F16 1.28
#   Intel Xeon, AMX switched off  Q4_K_M 2.09, Q6_K 1.80
# pico's Q6_K against F32 (`tests.bench.fidelity pico`): cosine 0.9961 least, 0.9986 mean; nDCG@10 0.861, as Q8_0's.
# llama.cpp has this fast way to multiply K-quants on x86 alone, so elsewhere the most exact type stays.
TABLE = {
    "x86": Default("Q6_K", "on x86 it is twice as fast as Q8_0, and ranks as well"),
    "other": Default("Q8_0", "it is nearly lossless, and nothing faster has been measured on this processor"),
}
# At Q6_K the logits of jina-reranker-v2 are off by 0.12, at Q8_0 by 0.05 (`convert verify`, random weights).
PAIRWISE = Default("Q8_0", "a score of a pair has nothing to average errors over")
NEXT = "Q8_0"  # if the default is not published


def of(model: ModelSpec) -> Default:
    """The default of a model on this machine."""
    if model.scoring == "pairwise":
        return PAIRWISE
    return TABLE["x86" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "other"]


def reason(model: ModelSpec, label: str) -> str:
    """Why a type was fetched that nobody had asked for, in one sentence."""
    default = of(model)
    if label == default.label:
        return f"{label} was fetched, because {default.why}"
    return f"{label} was fetched, because {default.label} is not published"
