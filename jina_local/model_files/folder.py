"""A file or folder -> the model in it: the layouts that are read, in order, and why anything else is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .. import backends, registry
from ..errors import ModelDamaged, ModelNotFound, UsageError
from ..formats import manifest
from ..formats.files import open_regular, read_json
from ..formats.manifest import Entry, Manifest
from ..formats.safetensors import SafetensorsFile
from ..registry import Published
from ..spec import NO_TASK, RERANK, ModelFiles
from ..store import hub, hub_cache
from ..weights import architecture, projector
from ..weights.checkpoint import Checkpoint
from . import gguf_model, ggufs

# As for GGUF: the first whose loss does not matter, then what loses less, then downwards.
MLX_ORDER = ("8bit", "16bit", "BF16", "F16", "32bit", "F32", "6bit", "5bit", "4bit")
# First bytes, or a suffix where a format has none -> what it is.
_NEVER = (
    (rb"\x80[\x02-\x05]", "", "a pickle"),
    (rb"PK\x03\x04", "", "a zip archive, as torch and numpy write them"),
    (rb"\x89HDF", "", "HDF5"),
    (rb"", ".onnx", "ONNX"),
    (rb"", ".bin|.pt|.pth|.pkl|.ckpt|.h5|.npz|.msgpack", "a format of other programs"),
)


@dataclass(frozen=True)
class Asked:
    """One request, as far as the files matter."""

    backend: str  # "auto" | "mlx" | "llama"
    label: str | None
    tasks: tuple[str, ...]  # words for tasks; all that they stand for have to be there; empty: any
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way in which a folder can hold a model."""

    what: str
    there: Callable[[Path], bool]
    read: Callable[[Path, Asked], ModelFiles]


def open_path(path: Path, asked: Asked) -> ModelFiles:
    """What a file or folder holds."""
    if path.is_dir():
        return _folder(path, asked)
    with open_regular(path) as file:
        is_gguf = file.read(4) == b"GGUF"
    if not is_gguf and path.suffix != ".gguf":
        raise ModelDamaged(f"{path}: {_what(path)}. {_readable()}")
    if not is_gguf:
        raise ModelDamaged(f"{path}: not a GGUF file: {_what(path)}.")
    refuse_other(asked, "llama", f"{path} is a GGUF file")
    held = hub.read_manifest(path.parent) if os.path.lexists(path.parent / manifest.NAME) else None
    entries = held.files if held else {}
    row = _named(held.model) if held else None
    found = of_ggufs({path: entries.get(path.name), **ggufs.beside(path, entries)}, path, asked, row)
    return replace(found, revision=held.source.revision) if held else found


def _folder(path: Path, asked: Asked) -> ModelFiles:
    found = [layout for layout in LAYOUTS if layout.there(path)]
    if not found:
        raise ModelNotFound(_no_model(path))
    if len(found) > 1 and found[0] is not LAYOUTS[0]:
        # GGUF files beside a checkpoint, as in some published repositories.
        engine = asked.backend
        if engine == "auto":
            engine = engines_for(asked.label, "auto")[0]
            asked = replace(asked, reasons=(*asked.reasons, f"{engine}, of the two forms of weights in the folder"))
        found = [found[0] if engine == "llama" else found[1]]
    return found[0].read(path, asked)


def _no_model(folder: Path) -> str:
    try:
        here = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        return f"{folder}: cannot be listed ({error.strerror})."
    never = [f"{name} ({what})" for name in here[:100] if (what := _never(folder / name))]
    text = f"{folder}: holds no model. {_readable()} Found: {', '.join(here[:20]) or 'nothing'}."
    return text + (f" Formats that are never opened, as they can run code: {', '.join(never)}." if never else "")


