"""Published checkpoint -> one GGUF for each task and type, under the names that Jina publishes them by.

Or, separate, one base of each type and one adapter for each task, see gguf_adapters.
The merged float32 tensors of a task are streamed into one F32 file; llama.cpp makes the other types from it.
The keys say everything that stock llama.cpp needs to give our vectors; `jina_local.*` is our own namespace.
"""

from __future__ import annotations

import difflib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jina_local import registry
from jina_local.errors import EngineMissing, ModelDamaged, OutputError, UsageError
from jina_local.formats import gguf as format_
from jina_local.formats.files import read_json
from jina_local.registry import Published
from jina_local.spec import ModelSpec
from jina_local.text.gguf_vocabulary import tokenizer_json
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, gguf_keys, projector, tensor_names
from jina_local.weights.adapters.gguf_file import BASE_KEY
from jina_local.weights.architecture import POSITION_OFFSET
from jina_local.weights.checkpoint import Checkpoint
from jina_local.weights.gguf_keys import Model

from .. import source
from ..publish import staging, write_manifest
from ..verify import probes
from . import adapters, engine, vocabulary
from . import imatrix as importance_of
from .vocabulary import Vocabulary

Progress = Callable[[str, int, int], None]
FILE_TYPES = {label: number for number, label in format_.FILE_TYPES.items()}
# Without an importance matrix llama.cpp refuses these, or (IQ3_S, IQ3_M) makes poor files of them.
NEEDS_IMATRIX = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "Q2_K_S",
)  # fmt: skip
# Bits a weight of the linear layers, rounded up: llama.cpp mixes types within a file. For the estimate of space.
_BITS = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.6, "Q5": 6.1, "Q4": 5.2, "IQ4": 4.8, "Q3": 4.4}
_TABLE_BITS = 6.6  # the token table is Q6_K in every smaller type
_POSITIONS = "position_embd.weight"
_WHOLE = (r"^cls\.",)  # the classifier is small, and all of a score passes through it
_LARGEST_F16 = 65504.0
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
# How a gguf.GGUFWriter adds a value of each type.
_ADD: dict[str, Callable[[Any, str, Any], None]] = {
    gguf_keys.WHOLE: lambda writer, key, value: writer.add_uint32(key, value),
    gguf_keys.NUMBER: lambda writer, key, value: writer.add_float32(key, value),
    gguf_keys.SWITCH: lambda writer, key, value: writer.add_bool(key, value),
    gguf_keys.TEXT: lambda writer, key, value: writer.add_string(key, value),
    gguf_keys.TEXTS: lambda writer, key, value: writer.add_array(key, value),
}


@dataclass(frozen=True)
class _Job:
    """What stays the same for all files of one run."""

    checkpoint: Checkpoint
    row: Published
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    types: list[str]
    texts: list[str] | None  # for the importance matrix
    threads: int
    revision: str | None
    progress: Progress
    base: str  # the base's digest where adapters stay separate, else ""
    prompted: str  # the task whose default prompt the importance matrix of a base is made with


