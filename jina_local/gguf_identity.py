"""GGUF files -> the model, task and precision that each holds, checked before an engine opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import architecture, names, registry
from .architecture import Architecture
from .checkpoint import check_shapes
from .errors import ModelDamaged, UsageError
from .formats import gguf
from .formats.gguf import FILE_TYPES, Header
from .formats.manifest import Entry
from .registry import Published
from .spec import ModelSpec

TASK_KEY = "jina_local.task"  # our converter writes it
# Without a request the first of these that is there is used: Q8_0, whose loss is below that of 16-bit engines'
# arithmetic, then what loses less and takes more room, then downwards by loss.
ORDER = (
    "Q8_0", "F16", "BF16", "F32", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1",
    "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K",
    "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
_LAST = 3  # enum llama_pooling_type
_PRE = {"qwen3": ("qwen2",), "eurobert": ("jina-v5-nano", "llama-bpe")}
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "separator", "padding", "mask", "cls")


@dataclass(frozen=True)
class Choice:
    """The files of one precision out of several, by task, and why it is that one."""

    files: Mapping[str, Identity]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """What a GGUF file turned out to be."""

    path: Path
    row: Published
    arch: Architecture
    task: str
    label: str

    def narrowed(self, tasks: tuple[str, ...]) -> ModelSpec:
        """The registry row as files like this one can serve it."""
        return registry.narrow(self.row, hidden=self.arch.hidden, max_positions=self.arch.max_positions, tasks=tasks)


def published_name(path: Path) -> tuple[Published, str, str] | None:
    """(row, task, label) where the file has exactly a name that Jina publishes GGUF files by, else None."""
    for row in registry.PUBLISHED:
        tasks = "|".join(map(re.escape, row.spec.tasks))
        pattern = re.escape(row.gguf_file)
        pattern = pattern.replace(re.escape("{task}"), f"({tasks})").replace(re.escape("{type}"), r"([A-Za-z0-9_]+)")
        if match := re.fullmatch(pattern, path.name):
            return row, match[1], match[2].upper()
    return None


def row_of(arch: Architecture, where: Path) -> Published:
    """The registry row that an architecture belongs to. Raises ModelDamaged, naming the file or folder."""
    try:
        return registry.identify(architecture=arch.kind, rope_theta=arch.rope_theta)
    except ModelDamaged as error:
        raise ModelDamaged(f"{where}: {error}") from error


def rank(label: str) -> int:
    """Place of a label in ORDER; unknown labels come last."""
    return ORDER.index(label) if label in ORDER else len(ORDER)


def identify(path: Path, entry: Entry | None = None) -> Identity:
    """Read and check the header of one file. `entry`: what a manifest says about it.

    The task is the manifest's, else that of our own key, else that of the published file name; two that disagree
    are refused. Raises ModelDamaged, or UsageError where nothing says the task.
    """
    header = gguf.read_header(path)
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ModelDamaged(f"{path}: holds no token_embd.weight; it is not a complete model.")
    arch = architecture.from_gguf(header.keys, table.shape[0], str(path))
    _check_keys(header, arch)
    _check_tensors(header, arch)
    _check_vocabulary(header, arch)
    row = row_of(arch, path)
    return Identity(path, row, arch, _task(header, row, entry), _label(header, entry))


def choose(files: Mapping[Path, Entry | None], where: str, *, label: str | None, tasks: Sequence[str] = ()) -> Choice:
    """Take the files of one precision: `label`, or the first of ORDER that serves all of `tasks`.

    Without `tasks`, one that serves a model's default task is preferred. Headers are read of the files that are
    taken, and of those whose name and manifest say nothing. Raises UsageError with what is there, ModelDamaged.
    """
    held: dict[str, dict[str, Path]] = {}
    passed_over: list[ModelDamaged | UsageError] = []
    for path, entry in files.items():
        try:
            task, kind = _claim(path, entry)
        except (ModelDamaged, UsageError) as error:
            passed_over.append(error)
            continue
        other = held.setdefault(kind, {}).setdefault(task, path)
        if other != path:
            raise UsageError(
                f"{where}: two files for {task} in {kind}: {other.name} and {path.name}. Give one's path."
            )
    if not held:
        raise passed_over[0]
    chosen, why = _precision(held, where, label, tasks)
    found = {task: identify(path, files[path]) for task, path in sorted(held[chosen].items())}
    first = next(iter(found.values()))
    for other_file in found.values():
        if other_file.arch != first.arch:
            raise UsageError(
                f"{where}: {first.path.name} and {other_file.path.name} are different models. Give one file's path."
            )
    return Choice(found, (*why, *(f"not used: {error}" for error in passed_over)))


def _claim(path: Path, entry: Entry | None) -> tuple[str, str]:
    """(task, label) as the manifest or the published name has them, else as the header says."""
    if entry and entry.task and entry.weights:
        return entry.task, entry.weights
    if name := published_name(path):
        return name[1], name[2]
    found = identify(path, entry)
    return found.task, found.label


def _precision(
    held: Mapping[str, Mapping[str, Path]], where: str, label: str | None, tasks: Sequence[str]
) -> tuple[str, list[str]]:
    there = "; ".join(f"{kind} ({', '.join(sorted(held[kind]))})" for kind in sorted(held, key=rank))
    defaults = {row.spec.default_task for row in registry.PUBLISHED}
    if label is not None:
        labels = [kind for kind in held if kind.casefold() == label.casefold()]
        if not labels:
            raise UsageError(f"{where}: has no weights {label!r}. There: {there}.")
    else:
        labels = [kind for kind in held if defaults & held[kind].keys()] if not tasks else list(held)
    fit = [kind for kind in labels or held if set(tasks) <= held[kind].keys()]
    if not fit:
        of = f" in {label}" if label else ""
        raise UsageError(f"{where}: has no file for {', '.join(tasks)}{of}. There: {there}.")
    chosen = min(fit, key=rank)
    if label is not None or len(held) == 1:
        return chosen, []
    return chosen, [f"weights {chosen}: the first choice among those that are there ({there})"]


def _check_keys(header: Header, arch: Architecture) -> None:
    """Keys that change the arithmetic silently have to be absent, or what the model computes."""
    expected: dict[str, tuple[object, ...]] = {
        f"{arch.kind}.pooling_type": (_LAST,),
        f"{arch.kind}.attention.causal": (arch.causal,),
        f"{arch.kind}.attention.value_length": (arch.head_dim,),
        f"{arch.kind}.rope.dimension_count": (arch.head_dim,),
        f"{arch.kind}.rope.scaling.type": ("none",),
        f"{arch.kind}.rope.scaling.factor": (1.0, 0.0),
    }
    for key, allowed in expected.items():
        if header.keys.get(key, allowed[0]) not in allowed:
            raise ModelDamaged(f"{header.path}: {key} is {header.keys[key]!r}; for this model it is {allowed[0]!r}.")


def _check_tensors(header: Header, arch: Architecture) -> None:
    if "output.weight" in header.tensors:
        raise ModelDamaged(
            f"{header.path}: holds output.weight, the head of a language model; the embedding models have none. "
            "It is another model, or was converted from one."
        )
    renamed = names.gguf_names(arch)
    expected = {renamed[name]: shape for name, shape in architecture.tensors(arch).items()}
    check_shapes({name: t.shape for name, t in header.tensors.items()}, expected, str(header.path))


def _check_vocabulary(header: Header, arch: Architecture) -> None:
    """llama.cpp aborts on some of these instead of returning an error."""
    keys, path = header.keys, header.path
    model, pre = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in _PRE[arch.kind]:
        raise ModelDamaged(
            f"{path}: has the tokenizer {model!r} with the pre-tokenizer {pre!r}; {arch.kind} is read with "
            f"'gpt2' and {' or '.join(map(repr, _PRE[arch.kind]))}."
        )
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or len(tokens) != arch.vocab or len(set(tokens)) != arch.vocab:
        different = len(set(tokens)) if isinstance(tokens, list) else 0
        raise ModelDamaged(f"{path}: lists {different} different tokens for a table of {arch.vocab} rows.")
    for which in _SPECIAL:
        key = f"tokenizer.ggml.{which}_token_id"
        number = keys.get(key, 0)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < arch.vocab:
            raise ModelDamaged(f"{path}: {key} is {number!r}, outside the {arch.vocab} tokens of the vocabulary.")


def _task(header: Header, row: Published, entry: Entry | None) -> str:
    name = published_name(header.path)
    said = {
        "its manifest": entry.task if entry else None,
        f"its key {TASK_KEY}": header.text(TASK_KEY),
        "its name": name[1] if name else None,
    }
    found = {where: task for where, task in said.items() if task is not None}
    if name and name[0] is not row:
        raise ModelDamaged(
            f"{header.path}: has the name of {name[0].spec.name} and holds {row.spec.name}. Rename it to "
            f"{row.gguf_file.format(task=name[1], type=name[2])}."
        )
    if not found:
        raise UsageError(
            f"{header.path}: is {row.spec.name}, and nothing says which task it was merged for. Give it the name "
            f"that it was published by, as {row.gguf_file.format(task=row.spec.tasks[0], type='Q8_0')} (tasks: "
            f"{', '.join(row.spec.tasks)}), or convert again with `python -m convert gguf`."
        )
    if len(set(found.values())) > 1:
        told = ", ".join(f"{where} says {task!r}" for where, task in found.items())
        raise ModelDamaged(f"{header.path}: which task is it for? {told}. Rename it, or convert again.")
    task = next(iter(found.values()))
    if task not in row.spec.tasks:
        raise ModelDamaged(
            f"{header.path}: is for the task {task!r}; {row.spec.name} has {', '.join(row.spec.tasks)}."
        )
    return task


def _label(header: Header, entry: Entry | None) -> str:
    if entry and entry.weights:
        return entry.weights
    name = published_name(header.path)
    if name and name[2] in FILE_TYPES.values():
        return name[2]
    return header.weights
