"""Tokens per second, latency, time to first vector and memory, beside what else runs the same weights here.

    python -m tests.bench.speed nano --weights Q4_K_M
    python -m tests.bench.speed small --weights Q4_K_M --rounds 3
    python -m tests.bench.speed nano --mlx --texts 64
    python -m tests.bench.speed reranker-v2 --torch float32      # pairs per second, see v3_and_rerankers.py
    python -m tests.bench.speed reranker-v3 --torch float32
    python -m tests.bench.speed v3                               # late chunking against chunk by chunk
    python -m tests.bench.speed nano --test-size --texts 8 --rounds 1   # does the bench run here?

The checkpoint is random and of the published size (made once under --work); needs.py says which vocabulary it has.
The texts are of lognormal length: median 60 tokens, sigma 0.8, at most 500. All contenders get the same texts and
take turns within one run, round after round, so that ratios are right on a machine whose speed drifts. The last line
of standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from jina_local import backends, load
from jina_local.backends import Backend
from jina_local.embedding.request import resolve
from jina_local.inference import batching
from jina_local.inference.batching import pack
from jina_local.loading import Embedder
from jina_local.spec import EmbeddingSpec
from jina_local.store import find
from jina_local.text.tokenizer import Tokenizer

from . import needs, v3_and_rerankers

Run = Callable[[list[str]], object]
_MANY_WORDS = 1000
LATENCIES = (3, 8, 16, 32, 64, 128, 256, 512)


def words(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Plain words that are one token each after a space: of a large vocabulary every seventh."""
    found = sorted(t[1:] for t in tokenizer.get_vocab() if re.fullmatch("[Ġ▁][a-z]{3,8}", t))
    return found[:: 7 if len(found) > _MANY_WORDS else 1]


def texts_of(lengths: Sequence[int], vocabulary: list[str], seed: int = 0) -> list[str]:
    """Texts of about the given token counts, the prompt's tokens included."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(vocabulary, max(1, n - 3))) for n in lengths]


def mix(n: int, seed: int = 0) -> list[int]:
    """Token counts: lognormal, median 60, sigma 0.8, 3 to 500."""
    rng = np.random.default_rng(seed)
    return np.clip(np.exp(rng.normal(math.log(60), 0.8, n)).astype(int), 3, 500).tolist()


def llama_rivals(path: Path, threads: int | None) -> dict[str, Run]:
    """llama-cpp-python's own Llama.embed, one by one and as a list, with the prompt that we add."""
    import llama_cpp

    if b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        # Its default would end the process here (GCC 12 builds on AMX); give it the setting that lives.
        real = llama_cpp.llama_model_default_params

        def safe() -> object:
            params = real()
            params.use_extra_bufts = False
            return params

        llama_cpp.llama_model_default_params = llama_cpp.llama_cpp.llama_model_default_params = safe
    model = llama_cpp.Llama(str(path), embedding=True, n_ctx=512, n_batch=512, n_ubatch=512, verbose=False,
                            n_threads=threads, n_threads_batch=threads)  # fmt: skip
    return {
        "Llama.embed one by one": lambda texts: [model.embed("Document: " + t) for t in texts],
        "Llama.embed as a list": lambda texts: model.embed(["Document: " + t for t in texts]),
    }


def batches_of_32(tok: tokenizers.Tokenizer, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, attention mask), sorted by length and padded on the right, as the rivals are fed."""
    rows = sorted((tok.encode("Document: " + t).ids for t in texts), key=len)
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        longest = max(map(len, part))
        ids = np.array([row + [0] * (longest - len(row)) for row in part])
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in part])
        yield ids, mask


def torch_rivals(folder: Path, dtypes: Sequence[str], threads: int | None) -> dict[str, Run]:
    """transformers on torch: sorted batches of 32, right padding, last token."""
    import torch

    from tests.oracle import Oracle

    torch.set_num_threads(threads or os.cpu_count() or 1)
    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def runner(model: torch.nn.Module) -> Run:
        def run(texts: list[str]) -> object:
            for ids, mask in batches_of_32(tok, texts):
                batch, attended = torch.from_numpy(ids), torch.from_numpy(mask)
                with torch.inference_mode():
                    states = model(input_ids=batch, attention_mask=attended).last_hidden_state
                torch.nn.functional.normalize(states[range(len(ids)), attended.sum(1) - 1].float())
            return None

        return run

    out: dict[str, Run] = {}
    for dtype in dtypes:
        model = Oracle(folder, "retrieval").model.to(getattr(torch, dtype))
        out[f"transformers {dtype}, batches of 32"] = runner(model)
    return out


def onnx_rival(folder: Path, work: Path, threads: int | None) -> dict[str, Run]:
    """ONNX Runtime on a float32 export of the same weights: sorted batches of 32, right padding, last token."""
    import onnxruntime
    import torch

    from tests.oracle import Oracle

    class Exported(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    graph = work / f"{folder.name}.onnx"
    if not graph.exists():
        example = torch.ones((2, 9), dtype=torch.int64)
        axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=1024)}
        model = Exported(Oracle(folder, "retrieval").model)
        torch.onnx.export(model, (example, example), str(graph), dynamo=True, external_data=True,
                          input_names=["input_ids", "attention_mask"], output_names=["states"],
                          dynamic_shapes={"input_ids": axes, "attention_mask": axes}, verbose=False)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    tok = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def run(texts: list[str]) -> object:
        for ids, mask in batches_of_32(tok, texts):
            (states,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            rows = states[np.arange(len(ids)), mask.sum(1) - 1]
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return None

    return {"ONNX Runtime float32, batches of 32": run}


def opened(path: Path, threads: int | None) -> Backend:
    """The engine alone, on the same weights as the model's."""
    found = find.find(path, offline=True)
    merged = "retrieval" if found.form == "checkpoint" else None
    return backends.open_backend(found.backend, found.files["retrieval"], task=merged, threads=threads)


