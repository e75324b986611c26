"""transformers as the oracle for v3: its own class in float64, the adapter merged here by hand, mean over all tokens.

Nothing of jina_local has a part in it: names, factors and their order are written once more, from the published code
(models.md, section 3.2).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tokenizers

SCALE = 0.25  # alpha 1, rank 4
PREFIX = "roberta."


class OracleV3:
    """JinaEmbeddingsV3Model with one task merged. `folder`: a checkpoint in the original layout."""

    def __init__(self, folder: Path, task: str | None) -> None:
        import torch
        import transformers
        from safetensors.torch import load_file

        self._torch = torch
        config = json.loads((folder / "config.json").read_text())
        keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
                "max_position_embeddings", "layer_norm_eps", "hidden_act", "type_vocab_size",
                "pad_token_id")  # fmt: skip
        theta = {"rope_type": "default", "rope_theta": config["rotary_emb_base"]}
        settings = transformers.JinaEmbeddingsV3Config(**{k: config[k] for k in keep}, rope_parameters=theta)
        self.model = transformers.JinaEmbeddingsV3Model(settings, add_pooling_layer=False).double().eval()
        held = {name.removeprefix(PREFIX): t.double() for name, t in load_file(folder / "model.safetensors").items()}
        which = None if task is None else config["lora_adaptations"].index(task)
        state = dict(_renamed(_merged(held, which)))
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert not [name for name in missing if "rotary" not in name], missing
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(config["max_position_embeddings"])

    def states(self, ids: np.ndarray) -> np.ndarray:
        """(n,) ids -> (n, hidden)."""
        with self._torch.no_grad():
            return self.model(input_ids=self._torch.from_numpy(np.asarray(ids, np.int64))[None])[0][0].numpy()

    def vectors(self, texts: list[str], prompt: str) -> np.ndarray:
        """(n, hidden) of length 1: prompt and text through the library's tokenizer, the mean with all specials."""
        means = [self.states(np.array(self._tokenizer.encode(prompt + text).ids)).mean(axis=0) for text in texts]
        return np.stack(means) / np.linalg.norm(means, axis=1, keepdims=True)


def _merged(held, which):
    for name, tensor in held.items():
        if ".parametrizations." not in name:
            yield name, tensor
        elif name.endswith(".original"):
            stem = name.removesuffix(".original")
            if which is not None:
                a, b = (held[f"{stem}.0.lora_{letter}"][which] for letter in "AB")
                tensor = tensor + SCALE * (a @ b if name.startswith("embeddings.") else b @ a)
            yield stem.replace(".parametrizations.", "."), tensor


def _renamed(state):
    words = {"mixer.out_proj": "self_attn.o_proj", "norm1": "post_attention_layernorm", "norm2": "post_mlp_layernorm"}
    for name, tensor in state:
        if name.startswith("pooler."):
            continue
        if not name.startswith("encoder.layers."):
            yield name.replace("emb_ln", "embeddings.LayerNorm"), tensor
            continue
        _, _, number, *middle, last = name.split(".")
        part = ".".join(middle)
        if part == "mixer.Wqkv":
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield f"layers.{number}.self_attn.{letter}_proj.{last}", rows
        else:
            yield f"layers.{number}.{words.get(part, part)}.{last}", tensor
