"""The words of a text as FTS5 gets them, and the words of a question: identifiers split, unspaced scripts in pairs.

FTS5 folds case and accents and stems English (`TOKENIZER`). It knows no words in unspaced scripts, and no parts of
an identifier, so `words_of` writes both out before a text is indexed. A contentless table forgets a text only if it
is given the same words again, so the header of an index holds the `VERSION` of its words.
"""

from __future__ import annotations

import re
import unicodedata

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


def _spread(identifier: re.Match[str]) -> str:
    parts = _PART.findall(identifier[0])
    return " ".join(["".join(parts), *(part for part in parts if len(part) >= _SHORTEST_PART)])


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]
