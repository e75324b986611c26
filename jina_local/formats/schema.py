"""The types of values that come out of a file, checked before use: a wrong one is a ModelDamaged that names it.

    config = Members(read_json(path), str(path))
    rank = config.take("r", whole(1, 512))
    bias = config.take("bias", one_of("none", None), None)   # a third argument: the member may be absent
    config.done()                                            # if no other members are allowed

A kind is a function that gives back the value it was given, typed, or raises `Unfit`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from ..errors import ModelDamaged

T = TypeVar("T")
Kind = Callable[[object], T]

_SHOWN = 60  # characters of a wrong value that a message repeats
_REQUIRED: object = object()


class Unfit(Exception):
    """A value of another kind. `at`: the way to it from the value that was checked."""

    def __init__(self, value: object, expected: str, at: str = "") -> None:
        super().__init__(expected)
        self.value, self.expected, self.at = value, expected, at

    def inside(self, at: str) -> Unfit:
        """The same fault, seen from one step further out."""
        self.at = at + self.at
        return self


def check(value: object, kind: Kind[T], where: str, at: str = "") -> T:
    """The value, typed. Raises ModelDamaged with the file, the way to the value, the value and what was expected."""
    try:
        return kind(value)
    except Unfit as fault:
        path = (at + fault.at).lstrip(".")
        raise ModelDamaged(
            f"{where}: {path}{' is' if path else 'holds'} {shown(fault.value)}; expected {fault.expected}."
        ) from None


def shown(value: object) -> str:
    """A value as a message repeats it: in ASCII, and cut."""
    if isinstance(value, dict):
        return f"an object of {len(value)} members"
    if isinstance(value, list) and (len(value) > 8 or any(isinstance(item, dict | list) for item in value)):
        return f"a list of {len(value)}"
    words = ascii(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return words if len(words) <= _SHOWN else words[:_SHOWN] + "..."


def text(value: object) -> str:
    """A text that can be written as UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unfit(value, "a text of valid Unicode") from None
        return value
    raise Unfit(value, "a text")


def flag(value: object) -> bool:
    """True or false, and no number."""
    if not isinstance(value, bool):
        raise Unfit(value, "true or false")
    return value


def record(value: object) -> dict[str, object]:
    """An object with any members."""
    if not isinstance(value, dict):
        raise Unfit(value, "an object")
    return value


def whole(low: int, high: int) -> Kind[int]:
    """A whole number from `low` to `high`."""

    def kind(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Unfit(value, f"a whole number from {low} to {high}")
        return value

    return kind


def number(low: float, high: float) -> Kind[float]:
    """A finite number from `low` to `high`, whole or not."""

    def kind(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Unfit(value, f"a number from {low:g} to {high:g}")
        if not math.isfinite(value):
            raise Unfit(value, "a finite number")
        return float(value)

    return kind


def one_of(*values: T) -> Kind[T]:
    """One of the values; false is not 0."""

    def kind(value: object) -> T:
        for known in values:
            if type(value) is type(known) and value == known:
                return known
        listed = ", ".join("null" if known is None else shown(known) for known in values)
        raise Unfit(value, f"one of {listed}" if len(values) > 1 else listed)

    return kind


def matching(pattern: str, expected: str) -> Kind[str]:
    """A text that a regular expression describes whole."""

    def kind(value: object) -> str:
        if not re.fullmatch(pattern, text(value)):
            raise Unfit(value, expected)
        return text(value)

    return kind


def or_null(kind: Kind[T]) -> Kind[T | None]:
    """null, or a value of another kind."""
    return lambda value: None if value is None else kind(value)


def list_of(kind: Kind[T], most: int, least: int = 0) -> Kind[list[T]]:
    """A list of `least` to `most` values of one kind."""

    def each(value: object) -> list[T]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Unfit(value, f"a list of {most if least == most else f'{least} to {most}'}")
        return [_inside(kind, item, f"[{n}]") for n, item in enumerate(value)]

    return each


def dict_of(kind: Kind[T], most: int, names: Kind[str] = text) -> Kind[dict[str, T]]:
    """An object of at most `most` members, whose names are of one kind and whose values are of another."""

    def each(value: object) -> dict[str, T]:
        if not isinstance(value, dict) or len(value) > most:
            raise Unfit(value, f"an object of at most {most} members")
        return {
            _inside(names, name, f"[{shown(name)}]"): _inside(kind, item, f"[{shown(name)}]")
            for name, item in value.items()
        }

    return each


def fields(required: Mapping[str, Kind[object]], optional: Mapping[str, Kind[object]] | None = None) -> Kind[object]:
    """An object with exactly these members; the optional ones may be absent."""
    known = {**required, **(optional or {})}

    def each(value: object) -> object:
        values = record(value)
        if missing := [name for name in required if name not in values]:
            raise Unfit(values, f"an object with {', '.join(missing)}")
        for name, item in values.items():
            if name not in known:
                raise Unfit(item, "no such member", f".{name if name.isidentifier() else shown(name)}")
            _inside(known[name], item, f".{name}")
        return value

    return each


def tagged(forms: Mapping[str, Mapping[str, Kind[object]]]) -> Kind[object]:
    """An object whose member `type` says which members it has: name -> members, optional ones with a `?` behind."""
    names, kinds = one_of(*forms), {}
    for name, members in forms.items():
        required = {key: kind for key, kind in members.items() if not key.endswith("?")}
        optional = {key[:-1]: kind for key, kind in members.items() if key.endswith("?")}
        kinds[name] = fields({"type": text, **required}, optional)

    def each(value: object) -> object:
        return kinds[_inside(names, record(value).get("type"), ".type")](value)

    return each


class Members:
    """The members of one object, taken by name."""

    def __init__(self, value: object, where: str, at: str = "") -> None:
        """where: the file, for messages; at: the way to this object inside it, with a dot at its end."""
        self.where, self._at = where, at
        self._values = dict(check(value, record, where, at.rstrip(".")))

    def take(self, name: str, kind: Kind[T], default: T = _REQUIRED) -> T:  # type: ignore[assignment]
        """The value of a member, which is then no longer there. Raises ModelDamaged."""
        if name not in self._values:
            if default is not _REQUIRED:
                return default
            raise ModelDamaged(f"{self.where}: {self._at}{name} is missing.")
        return check(self._values.pop(name), kind, self.where, self._at + name)

    def inner(self, name: str) -> Members:
        """The members of a member that is an object itself. Raises ModelDamaged."""
        return Members(self.take(name, record), self.where, f"{self._at}{name}.")

    def each(self, name: str, most: int, names: Kind[str] = text) -> Iterator[tuple[str, Members]]:
        """Every member, by its name, of a member that maps names to objects. Raises ModelDamaged."""
        for inner, value in self.take(name, dict_of(record, most, names)).items():
            yield inner, Members(value, self.where, f"{self._at}{name}[{shown(inner)}].")

    def done(self) -> None:
        """Raise ModelDamaged if there are members that were not taken."""
        if self._values:
            names = ", ".join(shown(name) for name in list(self._values)[:10])
            place = self._at.rstrip(".") or "it"
            raise ModelDamaged(f"{self.where}: {place} has members that are not known here: {names}.")


def _inside(kind: Kind[T], value: object, at: str) -> T:
    try:
        return kind(value)
    except Unfit as fault:
        raise fault.inside(at) from None
