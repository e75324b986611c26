"""manifest.json: what a converted folder holds, written last, so that its presence means "complete".

    {"format": "jina_local manifest 1",
     "form": "mlx" | "gguf" | "checkpoint",
     "model": a registry name,
     "source": {"name": ..., "revision": ... or null, "files": {path: sha256}},
     "tokenizer": fingerprint of the token ids of fixed probe texts (tokens.Tokenizer.fingerprint),
     "files": {path: {"bytes": n, "sha256": hex, "task": ... or null, "weights": ... or null}}}

Merged weights of a task have both `task` and `weights`. A base that all tasks share has `weights` alone, and each
adapter beside it `task` alone; one folder is of either kind, not of both.
Paths are relative, with `/`. No dates, no absolute paths: the same input gives the same bytes.
Sizes are checked at every load; digests by `models verify`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ModelDamaged
from .files import open_regular, sha256

NAME = "manifest.json"
FORMAT = "jina_local manifest 1"
_LARGEST = 1 << 20
FORMS = ("mlx", "gguf", "checkpoint")


@dataclass(frozen=True)
class Entry:
    """One file of the folder. `task` and `weights` are set on files that hold a model's weights, or an adapter's."""

    bytes: int
    sha256: str
    task: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Source:
    """What the folder was made from."""

    name: str
    revision: str | None
    files: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """The whole file."""

    form: str
    model: str
    source: Source
    tokenizer: str
    files: Mapping[str, Entry]

    @property
    def bases(self) -> dict[str, Entry]:
        """The files that hold a base which all tasks share: path -> entry."""
        return {name: entry for name, entry in self.files.items() if entry.weights and entry.task is None}

    @property
    def adapters(self) -> dict[str, Entry]:
        """The adapters beside a base: path -> entry."""
        return {name: entry for name, entry in self.files.items() if entry.task is not None and not entry.weights}

    @property
    def serves(self) -> dict[str, set[str]]:
        """Weights label -> the tasks that can be had in it."""
        found: dict[str, set[str]] = {}
        beside = {str(entry.task) for entry in self.adapters.values()}
        for entry in self.files.values():
            if entry.weights:
                tasks = {entry.task} if entry.task is not None else beside
                found[entry.weights] = found.get(entry.weights, set()) | tasks
        return found

    def dump(self) -> str:
        """The bytes to write, as text."""
        body = {
            "format": FORMAT,
            "form": self.form,
            "model": self.model,
            "source": {
                "name": self.source.name,
                "revision": self.source.revision,
                "files": dict(sorted(self.source.files.items())),
            },
            "tokenizer": self.tokenizer,
            "files": {name: vars(entry) for name, entry in sorted(self.files.items())},
        }
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"


def load(folder: Path) -> Manifest:
    """Read a folder's manifest and check that every file is there with its size. Raises ModelDamaged."""
    path = folder / NAME
    try:
        with open_regular(path) as opened:
            raw = opened.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise ModelDamaged(f"{path}: larger than {_LARGEST >> 20} MiB.")
        body = json.loads(raw)
        if body["format"] != FORMAT or body["form"] not in FORMS:
            raise ModelDamaged(
                f"{path}: format {body['format']!r}, form {body['form']!r}; this version reads {FORMAT!r} "
                f"with {', '.join(FORMS)}. Convert again, or use the version that wrote it."
            )
        manifest = Manifest(
            form=body["form"],
            model=body["model"],
            source=Source(**body["source"]),
            tokenizer=body["tokenizer"],
            files={name: Entry(**entry) for name, entry in body["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelDamaged(f"{path}: cannot be read as a manifest ({error}).") from error
    for name, entry in manifest.files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or any(p in ("..", ".") or "\\" in p for p in parts):
            raise ModelDamaged(f"{path}: names a file outside its folder: {name!r}.")
        file = folder.joinpath(*parts)
        if not file.is_file():
            raise ModelDamaged(f"{folder}: {name} is missing. Convert again with --force.")
        if file.stat().st_size != entry.bytes:
            raise ModelDamaged(
                f"{file}: has {file.stat().st_size} bytes, the manifest says {entry.bytes}. "
                "It is truncated or was changed; convert again with --force."
            )
    return manifest


def verify(folder: Path) -> list[str]:
    """Compare every file with its digest; the faults as sentences, empty when all is well."""
    manifest = load(folder)
    return [
        f"{folder / name}: its content has changed since it was written"
        for name, entry in manifest.files.items()
        if sha256(folder / name) != entry.sha256
    ]
