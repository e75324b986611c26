"""The rules that every adapter keeps, whatever file holds it: its scale, its base, and which factors make a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...errors import ModelDamaged
from ...formats.checks import check_shapes
from .. import architecture
from ..architecture import Architecture

MOST_RANK = 512
_MOST_ALPHA = 65536.0  # adapters are made with one to four times the rank; a larger value is damage


@dataclass(frozen=True)
class Slot:
    """Room for one pair of factors: the base weight, and the name in the file and the shape of A and of B."""

    weight: str
    a: str
    a_shape: tuple[int, ...]
    b: str
    b_shape: tuple[int, ...]


def check_scale(rank: object, alpha: object, where: str) -> tuple[int, float]:
    """Return both if they are numbers that an adapter can have. Raises ModelDamaged."""
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST_RANK:
        raise ModelDamaged(f"{where}: rank {rank!r}; expected a whole number from 1 to {MOST_RANK}.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= _MOST_ALPHA:
        raise ModelDamaged(f"{where}: alpha {alpha!r}; expected a positive number up to {_MOST_ALPHA:g}.")
    return rank, float(alpha)


def check_base(adapter: str | None, base: str | None, where: str, beside: str, *, key: str, command: str) -> None:
    """Raise ModelDamaged unless an adapter was made for the base that it is opened beside.

    adapter, base: the digest of the published base that each file carries, or None.
    where, beside: the adapter's file, and the base's.
    key: the name under which the files carry the digest.
    command: the command that converts both together.
    """
    if base is None:
        raise ModelDamaged(
            f"{beside}: carries no digest of a base ({key}), so no adapter is known to fit it: it is merged, or made "
            f"by other programs. Take the base that was converted with its adapters, or convert both: {command}."
        )
    if adapter is None:
        raise ModelDamaged(
            f"{where}: carries no digest of its base ({key}), so nothing says that it was trained on {beside}. Put "
            "the PEFT folder that it came from under adapters/<task> of the published checkpoint SRC, and convert "
            f"both: {command}."
        )
    if adapter != base:
        raise ModelDamaged(
            f"{where}: was made for the base {adapter}, and {beside} is of the base {base}. Put it beside its own "
            f"base, or convert both from one checkpoint: {command}."
        )


def linear_slots(
    arch: Architecture,
    weights: Iterable[str],
    rank: int,
    shapes: Mapping[str, tuple[int, ...]],
    name_pair: Callable[[str], tuple[str, str]],
) -> Iterator[Slot]:
    """The slots of `weights`: A (rank, in) and B (out, rank) for a weight (out, in).

    The rank may be three times as large for XLM-R's fused Wqkv, whose three parts can have an A each.

    shapes: the tensors of the file.
    name_pair: base weight -> the names of its A and B in the file.
    """
    base = architecture.tensors(arch)
    for weight in weights:
        out, inner = base[weight]
        a, b = name_pair(weight)
        own_a_each = weight.endswith("Wqkv.weight") and shapes.get(a, ())[:1] == (3 * rank,)
        inside = 3 * rank if own_a_each else rank
        yield Slot(weight, a, (inside, inner), b, (out, inside))


def pair_factors(
    shapes: Mapping[str, tuple[int, ...]], slots: Iterable[Slot], where: str, *, every: bool = False
) -> list[Slot]:
    """The slots that a file fills, in order. Raises ModelDamaged.

    Refused: a tensor that no slot has room for, another shape, one factor without the other, no factors at all.

    shapes: the tensors of the file.
    every: refuse an empty slot as well.
    """
    filled = [slot for slot in slots if every or slot.a in shapes or slot.b in shapes]
    expected: dict[str, tuple[int, ...]] = {}
    for slot in filled:
        expected |= {slot.a: slot.a_shape, slot.b: slot.b_shape}
    check_shapes(shapes, expected, where)
    if not filled:
        raise ModelDamaged(f"{where}: holds no LoRA factors.")
    return filled
