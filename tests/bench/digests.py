"""Digests of all vectors and scores of tiny random models, to prove that a refactoring leaves every bit as it was.

    python -m tests.bench.digests make FORMS > files.json     # checkpoints, and what the converter makes of them
    python -m tests.bench.digests show FORMS > before.json    # and with the new code > after.json
    python -m tests.bench.digests compare before.json after.json
    python -m tests.bench.digests show FORMS --only pico      # one model; of pico nothing has to be made

`show` uses public names alone, because the rooms behind them may be what moves. The output of `make` can be compared
too. Digests belong to one machine and one version of each engine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

Options = dict[str, Any]
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
BITS = ("4bit", "5bit", "6bit", "8bit", "16bit", "32bit")
V5_TASKS = ("retrieval", "text-matching", "clustering", "classification")
V3_TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching", "none")
TASKS = {"small": V5_TASKS, "nano": V5_TASKS, "pico": V5_TASKS, "v3": V3_TASKS, "v3-native": V3_TASKS}
V3_PROMPTS = (("retrieval", "query"), ("retrieval", "document"), ("retrieval", "passage"), ("retrieval", None),
              ("clustering", None), (None, "query"), ("classification", "classification"))  # fmt: skip
LONG = " ".join(f"{i}: Jupiter is larger than Mars." for i in range(500))  # more tokens than an embedding model reads
TEXTS = [
    "Which is the Red Planet?", "", "naïve café, e\u0301lève, Größe", "日本語のテキスト、中文。", " \n ",
    "русский текст العربية हिन्दी ελληνικά", "👩‍👩‍👧‍👦 and 🇨🇭", "<|im_end|> </s> <s> <|end_of_text|>", LONG[:150],
]  # fmt: skip
ENCODE: dict[str, Options] = {
    **{name: {"precision": name} for name in ("int8", "uint8", "binary", "ubinary")},
    "64 wide": {"truncate_dim": 64}, "64 wide ubinary": {"truncate_dim": 64, "precision": "ubinary"},
    "not normalised": {"normalize": False}, "12 tokens": {"max_length": 12},
}  # fmt: skip
SPANS = [(0, 30), (30, 200), (150, 600), (650, 700)]  # characters of LONG
CHUNKS: dict[str, Options] = {
    "chunks": {}, "chunks int8": {"truncate_dim": 64, "precision": "int8", "prompt_name": "query", "max_length": 99},
    "chunks none": {"task": "none", "normalize": False, "max_length": 99, "overlap_tokens": 20},
}  # fmt: skip
RERANK: dict[str, dict[str, Options]] = {
    "reranker-v3": {"best 3": {"top_n": 3}, "vectors": {"return_embeddings": True}, "by 3": {"block_size": 3},
                    "instruction": {"instruction": "行星优先"}, "cut": {"max_doc_length": 6, "max_query_length": 4},
                    "short": {"max_length": 700, "max_doc_length": 100, "return_embeddings": True}},
    "reranker-v2": {"best 3": {"top_n": 3}, "no windows": {"window": False}, "apart": {"overlap_tokens": 0},
                    "short windows": {"max_length": 60, "max_query_length": 30, "overlap_tokens": 8}},
}  # fmt: skip
KINDS = (*TASKS, *RERANK)
MADE: tuple[tuple[Any, ...], ...] = (  # models, folder, weights, the converter's words in place of --task all
    ("small nano v3 reranker-v3 reranker-v2", "mlx", BITS), ("small nano v3 reranker-v3 reranker-v2", "gguf", TYPES),
    ("small nano v3", "mlx-separate", BITS, "--adapters", "separate"),
    ("small nano", "gguf-separate", TYPES, "--adapters", "separate"),  # adapters in F32
    ("small nano", "gguf-separate-f16", ("Q8_0",), "--adapters", "separate"),
    ("nano", "gguf-imatrix", ("Q4_K_M", "IQ4_NL"), "--task", "retrieval", "--imatrix", "LICENSE"),
    ("v3", "gguf-none", ("Q8_0",), "--task", "none"), ("v3", "mlx-none", ("8bit",), "--task", "none"),
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One way to load a model."""

    place: str  # below the model's folder
    words: tuple[str, ...]  # the converter's that make it; none: it does not
    options: Options  # of `load`
    tasks: tuple[str, ...]  # none: a reranker


def forms(kind: str) -> Iterator[Form]:
    """What there is of a model. Nothing is made of v3's second layout, which is read as it is."""
    tasks, mlx, llama = TASKS.get(kind, ()), {"backend": "mlx"}, {"backend": "llama"}
    if kind == "pico":
        yield from (Form("bundled", (), engine, tasks) for engine in (mlx, llama))
        return
    yield Form("published", (), mlx, tasks)
    yield from (Form("published", (), {**mlx, "task": task}, tasks) for task in tasks[:1])  # merged at load
    if kind == "nano":
        yield Form("gguf-alone/v5-nano-clustering-Q8_0.gguf", (), llama, ("clustering",))
    if kind != "v3-native":
        yield Form("gguf-alone", (), llama, tasks)
        yield from (Form("merged", ("merge", "--task", "all"), mlx, tasks) for _ in tasks[:1])
    for kinds, name, labels, *words in MADE:
        own, more = (words[1],) if "--task" in words else tasks, words or (["--task", "all"] if tasks else [])
        for label in labels if kind in kinds.split() else ():
            if name.startswith("gguf"):  # all types in one folder
                run = ("gguf", *more, *(word for each in labels for word in ("--type", each)))
                yield Form(name, run, {**llama, "weights": label}, own)
            else:
                run = ("mlx", *more, "--bits", label.removesuffix("bit"))
                yield Form(f"{name}-{label}", run, {**mlx, "weights": label}, own)


