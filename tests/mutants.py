"""Deliberate faults in our own code: `python -m tests.mutants [NAME ...] [--list]`. Each has to turn a test red.

The tree is copied; a fault is put into the copy, and the tests named beside it are run there until one fails. A fault
that no test sees survives, and the exit code is 1. A fault whose text is gone from the code is stale: code 1 as well.
"""

# ruff: noqa: E501  # a table of code

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """One fault: in `file`, `right` becomes `wrong`; `tests` are the ones that should see it."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = (
    # Vectors: pool, cut, normalise, quantise.
    Mutant("normalise before cutting", "jina_local/embedding/vectors.py",
           "cut = np.array(pooled[:, : spec.dim], np.float32)",
           "cut = np.array(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), np.float32)[:, : spec.dim]; "
           "spec = __import__('dataclasses').replace(spec, normalize=False)", "tests/embedding/test_vectors.py"),
    Mutant("forget to normalise", "jina_local/embedding/vectors.py",
           "    if spec.normalize:", "    if False:", "tests/embedding/test_vectors.py"),
    Mutant("bits of zero are ones", "jina_local/embedding/vectors.py",
           "np.packbits(vectors > 0, axis=-1)", "np.packbits(vectors >= 0, axis=-1)", "tests/embedding/test_vectors.py"),
    Mutant("the int8 range is the batch's", "jina_local/embedding/vectors.py",
           "np.float32(int8_scale(vectors.shape[-1]))", "(127 / np.abs(vectors).max(initial=1e-9))",
           "tests/embedding/test_vectors.py"),
    Mutant("binary is not shifted", "jina_local/embedding/vectors.py",
           "(bits.astype(np.int16) - 128).astype(np.int8)", "bits.astype(np.int8)", "tests/embedding/test_vectors.py"),
    Mutant("a zero vector is usable", "jina_local/embedding/vectors.py",
           " | ~head.any(axis=1))", ")", "tests/embedding/test_vectors.py tests/test_loading.py"),
    Mutant("the mean counts one token too many", "jina_local/embedding/vectors.py",
           "np.diff(bounds)[:, None]", "(np.diff(bounds)[:, None] + 1)", "tests/embedding/test_vectors.py"),
    # ONNX Runtime.
    Mutant("a text of a padded pass sees the pads", "jina_local/backends/onnx/__init__.py",
           'feed["lengths"] = padded.lengths.astype(np.int64)', 'feed["lengths"] = np.full(texts, length, np.int64)',
           "tests/backends/test_onnx.py"),
    Mutant("a wanted place of a causal text sees the next one", "jina_local/backends/onnx/layers.py",
           'return g.node("GreaterOrEqual", at, every)', 'return g.node("GreaterOrEqual", g.node("Add", at, g.constant(np.int64(1))), every)',
           "tests/backends/test_onnx.py"),
    Mutant("all tokens of a pass share one scale", "jina_local/backends/onnx/layers.py",
           'step = g.node("Mul", ', 'step = g.node("Mul", g.node("Expand", g.node("ReduceMax", most), g.node("Shape", most)), g.constant(_STEP)); g.node("Mul", ',
           "tests/backends/test_onnx.py"),
    Mutant("a state that is NaN is lost in whole numbers", "jina_local/backends/onnx/layers.py",
           'scale = g.node("Unsqueeze", checked, axis)', 'scale = g.node("Unsqueeze", step, axis)',
           "tests/backends/test_onnx_whole_numbers.py"),
    Mutant("products that saturate pass for exact ones", "jina_local/backends/onnx/exact.py",
           "for count in _ROWS):", "for count in ()):", "tests/backends/test_onnx_exact.py"),
    Mutant("queries of wanted places are turned as the first ones", "jina_local/backends/onnx/transformer.py",
           "x, places = m.rows_at(x), m.ends.at", "x, places = m.rows_at(x), m.ends.places", "tests/backends/test_onnx.py"),
    Mutant("onnxruntime may send telemetry", "jina_local/backends/onnx/session.py",
           '    os.environ[_SILENT] = "1"\n', '    pass\n', "tests/backends/test_onnx.py"),
    # Passes.
    Mutant("the last token is the one before", "jina_local/inference/batching.py",
           "rows = starts[1:] - 1\n", "rows = starts[1:] - 2\n", "tests/text tests/test_loading.py"),
    Mutant("two rows of a pass are swapped", "jina_local/embedding/embedder.py",
           "pooled[group] = vectors.pool(", "pooled[group[::-1]] = vectors.pool(", "tests/test_loading.py"),
    Mutant("a text without a row is not tried alone", "jina_local/inference/passes.py",
           "            one_pass([int(text)], 1)\n", "            pass\n", "tests/test_loading.py"),
    Mutant("a budget cuts texts off", "jina_local/inference/batching.py",
           "    for i in order:\n        if not groups", "    for i in order[: budget.texts * 4]:\n        if not groups",
           "tests/inference"),
    Mutant("rows of windows overlap", "jina_local/text/chunks.py",
           "(start + room + after) // 2", "(start + room + after) // 2 + 1", "tests/text/test_chunks.py tests/embedding"),
    Mutant("the prompt is no part of the first chunk", "jina_local/embedding/late_chunking.py",
           "            starts[starts == before] = 0\n", "            pass\n", "tests/embedding/test_late_chunking.py"),
    # Text.
    Mutant("truncation takes the closing token", "jina_local/text/tokenizer.py",
           "[*self.opening, *body[:room], *self.closing]", "[*self.opening, *body[: room + 1]]", "tests/text"),
    Mutant("a cut is not reported", "jina_local/text/tokenizer.py",
           "truncated[i] = True", "pass", "tests/text tests/test_loading.py"),
    Mutant("the query's prompt is the document's", "jina_local/registry.py",
           '"query": "Query: "', '"query": "Document: "', "tests/test_registry.py tests/test_loading.py"),
    # Files.
    Mutant("a truncated tensor file is read", "jina_local/formats/safetensors.py",
           "    if position != size:\n", "    if position > size:\n", "tests/formats/test_safetensors.py"),
    Mutant("tensors of another shape are taken", "jina_local/formats/checks.py",
           "if found[n] != expected[n]", "if len(found[n]) != len(expected[n])", "tests/weights tests/formats"),
    Mutant("NaN in weights is let through", "jina_local/formats/checks.py",
           "    if not np.isfinite(data).all():\n", "    if False:\n", "tests/weights"),
    Mutant("a folder's files may have another size", "jina_local/formats/manifest.py",
           ".st_size != entry.bytes:", ".st_size < 0:", "tests/convert/test_publish.py tests/model_files tests/formats"),
    Mutant("a device is opened as a file", "jina_local/formats/files.py",
           "    if not stat.S_ISREG(os.fstat(descriptor).st_mode):\n", "    if False:\n",
           "tests/formats tests/weights tests/records"),
    # Weights.
    Mutant("an adapter's scale is forgotten", "jina_local/weights/adapters/published.py",
           "np.float32(self.scale) * (b @ a)", "(b @ a)", "tests/weights"),
    Mutant("an adapter is added twice", "jina_local/weights/adapters/published.py",
           "return weight + np.float32(self.scale)", "return weight + 2 * np.float32(self.scale)", "tests/weights"),
    Mutant("heads of any width are taken", "jina_local/weights/architecture.py",
           "    if head_dim != (width := _HEAD_DIM.get(kind, head_dim)):\n", "    if head_dim != (width := head_dim):\n",
           "tests/weights/test_architecture.py"),
    Mutant("any epsilon is taken", "jina_local/weights/architecture.py",
           "    if not math.isclose(eps, _EPS[kind], rel_tol=1e-6):", "    if False:", "tests/weights/test_architecture.py"),
    # The gate.
    Mutant("keys that only llama.cpp knows are let through", "jina_local/weights/gguf_keys.py",
           "    if not key.startswith((f\"{kind}.\", *_READ)):\n", "    if True:\n", "tests/model_files/test_gguf_gate.py"),
    Mutant("a file may call itself 16 bits wide", "jina_local/model_files/gguf_gate.py",
           "fits = label in found <= {label, \"F32\"}", "fits = found <= {label, \"F32\"}", "tests/model_files/test_gguf_gate.py"),
    Mutant("two tensors may change places", "jina_local/model_files/gguf_gate.py",
           "    if MADE_HERE in header.keys:\n", "    if False:\n", "tests/model_files/test_gguf_gate.py"),
    Mutant("another model's tokenizer is taken", "jina_local/inference/loaded.py",
           "    if files.fingerprint is not None:\n", "    if False:\n", "tests/inference/test_loaded.py"),
    Mutant("a link leads out of the cache", "jina_local/store/find.py",
           "if (snapshot := hub_cache.snapshot_of(path)) and", "if (snapshot := None) and", "tests/store/test_hub.py -k link"),
    Mutant("a fork goes on with llama.cpp", "jina_local/backends/llama/backend.py",
           "        if os.getpid() != self._process:\n            raise", "        if False:\n            raise",
           "tests/backends/test_forks.py"),
    # The converters.
    Mutant("files are not synced", "convert/publish.py",
           "            os.fsync(descriptor)\n        finally:\n            os.close(descriptor)\n\n\ndef _swap",
           "            pass\n        finally:\n            os.close(descriptor)\n\n\ndef _swap", "tests/convert/test_publish.py"),
    Mutant("renamed before the manifest is there", "convert/publish.py",
           '        if not (folder / manifest.NAME).exists():\n                raise',
           '        if False:\n                raise', "tests/convert/test_publish.py"),
    Mutant("an existing output is replaced unasked", "convert/publish.py",
           "        if not force:\n", "        if False:\n", "tests/convert/test_publish.py"),
    Mutant("a dead run's litter stays", "convert/publish.py",
           "            shutil.rmtree(litter, ignore_errors=True)\n", "            pass\n", "tests/convert/test_publish.py"),
    # Rerankers.
    Mutant("windows leave a gap", "jina_local/reranking/pairwise.py",
           "range(0, length - room, room - overlap)", "range(0, length - room, room + overlap)",
           "tests/reranking/test_pairwise.py"),
    Mutant("the worst window counts", "jina_local/reranking/scoring.py",
           "np.maximum.at(", "np.minimum.at(", "tests/reranking/test_scoring.py tests/reranking/test_reranker.py"),
    Mutant("equal scores change places", "jina_local/reranking/scoring.py",
           'kind="stable"', 'kind="quicksort"', "tests/reranking/test_scoring.py"),
    # The command line.
    Mutant("an interrupted command is a success", "jina_local/console.py",
           "INTERRUPTED = 130", "INTERRUPTED = 0", "tests/test_console.py"),
)  # fmt: skip


def stale(mutant: Mutant) -> str | None:
    """Why a fault cannot be put into the code, or None."""
    count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.right)
    return None if count == 1 else f"its text is there {count} times in {mutant.file}"


def survives(mutant: Mutant, copy: Path) -> str | None:
    """What the tests said if none of them failed, or None."""
    path = copy / mutant.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(mutant.right, mutant.wrong), encoding="utf-8")
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *mutant.tests.split(),
    ]
    try:
        done = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, check=False, timeout=600,
            env={**os.environ, "PYTHONPATH": str(copy)},
        )  # fmt: skip
    finally:
        path.write_text(right, encoding="utf-8")
    return None if done.returncode == 1 else done.stdout[-500:] + done.stderr[-500:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults by name (default: all)")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.names or m.name in args.names]
    if args.list:
        print("\n".join(f"{m.name}  ({m.file})" for m in chosen))
        return 0
    bad = 0
    with tempfile.TemporaryDirectory(prefix="jina_local-mutants-") as name:
        copy = Path(name) / "main"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
        for mutant in chosen:
            start = time.monotonic()
            outcome = "seen"
            if fault := stale(mutant):
                outcome = f"STALE: {fault}"
            elif said := survives(mutant, copy):
                outcome = f"SURVIVED\n{said}"
            bad += outcome != "seen"
            print(f"{time.monotonic() - start:5.1f} s  {mutant.name}: {outcome}", flush=True)
    print(f"{len(chosen)} faults, {len(chosen) - bad} seen, {bad} not")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
