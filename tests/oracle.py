"""transformers as the oracle: hidden states of a published checkpoint with one adapter merged, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jina_local.weights.checkpoint import Checkpoint


class Oracle:
    """Qwen3Model or EuroBertModel of transformers, built from the config, with weights merged in float32."""

    def __init__(self, folder: Path, task: str | None) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        self._torch = torch
        with Checkpoint(folder) as checkpoint:
            arch, config = checkpoint.arch, checkpoint.config
            kinds = {
                "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model),
                "eurobert": (transformers.EuroBertConfig, transformers.EuroBertModel),
            }
            config_class, model_class = kinds[arch.kind]
            keep = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
                    "hidden_act", "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id",
                    "pad_token_id")  # fmt: skip
            self.model = model_class(config_class(**{k: config[k] for k in keep if k in config}))
            state = {name: torch.from_numpy(np.array(w)) for name, w in checkpoint.merged(task)}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert not [m for m in missing if "rotary" not in m], missing
        self.model.eval()

    def states(self, ids: np.ndarray) -> np.ndarray:
        """(n,) ids -> (n, hidden) float32 after the final norm."""
        with self._torch.no_grad():
            batch = self._torch.from_numpy(np.asarray(ids, np.int64))[None]
            out = self.model(input_ids=batch, attention_mask=self._torch.ones_like(batch))
        return out.last_hidden_state[0].numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row by row, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
