"""Size and fidelity of every weight type at full size, against the plain float32 reference.

    python -m tests.bench.fidelity nano
    python -m tests.bench.fidelity small --types Q8_0 Q4_K_M --bits 8 4

The checkpoint is random, of the published size, with the real vocabulary: the worst case for quantisation, since
its errors grow through the layers more than a trained model's. Each form is made, judged as `convert verify`
judges it, and removed again. On Linux, MLX is many times faster with OpenBLAS in front (see the README). The last
line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import resource
import shutil
import time
from pathlib import Path

import numpy as np

from convert.reference import hidden_states
from convert.to_gguf import to_gguf
from convert.to_mlx import to_mlx
from convert.verify import DOCUMENTS, QUERIES, verify
from jina_local.checkpoint import Checkpoint
from jina_local.tokens import Tokenizer
from tests import tiny
from tests.oracle import Oracle, cosines

TYPES = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
)
BITS = (32, 16, 8, 6, 5, 4)


def judge(out: Path, checkpoint: Path, label: str | None = None) -> tuple[float, float, bool]:
    """(least cosine, mean cosine, whether all steps of verify pass)."""
    _, findings = verify(out, checkpoint, label=label)
    vectors = next(f for f in findings if f.step == "vectors")
    least, mean = map(float, re.findall(r"\d\.\d+", vectors.measured))
    return least, mean, all(f.ok for f in findings)


def check_reference(checkpoint: Path) -> float:
    """The least cosine of the plain reference to transformers at full size, over the texts that verify judges."""
    oracle = Oracle(checkpoint, "retrieval")
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    least = 1.0
    with Checkpoint(checkpoint) as opened:
        weights = dict(opened.merged("retrieval"))
        for text in (*QUERIES, *DOCUMENTS):
            ids = np.array(tokenizer.ids("Document: " + text))
            mine, theirs = hidden_states(opened.arch, weights, ids), oracle.states(ids)
            least = min(least, float(cosines(mine, theirs).min()))
    return least


def main() -> None:
    """Make, judge, remove, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("nano", "small"))
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--bits", nargs="*", type=int, default=BITS)
    parser.add_argument("--work", type=Path, default=Path("/tmp/jina_local-bench"))
    args = parser.parse_args()
    checkpoint, out = args.work / args.kind, args.work / "fidelity"
    if not (checkpoint / "adapters" / "retrieval" / "adapter_model.safetensors").exists():
        tiny.write(checkpoint, args.kind, full=True, tasks=("retrieval",))
    if importlib.util.find_spec("transformers"):
        print(f"plain reference to transformers, every token: least cosine {check_reference(checkpoint):.7f}\n")
    rows = []
    print("| form | MB | least cosine | mean cosine | made in |\n|---|---|---|---|---|")
    for form in [*args.types, *(f"{bits}bit" for bits in args.bits)]:
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        if form.endswith("bit"):
            to_mlx(checkpoint, out, tasks=["retrieval"], bits=int(form[:-3]), source_name=args.kind)
            file = out / "model.safetensors"
        else:
            to_gguf(checkpoint, out, tasks=["retrieval"], types=[form], source_name=args.kind)
            file = next(out.glob("*.gguf"))
        seconds = time.perf_counter() - start
        least, mean, ok = judge(out, checkpoint)
        rows.append({"form": form, "mb": round(file.stat().st_size / 1e6, 1), "least": least, "mean": mean, "ok": ok,
                     "seconds": round(seconds, 1)})  # fmt: skip
        engine = "MLX" if form.endswith("bit") else "GGUF"
        print(f"| {engine} {form} | {rows[-1]['mb']} | {least:.6f} | {mean:.6f} | {seconds:.0f} s |", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"model": args.kind, "rows": rows, "peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