def make(folder: Path, kinds: Sequence[str] = KINDS) -> dict[str, str]:
    """Write everything into a new folder: path -> digest of all bytes of the file, which hold no dates."""
    from tests import tiny

    folder.mkdir(parents=True)
    for kind in sorted({*kinds} - {"pico"}):
        tiny.write(folder / kind / "published", kind)
    made = {folder / kind / form.place: form.words for kind in kinds for form in forms(kind) if form.words}
    runs = [["convert", run, str(out.parent / "published"), str(out), *more] for out, (run, *more) in made.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        root = Path(__file__).parents[2]
        list(pool.map(lambda run: subprocess.run([sys.executable, "-m", *run], cwd=root, check=True), runs))
    for path in folder.glob("*/gguf"):  # as Jina publishes them: no manifest, no tokenizer.json
        others = shutil.ignore_patterns("*.json", "*F*.gguf", "*K*.gguf", "*Q4_0.gguf")
        shutil.copytree(path, path.with_name("gguf-alone"), ignore=others)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): _short(path.read_bytes()) for path in files}


def show(folder: Path, kinds: Sequence[str] = KINDS) -> dict[str, str]:
    """Run every case of every form: key -> digest, or the name of the error that refuses it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "empty")}  # no tokenizer from this machine's cache
    loads = [(folder, kind, form) for kind in kinds for form in forms(kind)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return dict(item for found in pool.map(_run, *zip(*loads, strict=True)) for item in found.items())


def _run(folder: Path, kind: str, form: Form) -> dict[str, str]:
    import jina_local

    logging.getLogger("jina_local").setLevel(logging.ERROR)
    name, found = "/".join([kind, form.place, *form.options.values()]), {}
    with jina_local.load(kind if kind == "pico" else folder / kind / form.place, threads=1, **form.options) as model:
        for case, call, inputs, words in _cases(kind, form, model):
            try:
                found[f"{name}/{case}"] = _of_answer(call(*inputs, **words, show_progress=False))
            except jina_local.JinaError as error:
                found[f"{name}/{case}"] = f"refused: {type(error).__name__}"
    print(f"{name}: {len(found)} cases", file=sys.stderr, flush=True)
    return found


def _cases(kind: str, form: Form, model: Any) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...], Options]]:
    """Name, method, inputs and options of every case."""
    alone = {"deterministic": True}
    if kind in RERANK:
        for name, options in {"plain": {}, "deterministic": alone, **RERANK[kind]}.items():
            yield name, model.rerank, (TEXTS[0], TEXTS[1:]), options
        yield "long", model.rerank, (TEXTS[0], [*TEXTS, LONG[:3000]]), alone
        return
    for task in form.tasks:
        yield task, model.encode, (TEXTS,), {"task": task}
        yield f"{task}, deterministic", model.encode, (TEXTS,), {"task": task, **alone}
        yield f"{task}, one str", model.encode, (TEXTS[0],), {"task": task}
    for task, prompt in V3_PROMPTS if form.tasks == V3_TASKS else product(form.tasks, ("query", "document")):
        yield f"{task} as {prompt}", model.encode, (TEXTS[:4],), {"task": task, "prompt_name": prompt}
    for name, options in ENCODE.items():
        yield name, model.encode, (TEXTS[:4],), {"task": form.tasks[0], **options}
    yield "long", model.encode, (LONG,), {"task": form.tasks[0]}
    for name, options in CHUNKS.items() if form.tasks == V3_TASKS else ():
        yield name, model.encode_chunks, (LONG, SPANS), options


def _of_answer(answer: Any) -> str:
    """Of vectors, or of documents in the order of their scores."""
    if isinstance(answer, np.ndarray):
        return _short(f"{answer.dtype} {answer.shape}".encode() + answer.tobytes())
    told = (part for one in answer for part in (one.index, one.score, one.embedding) if part is not None)
    return _short(b"".join(np.asarray(part).tobytes() for part in told))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def compare(one: Path, other: Path) -> int:
    """Print the keys that differ, then how many are equal; 1 where any differ."""
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (one, other))
    apart = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    lines = [f"{key}: {a.get(key, 'missing')}, {b.get(key, 'missing')}" for key in apart]
    print(*lines, f"{len({**a, **b}) - len(apart)} equal, {len(apart)} differ", sep="\n")
    return 1 if apart else 0


def main() -> None:
    """Make, show or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("make", "show", "compare"))
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a folder; of compare, two files")
    parser.add_argument("--only", action="append", choices=KINDS, help="a model; may be given more than once")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.paths]
    if len(paths) != (2 if args.command == "compare" else 1):
        parser.error("make and show take one folder, compare takes two files.")
    if args.command == "compare":
        if missing := [str(path) for path in paths if not path.is_file()]:
            parser.error(f"{', '.join(missing)}: no such file. `show` prints what is compared.")
        return compare(*paths)
    kinds = args.only or KINDS
    if args.command == "make" and paths[0].exists():
        parser.error(f"{paths[0]} exists. Give a new folder.")
    if args.command == "show":
        for kind in {*kinds} - {"pico"}:
            if not (paths[0] / kind).is_dir():
                parser.error(f"{paths[0]} has no folder {kind}. `make` writes it.")
    print(json.dumps((make if args.command == "make" else show)(paths[0], kinds), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
