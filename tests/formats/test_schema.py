"""The schema checker: a value of the right kind comes back as it is, any other is a ModelDamaged that names it."""

from __future__ import annotations

import pytest

from jina_local.errors import ModelDamaged
from jina_local.formats import schema
from jina_local.formats.schema import Members, check

DEEP: list = []
for _ in range(3000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (schema.text, "é"),
        (schema.flag, False),
        (schema.record, {"a": 1}),
        (schema.whole(1, 9), 9),
        (schema.number(0, 1), 0.5),
        (schema.one_of("none", None), None),
        (schema.matching("[a-f]+", "letters"), "abc"),
        (schema.or_null(schema.text), None),
        (schema.list_of(schema.whole(0, 9), 3), [1, 2, 3]),
        (schema.dict_of(schema.text, 2), {"a": "b"}),
        (schema.fields({"a": schema.text}, {"b": schema.flag}), {"a": "x"}),
        (schema.tagged({"NFC": {}, "X": {"a?": schema.flag}}), {"type": "X", "a": True}),
    ],
)
def test_what_fits_comes_back(kind, value):
    assert check(value, kind, "f") == value


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (schema.text, 5, "f: x is 5; expected a text."),
        (schema.text, ["a"], "f: x is ['a']; expected a text."),
        (schema.text, "\ud800", "f: x is '\\ud800'; expected a text of valid Unicode."),
        (schema.flag, 1, "f: x is 1; expected true or false."),
        (schema.record, [], "f: x is []; expected an object."),
        (schema.whole(1, 9), 10, "f: x is 10; expected a whole number from 1 to 9."),
        (schema.whole(0, 9), True, "f: x is True; expected a whole number from 0 to 9."),
        (schema.whole(0, 9), 2.0, "f: x is 2.0; expected a whole number from 0 to 9."),
        (schema.number(0, 1), "1", "f: x is '1'; expected a number from 0 to 1."),
        (schema.number(0, 1), False, "f: x is False; expected a number from 0 to 1."),
        (schema.number(0, 1), float("nan"), "f: x is nan; expected a number from 0 to 1."),
        (schema.number(0, float("inf")), float("inf"), "f: x is inf; expected a finite number."),
        (schema.one_of(False), 0, "f: x is 0; expected False."),
        (schema.one_of("none", None), "all", "f: x is 'all'; expected one of 'none', null."),
        (schema.one_of("none", None), {}, "f: x is an object of 0 members; expected one of 'none', null."),
        (schema.matching("[a-f]+", "letters"), "abcx", "f: x is 'abcx'; expected letters."),
        (schema.list_of(schema.text, 3), ["a", 1], "f: x[1] is 1; expected a text."),
        (schema.list_of(schema.text, 3), ["a"] * 4, "expected a list of 0 to 3."),
        (schema.list_of(schema.text, 2, least=2), ["a"], "f: x is ['a']; expected a list of 2."),
        (schema.dict_of(schema.text, 1), {"a": "b", "c": "d"}, "expected an object of at most 1 members."),
        (schema.dict_of(schema.text, 1), {"a": 1}, "f: x['a'] is 1; expected a text."),
        (schema.dict_of(schema.text, 1, schema.one_of("b")), {"a": "1"}, "f: x['a'] is 'a'; expected 'b'."),
        (schema.fields({"a": schema.text}), {}, "f: x is an object of 0 members; expected an object with a."),
        (schema.fields({"a": schema.text}), {"a": "", "b": 7}, "f: x.b is 7; expected no such member."),
        (schema.fields({"a": schema.fields({"b": schema.flag})}), {"a": {"b": 1}}, "f: x.a.b is 1; expected true"),
        (schema.tagged({"NFC": {}}), {"type": "NFD"}, "f: x.type is 'NFD'; expected 'NFC'."),
        (schema.tagged({"NFC": {}}), {"type": []}, "f: x.type is []; expected 'NFC'."),
        (schema.tagged({"NFC": {}}), {}, "f: x.type is None; expected 'NFC'."),
        (schema.text, DEEP, "f: x is a list of 1; expected a text."),
        (schema.text, 10**3000, "..."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(kind, value, told):
    with pytest.raises(ModelDamaged) as error:
        check(value, kind, "f", "x")
    assert told in str(error.value)
    assert len(str(error.value)) < 200
    assert str(error.value).isascii()


def test_members_are_taken_once_and_the_rest_is_refused():
    members = Members({"a": 1, "b": {"c": "x"}, "d": {"e": {"n": 2}}}, "f")
    assert members.take("a", schema.whole(0, 9)) == 1
    assert members.take("none", schema.text, "default") == "default"
    assert members.inner("b").take("c", schema.text) == "x"
    with pytest.raises(ModelDamaged, match=r"f: it has members that are not known here: 'd'\."):
        members.done()
    [(name, inner)] = members.each("d", 3)
    assert (name, inner.take("n", schema.whole(0, 9))) == ("e", 2)
    members.done()
    with pytest.raises(ModelDamaged, match="f: a is missing"):
        members.take("a", schema.text)


def test_members_within_members_are_named_by_the_way_to_them():
    members = Members({"b": {"c": 1}, "d": {"e": {"n": "?", "m": 1}}, "g": {"h": 1}, "i": 5}, "f")
    with pytest.raises(ModelDamaged, match=r"f: b\.c is 1; expected a text"):
        members.inner("b").take("c", schema.text)
    [(_, inner)] = members.each("d", 3)
    with pytest.raises(ModelDamaged, match=r"f: d\['e'\]\.n is '\?'; expected true or false"):
        inner.take("n", schema.flag)
    with pytest.raises(ModelDamaged, match=r"f: d\['e'\] has members that are not known here: 'm'"):
        inner.done()
    with pytest.raises(ModelDamaged, match=r"f: g\['h'\] is 1; expected an object"):
        list(members.each("g", 3))
    with pytest.raises(ModelDamaged, match=r"f: i is 5; expected an object"):
        members.inner("i")
    with pytest.raises(ModelDamaged, match="f: holds 5; expected an object"):
        Members(5, "f")
