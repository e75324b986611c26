"""The training text: what the student reads, what the teacher is asked, and which texts belong together.

Everything comes from `../shared/data/corpus`, whose sources and licences its SOURCES.md names; nothing of the test
collections is read. The order is fixed by a seed.
"""

from __future__ import annotations

import json
import lzma
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ANY_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")
# Languages whose own words the English teacher still reads in pieces; aligned ones are all that have translations.
_LATIN = ("de", "es", "fr", "it", "pt", "pt_BR", "nl")
_ASKED = ("what", "which", "who", "when", "where", "how", "why")
# Language -> what asks for a number, for a name, for another word. (German nouns look like names.)
_ASKED_IN = {
    "en": (
        ("How many", "When did", "What year", "How much", "In which year"),
        ("Who", "Which", "Where", "What is the name of", "What"),
        ("What", "Why", "How", "What is", "What does"),
    ),
    "de": (("Wie viele", "Wann", "Wie viel", "In welchem Jahr"), (), ("Was", "Warum", "Wie", "Wer", "Welche", "Wo")),
    "es": (("Cuántos", "Cuándo", "En qué año"), ("Quién", "Cuál", "Dónde"), ("Qué", "Por qué", "Cómo")),
    "fr": (("Combien de", "Quand", "En quelle année"), ("Qui", "Quel", "Où"), ("Que", "Pourquoi", "Comment")),
    "it": (("Quanti", "Quando", "In che anno"), ("Chi", "Quale", "Dove"), ("Che cosa", "Perché", "Come")),
    "pt": (("Quantos", "Quando", "Em que ano"), ("Quem", "Qual", "Onde"), ("O que", "Por que", "Como")),
    "nl": (("Hoeveel", "Wanneer", "In welk jaar"), ("Wie", "Welke", "Waar"), ("Wat", "Waarom", "Hoe")),
}
_STOP = frozenset(
    re.findall(
        r"\w+",
        "the a an of to and in is are was were be been for on with as by at from that this it its or not which his "
        "her he she they you i we their our your had has have will would can could may but if so than then there",
    )
)


@dataclass(frozen=True)
class Item:
    """One text for the student, and the text whose teacher vector is its target."""

    text: str
    target: str
    query: bool = False


@dataclass(frozen=True)
class Pair:
    """A query and a document that answers it."""

    query: str
    document: str
    language: str = "en"


@dataclass(frozen=True)
class Labelled:
    """A text and the class it belongs to; `kind` names the set that the class is one of."""

    text: str
    label: str
    kind: str


