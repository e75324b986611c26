"""The questions about code: enough of them, each with lines that hold the thing that its label names."""

from __future__ import annotations

import pytest

from . import code

ALL = [(group, question) for group in code.QUESTIONS for question in code.questions(group)]


def test_there_are_enough_questions_and_both_groups_ask_about_different_code():
    asked = {group: {q.repository for g, q in ALL if g == group} for group in code.QUESTIONS}
    assert sum(group == "tuned" for group, _ in ALL) >= 60
    assert sum(group == "held out" for group, _ in ALL) >= 40
    assert len(asked["tuned"]) == len(asked["held out"]) == 3
    assert not asked["tuned"] & asked["held out"]
    assert {question.kind for _, question in ALL} == set(code.KINDS)
    assert len({question.text for _, question in ALL}) == len(ALL)


@pytest.mark.parametrize("question", [question for _, question in ALL], ids=lambda q: f"{q.repository}: {q.text}")
def test_the_labelled_lines_hold_the_named_thing(question):
    try:
        root = code.folder(question.repository)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert question.names
    for name, place in zip(question.names, question.places, strict=True):
        lines = (root / place.file).read_text(encoding="utf-8").splitlines()[place.first - 1 : place.last]
        own = name.rpartition("::")[2].rpartition(".")[2]
        assert any(line.lstrip().startswith((f"def {own}", f"class {own}", f"async def {own}")) for line in lines)
        # A label of hundreds of lines would be met by any hit.
        assert 1 <= place.last - place.first + 1 <= 160


def test_a_label_that_is_gone_is_an_error():
    with pytest.raises(KeyError, match="has no nothing"):
        code.place_of("jina_local", "jina_local/spec.py::nothing")