def _converted(folder: Path, asked: Asked) -> ModelFiles:
    """A folder that our converters wrote."""
    held = hub.read_manifest(folder)
    entries = {name: entry for name, entry in held.files.items() if entry.weights}
    merged = bool(entries) and not held.bases and not held.adapters
    shared = len(entries) == len(held.bases) > 0 and bool(held.adapters) and held.form != "checkpoint"
    if not merged and not shared:
        raise ModelDamaged(
            f"{folder}: its manifest does not say which file has which task's weights: neither is each file one "
            "task's, nor is there a base with adapters and nothing else. Convert again."
        )
    engine = "llama" if held.form == "gguf" else "mlx"
    refuse_other(asked, engine, f"{folder} has {held.form} weights", held.source.name)
    if held.form == "gguf":
        named = {**entries, **held.adapters}
        files = {folder / name: entry for name, entry in named.items()}
        found = of_ggufs(files, folder, asked, _named(held.model))
        if found.model.name != held.model:
            raise ModelDamaged(f"{folder}: its manifest says {held.model}, its files are {found.model.name}.")
        return replace(found, revision=held.source.revision)
    labels = sorted({str(entry.weights) for entry in entries.values()})
    if len(labels) > 1:
        raise ModelDamaged(f"{folder}: mixes weights of {' and '.join(labels)}; each needs a folder of its own.")
    _same_label(asked.label, labels[0], folder)
    return _of_shared_base(folder, held, asked) if shared else _of_task_folders(folder, held, entries, asked)


def _of_shared_base(folder: Path, held: Manifest, asked: Asked) -> ModelFiles:
    """MLX: one base in the folder itself, and adapters/<task>.safetensors."""
    adapters = {str(entry.task): folder / name for name, entry in held.adapters.items()}
    if list(held.bases) != ["model.safetensors"] or len(adapters) < len(held.adapters):
        raise ModelDamaged(f"{folder}: its manifest names {len(held.bases)} bases, or two adapters of one task.")
    _only(folder, {folder / "model.safetensors"})
    arch = architecture.from_config(read_json(folder / "config.json"), str(folder / "config.json"))
    for path in (folder / "model.safetensors", *adapters.values()):
        SafetensorsFile(path).close()
    row = _row(arch, held, folder)
    if unknown := adapters.keys() - (set(row.spec.tasks) - {NO_TASK}):
        raise ModelDamaged(f"{folder}: has adapters for {', '.join(sorted(unknown))}, which {row.spec.name} has not.")
    served = registry.tasks_served(row, adapters)
    _serves(row, served, asked, folder)
    return ModelFiles(
        model=registry.narrow(row, hidden=arch.hidden, max_positions=arch.max_positions, tasks=served),
        form=held.form,
        files=dict.fromkeys(served, folder),
        label=str(held.bases["model.safetensors"].weights),
        tokenizer=_own_tokenizer(folder),
        revision=held.source.revision,
        reasons=(*asked.reasons, f"mlx, as {folder} has {held.form} weights"),
        adapters=adapters,
    )


def _of_task_folders(folder: Path, held: Manifest, entries: Mapping[str, Entry], asked: Asked) -> ModelFiles:
    files: dict[str, Path] = {}
    shapes: set[architecture.Architecture] = set()
    for name, entry in entries.items():
        home = (folder / name).parent
        files[str(entry.task)] = home
        _only(home, {folder / name})
        if held.form == "checkpoint":
            with Checkpoint(home) as checkpoint:
                shapes.add(checkpoint.arch)
        else:
            shapes.add(architecture.from_config(read_json(home / "config.json"), str(home / "config.json")))
            SafetensorsFile(folder / name).close()
    if len(shapes) > 1:
        raise ModelDamaged(f"{folder}: its tasks have configs of different models.")
    arch = shapes.pop()
    row = _row(arch, held, folder)
    _serves(row, files, asked, folder)
    home = next(iter(files.values()))
    return ModelFiles(
        model=registry.narrow(row, hidden=arch.hidden, max_positions=arch.max_positions, tasks=files),
        form=held.form,
        files=files,
        label=str(next(iter(entries.values())).weights),
        tokenizer=_own_tokenizer(home),
        revision=held.source.revision,
        reasons=(*asked.reasons, f"mlx, as {folder} has {held.form} weights"),
        projector=_projector(row, home, None),
    )


def _only(home: Path, weights: set[Path]) -> None:
    """Raise ModelDamaged where a folder holds weights that its manifest does not name."""
    weights = {*weights, home / projector.FILE}
    if others := sorted(p.name for p in home.glob("*.safetensors") if p not in weights):
        raise ModelDamaged(f"{home}: {', '.join(others)} is not in the manifest; each precision needs its folder.")


def _row(arch: architecture.Architecture, held: Manifest, folder: Path) -> Published:
    row = gguf_model.row_of(arch, folder)
    if row.spec.name != held.model:
        raise ModelDamaged(f"{folder}: its manifest says {held.model}, its config {row.spec.name}.")
    return row


