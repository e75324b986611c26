"""The task adapters of a published checkpoint, in the three ways in which they are stored -> pairs (A, B) in float32.

peft      adapters/{task}/, or for v3 {task}/: adapter_config.json and adapter_model.safetensors
inside    v3: in the checkpoint itself, X.parametrizations.weight.0.lora_A and .lora_B, a leading axis of tasks

The pair that is returned always has delta = (alpha / rank) B A. An embedding table's factors are stored for A B
(inside) or for the transposed table (peft); they are swapped here, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelDamaged
from ...formats.checks import FLOATS, check_types, finite
from ...formats.files import read_json
from ...formats.safetensors import SafetensorsFile
from .. import architecture
from ..architecture import Architecture
from .mlx_file import names as names_of_ours
from .rules import Slot, check_scale, linear_slots, pair_factors

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
# transformers' own names for the modules of v3 -> the checkpoint's names.
_NATIVE_V3 = (
    (re.compile(r"^layers\.(\d+)\.self_attn\.o_proj$"), r"encoder.layers.\1.mixer.out_proj"),
    (re.compile(r"^layers\.(\d+)\.self_attn\.([qkv])_proj$"), r"encoder.layers.\1.mixer.Wqkv|\2"),
    (re.compile(r"^layers\.(\d+)\.mlp\.(fc[12])$"), r"encoder.layers.\1.mlp.\2"),
)
# Of the factors inside v3's own checkpoint. No shape tells them, so nothing else would notice other values.
_INSIDE_ALPHA = 1.0
_INSIDE_ORDER = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
_THIRDS = ("q", "k", "v")
_LETTERS = ("lora_A", "lora_B")


@dataclass(frozen=True)
class _Stored:
    """Where one pair lies. `task`: its place on the leading axis, None if there is no such axis."""

    file: SafetensorsFile
    a: str
    b: str
    task: int | None = None
    swapped: bool = False  # an embedding table's: the factor stored as A is the B of the delta
    transposed: bool = False  # and both are stored transposed, as PEFT does

    def read(self) -> Pair:
        """(A (r, in), B (out, r)) float32, delta = B A."""
        a, b = (finite(self.file.read_f32(n), f"{self.file.path}: {n}") for n in (self.a, self.b))
        if self.task is not None:
            a, b = a[self.task], b[self.task]
        if self.swapped:
            a, b = (b.T, a.T) if self.transposed else (b, a)
        return np.ascontiguousarray(a), np.ascontiguousarray(b)


class Adapter:
    """One task's adapter, checked against its base. `Checkpoint.adapter` makes it."""

    def __init__(
        self,
        where: str,
        rank: int,
        alpha: float,
        stored: Mapping[str, Sequence[_Stored]],
        own_file: SafetensorsFile | None,
    ) -> None:
        """`stored`: base weight -> its pair, or a pair each for q, k and v. `own_file`: closed with the adapter."""
        self.where, self.rank, self.alpha = where, rank, alpha
        self.scale = alpha / rank
        self._stored, self._own_file = stored, own_file

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._own_file is not None:
            self._own_file.close()

    @property
    def targets(self) -> tuple[str, ...]:
        """The base weights that have factors, in the order of `architecture.adaptable`."""
        return tuple(self._stored)

    def factors(self, name: str) -> Pair | None:
        """(A (r, in), B (out, r)) float32 of one base weight, or None.

        r is the adapter's rank, or three times the rank for a fused weight whose three parts have an A each.
        """
        if name not in self._stored:
            return None
        pairs = [stored.read() for stored in self._stored[name]]
        if len(pairs) == 1:
            return pairs[0]
        first = pairs[0][0]
        if all(np.array_equal(a, first) for a, _ in pairs):
            return first, np.concatenate([b for _, b in pairs])
        return np.concatenate([a for a, _ in pairs]), _block_diagonal([b for _, b in pairs])

    def add_to(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """`weight` plus this adapter's delta for it, in float32; `weight` itself if the adapter leaves it alone."""
        pair = self.factors(name)
        if pair is None:
            return weight
        a, b = pair
        return weight + np.float32(self.scale) * (b @ a)


def folders(checkpoint: Path, arch: Architecture) -> dict[str, Path]:
    """Task -> its folder, for adapters in PEFT's layout."""
    by_task = {p.parent.name: p.parent for p in sorted(checkpoint.glob(f"adapters/*/{CONFIG}"))}
    if not by_task and arch.kind == "jina-bert-v3":
        named = ((p.parent.name, p.parent) for p in sorted(checkpoint.glob(f"*/{CONFIG}")))
        by_task = {_FOLDERS.get(name, name): path for name, path in named}
    return by_task


def from_folder(folder: Path, arch: Architecture) -> Adapter:
    """Open an adapter in PEFT's layout. Raises ModelDamaged."""
    config = read_json(folder / CONFIG)
    rank, alpha = check_scale(config.get("r"), config.get("lora_alpha"), str(folder))
    for key, plain in _PLAIN_LORA.items():
        if config.get(key) not in plain:
            raise ModelDamaged(f"{folder}: {key} is {config[key]!r}; only plain LoRA is merged here.")
    file = SafetensorsFile(folder / WEIGHTS)
    try:
        names = {stored: n for stored in file.tensors if not (n := _plain(stored)).startswith("pooler.")}
        pairs = (_pairs_of_v3 if arch.kind == "jina-bert-v3" else _pairs)(file, names, arch, rank)
        return Adapter(str(folder), rank, alpha, pairs, file)
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
    """Open an adapter inside the checkpoint's weight files. Raises ModelDamaged.

    stored: "<weight>|A" and "<weight>|B" -> the file and the name of each factor.
    """
    tasks = inside_tasks(config, where)
    rank, alpha = check_scale(config.get("lora_rank"), config.get("lora_alpha"), where)
    if alpha != _INSIDE_ALPHA:
        raise ModelDamaged(
            f"{where}: lora_alpha is {alpha:g}; jina-embeddings-v3 was trained with {_INSIDE_ALPHA:g}."
        )
    shapes = {key: file.tensors[name].shape for key, (file, name) in stored.items()}
    pairs = {}
    for slot in pair_factors(shapes, _slots_inside(arch, len(tasks), rank), where, every=True):
        (file, a), (file_of_b, b) = stored[slot.a], stored[slot.b]
        if file is not file_of_b:
            raise ModelDamaged(f"{where}: the two factors of {slot.weight} lie in different files.")
        pairs[slot.weight] = [_Stored(file, a, b, tasks.index(task), swapped=_is_table(slot.weight))]
    return Adapter(where, rank, alpha, pairs, None)


def _slots_inside(arch: Architecture, tasks: int, rank: int) -> Iterator[Slot]:
    base = architecture.tensors(arch)
    for weight in architecture.adaptable(arch):
        out, inner = base[weight]
        a, b = ((out, rank), (rank, inner)) if _is_table(weight) else ((rank, inner), (out, rank))
        yield Slot(weight, f"{weight}|A", (tasks, *a), f"{weight}|B", (tasks, *b))


def inside_tasks(config: Mapping[str, object], where: str) -> tuple[str, ...]:
    """The tasks on the leading axis of the factors inside a checkpoint, in order. Raises ModelDamaged."""
    tasks = config.get("lora_adaptations")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(t, str) for t in tasks):
        raise ModelDamaged(f"{where}: holds adapters, and its config names no tasks for them (lora_adaptations).")
    if tasks != [task for task in _INSIDE_ORDER if task in tasks]:
        raise ModelDamaged(
            f"{where}: lora_adaptations is {', '.join(tasks)}; the factors stand in the order "
            f"{', '.join(_INSIDE_ORDER)}."
        )
    return tuple(tasks)


