"""SRC: a folder or a hub id -> the checkpoint folder, its files' digests, and the tasks to convert."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from jina_local import registry
from jina_local.checkpoint import Checkpoint
from jina_local.errors import ModelNotFound, UsageError
from jina_local.formats import manifest
from jina_local.formats.manifest import Source
from jina_local.registry import Published

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)

_CLASSES = {"qwen3": "Qwen3Model", "eurobert": "EuroBertModel"}
# Keys of the published config that mean something to its remote code only, or that are written anew.
_FOREIGN = ("auto_map", "task_names", "_name_or_path", "rope_parameters", "quantization", "quantization_config")


def locate(wanted: str, *, revision: str | None, offline: bool | None) -> tuple[Path, str, str | None]:
    """(folder, name, commit) of a checkpoint: a folder as it is, a registry name or id through the hub cache."""
    folder = Path(wanted)
    if folder.is_dir():
        return folder, folder.resolve().name, revision
    if folder.exists() or wanted.startswith((".", "/", "~")):
        raise ModelNotFound(f"{wanted}: is not a folder. SRC is a checkpoint folder or a name, as in `models list`.")
    from jina_local import weights

    found = weights.find(wanted, backend="mlx", revision=revision, offline=offline, source=True)
    return next(iter(found.files.values())), registry.lookup(wanted).repo, found.revision


def row_of(checkpoint: Checkpoint) -> Published:
    """The registry row that a checkpoint belongs to."""
    return registry.identify(architecture=checkpoint.arch.kind, rope_theta=checkpoint.arch.rope_theta)


def choose_tasks(checkpoint: Checkpoint, wanted: Sequence[str]) -> list[str]:
    """Tasks, or "all". A merged source has the one task that its manifest names. Raises UsageError."""
    held = [task for task in row_of(checkpoint).spec.tasks if task in checkpoint.tasks] or merged_task(checkpoint)
    if not held:
        raise UsageError(
            f"{checkpoint.folder} has no adapters and no manifest that says which task it was merged for. "
            "Convert from the published base checkpoint."
        )
    if not wanted:
        raise UsageError(f"no task given. {checkpoint.folder} has: {', '.join(held)}, or all.")
    for task in wanted:
        if task not in (*held, "all"):
            raise UsageError(f"unknown task {task!r}; {checkpoint.folder} has: {', '.join(held)}, or all.")
    return held if "all" in wanted else list(dict.fromkeys(wanted))


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
    config |= {
        "architectures": [_CLASSES[arch.kind]],
        "model_type": arch.kind,
        "rope_theta": arch.rope_theta,
        "head_dim": arch.head_dim,
        "num_key_value_heads": arch.kv_heads,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if arch.kind == "eurobert":
        config["classifier_pooling"] = "mean"  # "late", the class's default, stops llama.cpp's own converter
    return config


def describe(checkpoint: Checkpoint, name: str, revision: str | None, tasks: Sequence[str]) -> Source:
    """The manifest's record of what was read: every file that can change the result, with its digest."""
    folder = checkpoint.folder
    paths = [folder / "config.json", *(file.path for file in checkpoint.files)]
    paths += [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    if checkpoint.tasks:
        for task in tasks:
            paths += checkpoint.adapter_files(task)
    return Source(name, revision, {p.relative_to(folder).as_posix(): manifest.sha256(p) for p in paths})


def base_digest(checkpoint: Checkpoint, record: Source | None = None) -> str:
    """Names the published base: sha256 of the lines "<sha256>  <name>" of its weight files, in order of the names.

    Whatever is made of one checkpoint carries it, at every bit width, and so says which adapters fit. `record`: what
    `describe` gave, whose digests of the same files are then not computed again.
    """
    known = record.files if record else {}
    paths = sorted((file.path for file in checkpoint.files), key=lambda path: path.name)
    lines = [f"{known.get(path.name) or manifest.sha256(path)}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
