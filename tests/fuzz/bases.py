"""Whole models of test size to damage, by kind of file; and what is asked of each when it is opened."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from . import graphs, mutate

if TYPE_CHECKING:
    from jina_local import Embedder, Reranker

TEXTS = ("Document: the quick brown fox", "naïve café 日本語\n\tx = 1", "")
QUERY = "which planet is red?"


@dataclass(frozen=True)
class Base:
    """A model folder, and the file in it that is damaged."""

    name: str
    folder: Path
    subject: str
    backend: str
    task: str | None
    weights: tuple[int, int]  # bytes of the subject that hold weights, where a change gives other vectors
    fields: Callable[[Random, bytes], tuple[bytes, str]]  # the mutation that knows the file's fields
    trained: Callable[[bytes], object] | None = None  # what training chose of the rest, as weights are

    def damage(self, rng: Random, raw: bytes) -> tuple[bytes, str, bool]:
        """(the damaged file, what was done, whether weights may have changed)."""
        changed, what, weights = self._damage(rng, raw)
        return changed, what, weights or (self.trained is not None and self.trained(changed) != self.trained(raw))

    def _damage(self, rng: Random, raw: bytes) -> tuple[bytes, str, bool]:
        start, end = self.weights
        kind = rng.random()
        if kind < 0.6:
            changed, what = self.fields(rng, raw)
            return changed, what, False
        if kind < 0.9 or end <= start:
            # The header, or the whole of a text file.
            changed, what = mutate.of_bytes(rng, raw, 0, start or len(raw))
            return changed, what, False
        changed, what = mutate.of_bytes(rng, raw, start, end)
        return changed, what, True


def ask(folder: Path, backend: str, task: str | None) -> np.ndarray:
    """Open the model and run it: vectors of all texts, or scores. Raises whatever comes."""
    from jina_local import load

    with load(folder, backend=backend, task=task, threads=1, offline=True) as model:
        return put(model, task)


def put(model: Embedder | Reranker, task: str | None) -> np.ndarray:
    """What is asked of an open model: vectors of all texts, or scores."""
    from jina_local import Embedder

    if isinstance(model, Embedder):
        asked = task or (model.spec.default_task or "retrieval")
        return np.asarray(model.encode(TEXTS, task=asked, deterministic=True))
    ranking = model.rerank(QUERY, ["Mars looks red.", "Venus is hot, and far from here."], deterministic=True)
    return np.array([one.score for one in sorted(ranking, key=lambda one: one.index)])


def bases(kind: str, root: Path) -> list[Base]:
    """The models whose files of a kind are damaged, made under `root`."""
    return {
        "gguf": _ggufs, "safetensors": _safetensors, "tokenizer": _tokenizers, "config": _configs,
        "adapter": _adapters, "manifest": _manifests, "graph": _graphs, "hub": lambda root: [],
    }[kind](root)  # fmt: skip


KINDS = ("gguf", "safetensors", "tokenizer", "config", "adapter", "manifest", "graph", "hub")


def _gguf_folder(kind: str) -> Path:
    from tests import made

    if kind in ("nano", "small"):
        return made.gguf_separate(kind, "Q8_0")
    return made.v3(kind, "Q8_0") if kind == "v3" else made.reranker(kind, "Q8_0")


def _mlx_folder(kind: str) -> Path:
    from tests import made

    if kind in ("nano", "small"):
        return made.mlx(kind, 8)
    return made.v3(kind, 16) if kind == "v3" else made.reranker(kind, 16)


def _copy(source: Path, root: Path) -> Path:
    target = root / source.name
    if not target.exists():
        shutil.copytree(source, target)
    return target


def _whole(folder: Path, name: str) -> tuple[int, int]:
    size = (folder / name).stat().st_size
    return size, size


def _of(folder: Path, subject: str, backend: str, task: str | None, weights: tuple[int, int],
        fields: Callable[[Random, bytes], tuple[bytes, str]]) -> Base:  # fmt: skip
    return Base(f"{folder.name}/{subject}", folder, subject, backend, task, weights, fields)


def _ggufs(root: Path) -> list[Base]:
    out = []
    for kind in ("nano", "small", "v3", "reranker-v3", "reranker-v2"):
        folder = _copy(_gguf_folder(kind), root)
        path = next(p for p in sorted(folder.glob("*.gguf")) if "adapter" not in p.name)
        at = mutate.Gguf(path.read_bytes()).data_at
        task = {"v3": "separation", "reranker-v3": None, "reranker-v2": None}.get(kind, "retrieval")
        if kind == "v3":
            path = next(folder.glob("*separation*.gguf"))
            at = mutate.Gguf(path.read_bytes()).data_at
        out.append(_of(folder, path.name, "llama", task, (at, path.stat().st_size), mutate.of_gguf))
    return [*out, *(_foreign(root, *one) for one in (("nano", "retrieval"), ("v3", "separation"),
                                                     ("reranker-v3", None), ("reranker-v2", None)))]  # fmt: skip


def _foreign(root: Path, kind: str, task: str | None) -> Base:
    """A merged file without a manifest and without the keys by which our converter's files are known."""
    from tests import made

    source = made.gguf_file(kind, "Q8_0").parent if kind == "nano" else _gguf_folder(kind)
    path = next(source.glob("*separation*.gguf" if kind == "v3" else "*Q8_0.gguf"))
    folder = root / f"{kind}-foreign"
    if not folder.exists():
        folder.mkdir()
        for beside in source.iterdir():
            if beside.is_file() and beside.suffix != ".gguf" and beside.name != "manifest.json":
                shutil.copy(beside, folder)
        file = mutate.Gguf(path.read_bytes())
        file.keys = [key for key in file.keys if key[0] not in _OURS]
        (folder / path.name).write_bytes(file.dump())
    raw = (folder / path.name).read_bytes()
    weights = (mutate.Gguf(raw).data_at, len(raw))
    return replace(_of(folder, path.name, "llama", task, weights, mutate.of_gguf), trained=_order)


