"""The numbers that a manifest keeps for `jina_local.self_check`: a plain forward pass over the weights just written.

The weights are read back from their file and dequantised here, by the gguf package or by the rules of mlx/quantise.py
and weights/int8.py, so that nothing of an engine is in the numbers. An adapter beside a base is added as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import self_check
from jina_local.embedding import vectors
from jina_local.embedding.request import resolve
from jina_local.formats import gguf as gguf_format
from jina_local.formats.safetensors import SafetensorsFile
from jina_local.inference import batching
from jina_local.reranking import listwise, pairwise
from jina_local.spec import NO_TASK, ModelSpec, TokenBatch
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, int4, int8, projector, tensor_names
from jina_local.weights.architecture import Architecture
from jina_local.weights.checkpoint import Checkpoint

from .. import source
from ..mlx.quantise import Quantised, dequantise
from . import cases, reference, reference_xlm_roberta

Floats = NDArray[np.float32]
Read = Callable[[str], Floats]  # the name of a checkpoint's tensor -> its weights
_DIGITS = 6  # after the point: the components of a unit vector are about 0.03


def of_files(
    files: Mapping[Path, tuple[str | None, str | None]],
    checkpoint: Checkpoint,
    model: ModelSpec,
    tokenizer: Tokenizer,
) -> dict[str, dict[str, list[list[float]]]]:
    """Task -> weights -> numbers, of files as `write_manifest` has them: path -> (task, label).

    `model`: as the files serve it. Of an adapter beside a base (no label) the numbers are those of every base here.
    Peak memory: the token table and one layer, in float32.
    """
    found: dict[str, dict[str, list[list[float]]]] = {}
    beside = [str(task) for task, label in files.values() if label is None]
    for path, (own, label) in files.items():
        if label is None:
            continue
        with _opened(path, checkpoint.arch) as weights:
            for task in [own] if own is not None else [*beside, *([NO_TASK] if NO_TASK in model.tasks else [])]:
                numbers = _of(checkpoint, model, task, tokenizer, weights, beside=own is None)
                found.setdefault(task, {})[label] = [[round(float(x), _DIGITS) for x in row] for row in numbers]
    return found


def _of(
    checkpoint: Checkpoint, model: ModelSpec, task: str, tokenizer: Tokenizer, read: Read, *, beside: bool
) -> Floats:
    arch = checkpoint.arch
    passes = _passes(model, task, tokenizer)
    if not beside or task == NO_TASK:
        return _numbers(checkpoint, model, passes, _Weights(arch, read))
    with checkpoint.adapter(task) as adapter:
        return _numbers(checkpoint, model, passes, _Weights(arch, lambda name: adapter.add_to(name, read(name))))


def _passes(model: ModelSpec, task: str, tokenizer: Tokenizer) -> list[TokenBatch]:
    if model.scoring == "listwise":
        return [listwise.Prompter(tokenizer).batch(self_check.QUERY, self_check.TEXTS)]
    if model.scoring == "pairwise":
        pairs = pairwise.truncated(tokenizer, self_check.QUERY, self_check.TEXTS, max_length=model.max_tokens)
        return [pairs.batch([n]) for n in range(len(self_check.TEXTS))]
    spec = resolve(model, task=task)
    encoded = tokenizer.encode(self_check.TEXTS, spec)
    return [batching.pack(encoded, [n], spec.pooling) for n in range(len(self_check.TEXTS))]


def _numbers(
    checkpoint: Checkpoint, model: ModelSpec, passes: Sequence[TokenBatch], weights: Mapping[str, Floats]
) -> Floats:
    arch = checkpoint.arch
    states = reference.all_hidden_states(arch, weights, [batch.ids for batch in passes])
    if arch.labels:
        return np.stack([reference_xlm_roberta.classify(weights, x[0]) for x in states])
    rows = [x[batch.rows] for x, batch in zip(states, passes, strict=True)]
    if model.scoring == "listwise":
        project = projector.read(source.projector_file(checkpoint), arch.hidden)
        *documents, query = cases.unit(project(rows[0]))
        return np.array([[document @ query] for document in documents], np.float32)
    pooled = [vectors.pool(x, np.zeros(len(x), np.int32), 1, model.pooling) for x in rows]
    return cases.unit(np.concatenate(pooled))[:, : self_check.NUMBERS]


class _Weights(Mapping[str, Floats]):
    """Every tensor of an architecture, read at each use, so that one layer is in memory at a time."""

    def __init__(self, arch: Architecture, read: Read) -> None:
        self._names, self._read = architecture.tensors(arch), read

    def __getitem__(self, name: str) -> Floats:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def _opened(path: Path, arch: Architecture) -> Iterator[Read]:
    """The weights of one file, dequantised."""
    if path.suffix == ".gguf":
        yield _of_gguf(path, arch)
        return
    with SafetensorsFile(path) as file:
        stored = {name.removeprefix("model.").removeprefix("roberta."): name for name in file.tensors}
        yield lambda name: _of_safetensors(file, stored[name], architecture.tensors(arch)[name])


def _of_safetensors(file: SafetensorsFile, name: str, shape: Sequence[int]) -> Floats:
    if file.tensors[name].dtype == "U8":
        return int4.widened(file.read(name), file.read_f32(int8.scales_of(name)))
    if file.tensors[name].dtype == "I8":
        low = file.read(int8.low_of(name)) if int8.low_of(name) in file.tensors else None
        return int8.widened(file.read(name), file.read_f32(int8.scales_of(name)), low)
    if file.tensors[name].dtype != "U32":
        return file.read_f32(name)
    stem = name.removesuffix("weight")
    parts = (file.read(name), file.read(f"{stem}scales"), file.read(f"{stem}biases"))
    matrix = Quantised(*parts)  # type: ignore[arg-type]  # of the types that the layout says
    return dequantise(matrix, 32 * matrix.codes.shape[1] // shape[1], shape[1] // matrix.scales.shape[1])


def _of_gguf(path: Path, arch: Architecture) -> Read:
    import gguf

    renamed, shapes = tensor_names.gguf_names(arch), architecture.tensors(arch)
    header = gguf_format.read_header(path)

    def read(name: str) -> Floats:
        place = header.tensors[renamed[name]]
        raw = np.fromfile(path, np.uint8, place.nbytes, offset=place.start)
        kind = gguf.GGMLQuantizationType[place.type]
        data = gguf.quants.dequantize(raw.reshape(place.shape[0], -1) if len(place.shape) > 1 else raw, kind)
        wide = np.asarray(data, np.float32).reshape(-1, *shapes[name][1:])
        # Of learned positions the file leaves the first rows out, which no token of these texts has.
        return np.concatenate([np.zeros((shapes[name][0] - len(wide), *wide.shape[1:]), np.float32), wide])

    return read
