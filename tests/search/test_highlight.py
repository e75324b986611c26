"""The places of a question's words in lines of text."""

from __future__ import annotations

from jina_local.search.highlight import spans


def words(lines, question):
    return [[line[a:b] for a, b in places] for line, places in zip(lines, spans(lines, question), strict=True)]


def test_words_are_found_by_their_stems_and_without_accents():
    lines = ["Resetting the modem", "nothing here", "a café, two Cafes"]
    assert words(lines, "how do I reset the cafe") == [["Resetting"], [], ["café", "Cafes"]]


def test_short_words_are_marked_if_there_is_nothing_else():
    assert words(["to be or not"], "to be") == [["to", "be"]]


def test_unspaced_scripts_and_names():
    assert words(["路由器需要重新启动。"], "重新启动") == [["重新启动"]]
    assert words(["x = readFile(path)"], "readFile") == [["readFile"]]


def test_no_words_and_odd_lines():
    assert spans(["a b"], "?!") == [[]]
    assert spans(["\ue000 reset", "reset"], "reset") == [[], [(0, 5)]]
    assert spans([], "reset") == []
