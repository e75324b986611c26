"""What a bench needs beyond this repository, asked for before it starts: whoever lacks it reads why, and code 2."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from tests import tiny, tiny_v3_and_rerankers

_VOCABULARIES = {"nano": "llama3", "small": "qwen3", "reranker-v3": "qwen3", "v3": "xlm-roberta",
                 "reranker-v2": "xlm-roberta"}  # fmt: skip
_NAME = {"nano": "jina-embeddings-v5-text-nano", "small": "jina-embeddings-v5-text-small", "v3": "jina-embeddings-v3",
         "reranker-v3": "jina-reranker-v3", "reranker-v2": "jina-reranker-v2-base-multilingual"}  # fmt: skip
_TASK = {"nano": "retrieval", "small": "retrieval", "v3": "retrieval.passage"}


def packages(parser: argparse.ArgumentParser, wanted_by: str, *names: str, install: str) -> None:
    """End with code 2 if one of the packages that an option needs is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{wanted_by} needs {', '.join(missing)}, not installed here: pip install {install}")


def random_checkpoint(kind: str, work: Path, *, test_size: bool) -> Path:
    """A random checkpoint below `work`, made if it is not there: of the published size, or of test size.

    The published vocabularies are not part of this repository. A made-up vocabulary takes their place if they are not
    found beside it: the token table and all matrices keep the published size.
    """
    real = not test_size and vocabulary_file(kind).is_file()
    if not test_size and not real:
        print(
            f"{vocabulary_file(kind)} is not there: a small made-up vocabulary is used; all matrices, the token "
            "table too, have the published size.",
            file=sys.stderr,
        )
    folder = work / (kind if real else f"{kind}-{'test-size' if test_size else 'made-up-vocabulary'}")
    if not (folder / "model.safetensors").exists():
        full = {**tiny.FULL, **tiny_v3_and_rerankers.FULL}[kind]
        tasks = {"tasks": (_TASK[kind],)} if kind in tiny.SIZES else {}
        config = None if test_size else {"vocab_size": full["vocab_size"]}
        tiny.write(folder, kind, full=not test_size, real=real, config=config, **tasks)
    return folder


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The options of a random checkpoint."""
    parser.add_argument("--test-size", action="store_true", help="a tiny model, whose numbers say nothing")
    parser.add_argument("--work", type=Path, default=Path("/tmp/jina_local-bench"), help="where models are kept")


def converted(
    parser: argparse.ArgumentParser, kind: str, args: argparse.Namespace, types: list[str]
) -> tuple[Path, Path]:
    """(random checkpoint, a local store with its conversions), made if they are not there yet."""
    checkpoint = random_checkpoint(kind, args.work, test_size=args.test_size)
    store = args.work / f"{checkpoint.name}-store"
    for label in types:
        out = store / label
        if (out / "manifest.json").exists():
            continue
        if label.upper().startswith("INT"):
            from convert.onnx.folders import to_onnx

            packages(parser, "ONNX Runtime", "onnxruntime", install="-e '.[onnx]'")
            to_onnx(checkpoint, out, tasks=[task_of(kind)], bits=int(label[3:]), source_name=kind)
        else:
            packages(parser, "llama.cpp", "llama_cpp", install="-e '.[llama]'")
            packages(parser, "writing GGUF", "gguf", install="-e '.[convert]'")
            from convert.gguf.files import to_gguf

            to_gguf(checkpoint, out, tasks=[task_of(kind)], types=[label], source_name=kind)
    return checkpoint, store


def vocabulary_file(kind: str) -> Path:
    """Where the published vocabulary of a model is looked for."""
    return tiny.SHARED / "tokenizers" / _VOCABULARIES[kind] / "tokenizer.json.xz"


def name_of(kind: str) -> str:
    """The model's name, under which a local store finds its conversions."""
    return _NAME[kind]


def task_of(kind: str) -> str:
    """The task that is measured."""
    return _TASK.get(kind, "rerank")
