"""The task adapters of a published checkpoint, in the three ways in which they are stored -> pairs (A, B) in float32.

peft      adapters/{task}/, or for v3 {task}/: adapter_config.json and adapter_model.safetensors
inside    v3: in the checkpoint itself, X.parametrizations.weight.0.lora_A and .lora_B, a leading axis of tasks

Whatever is stored, what is given is the pair with delta = (alpha / rank) B A: an embedding table's factors, which are
stored for A B (inside) or for its transpose (peft), are turned round here, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelDamaged
from ...formats.checks import FLOATS, check_shapes, check_types, finite
from ...formats.files import read_json
from ...formats.safetensors import SafetensorsFile
from .. import architecture
from ..architecture import Architecture
from .mlx_file import check_scale

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The native v3 checkpoint has its adapters in folders that cannot have the names of the tasks.
_FOLDERS = {"retrieval_query": "retrieval.query", "retrieval_passage": "retrieval.passage",
            "text_matching": "text-matching"}  # fmt: skip
# PEFT options that change the arithmetic -> the only value for which W + (alpha / r) B A is right.
_PLAIN_LORA: dict[str, tuple[object, ...]] = {
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
}
# transformers' own names for the modules of v3 -> those of the checkpoint; the first table wins.
_NATIVE_V3 = (
    (re.compile(r"^layers\.(\d+)\.self_attn\.o_proj$"), r"encoder.layers.\1.mixer.out_proj"),
    (re.compile(r"^layers\.(\d+)\.self_attn\.([qkv])_proj$"), r"encoder.layers.\1.mixer.Wqkv|\2"),
    (re.compile(r"^layers\.(\d+)\.mlp\.(fc[12])$"), r"encoder.layers.\1.mlp.\2"),
)
_THIRDS = ("q", "k", "v")


@dataclass(frozen=True)
class _Stored:
    """Where one pair lies. `task`: its place on the leading axis, None where there is no such axis."""

    file: SafetensorsFile
    a: str
    b: str
    task: int | None = None
    turned: bool = False  # an embedding's: what is stored as A is the B of the delta
    transposed: bool = False  # and both lie on their sides, as PEFT has them

    def read(self) -> Pair:
        """(A (r, in), B (out, r)) float32, delta = B A."""
        a, b = (finite(self.file.read_f32(n), f"{self.file.path}: {n}") for n in (self.a, self.b))
        if self.task is not None:
            a, b = a[self.task], b[self.task]
        if self.turned:
            a, b = (b.T, a.T) if self.transposed else (b, a)
        return np.ascontiguousarray(a), np.ascontiguousarray(b)


class Adapter:
    """One task's adapter, checked against the base that it belongs to. Made by `Checkpoint.adapter`."""

    def __init__(
        self,
        where: str,
        rank: int,
        alpha: float,
        stored: Mapping[str, Sequence[_Stored]],
        own: SafetensorsFile | None,
    ) -> None:
        """`stored`: base weight -> its pair, or one each for q, k and v; `own`: a file to close with the adapter."""
        self.where, self.rank, self.alpha = where, rank, alpha
        self.scale = alpha / rank
        self._stored, self._own = stored, own

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._own is not None:
            self._own.close()

    @property
    def targets(self) -> tuple[str, ...]:
        """The base weights that have factors, in the order of `architecture.adaptable`."""
        return tuple(self._stored)

    def factors(self, name: str) -> Pair | None:
        """(A (r, in), B (out, r)) float32 for one base weight, or None.

        r is the adapter's rank; for a fused weight whose three parts have an A each it is three times that.
        """
        if name not in self._stored:
            return None
        pairs = [one.read() for one in self._stored[name]]
        if len(pairs) == 1:
            return pairs[0]
        first = pairs[0][0]
        if all(np.array_equal(a, first) for a, _ in pairs):
            return first, np.concatenate([b for _, b in pairs])
        return np.concatenate([a for a, _ in pairs]), _block_diagonal([b for _, b in pairs])

    def add_to(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """`weight` plus this adapter's delta for it, in float32; unchanged where it has none."""
        pair = self.factors(name)
        if pair is None:
            return weight
        a, b = pair
        return weight + np.float32(self.scale) * (b @ a)


def folders(checkpoint: Path, arch: Architecture) -> dict[str, Path]:
    """Task -> its folder, for adapters in PEFT's layout."""
    found = {p.parent.name: p.parent for p in sorted(checkpoint.glob(f"adapters/*/{CONFIG}"))}
    if not found and arch.kind == "jina-bert-v3":
        named = ((p.parent.name, p.parent) for p in sorted(checkpoint.glob(f"*/{CONFIG}")))
        found = {_FOLDERS.get(name, name): path for name, path in named}
    return found


def from_folder(folder: Path, arch: Architecture) -> Adapter:
    """Open an adapter in PEFT's layout. Raises ModelDamaged."""
    config = read_json(folder / CONFIG)
    rank, alpha = check_scale(config.get("r"), config.get("lora_alpha"), str(folder))
    for key, plain in _PLAIN_LORA.items():
        if config.get(key) not in plain:
            raise ModelDamaged(f"{folder}: {key} is {config[key]!r}; only plain LoRA is merged here.")
    file = SafetensorsFile(folder / WEIGHTS)
    try:
        names = {n: p for n in file.tensors if not (p := _plain(n)).startswith("pooler.")}
        if arch.kind == "jina-bert-v3":
            return Adapter(str(folder), rank, alpha, _pair_v3(file, names, arch, rank), file)
        pairs = pair_factors(file, names, arch, rank)
        return Adapter(str(folder), rank, alpha, {n: [_Stored(file, a, b)] for n, (a, b) in pairs.items()}, file)
    except BaseException:
        file.close()
        raise


def from_inside(
    where: str,
    config: Mapping[str, object],
    stored: Mapping[str, tuple[SafetensorsFile, str]],
    arch: Architecture,
    task: str,
) -> Adapter:
    """Open an adapter that the checkpoint holds itself. `stored`: "<weight>|A" and "<weight>|B" -> where it lies."""
    tasks = inside_tasks(config, where)
    rank, alpha = check_scale(config.get("lora_rank"), config.get("lora_alpha"), where)
    shapes = architecture.tensors(arch)
    expected: dict[str, tuple[int, ...]] = {}
    for name in architecture.adaptable(arch):
        out, inner = shapes[name]
        if "embeddings." in name:  # stored for A B, not for B A
            expected[f"{name}|A"], expected[f"{name}|B"] = (len(tasks), out, rank), (len(tasks), rank, inner)
        else:
            expected[f"{name}|A"], expected[f"{name}|B"] = (len(tasks), rank, inner), (len(tasks), out, rank)
    check_shapes({key: file.tensors[name].shape for key, (file, name) in stored.items()}, expected, where)
    pairs = {}
    for name in architecture.adaptable(arch):
        (file, a), (other, b) = stored[f"{name}|A"], stored[f"{name}|B"]
        if file is not other:
            raise ModelDamaged(f"{where}: the two factors of {name} lie in different files.")
        pairs[name] = [_Stored(file, a, b, tasks.index(task), turned="embeddings." in name)]
    return Adapter(where, rank, alpha, pairs, None)


def inside_tasks(config: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The tasks on the leading axis of the factors inside a checkpoint, in order. Raises ModelDamaged."""
    tasks = config.get("lora_adaptations")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) for t in tasks):
        raise ModelDamaged(f"{where}: holds adapters, and its config names no tasks for them (lora_adaptations).")
    return tuple(tasks)


def pair_factors(
    file: SafetensorsFile, names: Mapping[str, str], arch: Architecture, rank: int
) -> dict[str, tuple[str, str]]:
    """Base weight -> the stored names of its A (r, in) and B (out, r), each tensor of the file used once.

    `names`: stored name -> `<module>.lora_A` or `.lora_B`. Raises ModelDamaged where a target is not a weight that
    an adapter may change, a shape or a type does not fit, a factor has no partner, or there is none at all. r is the
    rank, or three times that for XLM-R's fused Wqkv (see Adapter.factors).
    """
    shapes = architecture.tensors(arch)
    stored = {plain: name for name, plain in names.items()}
    expected: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for name in architecture.adaptable(arch):
        a, b = (f"{name.removesuffix('.weight')}.lora_{x}" for x in "AB")
        if a in stored or b in stored:
            r = rank
            if name.endswith("Wqkv.weight") and a in stored and file.tensors[stored[a]].shape[:1] == (3 * rank,):
                r = 3 * rank
            expected[a], expected[b] = (r, shapes[name][1]), (shapes[name][0], r)
            pairs[name] = (stored.get(a, ""), stored.get(b, ""))
    _check_factors(file, names, stored, expected)
    return pairs


def _pair_v3(
    file: SafetensorsFile, names: Mapping[str, str], arch: Architecture, rank: int
) -> dict[str, list[_Stored]]:
    """The same for v3's PEFT folders, whose modules have the checkpoint's names or those of transformers' class."""
    shapes = architecture.tensors(arch)
    stored = {_canonical_v3(plain): name for name, plain in names.items()}
    expected: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, list[_Stored]] = {}
    for name in architecture.adaptable(arch):
        module = name.removesuffix(".weight")
        out, inner = shapes[name]
        embedding = module.startswith("embeddings.")
        letters = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        split = not embedding and any(f"{module}|{x}.{letter}" in stored for x in _THIRDS for letter in letters)
        for part in [f"{module}|{x}" for x in _THIRDS] if split else [module]:
            a, b = (f"{part}.{letter}" for letter in letters)
            if a not in stored and b not in stored:
                continue
            rows = out // 3 if split else out
            # PEFT keeps an embedding's factors for the transposed table: A (r, rows), B (columns, r).
            expected[a], expected[b] = ((rank, out), (inner, rank)) if embedding else ((rank, inner), (rows, rank))
            pair = _Stored(file, stored.get(a, ""), stored.get(b, ""), turned=embedding, transposed=embedding)
            pairs.setdefault(name, []).append(pair)
        if split and len(pairs[name]) != len(_THIRDS):
            raise ModelDamaged(f"{file.path}: {module} has factors for some of q, k and v only.")
    _check_factors(file, names, stored, expected)
    return pairs


def _check_factors(
    file: SafetensorsFile,
    names: Mapping[str, str],
    stored: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    check_shapes({plain: file.tensors[name].shape for plain, name in stored.items()}, expected, str(file.path))
    if not expected:
        raise ModelDamaged(f"{file.path}: holds no LoRA factors.")
    if len(stored) < len(names):
        raise ModelDamaged(f"{file.path}: a factor is there twice, under two names.")
    check_types({name: file.tensors[name].dtype for name in names}, FLOATS, str(file.path))


def _canonical_v3(plain: str) -> str:
    module, _, letter = plain.rpartition(".")
    for pattern, name in _NATIVE_V3:
        if pattern.match(module):
            return f"{pattern.sub(name, module)}.{letter}"
    return plain


def _plain(name: str) -> str:
    for prefix in ("base_model.", "model.", "model.", "roberta."):
        name = name.removeprefix(prefix)
    return name.removesuffix(".weight")


def _block_diagonal(blocks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    listed = list(blocks)
    out = np.zeros((sum(b.shape[0] for b in listed), sum(b.shape[1] for b in listed)), np.float32)
    row = column = 0
    for block in listed:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out
