"""text -> ids: prompt, special tokens, truncation that keeps the closing token, counts.

The tokens before and after a text are those of the model's own tokenizer.json; none is named here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from ..errors import ModelDamaged, TextError, TextTooLong, UsageError
from ..formats.gguf import Header
from ..formats.schema import shown
from ..spec import EmbeddingSpec, TokenizerSpec
from . import gate
from .gate import Passed
from .gguf_vocabulary import rebuild

# A text is cut to this many characters a token before it is tokenised, so that a 10 MB line costs what the
# model's limit costs; the cut is widened until the tokens that are kept lie well before it.
_CHARS_PER_TOKEN = 16
_SETTLED = 0.9  # a token is final when it ends in this part of the text that was tokenised
# Tokenizers that the gate lets through cut between a letter or digit and a space, whatever stands before or after:
# their splits begin a word at the space, or end one before it. Later letters are left out, because a few of them make
# one character with a space to the normaliser of XLM-R.
_SURE_CUT = re.compile(r"[^\W_\u0d00-\U0010ffff](?= )")
_LONGEST_HEAD = 64  # characters before such a cut; a text with more is tokenised once more as a whole
_AT_ONCE = 1024  # texts handed to the tokenizer in one call; bounds what its own records take
_TOO_LONG = (
    "has more than the {} tokens that are allowed, prompt and special tokens included. "
    "Shorten it, raise max_length if the model allows more, or use overflow='truncate'."
)
PROBES = (
    "", " ", "Query: ", "Document: The quick fox", "naïve café Ångström", "e\u0301 vs \u00e9", "日本語のテキスト",
    "العربية", "हिन्दी में", "1234567890 3.14159", "def f(x):\n\treturn x  # tab", "👩‍👩‍👧‍👦 emoji", "\r\n\r\n  x",
    "<|endoftext|>", "<|end_of_text|>", "don't WON'T it's", "a" * 200, " " * 40 + "x", "MiXeD123CaSe_under-score",
)  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Token ids per text, prompt and special tokens included, no longer than the limit."""

    ids: list[NDArray[np.int32]]
    truncated: NDArray[np.bool_]  # (n_texts,)

    @property
    def counts(self) -> NDArray[np.int32]:
        """(n_texts,) the number of ids of each text."""
        return np.fromiter((len(i) for i in self.ids), np.int32, len(self.ids))


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens around two texts: opening, first, between, second, closing."""

    opening: list[int]
    between: list[int]
    closing: list[int]

    @property
    def tokens(self) -> int:
        """The number of special tokens."""
        return len(self.opening) + len(self.between) + len(self.closing)


class Tokenizer:
    """A tokenizer.json with what its template puts around a text. Safe to share between threads.

    The library's own faults, met in a file or a text, come out as ModelDamaged that names the file.
    """

    def __init__(self, raw: bytes | str, where: str, passed: Passed | None = None) -> None:
        """passed: what the gate found; without it the content is taken as it is, unchecked."""
        self.where = where
        self.source: Path | Header | None = None  # the tokenizer.json or the GGUF that it was read from
        with self._library("is not a usable tokenizer"):
            self._tokenizer = tokenizers.Tokenizer.from_str(raw if isinstance(raw, str) else raw.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.rows = self._rows(passed)
        self._cuts_at_spaces = passed is not None and not any(re.search(r"\s", token) for token, _ in passed.added)
        plain, whole = (self._encode("a", special).ids for special in (False, True))
        at = _first_place(whole, plain, 0)
        if at < 0 or not plain:
            raise ModelDamaged(f"{where}: its template does not put special tokens around the text.")
        self.opening: list[int] = whole[:at]
        self.closing: list[int] = whole[at + len(plain) :]

    @classmethod
    def from_file(cls, path: Path, spec: TokenizerSpec | None = None) -> Tokenizer:
        """Read a tokenizer.json and check it, if `spec` is given against a model's. Raises ModelDamaged."""
        raw, passed = gate.read(path)
        tokenizer = cls(raw, str(path), passed)._checked(passed, spec)
        tokenizer.source = path
        return tokenizer

    @classmethod
    def from_gguf(cls, header: Header, spec: TokenizerSpec | None = None) -> Tokenizer:
        """Rebuild the tokenizer of a GGUF's own vocabulary, and check it in the same way. Raises ModelDamaged."""
        where, body = f"the vocabulary in {header.path}", rebuild(header)
        passed = gate.check_body(body, where)
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        tokenizer = cls(raw, where, passed)._checked(passed, spec)
        tokenizer.source = header
        return tokenizer

    def encode(self, texts: Sequence[str], spec: EmbeddingSpec) -> Encoded:
        """Prompt + text -> ids, at most spec.max_tokens with the special tokens kept.

        A longer text is cut and marked, or, with overflow "error", raises TextError, as does a text that is
        not a valid string or that leaves no tokens at all.
        """
        room = spec.max_tokens - len(self.opening) - len(self.closing)
        if room < 1:
            raise UsageError(
                f"max_length {spec.max_tokens} leaves no room beside {len(self.opening) + len(self.closing)} "
                "special tokens."
            )
        ids: list[NDArray[np.int32]] = []
        truncated = np.zeros(len(texts), np.bool_)
        for start in range(0, len(texts), _AT_ONCE):
            prompted = [spec.prefix + checked(start + i, t) for i, t in enumerate(texts[start : start + _AT_ONCE])]
            for i, body in enumerate(self._bodies(prompted, room), start):
                if len(body) > room:
                    truncated[i] = True
                    if spec.overflow == "error":
                        raise TextTooLong(i, _TOO_LONG.format(spec.max_tokens))
                ids.append(np.array([*self.opening, *body[:room], *self.closing], np.int32))
                if not len(ids[-1]):
                    raise TextError(i, "gives no tokens, and this model adds none; it cannot be embedded.")
        return Encoded(ids, truncated)

    def plain(self, texts: Sequence[str], room: int | None = None) -> list[list[int]]:
        """The ids of each text without the template. Special tokens that a text spells out are recognised.

        room: only the front of a very long text is tokenised, so that its result has at least room + 1 ids.
        """
        out: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            if room is None:
                out.extend(self._batch(some))
            else:
                out.extend(self._bodies(some, room))
        return out

    def counts_alone(self, texts: Sequence[str], encoded: Encoded, spec: EmbeddingSpec) -> list[int]:
        """The tokens of each text by itself: with the template, without the prompt, and no more than with it.

        encoded: what `encode` has made of the texts. Of most texts only the first word is tokenised again.
        """
        around = len(self.opening) + len(self.closing)
        heads = [None if cut else self._head(text) for text, cut in zip(texts, encoded.truncated, strict=True)]
        some = [head for head in heads if head is not None]
        ids = self._batch([*some, *(spec.prefix + head for head in some)])
        prompts = (len(more) - len(less) for less, more in zip(ids, ids[len(some) :], strict=False))
        others = iter(self.plain([t for t, head in zip(texts, heads, strict=True) if head is None], spec.max_tokens))
        return [
            min(len(next(others)) + around if head is None else count - next(prompts), count)
            for head, count in zip(heads, encoded.counts.tolist(), strict=True)
        ]

    def located(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """(n,) the ids of a text without the template, and (n,) the character that each begins at, ascending.

        A token that includes the space before a word begins at the word.
        """
        encoding = self._encode(text)
        starts = np.empty(len(encoding), np.int64)
        for n, (start, end) in enumerate(encoding.offsets):
            piece = text[start:end]
            starts[n] = start + (len(piece) - len(piece.lstrip()) if piece.strip() else 0)
        return np.array(encoding.ids, np.int32), np.maximum.accumulate(starts)

    def spans(self, text: str) -> list[tuple[int, int, int]]:
        """(id, start, end) of each token of a text without the template; start and end are characters."""
        encoding = self._encode(text)
        return [(one, start, end) for one, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out; half a character at the cut comes out as U+FFFD."""
        with self._library("cannot decode these ids"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name; None if there is no such token."""
        with self._library("cannot look up a token"):
            found: int | None = self._tokenizer.token_to_id(token)
        return found

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added ones included."""
        with self._library("cannot list its tokens"):
            return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def pair(self) -> PairTemplate:
        """The tokens that the template puts around two texts that are read together. Raises ModelDamaged."""
        first, second = (self._encode(text).ids for text in ("a", "b"))
        with self._library("cannot put two texts together"):
            whole = self._tokenizer.encode("a", "b", add_special_tokens=True).ids
        # Special tokens are in neither text, so the first place that fits is the place.
        starts = [_first_place(whole, first, 0)]
        starts.append(_first_place(whole, second, starts[0] + len(first)) if starts[0] >= 0 else -1)
        if min(starts) < 0:
            raise ModelDamaged(f"{self.where}: its template does not put special tokens around a pair of texts.")
        ends = [starts[0] + len(first), starts[1] + len(second)]
        return PairTemplate(whole[: starts[0]], whole[ends[0] : starts[1]], whole[ends[1] :])

    def ids(self, text: str) -> list[int]:
        """The ids of a text with the template, uncut."""
        return [*self.opening, *self._encode(text).ids, *self.closing]

    def fingerprint(self) -> str:
        """sha256 over the ids of fixed probe texts: equal for files that tokenise alike."""
        digest = hashlib.sha256()
        for probe in PROBES:
            digest.update(np.array([*self.ids(probe), -1], "<i4").tobytes())
        return digest.hexdigest()

    def _bodies(self, prompted: Sequence[str], room: int) -> list[list[int]]:
        """The ids of each text without special tokens; of a very long text at least room + 1 of them."""
        limit = room * _CHARS_PER_TOKEN
        short = iter(self._batch([t for t in prompted if len(t) <= limit]))
        return [next(short) if len(t) <= limit else self._front(t, room) for t in prompted]

    def _head(self, text: str) -> str | None:
        """The front of a text, up to a place where it is cut with a prompt and without; None if no place is sure."""
        found = _SURE_CUT.search(text, 0, _LONGEST_HEAD + 1) if self._cuts_at_spaces else None
        return None if found is None else text[: found.end()]

    def _front(self, text: str, room: int) -> list[int]:
        """At least room + 1 ids from the front of a very long text, or all of its ids."""
        chars = max(1, room) * _CHARS_PER_TOKEN
        while True:
            piece = text[:chars]
            encoding = self._encode(piece)
            if len(piece) == len(text):
                return list(encoding.ids)
            if len(encoding) > room and encoding.offsets[room][1] <= chars * _SETTLED:
                return list(encoding.ids[: room + 1])
            chars *= 2

    def _encode(self, text: str, special: bool = False) -> tokenizers.Encoding:
        with self._library("cannot encode a text"):
            return self._tokenizer.encode(text, add_special_tokens=special)

    def _batch(self, texts: Sequence[str]) -> list[list[int]]:
        with self._library("cannot encode a text"):
            return [one.ids for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    @contextmanager
    def _library(self, fault: str) -> Iterator[None]:
        """Every call of the library goes through here. Its Rust side raises plain Exception, and panics."""
        try:
            yield
        except BaseException as error:
            if type(error) is Exception or isinstance(error, UnicodeDecodeError):
                raise ModelDamaged(f"{self.where}: {fault} ({error}).") from error
            if type(error).__name__ == "PanicException":  # derives from BaseException
                raise ModelDamaged(
                    f"{self.where}: {fault}: it made the tokenizer library panic; the file is damaged."
                ) from error
            raise

    def _rows(self, passed: Passed | None) -> int:
        """The rows that a token table needs for every id. Raises ModelDamaged if ids are not the file's."""
        if passed is None:
            return 1 + max(self.vocabulary().values(), default=-1)
        for token, number in passed.added:
            if (given := self.token_id(token)) != number:
                raise ModelDamaged(
                    f"{self.where}: the added token {shown(token)} has the id {number}, and would get {given}: its "
                    "vocabulary has lost or gained tokens."
                )
        return passed.rows

    def _checked(self, passed: Passed, spec: TokenizerSpec | None) -> Tokenizer:
        """This tokenizer, of the form and with the template that a model's has. Raises ModelDamaged."""
        if spec is None:
            return self
        gate.require(passed, spec, self.where)
        around = {"before a text": (self.opening, spec.opening), "after a text": (self.closing, spec.closing)}
        if spec.between is not None:
            pair = self.pair()
            around |= {
                "before a pair": (pair.opening, spec.opening),
                "between two texts": (pair.between, spec.between),
                "after a pair": (pair.closing, spec.closing),
            }
        for place, (found, tokens) in around.items():
            expected = [self.token_id(token) for token in tokens]
            if found != expected:
                named = ", ".join(f"{token} ({n})" for token, n in zip(tokens, expected, strict=True))
                raise ModelDamaged(
                    f"{self.where}: puts the tokens {found} {place}, and this model was trained with "
                    f"{named or 'none'} there. Put the model's own tokenizer.json beside the weights."
                )
        return self


def _first_place(whole: list[int], part: list[int], start: int) -> int:
    """The first place of `part` in `whole` at or after `start`; -1 if there is none."""
    places = range(start, len(whole) - len(part) + 1)
    return next((i for i in places if whole[i : i + len(part)] == part), -1)


def checked(index: int, text: object) -> str:
    """The text. Raises TextError, naming its place in the call, if it is not a str of valid Unicode."""
    if not isinstance(text, str):
        raise TextError(index, f"is {type(text).__name__}, expected str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            index,
            f"invalid surrogate U+{ord(text[error.start]):04X} at character {error.start}. "
            "It is not valid Unicode; decode the source with errors='replace', or drop it.",
        ) from error
    return text
