"""The header of a GGUF model held against the model that it has to be, before llama.cpp opens the file.

llama.cpp ends the process on some headers instead of returning an error, and computes other vectors from some others
without a word. The keys are compared with the table in weights/gguf_keys.py, the tensors with the architecture, the
vocabulary with the token table.
"""

from __future__ import annotations

import math
import weakref
from pathlib import Path

from ..errors import ModelDamaged
from ..formats import gguf
from ..formats.checks import check_shapes
from ..formats.gguf import Header, Tensor
from ..registry import Published
from ..spec import MARKS
from ..weights import gguf_keys, tensor_names
from ..weights.architecture import Architecture
from ..weights.gguf_keys import MADE_HERE, SPECIAL, Model

_PLAIN = ("F32", "F16", "BF16")  # types that are not quantised
_LONGEST_TOKEN = 1 << 16  # bytes
_TOKEN_TYPES = frozenset(range(1, 7))  # enum llama_token_type


# Headers that have passed: their keys by identity -> a tensor that lives as long as they do. formats/gguf.py keeps a
# header by the identity of its file, so a file that has not changed passes a second time for nothing.
_passed: dict[int, weakref.ref[Tensor]] = {}


def check(header: Header, arch: Architecture, row: Published) -> None:
    """Raise ModelDamaged unless the file is a whole `row` of this architecture. The weights are not read."""
    kept = _passed.get(id(header.keys))
    if kept and kept() is header.tensors["token_embd.weight"]:
        return
    _check(header, arch, row)
    key = id(header.keys)
    _passed[key] = weakref.ref(header.tensors["token_embd.weight"], lambda _: _passed.pop(key, None))


def _check(header: Header, arch: Architecture, row: Published) -> None:
    path = str(header.path)
    gguf_keys.check(header.keys, Model(arch, row.spec.pooling, arch.max_positions), path)
    _check_length(header, arch, row)
    _check_tensors(header, arch)
    _check_file_type(header)
    _check_vocabulary(header, arch)
    _check_marks(header, row)


def _check_length(header: Header, arch: Architecture, row: Published) -> None:
    """A model of the published size cuts no text shorter than the published model does."""
    if arch.hidden == max(row.spec.dims, default=0) and arch.max_positions < row.spec.max_tokens:
        raise ModelDamaged(
            f"{header.path}: {arch.kind}.context_length is {arch.max_positions}; {row.spec.name} reads "
            f"{row.spec.max_tokens} tokens."
        )


def _check_tensors(header: Header, arch: Architecture) -> None:
    if "output.weight" in header.tensors:
        raise ModelDamaged(
            f"{header.path}: holds output.weight, the head of a language model; the models known here have none. "
            "It is another model, or was converted from one."
        )
    expected = {name: gguf.plain(shape) for name, shape in tensor_names.gguf_shapes(arch).items()}
    check_shapes({name: gguf.plain(t.shape) for name, t in header.tensors.items()}, expected, str(header.path))
    if MADE_HERE in header.keys:
        gguf_keys.check_order(list(header.tensors), arch, str(header.path))
    for name in _added(arch):
        if (kind := header.tensors[name].type) != "F32":
            raise ModelDamaged(
                f"{header.path}: {name} is stored as {kind}; llama.cpp takes norms, biases and token types in F32 "
                "alone, and ends the process on anything else. Convert the model again."
            )


def _added(arch: Architecture) -> list[str]:
    """The tensors that are added or multiplied row by row, and go through no matrix product."""
    shapes = tensor_names.gguf_shapes(arch)
    return [name for name, shape in shapes.items() if len(shape) == 1 or name == "token_types.weight"]


def _check_file_type(header: Header) -> None:
    """The name of the precision decides how the weights are run, and some are fatal to other tensors."""
    label = header.weights
    found = {tensor.type for tensor in header.tensors.values() if len(gguf.plain(tensor.shape)) > 1}
    if label in _PLAIN:
        fits = label in found <= {label, "F32"}
    else:
        fits = MADE_HERE not in header.keys or not found <= set(_PLAIN)
    if not fits:
        raise ModelDamaged(
            f"{header.path}: general.file_type says {label}, and its tensors are {', '.join(sorted(found))}. Convert "
            "the model again."
        )


