"""The words of a text as FTS5 gets them, and the words of a question: identifiers split, unspaced scripts in pairs.

FTS5 folds case and accents and stems English (`TOKENIZER`). It knows no words in unspaced scripts, and no parts of
an identifier, so `words_of` writes both out before a text is indexed. A contentless table forgets a text only if it
is given the same words again, so the header of an index holds the `VERSION` of its words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

# Counts the changes of this file that alter words; another Unicode normalises a few texts in another way.
VERSION = f"1, Unicode {unicodedata.unidata_version}"

# M*: vowel signs of Indic and South-East Asian scripts are marks, and belong to their word.
TOKENIZER = "porter unicode61 remove_diacritics 2 categories 'L* M* N*'"

# Kana, ideographs, Hangul; then Thai, Lao, Myanmar, Khmer.
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af\u0e01-\u0e3a\u0e40-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
# Vowel points and the lengthening stroke: most Arabic and Hebrew texts leave them out.
_POINTS = re.compile("[\u0591-\u05bd\u05bf-\u05c7\u0640\u064b-\u065f\u0670]+")
# `\b` keeps the search linear in a word of any length.
_IDENTIFIER = re.compile(r"\b\w*(?:[a-z0-9][A-Z]|[A-Z]{2}[a-z]|[^\W_]_+[^\W_])\w*")
_PART = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[^\WA-Z_]+")
_SHORTEST_PART = 2
# Words that ask, or join others. In code and in other languages they may be rare, and would decide for no reason.
ASKING = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can could did do does for from had has have how i if in into is it its me my of "
        "on or should so than that the their them then there these they this those to was we were what when where "
        "which while who whom whose why will with without would you your",
    )
)

# FTS5 scores a row in about a microsecond, and passes one over in 0.03 of it.
SCORED = 20_000  # rows that the words of one question may bring
ADDED = 100_000  # a word in more rows than these adds nothing: passing over them alone would take 3 ms


def words_of(text: str) -> str:
    """The text for FTS5.

    `readFile` and `read_file` become `readFile read File` and `readfile read file`. A run of an unspaced script
    becomes its pairs of neighbours and its last character, so that each character begins a word.
    """
    text = _IDENTIFIER.sub(_spread, text)
    if text.isascii():
        return text
    text = _POINTS.sub("", unicodedata.normalize("NFKC", text))
    return _RUN.sub(lambda run: f" {' '.join([*_pairs(run[0]), run[0][-1]])} ", text)


def terms_of(question: str) -> list[str]:
    """The question's words as FTS5 expressions, each once, in their order; none has an operator's meaning."""
    text = _POINTS.sub("", unicodedata.normalize("NFKC", _IDENTIFIER.sub(_spread, question)))
    # A single character of an unspaced script stands for all words that it begins.
    alone = dict.fromkeys(run[0] for run in _RUN.finditer(text) if len(run[0]) == 1)
    text = _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]) or [run[0]])} ", text)
    found = dict.fromkeys("".join(c if _in_word(c) else " " for c in text).lower().split())
    return [f'"{word}"*' if word in alone else f'"{word}"' for word in found]


def _in_word(character: str) -> bool:
    # As TOKENIZER has it; `\w` would leave the marks out.
    return unicodedata.category(character)[0] in "LMN"


@dataclass(frozen=True)
class Match:
    """A question for FTS5.

    most: how many rows to score, the newest first; None for all.
    weight: of all its words in BM25. A row that has each of them once scores about as much.
    """

    expression: str
    most: int | None
    weight: float


def match_of(question: str, count: Callable[[str, int], int], rows: int) -> Match | None:
    """The expression that finds a question's rows, in bounded time; None if no word of it is anywhere.

    count: says in how many rows a term stands: exactly up to its second argument, about how many beyond.
    rows: of the whole table.

    Common words decide nothing: the rarest bring the rows, at most `SCORED` of them, and the others add half their
    weight to rows that are found anyway. A question of nothing but common words is asked with the rarest of them.
    Words of ASKING are left out if there are others.
    """
    terms = terms_of(question)
    terms = [term for term in terms if term.strip('"') not in ASKING] or terms
    counted = sorted((count(term, SCORED + 1), n, term) for n, term in enumerate(terms))
    found = [(number, term) for number, _, term in counted if number]
    # Most pairs of an unspaced script that stand nowhere reach over the end of a word.
    absent = sum(not number and not _RUN.search(term) for number, _, term in counted)
    if not found:
        return None
    deciding: list[str] = []
    total = 0
    for number, term in found:
        if deciding and total + number > SCORED and rows > SCORED:
            break
        deciding.append(term)
        total += number
    # A word in half of the rows has no weight in FTS5's BM25.
    adding = [(number, term) for number, term in found[len(deciding) :] if number <= min(ADDED, rows // 2)]
    weight = absent * _weight(0, rows) + sum(_weight(number, rows) for number, _ in found[: len(deciding)])
    rare = " OR ".join(deciding)
    most = SCORED if total > SCORED and rows > SCORED else None
    if not adding:
        return Match(rare, most, weight)
    # Both branches are in every row that is found, so that BM25 counts the rare words twice.
    expression = f"({rare}) AND ({rare} OR {' OR '.join(term for _, term in adding)})"
    return Match(expression, most, 2 * weight + sum(_weight(number, rows) for number, _ in adding))


def parts_of(identifier: str) -> list[str]:
    """The words of a name, lower-case: `readFile` and `read_file` have two."""
    return [part.lower() for part in _PART.findall(identifier)]


def _weight(count: int, rows: int) -> float:
    """A word's weight in FTS5's BM25."""
    return max(math.log((rows - count + 0.5) / (count + 0.5)), 1e-6)


def _spread(identifier: re.Match[str]) -> str:
    parts = _PART.findall(identifier[0])
    return " ".join(["".join(parts), *(part for part in parts if len(part) >= _SHORTEST_PART)])


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]
