"""Published checkpoint -> one plain merged checkpoint a task, for loaders that take no adapters and no remote code.

What is written: the config of a class of transformers' own (Qwen3Model, EuroBertModel, JinaEmbeddingsV3Model),
model.safetensors, the tokenizer, and the folders that sentence-transformers reads (pooling, normalisation, prompts).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local.errors import UsageError
from jina_local.formats import safetensors
from jina_local.spec import ModelSpec
from jina_local.weights import architecture
from jina_local.weights.checkpoint import Checkpoint

from . import source
from .task_folders import Form, Progress, write_folders

# Pooling, as ModelSpec has it -> sentence-transformers' mode.
_POOLING = {"last": "lasttoken", "mean": "mean_tokens"}
_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
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
        if model.scoring:
            raise UsageError(
                f"{model.name} has no adapters to merge: its published checkpoint is what merge would write. "
                "Convert it for an engine with `mlx` or `gguf`."
            )
        prefix = "roberta." if checkpoint.arch.xlm_roberta else ""
        shapes = architecture.tensors(checkpoint.arch)
        form = Form(
            name="checkpoint",
            label=kept,
            layout={f"{prefix}{name}": (kept, shape) for name, shape in shapes.items()},
            metadata={"format": "pt"},
            tensors=lambda task: _tensors(checkpoint, task, kept, prefix, progress),
            configs=lambda target, task: _write_configs(checkpoint, model, task, target, kept),
        )
        chosen = source.choose_tasks(checkpoint, tasks)
        write_folders(checkpoint, out, chosen, form, force=force, source_name=source_name, revision=revision)


def _tensors(
    checkpoint: Checkpoint, task: str, dtype: str, prefix: str, progress: Progress | None
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    total = len(architecture.tensors(checkpoint.arch))
    for done, (name, weight) in enumerate(checkpoint.merged(source.adapter_of(checkpoint, task)), 1):
        if dtype == "BF16":
            yield f"{prefix}{name}", safetensors.to_bf16(weight)
        elif dtype == "F16":
            yield f"{prefix}{name}", safetensors.to_f16(weight, name)
        else:
            yield f"{prefix}{name}", weight
        if progress:
            progress(f"merge {task}", done, total)


def _write_configs(checkpoint: Checkpoint, model: ModelSpec, task: str, target: Path, dtype: str) -> None:
    arch = checkpoint.arch
    _json(target / "config.json", source.plain_config(checkpoint, DTYPES[dtype]))
    prompts, default = _prompts(model, task)
    _json(
        target / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": default, "similarity_fn_name": "cosine"},
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
    pooling = {f"pooling_mode_{mode}": mode == _POOLING[model.pooling] for mode in _MODES}
    pooling["include_prompt"] = True
    _json(target / "1_Pooling" / "config.json", {"word_embedding_dimension": arch.hidden, **pooling})
    _json(target / "2_Normalize" / "config.json", {})
    for name in source.TOKENIZER_FILES:
        if (checkpoint.folder / name).exists():
            shutil.copyfile(checkpoint.folder / name, target / name)


def _prompts(model: ModelSpec, task: str) -> tuple[dict[str, str], str]:
    """The prompts that go with the weights of one task, and the name of the default one."""
    if model.default_prompt is not None:
        return dict(model.prompts), model.default_prompt
    # Its own alone, the others belong to other adapters. Also under the names that encode_query and encode_document
    # look for: they take an empty prompt where theirs is missing, not the default one.
    other = [name for words in model.task_words.values() for name, to in words.items() if name and to == task]
    return dict.fromkeys([task, *other], model.prompts[task]), task


def _json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