def to_gguf(
    folder: Path,
    out: Path,
    *,
    tasks: Sequence[str],
    types: Sequence[str],
    imatrix: Path | None = None,
    separate: bool = False,
    force: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> None:
    """Write `out`: a GGUF for each of `tasks` and `types` ("F16", "Q4_K_M", ...), tokenizer, config and manifest.

    Of the listwise reranker its projector too. `imatrix`: a text file, one text a line, whose importance matrix every
    type but F32, F16 and BF16 is made with. `separate`: a base of each type that has no adapter in it, and an adapter
    of each task in F16, or F32 where that is one of `types`. The importance matrix is then the base's own: what
    passes through it without any adapter for these texts, each with the default prompt.
    `progress(what, done, of)`. The same input gives the same bytes, whatever `threads` is. Peak memory beside what
    the system caches of files: about twice the largest tensor in float32 (the token table) and 0.1 GB of vocabulary,
    or 256 MiB where that is more. On disk the F32 file of one task stands there for a while.
    Raises UsageError, ModelDamaged, OutputError, Locked, EngineError, EngineMissing.
    """
    chosen = choose_types(types, imatrix is not None)
    texts = _calibration(imatrix)
    _require_engines()
    with Checkpoint(folder) as checkpoint:
        chosen_tasks = source.choose_tasks(checkpoint, tasks)
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        raw = (folder / "tokenizer.json").read_bytes()
        words = vocabulary.read(tokenizer, raw, checkpoint.arch, _config(checkpoint))
        tell = progress or (lambda what, done, of: None)
        row = source.row_of(checkpoint)
        _require_parts(checkpoint, row, separate)
        record = source.describe(checkpoint, source_name or folder.resolve().name, revision, chosen_tasks)
        base = source.base_digest(checkpoint, record) if separate else ""
        job = _Job(
            checkpoint, row, tokenizer, words, chosen, texts, _threads(threads), revision, tell, base, chosen_tasks[0]
        )
        with staging(out, force=force, needs=_needs(job, chosen_tasks)) as temp:
            weights = _write_all(job, chosen_tasks, temp)
            for name in ("tokenizer.json", "config.json"):
                shutil.copyfile(folder / name, temp / name)
            source.write_projector(checkpoint, temp)
            files = {temp / name: entry for name, entry in weights.items()}
            served = source.narrowed(
                checkpoint, registry.tasks_served(row, chosen_tasks) if separate else chosen_tasks
            )
            write_manifest(
                temp,
                form="gguf",
                model=row.spec.name,
                source=record,
                tokenizer=words.fingerprint,
                weights=weights,
                probes=probes.of_files(files, checkpoint, served, tokenizer),
            )


def _require_engines() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise EngineMissing("writing GGUF needs the gguf package: pip install 'jina_local[convert]'.") from error
    engine.engine()


def choose_types(types: Sequence[str], with_imatrix: bool) -> list[str]:
    """The canonical names, in the order of the request, each once. Raises UsageError."""
    chosen = list(dict.fromkeys(name.upper() for name in types))
    if not chosen:
        raise UsageError(f"no type given. Possible: {', '.join(FILE_TYPES)}.")
    for name in chosen:
        if name not in FILE_TYPES:
            near = difflib.get_close_matches(name, FILE_TYPES, 1)
            hint = f", did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"unknown type {name!r}{hint} Possible: {', '.join(FILE_TYPES)}.")
        if name in NEEDS_IMATRIX and not with_imatrix:
            raise UsageError(
                f"type {name} needs an importance matrix: give --imatrix TEXTS, a text file with one text a line. "
                f"Without one: {', '.join(t for t in FILE_TYPES if t not in NEEDS_IMATRIX)}."
            )
    return chosen


def _require_parts(checkpoint: Checkpoint, row: Published, separate: bool) -> None:
    """Raise ModelDamaged where a projector is missing, UsageError where no adapters can stay separate."""
    if row.spec.scoring == "listwise":
        projector.read(source.projector_file(checkpoint), checkpoint.arch.hidden)
    if not separate:
        return
    if row.spec.scoring:
        raise UsageError(f"{row.spec.name} has no adapters to keep beside a base. Leave --adapters separate out.")
    if checkpoint.arch.kind == "jina-bert-v3":
        raise UsageError(
            f"--adapters separate is not for {row.spec.name} in GGUF: its adapters change the token types too, and "
            "llama.cpp leaves that part out without a word. Leave it out, and each task is merged; or keep adapters "
            "separate with `python -m convert mlx`."
        )
    if not checkpoint.tasks:
        raise UsageError(
            f"{checkpoint.folder}: its adapter is merged already, so that none can stay separate. Convert from the "
            "published base checkpoint, which has adapters/."
        )


def _write_all(job: _Job, tasks: Sequence[str], folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Write every model and adapter into `folder`: file name -> what the manifest has as its task and weights."""
    written: dict[str, tuple[str | None, str | None]] = {}
    for task in [None] if job.base else tasks:
        written |= {name: (task, label) for label, name in _write_model(job, task, folder).items()}
    for task in tasks if job.base else []:
        written[_write_adapter(job, task, folder)] = (task, None)
    return written


def _write_model(job: _Job, task: str | None, folder: Path) -> dict[str, str]:
    """Write all types of one task, or of the base, into `folder`: label -> file name."""
    called = task or "base"
    files = {label: job.row.gguf_file.format(task=called, type=label) for label in job.types}
    full = folder / job.row.gguf_file.format(task=called, type="F32")
    model = source.narrowed(job.checkpoint, [task or job.prompted])
    _write_f32(job, model, task, full)
    _check_tokenizer(_verify(full, "F32", job), job)
    importance: dict[str, NDArray[np.float32]] | None = None
    notes: dict[str, str | int] = {}
    if job.texts is not None and any(label not in ("F32", "F16", "BF16") for label in job.types):
        ids = importance_of.encode(job.texts, job.tokenizer, model, task or job.prompted)
        importance = importance_of.collect(
            full, ids, threads=job.threads, progress=lambda n: job.progress(f"importance {called}", n, len(ids))
        )
        notes = {
            "quantize.imatrix.dataset": importance_of.digest(job.texts),
            "quantize.imatrix.entries_count": len(importance),
            "quantize.imatrix.chunks_count": len(ids),
        }
    for label, name in files.items():
        if label == "F32":
            continue
        plain = label in ("F16", "BF16")
        engine.quantize(
            full,
            folder / name,
            FILE_TYPES[label],
            threads=job.threads,
            imatrix=None if plain else importance,
            notes=None if plain else notes,
            whole=_WHOLE,
            progress=lambda done, of, label=label: job.progress(f"{called} {label}", done, of),  # type: ignore[misc]
        )
        _verify(folder / name, label, job)
    if "F32" not in files:
        full.unlink()
    return files


def _write_f32(job: _Job, model: ModelSpec, task: str | None, path: Path) -> None:
    """Every tensor of the merged model, or of the base, in float32, one in memory at a time."""
    import gguf

    arch = job.checkpoint.arch
    shapes, renamed = tensor_names.gguf_shapes(arch), tensor_names.gguf_names(arch)
    writer = gguf.GGUFWriter(path, arch.kind)
    try:
        add_keys(writer, job.checkpoint, job.row, model, task, job.revision)
        if task is None:
            writer.add_string(BASE_KEY, job.base)
        if arch.kind == "bert":
            table = job.checkpoint.tensor("embeddings.position_embeddings.weight")
            writer.add_array(tensor_names.PADDING_POSITION_KEY, table[POSITION_OFFSET - 1].tolist())
        job.vocabulary.write(writer)
        for name, shape in shapes.items():
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        merged = job.checkpoint.merged(None if task is None else source.adapter_of(job.checkpoint, task))
        for done, (name, data) in enumerate(merged, 1):
            _check_range(name, data, task, job)
            stored = data[POSITION_OFFSET:] if renamed[name] == _POSITIONS else data
            writer.write_tensor_data(np.ascontiguousarray(stored))
            job.progress(f"{task or 'base'} F32", done, len(shapes))
        writer.flush()
    finally:
        writer.close()


def _write_adapter(job: _Job, task: str, folder: Path) -> str:
    """Write the adapter of one task; the file's name."""
    path = folder / job.row.gguf_file.format(task=task, type="adapter")
    model = source.narrowed(job.checkpoint, [task])
    wide = "F32" in job.types
    adapters.write(path, job.checkpoint, job.row, model, task, job.base, revision=job.revision, wide=wide)
    job.progress(f"{task} adapter", 1, 1)
    return path.name


def _check_range(name: str, data: NDArray[np.float32], task: str | None, job: _Job) -> None:
    largest = float(max(data.max(), -data.min()))
    if not math.isfinite(largest):
        raise ModelDamaged(f"{job.checkpoint.folder}: {name} overflows when the adapter {task!r} is added.")
    if "F16" in job.types and data.ndim > 1 and largest > _LARGEST_F16:
        raise UsageError(f"type F16 cannot hold {name}: it has values up to {largest:g}. Take BF16, or F32.")


def add_keys(
    writer: Any, checkpoint: Checkpoint, row: Published, model: ModelSpec, task: str | None, revision: str | None
) -> None:
    """All keys but the tokenizer's into a gguf.GGUFWriter. `task` None: a base without its digest."""
    count = sum(math.prod(shape) for shape in tensor_names.gguf_shapes(checkpoint.arch).values())
    adapters.add_identity(writer, row, model, task, revision, kind="model", count=count)
    writer.add_file_type(0)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    for key, form, value in gguf_keys.written(_model(checkpoint, model)):
        _ADD[form](writer, key, value)
    adapters.add_own(writer, model, task)
    if not model.scoring:
        writer.add_array("jina_local.matryoshka_dims", list(model.dims))


def _model(checkpoint: Checkpoint, model: ModelSpec) -> Model:
    """What the keys are made from, and held against afterwards."""
    arch = checkpoint.arch
    # Of learned positions llama.cpp takes the context length for the number of rows.
    return Model(arch, model.pooling, arch.max_positions if arch.kind == "bert" else model.max_tokens)


def _verify(path: Path, label: str, job: _Job) -> format_.Header:
    """The header as the runtime reads it: complete, of the right type, every tensor in its shape, no key unknown.

    llama.cpp does not notice every failed write; a file that ends early is found here. Raises OutputError, and
    ModelDamaged if a key is none of those that files of this model have.
    """
    try:
        header = format_.read_header(path)
    except ModelDamaged as error:
        raise OutputError(
            f"{path.name}: was not written to the end; the disk is full, or a quota is met ({error})."
        ) from error
    expected = {name: format_.plain(shape) for name, shape in tensor_names.gguf_shapes(job.checkpoint.arch).items()}
    if header.weights != label or {n: format_.plain(t.shape) for n, t in header.tensors.items()} != expected:
        raise OutputError(f"{path.name}: llama.cpp wrote {header.weights} with other tensors than it was given.")
    gguf_keys.check_types(header.keys, path.name)
    model = source.narrowed(job.checkpoint, [job.prompted])
    gguf_keys.check(header.keys, _model(job.checkpoint, model), path.name)
    gguf_keys.check_order(list(header.tensors), job.checkpoint.arch, path.name)
    return header


def _check_tokenizer(header: format_.Header, job: _Job) -> None:
    """The vocabulary alone has to give the ids of the tokenizer.json that it came from."""
    rebuilt = Tokenizer(tokenizer_json(header), header.path.name)
    if rebuilt.fingerprint() != job.vocabulary.fingerprint:
        raise ModelDamaged(
            f"{job.tokenizer.where}: GGUF cannot hold this tokenizer; from its vocabulary alone other ids come out."
        )


def _needs(job: _Job, tasks: Sequence[str]) -> int:
    """Bytes on disk at the fullest moment, rounded up."""
    checkpoint, types = job.checkpoint, job.types
    shapes = architecture.tensors(checkpoint.arch)
    table = math.prod(shapes[checkpoint.arch.table])
    rest = sum(map(math.prod, shapes.values())) - table
    vocabulary_bytes = 4 * (checkpoint.folder / "tokenizer.json").stat().st_size

    def size(label: str) -> float:
        bits = next((b for prefix, b in _BITS.items() if label.startswith(prefix)), _BITS["Q3"])
        return (rest * bits + table * max(bits, _TABLE_BITS)) / 8 + vocabulary_bytes

    models = 1 if job.base else len(tasks)
    files = [checkpoint.folder / "adapters" / task / "adapter_model.safetensors" for task in tasks if job.base]
    adapters = sum(2 * file.stat().st_size for file in files)  # from 16 bits to 32, at the most
    return int(models * sum(map(size, types)) + (0 if "F32" in types else size("F32")) + adapters)


def _config(checkpoint: Checkpoint) -> dict[str, object]:
    """config.json, and the tokens that only tokenizer_config.json names: v5-text-small's padding, XLM-R's mask."""
    config = dict(checkpoint.config)
    path = checkpoint.folder / "tokenizer_config.json"
    for name in ("pad_token", *(["mask_token"] if checkpoint.arch.xlm_roberta else [])):
        token = read_json(path).get(name) if path.exists() else None
        config[name] = token.get("content") if isinstance(token, dict) else token
    return config


def _calibration(path: Path | None) -> list[str] | None:
    return None if path is None else importance_of.read_texts(path)


def _threads(threads: int | None) -> int:
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 512:
        raise UsageError(f"threads {threads!r} is out of range; give a whole number from 1 to 512, or leave it out.")
    return threads
