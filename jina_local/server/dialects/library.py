"""The library's own calls: the words of `Embedder.embed`, `space` and `rerank`, and their answers to the bit.

`server/client.py` speaks it. Other programs are better served by /v1, which answers as they expect.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calls import LibraryCall
from .fields import Fields

_EMBED = {"task": str, "prompt_name": str, "precision": str, "overflow": str, "truncate_dim": int, "max_length": int,
          "normalize": bool, "late_chunking": bool}  # fmt: skip
_RANK = {"top_n": int, "max_length": int, "truncate_dim": int, "instruction": str, "max_doc_length": int,
         "max_query_length": int, "return_embeddings": bool, "block_size": int, "overlap_tokens": int,
         "window": bool}  # fmt: skip


def read_embed(body: object) -> LibraryCall:
    """POST /library/embed."""
    fields = Fields.of(body)
    call = LibraryCall(fields.text("model"), fields.strings("texts", required=True), _words(fields, _EMBED))
    fields.done()
    return call


def read_space(body: object) -> LibraryCall:
    """POST /library/space."""
    fields = Fields.of(body)
    call = LibraryCall(fields.text("model"), [], _words(fields, _EMBED))
    fields.done()
    return call


def read_rerank(body: object) -> LibraryCall:
    """POST /library/rerank."""
    fields = Fields.of(body)
    texts = fields.strings("documents", required=True)
    call = LibraryCall(fields.text("model"), texts, _words(fields, _RANK), fields.required("query"))
    fields.done()
    return call


def write_array(array: NDArray[np.generic]) -> dict[str, Any]:
    """An array: its type, its shape, and its bytes in base64, little end first."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"dtype": little.dtype.str, "shape": list(array.shape), "base64": data}


def _words(fields: Fields, kinds: dict[str, type]) -> dict[str, object]:
    """The words that were given, each of its type; what they mean is for the library to judge."""
    return {name: value for name, kind in kinds.items() if (value := fields.value(name, of=(kind,))) is not None}