def _check_vocabulary(header: Header, arch: Architecture) -> None:
    keys, path = header.keys, header.path
    unigram = header.text("tokenizer.ggml.model") == "t5"
    tokens: list[bytes] = keys.get("tokenizer.ggml.tokens", [])  # type: ignore[assignment]
    different = len(set(tokens))
    if len(tokens) != arch.vocab or different != arch.vocab:
        raise ModelDamaged(f"{path}: lists {different} different tokens for a table of {arch.vocab} rows.")
    if (longest := max(map(len, tokens))) > _LONGEST_TOKEN:
        raise ModelDamaged(f"{path}: has a token of {longest} bytes; expected {_LONGEST_TOKEN} at the most.")
    types: list[int] | None = keys.get("tokenizer.ggml.token_type")  # type: ignore[assignment]
    if types is not None and (len(types) != arch.vocab or not set(types) <= _TOKEN_TYPES):
        raise ModelDamaged(f"{path}: tokenizer.ggml.token_type is not a type from 1 to 6 for each of its tokens.")
    if unigram or "tokenizer.ggml.scores" in keys:
        _check_scores(header, arch)
    if unigram:
        _check_pieces(header)
    for which in SPECIAL:
        key = f"tokenizer.ggml.{which}_token_id"
        number = keys.get(key, 0)
        if not 0 <= number < arch.vocab:  # type: ignore[operator]
            raise ModelDamaged(f"{path}: {key} is {number!r}, outside the {arch.vocab} tokens of the vocabulary.")


def _check_scores(header: Header, arch: Architecture) -> None:
    scores: list[float] = header.keys.get("tokenizer.ggml.scores", [])  # type: ignore[assignment]
    if len(scores) != arch.vocab or not math.isfinite(sum(scores)):  # 32-bit numbers do not overflow a sum in 64
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.scores is not one number for each of {arch.vocab} tokens.")


def _check_pieces(header: Header) -> None:
    """What a Unigram vocabulary has beside its tokens and their scores."""
    count = header.keys.get("tokenizer.ggml.token_type_count")
    if count != 1:
        raise ModelDamaged(f"{header.path}: tokenizer.ggml.token_type_count is {count!r}; for this model it is 1.")
    charsmap = header.keys.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        _check_charsmap(charsmap, header.path)  # type: ignore[arg-type]


def _check_charsmap(values: list[int], path: Path) -> None:
    """The normaliser's table: the size of a trie in four bytes, the trie, and texts that each end with a zero."""
    try:
        raw = bytes(value & 255 for value in values) if min(values, default=0) < 0 else bytes(values)
    except ValueError as error:
        raise ModelDamaged(f"{path}: tokenizer.ggml.precompiled_charsmap is not an array of bytes.") from error
    trie = int.from_bytes(raw[:4], "little")
    texts = raw[4 + trie :]
    if len(raw) < 4 or trie % 4 or not trie or 4 + trie > len(raw) or (texts and texts[-1]):
        raise ModelDamaged(
            f"{path}: tokenizer.ggml.precompiled_charsmap has {len(raw)} bytes, and is not the table of a normaliser."
        )


def _check_marks(header: Header, row: Published) -> None:
    """Qwen3's own models have the listwise reranker's shape, and not the tokens that its states are read at."""
    tokens: list[bytes] = header.keys["tokenizer.ggml.tokens"]  # type: ignore[assignment]
    if row.spec.scoring == "listwise" and not all(mark.encode() in tokens for mark in MARKS):
        raise ModelDamaged(
            f"{header.path}: has the shape of {row.spec.name}, and its vocabulary has no "
            f"{' or '.join(MARKS)}. It is another model of the Qwen3 family."
        )
