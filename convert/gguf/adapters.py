"""One task's adapter of a published checkpoint -> a small GGUF that llama.cpp runs beside the base.

jina_local/weights/adapters/gguf_file.py describes the format, and checks the file that is written here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jina_local.errors import ModelDamaged, OutputError
from jina_local.formats import gguf as format_
from jina_local.formats.safetensors import to_f16
from jina_local.registry import Published
from jina_local.spec import ModelSpec
from jina_local.weights import architecture, tensor_names
from jina_local.weights.adapters import gguf_file
from jina_local.weights.adapters.gguf_file import BASE_KEY, NAME_KEY, TASK_KEY, Base
from jina_local.weights.checkpoint import Checkpoint

_TAGS = ["feature-extraction", "sentence-similarity", "embeddings"]
_FILE_TYPES = {label: number for number, label in format_.FILE_TYPES.items()}


def write(
    path: Path,
    checkpoint: Checkpoint,
    row: Published,
    model: ModelSpec,
    task: str,
    base: str,
    *,
    revision: str | None,
    wide: bool,
) -> None:
    """Write the adapter of `task`, in F32 where `wide`, else in F16; the file is checked as the runtime checks it.

    `base`: source.base_digest. Raises ModelDamaged where a value does not fit F16, OutputError on a full disk.
    """
    import gguf

    renamed = tensor_names.gguf_names(checkpoint.arch)
    writer = gguf.GGUFWriter(path, checkpoint.arch.kind)
    try:
        with checkpoint.adapter(task) as adapter:
            count = 0
            for name in architecture.projections(checkpoint.arch):
                for letter, factor in zip("ab", adapter.factors(name) or (), strict=False):
                    count += factor.size
                    where = f"{adapter.where}: the factor {letter.upper()} of {name}"
                    stored = np.ascontiguousarray(factor if wide else to_f16(factor, where))
                    writer.add_tensor(f"{renamed[name]}.lora_{letter}", stored)
            add_identity(writer, row, model, task, revision, kind="adapter", count=count)
            writer.add_file_type(_FILE_TYPES["F32" if wide else "F16"])
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", adapter.alpha)
        writer.add_string(NAME_KEY, task)
        writer.add_string("adapter.lora.prompt_prefix", model.prompts[model.default_prompt or task])
        add_own(writer, model, task)
        writer.add_string(BASE_KEY, base)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    try:
        header = format_.read_header(path)
    except ModelDamaged as error:
        raise OutputError(f"{path.name}: was not written to the end; the disk is full ({error}).") from error
    gguf_file.check(header, task, Base(path, base, checkpoint.arch))


def add_identity(
    writer: Any, row: Published, model: ModelSpec, task: str | None, revision: str | None, *, kind: str, count: int
) -> None:
    """The general.* keys that a model, a base and an adapter have alike. `count`: of parameters."""
    import gguf

    ranks = model.scoring is not None
    writer.add_type(kind)
    writer.add_name(model.name if ranks else f"{model.name}-{task or 'base'}")
    writer.add_basename(model.name)
    if not ranks:
        writer.add_finetune(task or "base")
    writer.add_size_label(gguf.size_label(count, count, 0, 0))
    writer.add_license(model.license.lower().replace(" ", "-"))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, model.name)
    if row.repo:
        writer.add_base_model_organization(0, row.repo.split("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{row.repo}")
    if revision:
        writer.add_base_model_version(0, revision)
    writer.add_tags(["text-ranking", "reranker"] if ranks else _TAGS)


def add_own(writer: Any, model: ModelSpec, task: str | None) -> None:
    """What a file says in our namespace: model, task (none in a base) and prompts."""
    writer.add_string("jina_local.model", model.name)
    if task is not None:
        writer.add_string(TASK_KEY, task)
    if model.prompts:
        writer.add_string("jina_local.prompts", json.dumps(dict(model.prompts), ensure_ascii=False))
    if model.default_prompt is not None:
        writer.add_string("jina_local.default_prompt", model.default_prompt)
