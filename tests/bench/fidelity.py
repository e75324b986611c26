"""Size, fidelity, quality and speed of every weight type, of Matryoshka widths, and of int8 and binary vectors.

    python -m tests.bench.fidelity pico --json fidelity.json
    python -m tests.bench.fidelity path/to/checkpoint --types Q8_0 Q4_K_M --bits 8 4 --imatrix my-texts.txt
    python -m tests.bench.fidelity nano                                  # random weights, full size
    python -m tests.bench.fidelity small --types Q8_0 Q4_K_M --bits 8 4
    python -m tests.bench.fidelity nano --test-size --types Q8_0 --bits 8   # does the bench run here?

A trained checkpoint in the published layout is judged on real texts: each type's vectors against those of the F32
file (which is held against the plain numpy reference first), XQuAD-en with the retrieval adapter, STS 2016 with the
text-matching adapter, and speed in turns with F16 (MLX: with 16 bits). The change of a score comes with the standard
error of the paired difference. These texts and those of the imatrix are not part of this repository: README.md
beside this file says which files are read. `nano` and `small` are random checkpoints of the published sizes and need
no data. They are the worst case for quantisation, because errors grow through random layers more than through trained
ones; they are judged as `convert verify` judges. On Linux, MLX is many times faster with OpenBLAS in front (see
README.md). `--json` keeps the numbers; with random weights they are also the last line of standard output.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import shutil
from pathlib import Path

import numpy as np

from convert import source
from convert.verify.cases import DOCUMENTS, QUERIES
from convert.verify.reference import hidden_states
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights.checkpoint import Checkpoint

from . import datasets, needs, trained
from .forms import CALIBRATION, Form, calibration, judge, make, megabytes

RANDOM = ("nano", "small")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
         "IQ4_NL", "IQ4_XS")  # fmt: skip
BITS = (32, 16, 8, 6, 5, 4)


def check_reference(checkpoint: Path) -> float:
    """The least cosine of the plain reference to transformers at full size, over the texts that verify judges."""
    from tests.oracle import Oracle, cosines

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


def random_weights(kind: str, forms: list[Form], checkpoint: Path, out: Path) -> dict[str, object]:
    """Each form of a random checkpoint: made in `out`, judged, printed, removed."""
    if importlib.util.find_spec("transformers"):
        print(f"plain reference to transformers, every token: least cosine {check_reference(checkpoint):.7f}\n")
    rows = []
    print("| form | MB | least cosine | mean cosine | made in |\n|---|---|---|---|---|")
    for form in forms:
        seconds = make(form, checkpoint, out, ["retrieval"], kind)
        least, mean, ok = judge(out, checkpoint, form.label)
        size = round(megabytes(out), 1)
        rows.append({"form": form.label, "mb": size, "least": least, "mean": mean, "ok": ok,
                     "seconds": round(seconds, 1)})  # fmt: skip
        print(f"| {form} | {size} | {least:.6f} | {mean:.6f} | {seconds:.0f} s |", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"model": kind, "rows": rows, "peak_mb": round(peak)}


def arguments() -> argparse.Namespace:
    """The command line. Ends with code 2 if data or packages are missing that the run would ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="nano or small (random), a checkpoint folder, or a model's name")
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--bits", nargs="*", type=int, default=BITS)
    parser.add_argument("--imatrix", type=Path, help="texts, one a line; default: 1,000 of the folder corpus/")
    parser.add_argument("--no-imatrix", action="store_true", help="leave out the files made with an imatrix")
    parser.add_argument("--rounds", type=int, default=5, help="of the contest for speed; 0: no contest")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--test-size", action="store_true", help="nano and small tiny: tries the bench, says nothing")
    parser.add_argument("--work", type=Path, default=Path("/tmp/jina_local-bench"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.types:
        needs.packages(parser, "--types", "gguf", "llama_cpp", install="-e '.[convert]'")
    if args.bits:
        needs.packages(parser, "--bits", "mlx", install="-e '.[mlx]'")
    if args.model not in RANDOM:
        if args.test_size:
            parser.error("--test-size is for nano and small, whose weights are random.")
        default_texts = not args.no_imatrix and args.imatrix is None
        try:
            datasets.require([*trained.SETS, *(CALIBRATION if default_texts else ())])
        except FileNotFoundError as error:
            parser.error(str(error))
    return args


def main() -> None:
    """Choose the way, print, keep."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    forms = [*(Form("GGUF", label) for label in args.types), *(Form("MLX", f"{bits}bit") for bits in args.bits)]
    if args.model in RANDOM:
        checkpoint = needs.random_checkpoint(args.model, args.work, test_size=args.test_size)
        report = random_weights(args.model, forms, checkpoint, args.work / "fidelity")
        print(json.dumps(report))
    else:
        checkpoint, name, _ = source.locate(args.model, revision=None, offline=True)
        run = trained.Run(checkpoint, name, args.work / "trained", args.rounds, args.threads)
        texts = args.imatrix
        if texts is None and not args.no_imatrix:
            texts = calibration(args.work / "imatrix.txt")
        report = trained.report(run, forms, None if args.no_imatrix else texts)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
