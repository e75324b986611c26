"""manifest.json: the files of a converted folder, written last, so that its presence means "complete".

    {"format": "jina_local manifest 1",
     "form": "mlx" | "gguf" | "onnx" | "checkpoint",
     "model": a registry name,
     "source": {"name": ..., "revision": ... or null, "files": {path: sha256}},
     "tokenizer": fingerprint of the token ids of fixed probe texts (text.tokenizer.Tokenizer.fingerprint),
     "files": {path: {"bytes": n, "sha256": hex, "task": ... or null, "weights": ... or null,
                      "header_bytes": n, "header_sha256": hex}},
     "probes": {task: {weights: the numbers that self_check.py compares, a list for each of its texts}}}

Merged weights of a task have both `task` and `weights`. A base that all tasks share has `weights` alone, and each
adapter beside it `task` alone; one folder is of either kind, not of both.
Paths are relative, with `/`. No dates, no absolute paths: the same input gives the same bytes.
The header of a weight file is what stands before its first tensor. Sizes are checked at every load, and so are the
digests of headers and of files that hold no weights; all digests, and the probes, by `models verify`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import ModelDamaged
from .files import parse_json, read_all, sha256, unchanged
from .schema import Members, dict_of, list_of, matching, number, or_null, text, whole

NAME = "manifest.json"
FORMAT = "jina_local manifest 1"
FORMS = ("mlx", "gguf", "onnx", "checkpoint")
_CONTENT = (".safetensors", ".json", ".onnx", ".onnx_data", ".data")  # the ends of names of files that make a model
_LARGEST, _MOST_FILES = 1 << 20, 1000
_DIGEST = matching("[0-9a-f]{64}", "a SHA-256 of 64 hex digits")
_INSIDE = matching(
    r"(?!.{300})[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*){0,4}",
    "a path of letters, digits, _, ., + and - that does not lead outside its folder",
)


# task -> weights -> a list of numbers for each probe text
Probes = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
_NUMBERS = list_of(list_of(number(-1e6, 1e6), most=64, least=1), most=16, least=1)


@dataclass(frozen=True)
class Entry:
    """One file of the folder. `task` and `weights` are set on files that hold a model's weights, or an adapter's."""

    bytes: int
    sha256: str
    task: str | None = None
    weights: str | None = None
    header_bytes: int | None = None  # of a file that holds tensors, from its start
    header_sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """The model that the folder was made from."""

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
    probes: Probes = field(default_factory=dict)

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
        """Weights label -> the tasks that are served in it."""
        found: dict[str, set[str]] = {}
        beside = {str(entry.task) for entry in self.adapters.values()}
        for entry in self.files.values():
            if entry.weights:
                tasks = {entry.task} if entry.task is not None else beside
                found[entry.weights] = found.get(entry.weights, set()) | tasks
        return found

    def dump(self) -> str:
        """The bytes to write, as text."""
        body: dict[str, object] = {
            "format": FORMAT,
            "form": self.form,
            "model": self.model,
            "source": {
                "name": self.source.name,
                "revision": self.source.revision,
                "files": dict(sorted(self.source.files.items())),
            },
            "tokenizer": self.tokenizer,
            "files": {name: _members(entry) for name, entry in sorted(self.files.items())},
        }
        if self.probes:
            body["probes"] = {task: dict(sorted(known.items())) for task, known in sorted(self.probes.items())}
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"

    def expected(self, weights: str) -> dict[str, Sequence[Sequence[float]]]:
        """Task -> the numbers of the probe texts for the weights of one label, as far as they are known."""
        return {task: known[weights] for task, known in self.probes.items() if weights in known}


def load(folder: Path) -> Manifest:
    """Read a folder's manifest, and check that every file is there with its size, and small ones with their digest.

    Small are the files that hold no weights, and the headers of the others: one changed letter of a config, or two
    tensors that exchanged their names, give other vectors.
    Raises ModelDamaged.
    """
    manifest = read(folder)
    for name, entry in manifest.files.items():
        file = folder.joinpath(*PurePosixPath(name).parts)
        small = not entry.weights and entry.task is None
        digest, size = (entry.sha256, None) if small else (entry.header_sha256, entry.header_bytes)
        if digest is not None and not unchanged(file, digest, size):
            raise ModelDamaged(
                f"{file}: its content has changed since it was written. Put the original back, or convert again with "
                "--force."
            )
    return manifest


def verify(folder: Path) -> list[str]:
    """Compare every file with its digest; the faults as sentences, none if all is well."""
    manifest = read(folder)
    return [
        f"{folder / name}: its content has changed since it was written"
        for name, entry in manifest.files.items()
        if sha256(folder / name) != entry.sha256
    ]


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and digests of a folder's files.

    A file that a manifest names, beside it or one folder above, has the digest that is written there: reading a large
    file takes seconds.
    """
    if path.is_dir():
        if os.path.lexists(path / NAME):
            known = {name: entry.sha256 for name, entry in read(path).files.items()}
        else:
            files = (file for file in sorted(path.rglob("*")) if file.suffix in _CONTENT)
            known = {file.relative_to(path).as_posix(): sha256(file) for file in files if file.is_file()}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    for folder in path.absolute().parents[:2]:
        if os.path.lexists(folder / NAME):
            entry = read(folder).files.get(path.absolute().relative_to(folder).as_posix())
            if entry is not None:
                return entry.sha256
    return sha256(path)


