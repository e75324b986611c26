"""The reader of a request's fields, one by one. The description of the API is made by the same calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...errors import UsageError
from ...registry import near_match
from .calls import Input

_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


class BadField(UsageError):
    """A field of a request's body that cannot be honoured; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param, self.reason = param, message


class Fields:
    """A request's body, field by field. What nobody has asked for at the end is refused, see `done`."""

    def __init__(self, body: object, *, there: bool = True) -> None:
        """there: False for the fields of an object that is left out."""
        if not isinstance(body, Mapping):
            raise UsageError(f"the body is {_kind(body)}; expected an object.")
        self._body, self.there = body, there
        self._asked: set[str] = set()

    @classmethod
    def of(cls, body: object) -> Fields:
        """The fields of a body; those of a description, which is no body, are itself: see server/openapi.py."""
        return body if isinstance(body, Fields) else cls(body)

    def any(self, *names: str) -> tuple[str, object]:
        """The first of several names that is there and not null, and its value; else the first name and None."""
        self._asked.update(names)
        given = [name for name in names if self._body.get(name) is not None]
        if len(given) > 1:
            raise BadField(given[1], f"says the same as {given[0]}; give one of them.")
        return (given[0], self._body[given[0]]) if given else (names[0], None)

    def value(self, *names: str, of: tuple[type, ...]) -> Any:
        """A str, bool, int or float, whichever of them `of` has; or None. A float is finite, and may be whole."""
        name, value = self.any(*names)
        fits = type(value) in of or (type(value) is int and float in of)
        if value is None or (fits and not (isinstance(value, float) and not math.isfinite(value))):
            return value
        raise BadField(name, f"is {_shown(value)}; expected {' or '.join(_WORDS[kind] for kind in of)}.")

    def text(self, *names: str) -> str | None:
        """A str, or None."""
        text: str | None = self.value(*names, of=(str,))
        return text

    def flag(self, *names: str, default: bool) -> bool:
        """True or False."""
        flag: bool | None = self.value(*names, of=(bool,))
        return default if flag is None else flag

    def whole(self, *names: str, low: int = 1) -> int | None:
        """A whole number from `low`, or None."""
        name, value = self.any(*names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise BadField(name, f"is {_shown(value)}; expected a whole number from {low}.")
        return value

    def choice(self, *names: str, among: Mapping[str, str], default: str) -> str:
        """One of the words of `among`: what it stands for."""
        name, value = self.any(*names)
        if value is None:
            return default
        if not isinstance(value, str) or value not in among:
            near = near_match(value, among) if isinstance(value, str) else ""
            raise BadField(name, f"is {_shown(value)}{near}. Possible: {', '.join(among)}.")
        return among[value]

    def inputs(self, *names: str, ids: bool = False) -> list[Input]:
        """One text or several, each a string or {"text": string}; with `ids` also the ids of one or of several."""
        name, value = self.any(*names)
        if value is None:
            raise BadField(name, "is missing; expected a text or a list of texts.")
        if isinstance(value, str | Mapping):
            return [_text(name, value)]
        if not isinstance(value, list):
            raise BadField(name, f"is {_kind(value)}; expected a text or a list of texts.")
        if not value:
            raise BadField(name, "is empty; expected at least one text.")
        if ids and all(_is_id(one) for one in value):
            return [value]
        out: list[Input] = []
        for n, one in enumerate(value):
            if ids and isinstance(one, list) and one and all(_is_id(number) for number in one):
                out.append(one)
            else:
                out.append(_text(f"{name}[{n}]", one))
        return out

    def texts(self, *names: str) -> list[str]:
        """One text or several, each a string or {"text": string}."""
        return [one for one in self.inputs(*names) if isinstance(one, str)]

    def strings(self, name: str, *, alone: bool = False, required: bool = False) -> list[str]:
        """A list of strings; with `alone` also one by itself. Unless it is `required`, nothing is an empty list."""
        _, value = self.any(name)
        if value is None and not required:
            return []
        if isinstance(value, str) and alone:
            return [value]
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise BadField(name, f"expected {'a string or ' if alone else ''}a list of strings.")
        return value

    def inner(self, name: str, *, required: bool = False) -> Fields:
        """The fields of an object; without it, unless it is `required`, there are none."""
        _, value = self.any(name)
        if value is None and not required:
            return Fields({}, there=False)
        if not isinstance(value, Mapping):
            raise BadField(name, f"is {'missing' if value is None else _kind(value)}; expected an object.")
        return Fields(value)

    def required(self, *names: str) -> str:
        """A str that has to be there."""
        value = self.text(*names)
        if value is None:
            raise BadField(names[0], "is missing; expected a string.")
        return value

    def ignore(self, *names: str) -> None:
        """Fields that change no answer here, such as the name of a user."""
        self._asked.update(names)

    def done(self) -> None:
        """Refuse what was not asked for."""
        for name in self._body:
            if name not in self._asked:
                near, known = near_match(str(name), self._asked), ", ".join(sorted(self._asked))
                raise BadField(str(name)[:100], f"is not known here{near}. Possible: {known}.")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(name: str, value: object) -> str:
    if isinstance(value, Mapping) and list(value) == ["text"]:
        value = value["text"]
    if not isinstance(value, str):
        raise BadField(name, f'is {_kind(value)}; expected a string, or {{"text": string}}.')
    return value


def _shown(value: object) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float) else _kind(value)


def _kind(value: object) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    for kinds, name in (
        (bool, "true or false"),
        (str, "a string"),
        ((int, float), "a number"),
        (list, "a list"),
        (Mapping, "an object"),
    ):
        if isinstance(value, kinds):  # type: ignore[arg-type]
            return name
    return type(value).__name__