def mlx_rival(engine: Backend, tokenizer: Tokenizer, spec: EmbeddingSpec) -> Run:
    """The same MLX model in the same process: sorted, 32 texts a batch, every row of the last layer computed."""

    def run(texts: list[str]) -> object:
        encoded = tokenizer.encode(texts, spec)
        order = np.argsort(encoded.counts, kind="stable").tolist()
        for start in range(0, len(order), 32):
            engine.forward(pack(encoded, order[start : start + 32], "mean"))
        return None

    return run


def contest(runs: dict[str, Run], texts: list[str], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Everybody once as warm-up on a few texts, then in turns; the first one's ratio to each, round by round."""
    for run in runs.values():
        run(texts[:4])
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(texts)
            seconds[name].append(time.perf_counter() - start)
    ours = next(iter(runs))
    return {
        name: {
            "tokens_per_s": round(tokens / statistics.median(times), 1),
            "ours_is_times": round(statistics.median(t / o for t, o in zip(times, seconds[ours], strict=True)), 2),
        }
        for name, times in seconds.items()
    }


def latency(model: Embedder, vocabulary: list[str], repeats: int = 9) -> dict[str, float]:
    """Median milliseconds for one text, by token count."""
    out = {}
    for n in LATENCIES:
        text = texts_of([n], vocabulary)[0]
        model.encode(text)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            model.encode(text)
            times.append(time.perf_counter() - start)
        out[str(n)] = round(1000 * statistics.median(times), 1)
    return out


# A child that a large process starts is charged with that process's memory; a small one in between is not.
_LAUNCH = (
    "import json, resource, subprocess, sys, time; start = time.perf_counter(); "
    "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
)


def launched(command: list[str], texts: str = "") -> tuple[float, float]:
    """(seconds from start to exit, peak resident MB) of a command of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, *command], input=texts.encode(), capture_output=True, check=True
    )
    seconds, peak = json.loads(done.stdout)
    return seconds, peak * 1024 / 1e6


def whole_command(path: Path, label: str, repeats: int = 5) -> dict[str, float]:
    """`python -m jina_local embed` on one text, from process start to exit: seconds, and peak memory in MB."""
    command = [sys.executable, "-m", "jina_local", "embed", "--model", str(path), "--weights", label, "--task",
               "retrieval", "--offline", "hello world"]  # fmt: skip
    runs = [launched(command) for _ in range(repeats)]
    return {"seconds": round(statistics.median(s for s, _ in runs), 2), "peak_mb": round(max(m for _, m in runs), 1)}


def bulk_memory(path: Path, label: str, texts: list[str]) -> float:
    """Peak resident MB of `python -m jina_local embed` on all texts."""
    command = [sys.executable, "-m", "jina_local", "embed", "--model", str(path), "--weights", label, "--task",
               "retrieval", "--offline", "--input", "-"]  # fmt: skip
    return round(launched(command, "\n".join(texts))[1], 1)


def prepare(args: argparse.Namespace) -> tuple[Path, Path]:
    """(checkpoint, converted folder), made if they are not there yet."""
    checkpoint = needs.random_checkpoint(args.kind, args.work, test_size=args.test_size)
    if args.mlx:
        return checkpoint, checkpoint
    out = args.work / f"{checkpoint.name}-{args.weights}"
    if not (out / "manifest.json").exists():
        from convert.gguf.files import to_gguf

        to_gguf(checkpoint, out, tasks=[needs.task_of(args.kind)], types=[args.weights], source_name=args.kind)
    return checkpoint, out


def of_v3_and_rerankers(args: argparse.Namespace) -> None:
    """v3's late chunking, or a reranker's pairs per second; see v3_and_rerankers.py."""
    checkpoint, path = prepare(args)
    vocabulary = words(needs.vocabulary_of(checkpoint))
    report: dict[str, object] = {"model": args.kind, "weights": None if args.mlx else args.weights}
    if args.kind == "v3":
        runs, texts, tokens = v3_and_rerankers.chunking(path, vocabulary, max(2, args.texts // 16), args.threads)
        report["tokens"], report["chunks"] = tokens, len(texts)
        report["chunks of one document"] = contest(runs, texts, tokens, args.rounds)
    else:
        (query,) = texts_of([v3_and_rerankers.QUERY], vocabulary, seed=1)
        documents = texts_of(mix(min(args.texts, 64)), vocabulary)
        runs = v3_and_rerankers.rerank(path, checkpoint, documents, query, torch=args.torch, threads=args.threads)
        report["documents"] = len(documents)
        found = contest(runs, documents, len(documents), args.rounds)
        report["pairs"] = {
            name: {"pairs_per_s": v["tokens_per_s"], "ours_is_times": v["ours_is_times"]} for name, v in found.items()
        }
    for key, value in report.items():
        print(key, json.dumps(value, indent=1) if isinstance(value, dict) else value)
    print(json.dumps(report))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("nano", "small", "v3", "reranker-v2", "reranker-v3"))
    parser.add_argument("--weights", default="Q4_K_M")
    parser.add_argument("--mlx", action="store_true", help="MLX on the float checkpoint instead of llama.cpp")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--torch", nargs="*", default=[], metavar="DTYPE", help="float32 bfloat16")
    parser.add_argument("--onnx", action="store_true", help="ONNX Runtime too; needs onnxruntime and onnxscript")
    parser.add_argument("--test-size", action="store_true", help="a tiny model, whose numbers say nothing")
    parser.add_argument("--work", type=Path, default=Path("/tmp/jina_local-bench"))
    args = parser.parse_args()
    engine = ("--mlx", "mlx", "-e '.[mlx]'") if args.mlx else ("llama.cpp", "llama_cpp", "-e '.[llama]'")
    needs.packages(parser, engine[0], engine[1], install=engine[2])
    if not args.mlx:
        needs.packages(parser, "writing GGUF", "gguf", install="-e '.[convert]'")
    if args.torch:
        needs.packages(parser, "--torch", "torch", "transformers", install="-e '.[reference]'")
    if args.onnx:
        needs.packages(parser, "--onnx", "onnxruntime", "onnxscript", "torch", install="onnxruntime onnxscript torch")
    return args


def main() -> None:
    """Run it all and print it."""
    args = arguments()
    if args.kind not in ("nano", "small"):
        of_v3_and_rerankers(args)
        return
    checkpoint, path = prepare(args)
    label = None if args.mlx else args.weights
    model = load(path, weights=label, task="retrieval", threads=None if args.mlx else args.threads)
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    vocabulary = words(needs.vocabulary_of(checkpoint))
    texts = texts_of(mix(args.texts), vocabulary)
    spec, engine = resolve(model.spec, task="retrieval"), opened(path, None if args.mlx else args.threads)
    counts = tokenizer.encode(texts, spec).counts.tolist()
    runs: dict[str, Run] = {"jina_local": lambda t: model.encode(t)}
    if args.mlx:
        runs["the same in sorted batches of 32"] = mlx_rival(engine, tokenizer, spec)
    else:
        runs |= llama_rivals(next(path.glob("*.gguf")), args.threads)
    if args.torch:
        runs |= torch_rivals(checkpoint, args.torch, args.threads)
    if args.onnx:
        runs |= onnx_rival(checkpoint, args.work, args.threads)
    report: dict[str, object] = {
        "model": model.spec.name,
        "weights": model.spec.origin.weights if model.spec.origin else None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "texts": len(texts),
        "tokens": sum(counts),
        "mix": contest(runs, texts, sum(counts), args.rounds),
    }
    groups = batching.plan(counts, engine.budget)
    computed = sum(batching.cost(group, counts, engine.budget) for group in groups)
    report["passes"], report["padding"] = len(groups), round(computed / sum(counts) - 1, 4)
    engine.close()
    if not args.mlx:
        short, long = texts_of([8] * 64, vocabulary), texts_of([2048], vocabulary)
        report["64 texts of 8 tokens"] = contest(runs, short, 64 * 8, args.rounds)
        report["one text of 2048 tokens"] = contest(long_runs(model, runs, path, args), long, 2048, args.rounds)
        report["whole command"] = whole_command(path, args.weights)
        report["bulk_peak_mb"] = bulk_memory(path, args.weights, texts)
        report["file_mb"] = round(sum(p.stat().st_size for p in path.glob("*.gguf")) / 1e6, 1)
    report["latency_ms"] = latency(model, vocabulary)
    model.close()
    for key, value in report.items():
        print(key, json.dumps(value, indent=1) if isinstance(value, dict) else value)
    print(json.dumps(report))


def long_runs(model: Embedder, runs: dict[str, Run], path: Path, args: argparse.Namespace) -> dict[str, Run]:
    """Llama.embed with a context of 2,304 tokens: at its default of 512 it would cut the text."""
    import llama_cpp

    file = next(path.glob("*.gguf"))
    rival = llama_cpp.Llama(str(file), embedding=True, n_ctx=2304, n_batch=2304, n_ubatch=2304, verbose=False,
                            n_threads=args.threads, n_threads_batch=args.threads)  # fmt: skip
    return {
        "jina_local": runs["jina_local"],
        "Llama.embed one by one": lambda texts: [rival.embed("Document: " + t) for t in texts],
    }


if __name__ == "__main__":
    main()