_OURS = (b"jina_local.model", b"jina_local.tokenizer_fingerprint")


def _order(raw: bytes) -> object:
    """Which data each tensor has. If nothing records it, two of one shape that were exchanged are another model."""
    try:
        return sorted((name, offset) for name, _, _, offset in mutate.Gguf(raw).tensors)
    except (struct.error, IndexError, KeyError, MemoryError, OverflowError, RecursionError):
        return None


def _safetensors(root: Path) -> list[Base]:
    from tests import made

    out = []
    for kind in ("nano", "small", "v3", "reranker-v2"):
        folder = _copy(_mlx_folder(kind), root)
        task = {"v3": "separation", "reranker-v2": None}.get(kind, "retrieval")
        path = next(p for p in sorted(folder.rglob("model.safetensors")) if (task or "") in str(p.relative_to(folder))
                    or p.parent == folder)  # fmt: skip
        out.append(_tensor_file(folder, path, task))
    for kind, task in (("small", "retrieval"), ("reranker-v2", None)):
        folder = _copy(made.onnx(kind, 8), root)
        out.append(_tensor_file(folder, folder / "model.safetensors", task, "onnx"))
    folder = _copy(made.checkpoint("nano"), root)
    published = _tensor_file(folder, folder / "model.safetensors", "retrieval")
    return [*out, replace(published, trained=_places)]


def _places(raw: bytes) -> object:
    """As `_order`, of a safetensors file."""
    try:
        (length,) = struct.unpack("<Q", raw[:8])
        return sorted((name, entry["data_offsets"]) for name, entry in json.loads(raw[8 : 8 + length]).items()
                      if name != "__metadata__")  # fmt: skip
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _tensor_file(folder: Path, path: Path, task: str | None, engine: str = "mlx") -> Base:
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    weights = (8 + length, path.stat().st_size)
    return _of(folder, path.relative_to(folder).as_posix(), engine, task, weights, mutate.of_safetensors)


_MLX = (("nano", "retrieval"), ("small", "retrieval"), ("v3", "separation"), ("reranker-v2", None))


