"""Small checkpoints and their conversions, made once a test run and shared by the tests that only read them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from tests import tiny, tiny_v3_and_rerankers

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="jina_local-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@functools.cache
def checkpoint(kind: str) -> Path:
    """A published checkpoint of test size with all four adapters."""
    return tiny.write(_root() / kind, kind)


@functools.cache
def gguf(kind: str) -> Path:
    """A folder of GGUF files: every task as F32, and retrieval in all of TYPES."""
    from convert.gguf.files import to_gguf

    out = _root() / f"{kind}-gguf"
    to_gguf(checkpoint(kind), out, tasks=["retrieval"], types=TYPES, source_name=kind)
    return out


@functools.cache
def gguf_all(kind: str) -> Path:
    """A folder of GGUF files of all four tasks, F32 and Q8_0."""
    from convert.gguf.files import to_gguf

    out = _root() / f"{kind}-gguf-all"
    to_gguf(checkpoint(kind), out, tasks=list(tiny.TASKS), types=["F32", "Q8_0"], source_name=kind)
    return out


@functools.cache
def gguf_separate(kind: str, *types: str) -> Path:
    """A base of each type and the adapters of all four tasks, in F32 where that is one of the types, else in F16."""
    from convert.gguf.files import to_gguf

    out = _root() / f"{kind}-separate-{'-'.join(types)}"
    to_gguf(checkpoint(kind), out, tasks=list(tiny.TASKS), types=types, separate=True, source_name=kind)
    return out


@functools.cache
def mlx(kind: str, bits: int) -> Path:
    """An MLX folder of the retrieval task."""
    from convert.mlx.folders import to_mlx

    out = _root() / f"{kind}-mlx-{bits}"
    to_mlx(checkpoint(kind), out, tasks=["retrieval"], bits=bits, source_name=kind)
    return out


@functools.cache
def onnx(kind: str, bits: int) -> Path:
    """A folder for ONNX Runtime: of the retrieval task, or of a model's only one."""
    from convert.onnx.folders import to_onnx

    out = _root() / f"{kind}-onnx-{bits}"
    task = {"v3": "text-matching", "small": "retrieval", "nano": "retrieval"}.get(kind, "rerank")
    to_onnx(checkpoint(kind), out, tasks=[task], bits=bits, source_name=kind)
    return out


@functools.cache
def published_graph(kind: str) -> Path:
    """A repository of one task as Jina publishes it, as far as its graph: onnx/model.onnx and model.onnx_data.

    The graph is our public one, without the branches that the published ones do not have.
    """
    from unittest import mock

    from convert.onnx import public_graph
    from jina_local.weights.checkpoint import Checkpoint

    source, out = onnx(kind, 32), _root() / f"jina-embeddings-v5-text-{kind}-retrieval"
    (out / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, out)
    shutil.copy(source / "model.safetensors", out / "onnx" / "model.onnx_data")
    with (
        Checkpoint(source) as checkpoint,
        mock.patch.object(public_graph._MaskedLayers, "attend", lambda m, q, k, v, last: m._whole(m.graph, q, k, v)),
    ):
        public_graph.write(out / "onnx", "model.onnx_data", checkpoint.arch, "last")
    return out


@functools.cache
def gguf_file(kind: str, label: str, task: str = "retrieval") -> Path:
    """One file of `gguf` or `gguf_all`."""
    folder = gguf(kind) if task == "retrieval" else gguf_all(kind)
    return folder / f"v5-{kind}-{task}-{label}.gguf"


@functools.cache
def reranker(kind: str, form: str | int) -> Path:
    """A reranker: "checkpoint" as published, GGUF of a type ("F32"), MLX of so many bits, or "onnx"."""
    from convert.gguf.files import to_gguf
    from convert.mlx.folders import to_mlx

    if form in ("checkpoint", "onnx"):
        return checkpoint(kind) if form == "checkpoint" else onnx(kind, 32)
    out = _root() / f"{kind}-{form}"
    if isinstance(form, int):
        to_mlx(checkpoint(kind), out, tasks=["rerank"], bits=form, source_name=kind)
    else:
        to_gguf(checkpoint(kind), out, tasks=["rerank"], types=[form], source_name=kind)
    return out


@functools.cache
def v3(kind: str, form: str | int) -> Path:
    """jina-embeddings-v3 with all tasks and "none": as published, GGUF of a type, MLX of so many bits, or "onnx"."""
    from convert.gguf.files import to_gguf
    from convert.mlx.folders import to_mlx
    from convert.onnx.folders import to_onnx

    if form == "checkpoint":
        return checkpoint(kind)
    out, tasks = _root() / f"{kind}-{form}", [*tiny_v3_and_rerankers.V3_TASKS, "none"]
    if form == "onnx":
        to_onnx(checkpoint(kind), out, tasks=tasks, bits=32, source_name=kind)
    elif isinstance(form, int):
        to_mlx(checkpoint(kind), out, tasks=tasks, bits=form, source_name=kind)
    else:
        to_gguf(checkpoint(kind), out, tasks=tasks, types=[form], source_name=kind)
    return out
