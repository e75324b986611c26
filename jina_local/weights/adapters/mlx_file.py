"""A task's adapter beside an MLX base, in one safetensors file: its contents, and what is refused.

    OUT/model.safetensors            the base without an adapter; its metadata has "base", see below
    OUT/adapters/<task>.safetensors  one for each task

Metadata, all strings:

    format          "jina_local adapter 1"
    task            "retrieval", ...
    rank            r, a whole number from 1 to 512
    alpha           a positive number; a matrix W gets (alpha / r) B A added
    base            64 hex digits that name the published base checkpoint, whatever the bit width of the base beside
                    this file: sha256 of the lines "<sha256>  <name>\\n" of its weight files, in order of the names
    prompts         JSON, prompt name -> text put before every input
    default_prompt  the name of one of these prompts

Tensors, F16 or F32, for each linear layer that the adapter changes (out, in: the shape of the layer's matrix):

    layers.<n>.self_attn.<q|k|v|o>_proj.lora_A    (r, in)
    layers.<n>.self_attn.<q|k|v|o>_proj.lora_B    (out, r)
    layers.<n>.mlp.<gate|up|down>_proj.lora_A, .lora_B

of jina-embeddings-v3:

    encoder.layers.<n>.mixer.<Wqkv|out_proj>.lora_A, .lora_B
    encoder.layers.<n>.mlp.<fc1|fc2>.lora_A, .lora_B
    embeddings.<word|token_type>_embeddings.lora_A    (r, hidden)
    embeddings.<word|token_type>_embeddings.lora_B    (rows of the table, r): row i gets (alpha / r) B[i] A

The two factors of Wqkv may have 3 r in the place of r: then q, k and v have an A each, and B is block-diagonal.

Refused: another format, another task, rank or alpha out of bounds, another base than the base beside it, a tensor of
another name, shape or type, one factor without the other, no factors at all, NaN and infinity. A layer without
factors stays unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelDamaged
from ...formats.checks import check_types, finite
from ...formats.safetensors import SafetensorsFile
from .. import architecture
from ..architecture import Architecture
from .rules import check_base, check_scale, linear_slots, pair_factors

FORMAT = "jina_local adapter 1"
DTYPES = ("F16", "F32")
BASE = "base"  # the metadata key, in the base's file and in the adapter's
_COMMAND = "python -m convert mlx SRC OUT --adapters separate"


@dataclass(frozen=True)
class Header:
    """The metadata of one adapter file."""

    task: str
    rank: int
    alpha: float
    base: str
    prompts: Mapping[str, str]
    default_prompt: str

    def dump(self) -> dict[str, str]:
        """The metadata as the file holds it."""
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
        rank, alpha = check_scale(_whole_number(metadata["rank"]), float(metadata["alpha"]), where)
        prompts = json.loads(metadata["prompts"])
        header = Header(metadata["task"], rank, alpha, metadata[BASE], prompts, metadata["default_prompt"])
        if not isinstance(prompts, dict) or not isinstance(prompts[header.default_prompt], str):
            raise TypeError("prompts has to map names to texts")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelDamaged(f"{where}: its metadata is malformed ({error}). Convert again.") from error
    return header


class AdapterFile:
    """One task's adapter, checked against the base's shape and digest. Factors are read when they are asked for."""

    def __init__(self, path: Path, task: str, arch: Architecture, base: str | None, beside: Path) -> None:
        """`base`: the digest that the base's own file carries, or None. `beside`: the base's folder, for errors."""
        self._file = SafetensorsFile(path)
        try:
            header = parse(self._file.metadata, str(path))
            if header.task != task:
                raise ModelDamaged(
                    f"{path}: is the adapter of {header.task!r}, not of {task!r}. Put each under the name of its "
                    "own task, or convert again."
                )
            check_base(header.base, base, str(path), str(beside), key=BASE, command=_COMMAND)
            shapes = {name: tensor.shape for name, tensor in self._file.tensors.items()}
            slots = linear_slots(arch, architecture.adaptable(arch), header.rank, shapes, names)
            self._pairs = {slot.weight: slot for slot in pair_factors(shapes, slots, str(path))}
            check_types({name: tensor.dtype for name, tensor in self._file.tensors.items()}, DTYPES, str(path))
        except BaseException:
            self._file.close()
            raise
        self.scale = header.alpha / header.rank

    def factors(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """(A (r, in), B (out, r)) float32 of one base weight, or None. Raises ModelDamaged for NaN and infinity."""
        if name not in self._pairs:
            return None
        slot = self._pairs[name]
        a, b = (finite(self._file.read_f32(x), f"{self._file.path}: {x}") for x in (slot.a, slot.b))
        return a, b

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def names(weight: str) -> tuple[str, str]:
    """The names of A and B in the file, for one base weight."""
    module = weight.removesuffix(".weight")
    return f"{module}.lora_A", f"{module}.lora_B"


def _whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"rank is {text!r}")
    return int(text)
