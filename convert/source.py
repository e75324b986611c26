"""SRC: a folder or a hub id -> the checkpoint folder, its files' digests, and the tasks to convert."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from jina_local import registry
from jina_local.errors import ModelNotFound, UsageError
from jina_local.formats import manifest, safetensors
from jina_local.formats.files import sha256
from jina_local.formats.manifest import Source
from jina_local.registry import Published
from jina_local.spec import NO_TASK, RERANK, ModelSpec
from jina_local.weights import projector
from jina_local.weights.architecture import Architecture
from jina_local.weights.checkpoint import Checkpoint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_PROMPTS = "config_sentence_transformers.json"

# Architecture -> (model_type, class) of transformers' own that computes it without remote code.
_CLASSES = {
    "qwen3": ("qwen3", "Qwen3Model"),
    "eurobert": ("eurobert", "EuroBertModel"),
    "jina-bert-v3": ("jina_embeddings_v3", "JinaEmbeddingsV3Model"),
    "bert": ("xlm-roberta", "XLMRobertaForSequenceClassification"),
}
_LISTWISE = "JinaForRanking"  # what tells a listwise reranker from Qwen3 itself
# Keys of the published config that mean something to its remote code only, or that are written anew.
_FOREIGN = ("auto_map", "task_names", "_name_or_path", "rope_parameters", "quantization", "quantization_config",
            "lora_adaptations", "lora_rank", "lora_alpha", "lora_dropout_p", "lora_main_params_trainable",
            "load_trained_adapters", "task_instructions", "rotary_emb_base", "position_embedding_type",
            "use_flash_attn", "use_reentrant", "emb_pooler", "matryoshka_dimensions", "truncate_dim")  # fmt: skip


def locate(wanted: str, *, revision: str | None, offline: bool | None) -> tuple[Path, str, str | None]:
    """(folder, name, commit) of a checkpoint: a folder as it is, a registry name or id through the hub cache."""
    folder = Path(wanted)
    if folder.is_dir():
        return folder, folder.resolve().name, revision
    if folder.exists() or wanted.startswith((".", "/", "~")):
        raise ModelNotFound(f"{wanted}: is not a folder. SRC is a checkpoint folder or a name, as in `models list`.")
    from jina_local.store import find

    found = find.find(wanted, backend="mlx", revision=revision, offline=offline, source=True)
    return next(iter(found.files.values())), registry.lookup(wanted).repo, found.revision


def row_of(checkpoint: Checkpoint) -> Published:
    """The registry row that a checkpoint belongs to."""
    return registry.identify(architecture=checkpoint.arch.kind, rope_theta=checkpoint.arch.rope_theta)


def narrowed(checkpoint: Checkpoint, tasks: Sequence[str]) -> ModelSpec:
    """The registry row as this checkpoint has it, for these tasks."""
    arch = checkpoint.arch
    row = row_of(checkpoint)
    return registry.narrow(row, hidden=arch.hidden, max_positions=arch.max_positions, tasks=tasks)


def choose_tasks(checkpoint: Checkpoint, wanted: Sequence[str]) -> list[str]:
    """Tasks, other words for them, or "all": every adapter. Raises UsageError.

    NO_TASK has to be named. A merged source has the one task that its manifest names; a reranker has RERANK, named
    or not.
    """
    row = row_of(checkpoint)
    if row.spec.scoring:
        if other := [task for task in wanted if task not in (RERANK, "all")]:
            raise UsageError(
                f"unknown task {other[0]!r}: {row.spec.name} ranks, and has {RERANK!r} or nothing to name."
            )
        return [RERANK]
    held = [task for task in row.spec.tasks if task in checkpoint.tasks] or merged_task(checkpoint)
    if not held:
        raise UsageError(
            f"{checkpoint.folder} has no adapters and no manifest that says which task it was merged for. "
            "Convert from the published base checkpoint."
        )
    bare = [NO_TASK] if checkpoint.tasks and NO_TASK in row.spec.tasks else []
    named = f"{', '.join([*held, *bare])}, or all{f' but {NO_TASK}' if bare else ''}"
    if not wanted:
        raise UsageError(f"no task given. {checkpoint.folder} has: {named}.")
    chosen = registry.expand_tasks(row, wanted)
    for task in chosen:
        if task not in (*held, *bare, "all"):
            raise UsageError(f"unknown task {task!r}; {checkpoint.folder} has: {named}.")
    if "all" in chosen:
        return held + [task for task in bare if task in chosen]
    return list(chosen)


def merged_task(checkpoint: Checkpoint) -> list[str]:
    """The task of a checkpoint that `merge` wrote, as a list of one; empty where no manifest says it."""
    if not (checkpoint.folder / manifest.NAME).exists():
        return []
    tasks = {entry.task for entry in manifest.load(checkpoint.folder).files.values() if entry.task}
    return sorted(tasks)


def adapter_of(checkpoint: Checkpoint, task: str) -> str | None:
    """The adapter to merge for `task`: itself, or None where the source is merged already."""
    return task if checkpoint.tasks else None


def plain_config(checkpoint: Checkpoint, dtype: str) -> dict[str, object]:
    """The config of a merged model of the same shape: a class of transformers' own, nothing for remote code.

    `dtype`: "float32", "float16" or "bfloat16". RoPE's base stands at the top, where every loader looks.
    """
    arch = checkpoint.arch
    config = {key: value for key, value in checkpoint.config.items() if key not in _FOREIGN}
    model_type, class_ = _CLASSES[arch.kind]
    if row_of(checkpoint).spec.scoring == "listwise":
        class_ = _LISTWISE
    config |= {"architectures": [class_], "model_type": model_type, "torch_dtype": dtype, "dtype": dtype}
    if arch.rope_theta:
        config["rope_theta"] = arch.rope_theta
    if not arch.xlm_roberta:
        config |= {"head_dim": arch.head_dim, "num_key_value_heads": arch.kv_heads}
    return config | _own_keys(arch)


def _own_keys(arch: Architecture) -> dict[str, object]:
    """What the class of transformers' needs to be told beyond that."""
    if arch.kind == "eurobert":
        return {"classifier_pooling": "mean"}  # "late", the class's default, stops llama.cpp's own converter
    if arch.kind == "jina-bert-v3":
        return {"rope_parameters": {"rope_type": "default", "rope_theta": arch.rope_theta}}
    if arch.kind == "bert":
        return {"position_embedding_type": "absolute", "num_labels": arch.labels}
    return {}


