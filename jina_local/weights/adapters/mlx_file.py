"""A task's adapter beside an MLX base, in one safetensors file: what it holds and what is refused.

    OUT/model.safetensors            the base, no adapter in it; its metadata has "base", see below
    OUT/adapters/<task>.safetensors  one for each task

Metadata, all strings:

    format          "jina_local adapter 1"
    task            "retrieval", ...
    rank            r, a whole number from 1 to 512
    alpha           a positive number; what is added to a matrix W is (alpha / r) B A
    base            64 hex digits that name the published base checkpoint, at whatever bit width it stands beside
                    this file: sha256 of the lines "<sha256>  <name>\\n" of its weight files, in order of the names
    prompts         JSON, prompt name -> text put before every input
    default_prompt  one of those names

Tensors, F16 or F32, for each linear layer that the adapter changes (out, in: the shape of the layer's matrix):

    layers.<n>.self_attn.<q|k|v|o>_proj.lora_A    (r, in)
    layers.<n>.self_attn.<q|k|v|o>_proj.lora_B    (out, r)
    layers.<n>.mlp.<gate|up|down>_proj.lora_A, .lora_B

of jina-embeddings-v3:

    encoder.layers.<n>.mixer.<Wqkv|out_proj>.lora_A, .lora_B
    encoder.layers.<n>.mlp.<fc1|fc2>.lora_A, .lora_B
    embeddings.<word|token_type>_embeddings.lora_A    (r, hidden)
    embeddings.<word|token_type>_embeddings.lora_B    (rows of the table, r): row i gets (alpha / r) B[i] A

where the two factors of Wqkv may have 3 r in the place of r: q, k and v with an A each, B block by block.

Refused: another format, a task other than the one asked for, rank or alpha out of bounds, a base other than the one
that it is opened beside, a tensor of another name, shape or type, one factor without the other, no factors at all,
NaN and infinity. Layers without factors are left as the base has them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ModelDamaged

FORMAT = "jina_local adapter 1"
DTYPES = ("F16", "F32")
BASE = "base"  # the metadata key, in the base's file and in the adapter's
MOST_RANK = 512
_MOST_ALPHA = 65536.0  # adapters are made with one to four times the rank; beyond this it is damage


@dataclass(frozen=True)
class Header:
    """The metadata of one file."""

    task: str
    rank: int
    alpha: float
    base: str
    prompts: Mapping[str, str]
    default_prompt: str

    def dump(self) -> dict[str, str]:
        """As it stands in the file."""
        return {
            "format": FORMAT,
            "task": self.task,
            "rank": str(self.rank),
            "alpha": repr(float(self.alpha)),
            BASE: self.base,
            "prompts": json.dumps(dict(self.prompts), ensure_ascii=False),
            "default_prompt": self.default_prompt,
        }


def parse(metadata: Mapping[str, str], where: str) -> Header:
    """Read the metadata of one file. Raises ModelDamaged."""
    if metadata.get("format") != FORMAT:
        raise ModelDamaged(
            f"{where}: format {metadata.get('format')!r}; this version reads {FORMAT!r}. Convert again, or use the "
            "version that wrote it."
        )
    try:
        rank, alpha = check_scale(_whole(metadata["rank"]), float(metadata["alpha"]), where)
        prompts = json.loads(metadata["prompts"])
        header = Header(metadata["task"], rank, alpha, metadata[BASE], prompts, metadata["default_prompt"])
        if not isinstance(prompts, dict) or not isinstance(prompts[header.default_prompt], str):
            raise TypeError("prompts has to map names to texts")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelDamaged(f"{where}: its metadata is malformed ({error}). Convert again.") from error
    return header


def check_scale(rank: object, alpha: object, where: str) -> tuple[int, float]:
    """Both, found to be numbers that an adapter can have. Raises ModelDamaged."""
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MOST_RANK:
        raise ModelDamaged(f"{where}: rank {rank!r}; expected a whole number from 1 to {MOST_RANK}.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= _MOST_ALPHA:
        raise ModelDamaged(f"{where}: alpha {alpha!r}; expected a positive number up to {_MOST_ALPHA:g}.")
    return rank, float(alpha)


def check_base(found: str, expected: str | None, where: str, base: str) -> None:
    """Raise ModelDamaged unless an adapter's digest is that of the base beside it; None: the base has none."""
    if expected is None:
        raise ModelDamaged(
            f"{where}: {base} does not say which checkpoint it was made from, so that no adapter is known to fit it. "
            "Convert both together: python -m convert mlx SRC OUT --adapters separate."
        )
    if found != expected:
        raise ModelDamaged(
            f"{where}: this adapter belongs to another base: it was made for {found}, {base} is of {expected}. Take "
            "the adapter that was converted from the same checkpoint, or convert both again with --adapters separate."
        )


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"rank is {text!r}")
    return int(text)
