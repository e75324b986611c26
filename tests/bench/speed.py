"""`python -m jina_local bench` on random weights of the published sizes, so that nothing has to be fetched.

    python -m tests.bench.speed nano --weights INT8,INT16,Q4_K_M,Q8_0 --beside llama --beside transformers
    python -m tests.bench.speed small --mlx
    python -m tests.bench.speed reranker-v2 --beside transformers
    python -m tests.bench.speed nano --onnx                      # graphs that torch exports, float32 and int8
    python -m tests.bench.speed nano --test-size --texts 8 --rounds 1   # does the bench run here?

The checkpoint is made once under --work, and converted; needs.py says which vocabulary it has. All other options are
those of `jina_local bench`, whose output follows, and after it a line of JSON about the whole command `embed`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

from jina_local.cli import main as cli

from . import needs

# A child that a large process starts is charged with that process's memory; a small one in between is not.
_LAUNCH = (
    "import json, resource, subprocess, sys, time; start = time.perf_counter(); "
    "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
)


def whole_command(model: str, label: str, repeats: int = 5) -> dict[str, float]:
    """`python -m jina_local embed` on one text, from process start to exit: seconds, and peak memory in MB."""
    command = [sys.executable, "-m", "jina_local", "embed", "--model", model, "--weights", label, "--task",
               "retrieval", "--offline", "hello world"]  # fmt: skip
    runs = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", _LAUNCH, *command], capture_output=True, check=True)
        runs.append(json.loads(done.stdout))
    peak = max(kilobytes for _, kilobytes in runs) * 1024 / 1e6
    return {"seconds": round(statistics.median(seconds for seconds, _ in runs), 2), "peak_mb": round(peak, 1)}


def main() -> None:
    """Make the model, measure it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("nano", "small", "v3", "reranker-v2", "reranker-v3"))
    parser.add_argument("--weights", default="Q4_K_M", help="types to convert to, with commas between")
    parser.add_argument("--mlx", action="store_true", help="MLX on the float checkpoint instead of llama.cpp")
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime too; needs onnxruntime and onnxscript")
    needs.add_checkpoint(parser)
    args, more = parser.parse_known_args()
    if args.onnx:
        needs.packages(parser, "--onnx", "onnxruntime", "onnxscript", "torch", install="onnxruntime onnxscript torch")
    if args.mlx:
        needs.packages(parser, "--mlx", "mlx", install="-e '.[mlx]'")
        checkpoint = needs.random_checkpoint(args.kind, args.work, test_size=args.test_size)
        model = str(checkpoint)
    else:
        checkpoint, store = needs.converted(parser, args.kind, args, args.weights.split(","))
        os.environ["JINA_LOCAL_HOME"], model = str(store), needs.name_of(args.kind)
        more += ["--weights", args.weights]
    if args.onnx:
        from .exported import export

        graphs = export(checkpoint, needs.task_of(args.kind), args.work)
        more += ["--beside", "onnxruntime", *(word for graph in graphs for word in ("--graph", str(graph)))]
    if "--beside" in more:
        more += ["--checkpoint", str(checkpoint)]
    code = cli.main(["bench", "--model", model, *more])
    if args.kind in ("nano", "small") and not args.mlx:
        label = args.weights.split(",")[0]
        print(json.dumps({"whole command": label, **whole_command(model, label)}))
    sys.exit(code)


if __name__ == "__main__":
    from jina_local import console

    console.run(lambda: main() or 0)
