"""The importance matrix: how much passes through each input column of each linear layer, over a set of texts.

For y = W x the error of a rounded W weighs, column by column, with the mean of x squared. llama.cpp's
quantisers take those means and spend their precision where they are large.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jina_local.embedding.request import resolve
from jina_local.errors import EngineError, UsageError
from jina_local.spec import EmbeddingSpec, ModelSpec
from jina_local.text.tokenizer import Tokenizer

from .engine import Passes, Reader, Tensor

PASS = 512  # tokens a pass; a longer text is cut to this


class _Collector:
    """Sums of squares per weight. The three inputs of attention, and the two of the MLP, are read once."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self._inputs: dict[int, tuple[NDArray[np.float64], int]] = {}

    def new_pass(self) -> None:
        self._inputs.clear()

    def watch(self, address: int, ask: bool) -> bool:
        """llama.cpp's cb_eval. The pass ends where the vocabulary head would begin: no weight is left then."""
        tensor = Tensor.from_address(address)
        if tensor.op != self.reader.product:
            return ask and tensor.name == b"result_norm"
        weight, source = Tensor.from_address(tensor.src[0]).name.decode(), tensor.src[1]
        if not (weight.startswith("blk.") and weight.endswith(".weight")):
            return not ask
        if ask and source not in self._inputs:
            return True
        if source not in self._inputs:
            rows = self.reader.rows(source).astype(np.float64)
            self._inputs[source] = np.einsum("rc,rc->c", rows, rows), len(rows)
        squares, count = self._inputs[source]
        self.sums[weight] = self.sums.get(weight, 0) + squares
        self.counts[weight] = self.counts.get(weight, 0) + count
        return not ask


def collect(
    gguf: Path,
    texts: Iterable[NDArray[np.int32]],
    *,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Weight name (`blk.0.attn_q.weight`) -> (columns,) float32, the mean square of each of its input columns.

    `gguf`: a F32, F16 or BF16 file. `texts`: ids of each text, 1 to 512 of them. `progress(texts done)`. The file
    is mapped; llama.cpp also reserves 1,024 x vocabulary floats for Qwen3's head, and never touches them.
    Raises EngineError.
    """
    collector = _Collector()
    done = 0
    with Passes(gguf, tokens=PASS, threads=threads, watch=collector.watch) as passes:
        for done, ids in enumerate(texts, 1):
            collector.new_pass()
            passes.run(ids)
            if progress:
                progress(done)
    if not collector.sums:
        raise EngineError(f"{gguf}: llama.cpp ran {done} texts and showed no product of a block's weight.")
    means = {name: (collector.sums[name] / collector.counts[name]).astype(np.float32) for name in collector.sums}
    bad = [name for name, mean in means.items() if not np.isfinite(mean).all()]
    if bad:
        raise EngineError(f"{gguf}: NaN or infinity reaches {bad[0]} and {len(bad) - 1} more on these texts.")
    return dict(sorted(means.items()))


def read_texts(path: Path) -> list[str]:
    """The calibration texts: UTF-8, one a line, blank lines skipped. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"{path}: is not a file. --imatrix takes a text file in UTF-8, one text a line.")
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start}). --imatrix takes text, one a line.") from error
    if not texts:
        raise UsageError(f"{path}: has no text in it. --imatrix takes a text file in UTF-8, one text a line.")
    return texts


def encode(texts: list[str], tokenizer: Tokenizer, model: ModelSpec, task: str) -> list[NDArray[np.int32]]:
    """The ids of each text as `task` would embed it as a document, cut to one pass.

    A reranker has no text of its own kind: it reads these as they are.
    """
    longest = min(PASS, model.max_tokens)
    if model.scoring:
        spec = EmbeddingSpec(model.name, task, "", model.pooling, longest, "truncate", 0, False, "float32")
    else:
        spec = resolve(model, task=task, max_length=longest)
    return tokenizer.encode(texts, spec).ids


def digest(texts: list[str]) -> str:
    """What names a set of texts in a file's header: the same texts, the same name, on every machine."""
    return "sha256:" + hashlib.sha256("\n".join(texts).encode()).hexdigest()
