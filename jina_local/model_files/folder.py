"""A file or folder -> the model in it: the layouts that are read, in order, and why anything else is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ModelDamaged, ModelNotFound
from ..formats import manifest
from ..formats.files import open_regular
from ..spec import ModelFiles, readings
from . import converted, ggufs, onnx_graph, published
from .request import Request, require_reader

# First bytes, or a suffix if a format has none -> the format. An ONNX graph is opened if it is the known one.
_NEVER_OPENED = (
    (rb"\x80[\x02-\x05]", "", "a pickle"),
    (rb"PK\x03\x04", "", "a zip archive, as torch and numpy write them"),
    (rb"\x89HDF", "", "HDF5"),
    (rb"", ".bin|.pt|.pth|.pkl|.ckpt|.h5|.npz|.msgpack", "a format of other programs"),
)


@dataclass(frozen=True)
class Layout:
    """One way in which a folder can hold a model."""

    what: str
    form: str | None  # None: the manifest says it
    is_there: Callable[[Path], bool]
    read: Callable[[Path, Request], ModelFiles]


# Tried in order. The first that is there decides, except for GGUF files beside a checkpoint.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        f"a folder that `python -m convert` wrote ({manifest.NAME})",
        None,
        lambda folder: os.path.lexists(folder / manifest.NAME),
        converted.read,
    ),
    Layout(
        "GGUF files, named as v5-nano-retrieval-Q8_0.gguf",
        "gguf",
        lambda folder: any(folder.glob("*.gguf")),
        ggufs.read_folder,
    ),
    Layout(
        "an ONNX graph as Jina publishes it for one task (onnx/model.onnx, its weights beside it, config.json)",
        onnx_graph.FORM,
        onnx_graph.is_there,
        onnx_graph.read,
    ),
    Layout(
        "a published checkpoint (config.json, model*.safetensors, adapters/)",
        "checkpoint",
        published.is_there,
        published.read,
    ),
)


def read(path: Path, request: Request) -> ModelFiles:
    """The files of the model in a file or folder. Raises ModelNotFound, ModelDamaged, UsageError."""
    if path.is_dir():
        return _read_folder(path, request)
    with open_regular(path) as file:
        is_gguf = file.read(4) == b"GGUF"
    if not is_gguf and path.suffix != ".gguf":
        raise ModelDamaged(f"{path}: {_describe(path)}. {_readable()}")
    if not is_gguf:
        raise ModelDamaged(f"{path}: not a GGUF file: {_describe(path)}.")
    require_reader(request, "gguf", f"{path} is a GGUF file")
    if not os.path.lexists(path.parent / manifest.NAME):
        return ggufs.read({path: None, **ggufs.adapters_beside(path, {})}, path, request)
    record = manifest.load(path.parent)
    entries = {path: record.files.get(path.name), **ggufs.adapters_beside(path, record.files)}
    files = ggufs.read(entries, path, request, converted.named(record))
    return converted.recorded(files, record)


def _read_folder(path: Path, request: Request) -> ModelFiles:
    layouts = [layout for layout in LAYOUTS if layout.is_there(path)]
    if not layouts:
        raise ModelNotFound(_no_model(path))
    if len(layouts) > 1 and layouts[0].form:
        # GGUF files and a graph beside a checkpoint, as in some published repositories.
        forms = [layout.form for layout in layouts]
        engine, form = next((one for one in readings(request.engines) if one[1] in forms), (None, forms[0]))
        layouts = [layout for layout in layouts if layout.form == form]
        if len(request.engines) > 1:
            why = f"{engine}, of the forms of weights in the folder"
            request = replace(request, reasons=(*request.reasons, why))
    return layouts[0].read(path, request)


def _no_model(folder: Path) -> str:
    try:
        here = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        return f"{folder}: cannot be listed ({error.strerror})."
    never = [f"{name} ({what})" for name in here[:100] if (what := _never_opened(folder / name))]
    text = f"{folder}: holds no model. {_readable()} Found: {', '.join(here[:20]) or 'nothing'}."
    return text + (f" Formats that are never opened, because they can run code: {', '.join(never)}." if never else "")


def _readable() -> str:
    return f"Read are a .gguf file and folders of these layouts: {'; '.join(layout.what for layout in LAYOUTS)}."


def _never_opened(path: Path) -> str | None:
    """The format of a file that is never opened, by its first bytes if they say it; else None."""
    if not path.is_file():
        return None
    with open_regular(path) as file:
        start = file.read(8)
    for magic, suffixes, what in _NEVER_OPENED:
        if (magic and re.match(magic, start)) or (suffixes and path.suffix in suffixes.split("|")):
            return what
    return None


def _describe(path: Path) -> str:
    if what := _never_opened(path):
        return f"is {what}, which is never opened"
    if path.suffix in (".safetensors", ".onnx"):
        return f"is one file of a {'checkpoint' if path.suffix == '.safetensors' else 'model'}; give its folder"
    return "is no model file" if path.stat().st_size else "is empty"
