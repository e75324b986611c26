"""Published checkpoint -> one plain merged checkpoint a task, for loaders that take no adapters and no remote code.

What is written: the model class's own config (Qwen3Model, EuroBertModel), model.safetensors, the tokenizer, and
the folders that sentence-transformers reads (last-token pooling, normalisation, prompts, `document` the default).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local import architecture
from jina_local.checkpoint import Checkpoint
from jina_local.errors import UsageError
from jina_local.formats import safetensors
from jina_local.spec import ModelSpec

from . import source
from .task_folders import Form, Progress, write_folders

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def merge(
    folder: Path,
    out: Path,
    *,
    tasks: Sequence[str],
    dtype: str | None = None,
    force: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write `out` (one task) or `out`/<task> (several): W + (alpha / r) B A in float32, cast once.

    `dtype`: "F32", "F16", "BF16"; None keeps the source's. Peak memory: about twice the largest tensor in
    float32 (the token table), whatever the size of the model. Raises UsageError, ModelDamaged, OutputError.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}. Possible: {', '.join(DTYPES)}.")
    with Checkpoint(folder) as checkpoint:
        kept = dtype or checkpoint.dtype
        model = source.row_of(checkpoint).spec
        form = Form(
            name="checkpoint",
            label=kept,
            layout={name: (kept, shape) for name, shape in architecture.tensors(checkpoint.arch).items()},
            metadata={"format": "pt"},
            tensors=lambda task: _tensors(checkpoint, task, kept, progress),
            configs=lambda target: _write_configs(checkpoint, model, target, kept),
        )
        chosen = source.choose_tasks(checkpoint, tasks)
        write_folders(checkpoint, out, chosen, form, force=force, source_name=source_name, revision=revision)


def _tensors(
    checkpoint: Checkpoint, task: str, dtype: str, progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    total = len(architecture.tensors(checkpoint.arch))
    for done, (name, weight) in enumerate(checkpoint.merged(source.adapter_of(checkpoint, task)), 1):
        if dtype == "BF16":
            yield name, safetensors.to_bf16(weight)
        elif dtype == "F16":
            yield name, safetensors.to_f16(weight, name)
        else:
            yield name, weight
        if progress:
            progress(f"merge {task}", done, total)


def _write_configs(checkpoint: Checkpoint, model: ModelSpec, target: Path, dtype: str) -> None:
    arch = checkpoint.arch
    _json(target / "config.json", source.plain_config(checkpoint, DTYPES[dtype]))
    _json(
        target / "config_sentence_transformers.json",
        {
            "prompts": dict(model.prompts),
            "default_prompt_name": model.default_prompt,
            "similarity_fn_name": "cosine",
        },
    )
    longest = min(model.max_tokens, arch.max_positions)
    _json(target / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    _json(target / "modules.json", modules)
    (target / "1_Pooling").mkdir(exist_ok=True)
    (target / "2_Normalize").mkdir(exist_ok=True)
    pooling = {f"pooling_mode_{m}": False for m in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
    pooling |= {"pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True}
    _json(target / "1_Pooling" / "config.json", {"word_embedding_dimension": arch.hidden, **pooling})
    _json(target / "2_Normalize" / "config.json", {})
    for name in source.TOKENIZER_FILES:
        if (checkpoint.folder / name).exists():
            shutil.copyfile(checkpoint.folder / name, target / name)


def _json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
