"""The library's own calls: the words of `Embedder.embed`, `space` and `rerank`, and their answers to the bit.

`server/client.py` speaks it. Other programs are better served by /v1, which answers as they expect.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calls import BadField, Fields, LibraryCall

_EMBED = {"task": str, "prompt_name": str, "precision": str, "overflow": str, "truncate_dim": int, "max_length": int,
          "normalize": bool, "late_chunking": bool}  # fmt: skip
_RANK = {"top_n": int, "max_length": int, "truncate_dim": int, "instruction": str, "max_doc_length": int,
         "max_query_length": int, "return_embeddings": bool, "block_size": int, "overlap_tokens": int,
         "window": bool}  # fmt: skip
_KINDS = {str: "a string", int: "a whole number", bool: "true or false"}


def read_embed(body: object) -> LibraryCall:
    """POST /library/embed."""
    fields = Fields(body)
    call = LibraryCall(fields.text("model"), _texts(fields, "texts"), _words(fields, _EMBED))
    fields.done()
    return call


def read_space(body: object) -> LibraryCall:
    """POST /library/space."""
    fields = Fields(body)
    call = LibraryCall(fields.text("model"), [], _words(fields, _EMBED))
    fields.done()
    return call


def read_rerank(body: object) -> LibraryCall:
    """POST /library/rerank."""
    fields = Fields(body)
    texts = _texts(fields, "documents")
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
    found: dict[str, object] = {}
    for name, kind in kinds.items():
        _, value = fields.any(name)
        if value is None:
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BadField(name, f"expected {_KINDS[kind]}.")
        found[name] = value
    return found


def _texts(fields: Fields, name: str) -> list[str]:
    _, value = fields.any(name)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadField(name, "expected a list of strings.")
    return value