def _named(root: Path, name: str, folders: list[tuple[Path, str, str | None]]) -> list[Base]:
    out = []
    for source, backend, task in folders:
        folder = _copy(source, root)
        for path in [p for p in sorted(folder.rglob(name)) if task is None or p.parent == folder or task in str(p)][
            :1
        ]:
            subject = path.relative_to(folder).as_posix()
            out.append(_of(folder, subject, backend, task, _whole(folder, subject), mutate.of_json))
    return out


def _tokenizers(root: Path) -> list[Base]:
    folders = [(_mlx_folder(kind), "mlx", task) for kind, task in _MLX]
    folders += [(_gguf_folder("nano"), "llama", "retrieval"), (_gguf_folder("reranker-v3"), "llama", None)]
    return _named(root, "tokenizer.json", folders)


def _configs(root: Path) -> list[Base]:
    from tests import made

    folders = [(_mlx_folder(kind), "mlx", task) for kind, task in _MLX]
    published = [(made.checkpoint(kind), "mlx", task) for kind, task in
                 (("small", "retrieval"), ("nano", "retrieval"), ("v3", "separation"), ("reranker-v2", None),
                  ("reranker-v3", None))]  # fmt: skip
    return _named(root, "config.json", [*folders, *published])


def _manifests(root: Path) -> list[Base]:
    folders = [(_mlx_folder("nano"), "mlx", "retrieval"), (_gguf_folder("nano"), "llama", "retrieval"),
               (_gguf_folder("reranker-v3"), "llama", None), (_mlx_folder("v3"), "mlx", "separation")]  # fmt: skip
    return _named(root, "manifest.json", folders)


def _adapters(root: Path) -> list[Base]:
    from convert.mlx.folders import to_mlx
    from tests import made

    folder = _copy(_gguf_folder("nano"), root)
    path = next(folder.glob("*retrieval-adapter.gguf"))
    at = mutate.Gguf(path.read_bytes()).data_at
    out = [_of(folder, path.name, "llama", "retrieval", (at, path.stat().st_size), mutate.of_gguf)]
    target = root / "nano-mlx-separate"
    if not target.exists():
        to_mlx(made.checkpoint("nano"), target, tasks=["retrieval", "clustering"], bits=16, separate=True,
               source_name="nano")  # fmt: skip
    for home in (target / "adapters" / "retrieval.safetensors",):
        (length,) = struct.unpack("<Q", home.read_bytes()[:8])
        name = home.relative_to(target).as_posix()
        out.append(_of(target, name, "mlx", "retrieval", (8 + length, home.stat().st_size), mutate.of_safetensors))
    folder = _copy(made.checkpoint("nano"), root)
    out += [replace(base, trained=_alpha) for base in _named(root, "adapter_config.json",
                                                             [(folder, "mlx", "retrieval")])]  # fmt: skip
    return out


def _graphs(root: Path) -> list[Base]:
    """Graphs as they are published. Nothing records their operators and constants, so all of a file is weights."""
    from tests import made

    folders = [_copy(made.published_graph(kind), root) for kind in ("nano", "small")]
    name = "onnx/model.onnx"
    return [replace(_of(one, name, "onnx", "retrieval", _whole(one, name), graphs.of_graph), trained=bytes)
            for one in folders]  # fmt: skip


def _alpha(raw: bytes) -> object:
    """The scale of an adapter that no record tells of: another one is another adapter."""
    try:
        return json.loads(raw)["lora_alpha"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def listing() -> bytes:
    """What the hub answers about a repository, as JSON."""
    files = [
        {"rfilename": "v5-nano-retrieval-Q8_0.gguf", "size": 100, "blobId": "0" * 40,
         "lfs": {"sha256": "0" * 64, "size": 100, "pointerSize": 134}},
        {"rfilename": "README.md", "size": 3, "blobId": "1" * 40},
    ]  # fmt: skip
    repo = "jinaai/jina-embeddings-v5-text-nano-retrieval-GGUF"
    body = {"_id": "0" * 24, "id": repo, "modelId": repo, "sha": "0" * 40, "siblings": files, "private": False,
            "gated": False, "tags": ["gguf"], "downloads": 1, "lastModified": "2026-01-01T00:00:00.000Z"}  # fmt: skip
    return json.dumps(body).encode()