def _pairs(
    file: SafetensorsFile, names: Mapping[str, str], arch: Architecture, rank: int
) -> dict[str, list[_Stored]]:
    """Base weight -> its pair in a PEFT file of v5. `names`: stored name -> `<module>.lora_A` or `.lora_B`."""
    stored = {plain: name for name, plain in names.items()}
    shapes = _shapes(file, names, stored)
    filled = pair_factors(
        shapes, linear_slots(arch, architecture.adaptable(arch), rank, shapes, names_of_ours), str(file.path)
    )
    return {slot.weight: [_Stored(file, stored[slot.a], stored[slot.b])] for slot in filled}


def _pairs_of_v3(
    file: SafetensorsFile, names: Mapping[str, str], arch: Architecture, rank: int
) -> dict[str, list[_Stored]]:
    """The same for v3's PEFT folders, whose modules have the checkpoint's names or those of transformers' class."""
    stored = {_canonical_v3(plain): name for name, plain in names.items()}
    shapes = _shapes(file, names, stored)
    pairs: dict[str, list[_Stored]] = {}
    for slot in pair_factors(shapes, _slots_of_v3(arch, rank, shapes), str(file.path)):
        table = _is_table(slot.weight)
        pair = _Stored(file, stored[slot.a], stored[slot.b], swapped=table, transposed=table)
        pairs.setdefault(slot.weight, []).append(pair)
    for weight in pairs:
        module = weight.removesuffix(".weight")
        if len(pairs[weight]) != (len(_THIRDS) if _in_thirds(module, shapes) else 1):
            raise ModelDamaged(f"{file.path}: {module} has factors for some of q, k and v only.")
    return pairs


def _slots_of_v3(arch: Architecture, rank: int, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Slot]:
    base = architecture.tensors(arch)
    for weight in architecture.adaptable(arch):
        module = weight.removesuffix(".weight")
        out, inner = base[weight]
        if _is_table(weight):
            # PEFT keeps an embedding's factors for the transposed table: A (r, rows), B (columns, r).
            yield Slot(weight, f"{module}.lora_embedding_A", (rank, out), f"{module}.lora_embedding_B", (inner, rank))
        elif _in_thirds(module, shapes):
            for part in _THIRDS:
                a, b = (f"{module}|{part}.{letter}" for letter in _LETTERS)
                yield Slot(weight, a, (rank, inner), b, (out // 3, rank))
        else:
            a, b = (f"{module}.{letter}" for letter in _LETTERS)
            yield Slot(weight, a, (rank, inner), b, (out, rank))


def _in_thirds(module: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether q, k and v of a fused weight have factors of their own."""
    return any(f"{module}|{part}.{letter}" in shapes for part in _THIRDS for letter in _LETTERS)


def _is_table(weight: str) -> bool:
    return weight.startswith("embeddings.")


def _shapes(file: SafetensorsFile, names: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Plain name -> shape. Raises ModelDamaged if two tensors have one plain name, or a type is not a float."""
    if len(stored) < len(names):
        raise ModelDamaged(f"{file.path}: a factor is there twice, under two names.")
    check_types({name: file.tensors[name].dtype for name in names}, FLOATS, str(file.path))
    return {plain: file.tensors[name].shape for plain, name in stored.items()}


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
