"""The trained student -> a checkpoint in the published layout of jina-embeddings-v5-text-nano, in float16."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from torch import Tensor

from jina_local.formats import safetensors

from .settings import Settings
from .student import Student
from .vocabulary import END, end_of

TASKS = ("retrieval", "text-matching", "clustering", "classification")


def write(
    out: Path,
    base: Student,
    adapters: Mapping[str, Mapping[str, Tensor]],
    tokenizer: tokenizers.Tokenizer,
    settings: Settings,
) -> None:
    """Write `out`: config.json, model.safetensors, adapters/<task>/, the tokenizer and the prompts."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    _json(out / "config.json", _config(tokenizer, settings))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": END, "pad_token": END, "mask_token": "<|mask|>"}
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **names}
    _json(out / "tokenizer_config.json", tokens | {"model_max_length": settings.shape.positions})
    document, query = settings.prompts
    prompts = {"prompts": {"query": query, "document": document}, "default_prompt_name": "document"}
    _json(out / "config_sentence_transformers.json", prompts)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]}]
    _json(out / "modules.json", modules)
    _save(out / "model.safetensors", {name: data for name, data in base.state_dict().items() if "lora_" not in name})
    for task, factors in adapters.items():
        folder = out / "adapters" / task
        folder.mkdir(parents=True, exist_ok=True)
        _json(folder / "adapter_config.json", _adapter_config(settings.rank))
        named = {f"base_model.model.{name}.weight": data for name, data in factors.items()}
        _save(folder / "adapter_model.safetensors", named)


def _config(tokenizer: tokenizers.Tokenizer, settings: Settings) -> dict[str, object]:
    shape, end = settings.shape, end_of(tokenizer)
    return {
        "architectures": ["JinaEmbeddingsV5Model"], "model_type": "jina_embeddings_v5", "task_names": list(TASKS),
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads, "head_dim": shape.hidden // shape.heads, "hidden_act": "silu",
        "intermediate_size": shape.intermediate, "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.eps, "rope_theta": shape.rope_theta, "tie_word_embeddings": False, "is_decoder": False,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02,
        "use_cache": False, "vocab_size": shape.vocab, "bos_token_id": tokenizer.token_to_id("<|begin_of_text|>"),
        "eos_token_id": end, "pad_token_id": end, "mask_token_id": tokenizer.token_to_id("<|mask|>"),
        "matryoshka_dimensions": list(shape.dims), "dtype": "float16",
    }  # fmt: skip


def _adapter_config(rank: int) -> dict[str, object]:
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "use_rslora": False, "use_dora": False, "bias": "none",
        "modules_to_save": None, "task_type": "FEATURE_EXTRACTION", "lora_dropout": 0.0, "fan_in_fan_out": False,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    def produce() -> Iterator[tuple[str, NDArray[np.generic]]]:
        for name, data in tensors.items():
            yield name, data.numpy().astype(np.float16)

    layout = {name: ("F16", tuple(data.shape)) for name, data in tensors.items()}
    path.unlink(missing_ok=True)
    safetensors.write(path, layout, produce(), {"format": "pt"})


def _json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