def _ggufs(folder: Path, asked: Asked) -> ModelFiles:
    """GGUF files as Jina publishes them, without a manifest."""
    refuse_other(asked, "llama", f"{folder} has GGUF files")
    return of_ggufs(dict.fromkeys(sorted(folder.glob("*.gguf"))), folder, asked)


def of_ggufs(
    files: Mapping[Path, Entry | None], where: Path, asked: Asked, row: Published | None = None
) -> ModelFiles:
    """GGUF files, each with what a manifest says of it; `where` is what the caller gave, `row` the model if known."""
    if asked.tasks and (known := row or _model_of(files)):
        asked = replace(asked, tasks=registry.expand_tasks(known, asked.tasks))
    choice = ggufs.choose(files, str(where), label=asked.label, tasks=asked.tasks)
    first = next(iter(choice.files.values()))
    tokenizer, why = _gguf_tokenizer(first.path.parent, first.row)
    return ModelFiles(
        model=first.narrowed(tuple(choice.files)),
        form="gguf",
        files={task: one.path for task, one in choice.files.items()},
        label=first.label,
        tokenizer=tokenizer,
        revision=hub_cache.commit_of(first.path.parent),
        reasons=(*asked.reasons, f"llama, as {where} is GGUF", *choice.reasons, why),
        adapters=choice.adapters,
        projector=_projector(first.row, first.path.parent, None),
    )


def _named(model: str) -> Published | None:
    """The row of a model by the name that a manifest has; None where it is none of them."""
    return next((row for row in registry.PUBLISHED if row.spec.name == model), None)


def _model_of(files: Mapping[Path, Entry | None]) -> Published | None:
    """The model that files are of, by the first one's name that says it, else by the first header that does."""
    if name := next((name for path in files if (name := gguf_model.own_name(path))), None):
        return name[0]
    for path, entry in files.items():
        with suppress(ModelDamaged, UsageError):  # what is wrong with a file is said where files are chosen
            return gguf_model.identify(path, entry).row
    return None


def of_published(folder: Path, asked: Asked) -> ModelFiles:
    """The base checkpoint with its adapters, as on the hub."""
    refuse_other(asked, "mlx", f"{folder} is a published checkpoint")
    with Checkpoint(folder) as base:
        row = gguf_model.row_of(base.arch, folder)
        if asked.label and asked.label.casefold() != base.dtype.casefold():
            hint = how_to_convert(asked.label, str(folder))
            raise UsageError(f"{folder}: its weights are {base.dtype}, not {asked.label!r}. {hint}")
        tasks = _published_tasks(row, base)
        if not tasks:
            raise UsageError(
                f"{folder}: has no adapters/ and no {manifest.NAME} that says which task it was merged for. Take the "
                f"published {row.repo or row.spec.name}, or merge with `python -m convert merge`."
            )
        adapters = {task: base.adapter_place(task) for task in tasks if task in base.tasks}
        for task in adapters:
            with base.adapter(task):
                pass
        _serves(row, tasks, asked, folder)
        return ModelFiles(
            model=registry.narrow(row, hidden=base.arch.hidden, max_positions=base.arch.max_positions, tasks=tasks),
            form="checkpoint",
            files=dict.fromkeys(tasks, folder),
            label=base.dtype,
            tokenizer=_own_tokenizer(folder),
            revision=hub_cache.commit_of(folder),
            reasons=(*asked.reasons, f"mlx, as {folder} is a published checkpoint"),
            adapters=adapters,
            projector=_projector(row, folder, folder),
        )


def _published_tasks(row: Published, base: Checkpoint) -> list[str]:
    """What a published checkpoint serves; a reranker has no adapters to have."""
    return [RERANK] if row.spec.scoring else registry.tasks_served(row, base.tasks)


def _projector(row: Published, folder: Path, otherwise: Path | None) -> Path | None:
    """Where a listwise reranker's projector lies: beside the weights, or in the checkpoint `otherwise`."""
    if row.spec.scoring != "listwise":
        return None
    beside = folder / projector.FILE
    if os.path.lexists(beside):
        return beside
    if otherwise is None:
        raise ModelDamaged(
            f"{folder}: has no {projector.FILE}, without which {row.spec.name} has no scores. Copy it from where the "
            "weights came from, or convert the published checkpoint, which writes it."
        )
    return otherwise


