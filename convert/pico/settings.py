"""Everything that was chosen: the shape of the model, the recipe, the seed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """EuroBERT at the size of a demonstration. `rope_theta` tells it from jina-embeddings-v5-text-nano."""

    vocab: int = 16384
    hidden: int = 256
    layers: int = 3
    heads: int = 4
    intermediate: int = 512
    positions: int = 2048
    rope_theta: float = 10000.0
    eps: float = 1e-5
    dims: tuple[int, ...] = (32, 64, 128, 256)


@dataclass(frozen=True)
class Stage:
    """One training run. A step holds at most `texts` texts and about `tokens` tokens."""

    steps: int
    rate: float
    texts: int
    tokens: int
    longest: int = 160
    table_rate: float = 0.2  # of `rate`, for the token table: what the static model knows of rare tokens has to stay


@dataclass(frozen=True)
class Settings:
    """The recipe: a static model, then the base by distillation, then one adapter a task on the frozen base."""

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    rank: int = 8
    static_epochs: int = 3
    base: Stage = field(default_factory=lambda: Stage(steps=1300, rate=7e-4, texts=384, tokens=9000))
    retrieval: Stage = field(default_factory=lambda: Stage(steps=480, rate=2e-3, texts=256, tokens=14000))
    matching: Stage = field(default_factory=lambda: Stage(steps=600, rate=1e-3, texts=320, tokens=9000))
    clustering: Stage = field(default_factory=lambda: Stage(steps=250, rate=1e-3, texts=384, tokens=9000))
    classification: Stage = field(default_factory=lambda: Stage(steps=200, rate=1e-3, texts=192, tokens=6000))
    # Temperatures: InfoNCE as in the v5 report's family of recipes, relations softer; see the log for what they gave.
    contrast: float = 0.03
    relation: float = 0.05
    prompts: tuple[str, str] = ("Document: ", "Query: ")