def projector_file(checkpoint: Checkpoint) -> Path:
    """Where a listwise reranker's projector is read from: a file beside the weights, else the checkpoint itself."""
    beside = checkpoint.folder / projector.FILE
    return beside if beside.exists() else checkpoint.folder


def write_beside(checkpoint: Checkpoint, target: Path, config: Mapping[str, object]) -> None:
    """Write what stands beside the weights: the config, the tokenizer's files, the prompts, and a projector."""
    text = json.dumps(config, indent=4, sort_keys=True, ensure_ascii=False) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
    for name in (*TOKENIZER_FILES, _PROMPTS):
        if (checkpoint.folder / name).exists():
            shutil.copyfile(checkpoint.folder / name, target / name)
    write_projector(checkpoint, target)


def write_projector(checkpoint: Checkpoint, target: Path) -> None:
    """Write a listwise reranker's projector into the folder `target`, in float32. Nothing for any other model."""
    if row_of(checkpoint).spec.scoring != "listwise":
        return
    found = projector.read(projector_file(checkpoint), checkpoint.arch.hidden)
    tensors = dict(zip(projector.NAMINGS[0], (found.first, found.second), strict=True))
    layout = {name: ("F32", data.shape) for name, data in tensors.items()}
    safetensors.write(target / projector.FILE, layout, tensors.items(), {"format": "pt"})


def describe(checkpoint: Checkpoint, name: str, revision: str | None, tasks: Sequence[str]) -> Source:
    """The manifest's record of what was read: every file that can change the result, with its digest."""
    folder = checkpoint.folder
    paths = [folder / "config.json", *(file.path for file in checkpoint.files)]
    paths += [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    if row_of(checkpoint).spec.scoring == "listwise" and (beside := projector_file(checkpoint)) != folder:
        paths.append(beside)
    if checkpoint.tasks:
        for task in tasks:
            paths += checkpoint.adapter_files(task)
    return Source(name, revision, {p.relative_to(folder).as_posix(): sha256(p) for p in paths})


def base_digest(checkpoint: Checkpoint, record: Source | None = None) -> str:
    """Names the published base: sha256 of the lines "<sha256>  <name>" of its weight files, in order of the names.

    Whatever is made of one checkpoint carries it, at every bit width, and so says which adapters fit. `record`: what
    `describe` gave, whose digests of the same files are then not computed again.
    """
    known = record.files if record else {}
    paths = sorted((file.path for file in checkpoint.files), key=lambda path: path.name)
    lines = [f"{known.get(path.name) or sha256(path)}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