def read(folder: Path) -> Manifest:
    """A folder's manifest, every file there with its size; digests are not compared. Raises ModelDamaged."""
    manifest = _read(folder / NAME)
    for name, entry in manifest.files.items():
        file = folder.joinpath(*PurePosixPath(name).parts)
        if not file.is_file():
            raise ModelDamaged(f"{folder}: {name} is missing. Convert again with --force.")
        if file.stat().st_size != entry.bytes:
            raise ModelDamaged(
                f"{file}: has {file.stat().st_size} bytes, the manifest says {entry.bytes}. "
                "It is truncated or was changed; convert again with --force."
            )
    return manifest


def _read(path: Path) -> Manifest:
    where = f"{path}: cannot be read as a manifest"
    members = Members(parse_json(read_all(path, _LARGEST)[0], where), where)
    form, version = members.take("form", text), members.take("format", text)
    if version != FORMAT or form not in FORMS:
        raise ModelDamaged(
            f"{path}: format {version!r}, form {form!r}; this version reads {FORMAT!r} with {', '.join(FORMS)}. "
            "Convert again, or use the version that wrote it."
        )
    source = members.inner("source")
    manifest = Manifest(
        form=form,
        model=members.take("model", text),
        source=Source(
            name=source.take("name", text),
            revision=source.take("revision", or_null(text)),
            files=source.take("files", dict_of(_DIGEST, _MOST_FILES)),
        ),
        tokenizer=members.take("tokenizer", text),
        files={name: _entry(entry) for name, entry in members.each("files", _MOST_FILES, _INSIDE)},
        probes=members.take("probes", dict_of(dict_of(_NUMBERS, most=100), most=100), {}),
    )
    source.done()
    members.done()
    return manifest


def _members(entry: Entry) -> dict[str, object]:
    """As they stand in the file; without those of a header if there is none."""
    return {name: value for name, value in vars(entry).items() if value is not None or not name.startswith("header_")}


def _entry(members: Members) -> Entry:
    entry = Entry(
        bytes=members.take("bytes", whole(0, 1 << 50)),
        sha256=members.take("sha256", _DIGEST),
        task=members.take("task", or_null(text), None),
        weights=members.take("weights", or_null(text), None),
        header_bytes=members.take("header_bytes", whole(1, 1 << 40), None),
        header_sha256=members.take("header_sha256", _DIGEST, None),
    )
    members.done()
    return entry
