"""A model for tests of search: vectors without weights, the bundled model's tokenizer, and a folder of files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jina_local
from jina_local.text.tokenizer import Tokenizer
from tests.fakes import FakeEmbedder

TOKENIZER = Path(jina_local.__file__).parent / "bundled_models" / "pico" / "gguf" / "tokenizer.json"


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(TOKENIZER)


class SearchEmbedder(FakeEmbedder):
    """FakeEmbedder with a tokenizer. `texts` keeps what was embedded."""

    def __init__(self, **loaded: object) -> None:
        super().__init__(**loaded)
        self.texts: list[str] = []

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundled model's."""
        return tokenizer()

    def embed(self, texts, **words):
        """As FakeEmbedder.embed."""
        self.texts += texts
        return super().embed(texts, **words)


def guide(n: int) -> str:
    """A document of two chunks."""
    return f"# Guide {n}\n\nThe router number {n} restarts.\n\n## Install\n\nPlug in the cable number {n}.\n"