class Corpus:
    """The files, read once, and the views of them that the stages train on."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed, self._random = seed, random.Random(seed)
        self._sentences = self._english_sentences()

    def distilled(self) -> list[Item]:
        """Texts of all kinds with their targets, shuffled."""
        items = [*self._wordnet(), *self._facts(), *self._prose(), *self._manuals(), *self._asked()]
        found = {(item.text, item.query): item for item in items if len(item.text) > 2}
        listed = list(found.values())
        self._random.shuffle(listed)
        return listed

    def pairs(self) -> list[Pair]:
        """Questions, headings, words and sentences, each with a text that answers it or goes on from it."""
        pairs = [*self._fact_pairs(), *self._word_pairs(), *self._manual_pairs(), *self._cloze_pairs()]
        self._random.shuffle(pairs)
        return pairs

    def questions(self, pairs: list[Pair]) -> list[Pair]:
        """Questions made of a sentence of a paragraph, for that paragraph: two for each paragraph in `pairs`.

        A number, a name or a word is taken out of the sentence and asked for. `pairs` come along, but for most of
        the single words. Only languages that the teacher reads at least in pieces: of the others it has vectors that
        mean nothing, which would undo what the base learned from translations.
        """
        rng = random.Random(self._seed + 1)
        pairs = [pair for pair in pairs if pair.language in ("en", *_LATIN)]
        made = [pair for pair in pairs if len(pair.query) > 24 or rng.random() < 0.25]
        documents = {pair.document: pair.language for pair in pairs if len(pair.document) > 150}
        for document, language in documents.items():
            sentences = [s for s in _ANY_SENTENCE.split(document) if len(s.split()) > 5]
            for sentence in rng.sample(sentences, min(2, len(sentences))):
                made.append(Pair(_question(sentence, language, rng), document, language))
        rng.shuffle(made)
        return made

    def matches(self) -> list[tuple[str, str]]:
        """Pairs of sentences from nearly equal to unrelated; the teacher says how near."""
        rng, sentences = self._random, self._sentences
        synonyms = self._synonyms()
        pairs: list[tuple[str, str]] = []
        for i in rng.sample(range(len(sentences) - 1), min(24000, len(sentences) - 1)):
            one = sentences[i]
            pairs.append((one, rng.choice((_drop, _swap, _replace))(one, rng, synonyms)))
            pairs.append((one, sentences[i + 1]))
        pairs += [(_drop(one, rng, synonyms), _replace(one, rng, synonyms)) for one in rng.sample(sentences, 8000)]
        for row in self._rows("oewn"):
            if len(row["ex"]) > 1:
                pairs.append((_plain(row["ex"][0]), _plain(row["ex"][1])))
        rng.shuffle(pairs)
        return [(a, b) for a, b in pairs if a != b and min(len(a), len(b)) > 10]

    def labelled(self) -> list[Labelled]:
        """Texts with a class: word categories, fields of the factbook, modules of the textbooks, books."""
        rows = [Labelled(d, row["cat"], "word") for row in self._rows("oewn") for d in row["def"][:1]]
        rows += [Labelled(row["text"][:400], row["field"], "field") for row in self._rows("factbook")]
        rows += [Labelled(row["text"][:500], row["module"], "module") for row in self._rows("openstax")]
        rows += [Labelled(row["desc"], row["page"].split("/")[1].split("-")[0], "tool") for row in self._en("tldr")]
        rows += [Labelled(row["text"], row["doc"], "page") for row in self._en("fastapi_docs", "opensource_guide")]
        self._random.shuffle(rows)
        return [row for row in rows if len(row.text) > 20]

    def vocabulary_text(self) -> Iterator[str]:
        """Text for the vocabulary: mostly English, then German, then the other languages."""
        for name in ("oewn", "factbook", "openstax", "us_speeches"):
            for row in self._rows(name):
                yield row.get("text") or " ".join([", ".join(row["words"]), *row["def"], *map(_plain, row["ex"])])
        yield from self._sentences
        for name in ("fastapi_docs", "opensource_guide", "tldr", "udhr"):
            for row in self._rows(name):
                text = row.get("text") or " ".join([row["desc"], *row["items"]])
                share = {"en": 2, "de": 4, "es": 2, "fr": 2, "it": 2, "deu_1996": 4}.get(row["lang"], 1)
                known = share > 1 or self._random.random() < 0.25
                yield from [text] * (share if known else 0)

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        with lzma.open(self._folder / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def _en(self, *names: str) -> Iterator[dict[str, Any]]:
        return (row for name in names for row in self._rows(name) if row["lang"] == "en")

    def _english_sentences(self) -> list[str]:
        """Sentences of prose: all of the textbooks and speeches, some of the novels, in their order."""
        listed: list[str] = []
        for name, share in (("openstax", 1.0), ("us_speeches", 1.0), ("novels_en", 0.12)):
            for row in self._rows(name):
                if share == 1.0 or self._random.random() < share:
                    listed += [s for s in _SENTENCE.split(row["text"]) if 25 < len(s) < 350]
        return listed

    def _wordnet(self) -> Iterator[Item]:
        for row in self._rows("oewn"):
            words, meaning = ", ".join(row["words"][:3]), row["def"][0]
            yield Item(meaning, meaning)
            chance = self._random.random()
            if chance < 0.45:
                yield Item(words, words, query=True)
            elif chance < 0.75:
                both = f"{row['words'][0]}: {meaning}"
                yield Item(both, both)
            for example in row["ex"][:1]:
                yield Item(_plain(example), _plain(example))

    def _facts(self) -> Iterator[Item]:
        for row in self._rows("factbook"):
            text, query = row["text"][:600], f"{row['place']} {row['field'].lower()}"
            yield Item(text, text)
            asked = self._random.choice((query, f"what is the {row['field'].lower()} of {row['place']}?"))
            yield Item(asked, asked, query=True)
            full = f"{row['place']}: {row['field']}: {text}"
            yield Item(full, full)

    def _prose(self) -> Iterator[Item]:
        for name, share in (("openstax", 1.0), ("us_speeches", 1.0), ("novels_en", 0.25)):
            for row in self._rows(name):
                if self._random.random() < share:
                    text = row["text"][: self._random.choice((300, 600, 900))]
                    yield Item(text, text)
        for sentence in self._random.sample(self._sentences, min(60000, len(self._sentences))):
            yield Item(sentence, sentence, query=self._random.random() < 0.3)

    def _manuals(self) -> Iterator[Item]:
        """Manuals in English, and in other languages with the English paragraph as the target."""
        for name in ("fastapi_docs", "opensource_guide"):
            for row in self._rows(name):
                if row["lang"] == "en" or row["lang"] in _LATIN:
                    yield Item(row["text"][:600], row["text"][:600])
                    yield Item(row["head"], row["head"], query=True)
            for _, text, english in self._translated(name):
                yield Item(text[:500], english[:500])
        purposes = {row["page"]: row["desc"] for row in self._en("tldr")}
        for row in self._rows("tldr"):
            text = " ".join([row["desc"], *row["items"][:3]])
            if row["lang"] == "en" or row["lang"] in _LATIN:
                yield Item(text, text)
            if row["page"] in purposes and row["lang"] != "en":
                yield Item(row["desc"], purposes[row["page"]])

    def _translated(self, name: str) -> Iterator[tuple[str, str, str]]:
        """(language, text, English text) of documents with as many paragraphs as the English one has."""
        docs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in self._rows(name):
            docs[row["doc"]][row["lang"]].append(row["text"])
        for languages in docs.values():
            originals = languages.get("en", [])
            for language, texts in languages.items():
                if language != "en" and len(texts) == len(originals):
                    yield from ((language, text, other) for text, other in zip(texts, originals, strict=True))

    def _asked(self) -> Iterator[Item]:
        """Questions and keywords made of sentences: the corpus has few of either."""
        rng = self._random
        for sentence in rng.sample(self._sentences, min(50000, len(self._sentences))):
            words = sentence.rstrip(".!?").split()
            start = rng.randrange(max(1, len(words) - 4))
            part = words[start : start + rng.randint(4, 9)]
            if rng.random() < 0.6:
                text = f"{rng.choice(_ASKED).capitalize()} {rng.choice(('is', 'did', 'was', 'does', 'of'))} "
                text += " ".join(part) + "?"
            else:
                text = " ".join(w for w in part if w.lower() not in _STOP)
            yield Item(text, text, query=True)

    def _fact_pairs(self) -> Iterator[Pair]:
        for row in self._rows("factbook"):
            field = row["field"].lower()
            asked = self._random.choice(
                (f"{row['place']} {field}", f"what is the {field} of {row['place']}?", f"{field} in {row['place']}")
            )
            yield Pair(asked, f"{row['place']}. {row['text'][:500]}")

    def _word_pairs(self) -> Iterator[Pair]:
        for row in self._rows("oewn"):
            if self._random.random() < 0.3:
                word = self._random.choice(row["words"])
                asked = self._random.choice((word, f"what is {word}?", f"meaning of {word}"))
                yield Pair(asked, row["def"][0])

    def _manual_pairs(self) -> Iterator[Pair]:
        english = {row["page"]: row for row in self._en("tldr")}
        for row in english.values():
            yield Pair(self._random.choice(row["items"] or [row["desc"]]), f"{row['title']}: {row['desc']}")
        for name in ("fastapi_docs", "opensource_guide"):
            sections: dict[tuple[str, str, str], list[str]] = defaultdict(list)
            for row in self._rows(name):
                sections[row["lang"], row["doc"], row["head"]].append(row["text"])
            for (language, _, head), texts in sections.items():
                wanted = language in ("en", *_LATIN) or self._random.random() < 0.25
                joined = " ".join(texts)[:900]
                if wanted and len(joined) > 80:
                    yield Pair(head, joined, language)
                    if len(texts) > 1:
                        held = self._random.randrange(len(texts))
                        rest = " ".join(t for i, t in enumerate(texts) if i != held)[:900]
                        yield Pair(texts[held][:200], rest, language)
            for language, text, other in self._translated(name):
                if language in _LATIN and self._random.random() < 0.3:
                    yield Pair(text[:300], other[:300], language)

    def _cloze_pairs(self) -> Iterator[Pair]:
        """A sentence, or a question made of its words, for the paragraph around it."""
        rng = self._random
        for name, share in (("openstax", 1.0), ("us_speeches", 1.0), ("novels_en", 0.15)):
            for row in self._rows(name):
                sentences = _SENTENCE.split(row["text"][:1500])
                if len(sentences) < 3 or rng.random() > share:
                    continue
                for _ in range(2 if share == 1.0 else 1):
                    held = rng.randrange(len(sentences))
                    words = [w for w in sentences[held].split() if rng.random() < 0.7]
                    if len(words) < 4:
                        continue
                    asked = " ".join(words[:14])
                    if rng.random() < 0.5:
                        asked = f"{rng.choice(_ASKED).capitalize()} {asked.rstrip('.')}?"
                    rest = sentences if rng.random() < 0.5 else [s for i, s in enumerate(sentences) if i != held]
                    yield Pair(asked, " ".join(rest)[:1000])

    def _synonyms(self) -> dict[str, list[str]]:
        others: dict[str, list[str]] = defaultdict(list)
        for row in self._rows("oewn"):
            single = [w for w in row["words"] if " " not in w]
            for word in single:
                others[word.lower()] += [w for w in single if w != word]
        return {word: words for word, words in others.items() if words}


def _question(sentence: str, language: str, rng: random.Random) -> str:
    """A question that the sentence answers, or its keywords; at most 16 of its words, in their order."""
    for_numbers, for_names, for_words = _ASKED_IN.get(language, ((), (), ()))
    words = sentence.strip().rstrip(".!?:;").split()
    start = rng.randrange(max(1, len(words) - 12))
    words = words[start : start + rng.randint(8, 16)]
    if rng.random() < 0.25:
        return " ".join(w.strip(",;()") for w in words if w.lower() not in _STOP and rng.random() < 0.8)
    numbers = [i for i, w in enumerate(words) if any(c.isdigit() for c in w)]
    names = [i for i, w in enumerate(words) if i and w[:1].isupper()]
    gone = rng.choice(numbers or names or range(len(words)))
    asked = for_numbers if numbers else for_names if names and language != "de" else for_words
    kept = [w.strip(",;()") for i, w in enumerate(words) if i != gone and rng.random() < 0.85]
    return " ".join([*([rng.choice(asked)] if asked else []), *kept]) + "?"


def _plain(example: Any) -> str:
    return str(example["text"] if isinstance(example, dict) else example)


def _drop(text: str, rng: random.Random, _: dict[str, list[str]]) -> str:
    return " ".join(w for w in text.split() if rng.random() > 0.25)


def _swap(text: str, rng: random.Random, _: dict[str, list[str]]) -> str:
    words = text.split()
    middle = rng.randrange(len(words))
    return " ".join(words[middle:] + words[:middle])


def _replace(text: str, rng: random.Random, synonyms: dict[str, list[str]]) -> str:
    words = text.split()
    for i, word in enumerate(words):
        if rng.random() < 0.5 and (known := synonyms.get(word.lower().strip(".,;"))):
            words[i] = rng.choice(known)
    return " ".join(words)