# Tried in order; the first that is there decides, but for GGUF files beside a checkpoint.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        f"a folder that `python -m convert` wrote ({manifest.NAME})",
        lambda folder: os.path.lexists(folder / manifest.NAME),
        _converted,
    ),
    Layout("GGUF files, named as v5-nano-retrieval-Q8_0.gguf", lambda folder: any(folder.glob("*.gguf")), _ggufs),
    Layout(
        "a published checkpoint (config.json, model*.safetensors, adapters/)",
        lambda folder: os.path.lexists(folder / "config.json") and any(folder.glob("model*.safetensors*")),
        of_published,
    ),
)


def engines_for(label: str | None, backend: str) -> tuple[str, ...]:
    """The engines whose files may answer, the preferred one first. A label that both have means GGUF."""
    reads = {"llama": gguf_model.ORDER, "mlx": MLX_ORDER}
    fit = [engine for engine, labels in reads.items() if label is None or label in labels]
    if backend != "auto":
        if backend not in fit:
            raise UsageError(f"weights {label!r} are not for {backend}, which has {', '.join(reads[backend])}.")
        return (backend,)
    if label is not None:
        return (next(iter(fit), "llama"),)
    first = backends.preferred()
    return (first, *(engine for engine in fit if engine != first and backends.installed(engine)))


def refuse_other(asked: Asked, engine: str, what: str, source: str = "SRC") -> None:
    """Raise UsageError where the caller wants another engine than the one that reads what was found."""
    if asked.backend in ("auto", engine):
        return
    command = "gguf" if asked.backend == "llama" else "mlx"
    raise UsageError(
        f"{what}, which {engine} reads and {asked.backend} does not. Use backend={engine!r}, or convert the "
        f"published checkpoint: `python -m convert {command} {source} OUT --task all`."
    )


def how_to_convert(label: str, source: str) -> str:
    """The command that makes weights of a label."""
    if label.casefold().endswith("bit"):
        return f"Make them: `python -m convert mlx {source} OUT --task all --bits {label[:-3]}`."
    return f"Make them: `python -m convert gguf {source} OUT --task all --type {label.upper()}`."


def _same_label(asked: str | None, there: str, folder: Path) -> None:
    if asked is not None and asked.casefold() != there.casefold():
        raise UsageError(f"{folder}: has no weights {asked!r}. There: {there}.")


def _serves(row: Published, there: Iterable[str], asked: Asked, folder: Path) -> None:
    held = list(there)
    if missing := [task for task in registry.expand_tasks(row, asked.tasks) if task not in held]:
        raise UsageError(f"{folder}: has no weights for {', '.join(missing)}. There: {', '.join(held)}.")


def _own_tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        raise ModelDamaged(f"{folder}: has no tokenizer.json. Copy it from where the checkpoint came from.")
    return path


def _gguf_tokenizer(folder: Path, row: Published) -> tuple[Path | None, str]:
    beside = folder / "tokenizer.json"
    if os.path.lexists(beside):
        return beside, "tokenizer.json from beside the file"
    snapshot = hub_cache.cached(row.repo, None, ["tokenizer.json"], row.revision) if row.repo else None
    if snapshot:
        return snapshot / "tokenizer.json", f"tokenizer.json of {row.repo} from the hub cache"
    return None, "tokenizer rebuilt from the file's own vocabulary, as there is no tokenizer.json"


def _readable() -> str:
    return f"Read are a .gguf file and folders of these layouts: {'; '.join(layout.what for layout in LAYOUTS)}."


def _never(path: Path) -> str | None:
    """What a file is that is never opened, by its first bytes where they say it."""
    if not path.is_file():
        return None
    with open_regular(path) as file:
        start = file.read(8)
    for magic, suffixes, what in _NEVER:
        if (magic and re.match(magic, start)) or (suffixes and path.suffix in suffixes.split("|")):
            return what
    return None


def _what(path: Path) -> str:
    if what := _never(path):
        return f"is {what}, which is never opened"
    if path.suffix == ".safetensors":
        return "is one file of a checkpoint; give its folder"
    return "is no model file" if path.stat().st_size else "is empty"
