"""Random checkpoints in the layout that the v5 models are published in, at test size or at full size.

`python -m tests.tiny nano OUT` writes a small one (its vectors mean nothing), `--full` one of the true size; the rest
of the family (tiny_v3_and_rerankers.py) is written by the same call.
Weights are drawn so that every part matters: linear layers keep the size of what passes through them, norms
stay near one but not at it, and every adapter changes the result visibly.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from jina_local.formats import safetensors
from jina_local.weights import architecture
from jina_local.weights.architecture import Architecture

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TASKS = ("retrieval", "text-matching", "clustering", "classification")
RANK = 32
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> type, shape
Produce = Callable[[str], NDArray[np.generic]]

SIZES = {
    "small": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 128, "intermediate_size": 256, "max_position_embeddings": 1024},
    "nano": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
             "head_dim": 64, "intermediate_size": 256, "max_position_embeddings": 1024},
}  # fmt: skip
FULL = {
    "small": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
              "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 32768, "vocab_size": 151936},
    "nano": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12,
             "head_dim": 64, "intermediate_size": 3072, "max_position_embeddings": 8192, "vocab_size": 128256},
}  # fmt: skip
_COMMON = {"architectures": ["JinaEmbeddingsV5Model"], "model_type": "jina_embeddings_v5", "hidden_act": "silu",
           "attention_bias": False, "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
           "task_names": list(TASKS)}  # fmt: skip
CONFIGS = {
    "small": {**_COMMON, "rms_norm_eps": 1e-6, "rope_theta": 3500000.0, "tie_word_embeddings": True,
              "rope_scaling": None, "use_sliding_window": False, "max_window_layers": 28,
              "bos_token_id": 151643, "eos_token_id": 151645},
    "nano": {**_COMMON, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "tie_word_embeddings": False,
             "is_decoder": False, "mlp_bias": False, "bos_token_id": 128000, "eos_token_id": 128001,
             "pad_token_id": 128001, "mask_token_id": 128002},
}  # fmt: skip
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TRAINING = [
    "The quick brown fox jumps over the lazy dog. Document: Query: what is it, and where does it come from?",
    "Jupiter is the largest planet; Mars is called the Red Planet. Saturn has rings, Venus is the hottest.",
    "naïve café Ångström – Größe, straße, élève; 日本語のテキスト, 中文, العربية, हिन्दी, русский текст, ελληνικά",
    "def f(x):\n\treturn x + 1  # 1234567890 3.14159",
]


def tokenizer(kind: str) -> tokenizers.Tokenizer:
    """A byte-level BPE of about 600 tokens with the kind's own split, normaliser, special tokens and template."""
    if kind not in SIZES:
        from tests import tiny_v3_and_rerankers

        return tiny_v3_and_rerankers.tokenizer(kind)
    from tokenizers import (
        AddedToken,
        Regex,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tok = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "nano"))
    if kind == "small":
        tok.normalizer = normalizers.NFC()
    digits = "" if kind == "small" else "{1,3}"
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT.format(digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        _TRAINING * 4,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=sorted(alphabet), show_progress=False),
    )
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>") if kind == "small" else (
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")  # fmt: skip
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    if kind == "nano":
        end = tok.token_to_id("<|end_of_text|>")
        tok.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single="$A <|end_of_text|>",
                    pair="$A <|end_of_text|> $B:1 <|end_of_text|>:1",
                    special_tokens=[("<|end_of_text|>", end)],
                ),
            ]
        )
    else:
        tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tok


def real_tokenizer(kind: str) -> str:
    """tokenizer.json of the real vocabulary, with the template that the published model has."""
    if kind not in SIZES:
        from tests import tiny_v3_and_rerankers

        return tiny_v3_and_rerankers.real_tokenizer(kind)
    folder = SHARED / "tokenizers" / {"small": "qwen3", "nano": "llama3"}[kind]
    with lzma.open(folder / "tokenizer.json.xz", "rt", encoding="utf-8") as file:
        body = json.load(file)
    blocks = json.loads((SHARED / "tokenizers" / "post_processors.json").read_text())
    name = {
        "small": "qwen3 plain (Qwen1.5/2/2.5/3 language models)",
        "nano": "llama3+eos (jina-embeddings-v5-text-nano)",
    }[kind]
    body["post_processor"] = blocks[name]["post_processor"]
    return json.dumps(body, ensure_ascii=False)


def write(
    folder: Path,
    kind: str,
    *,
    full: bool = False,
    real: bool | None = None,
    dtype: str | None = None,
    shards: int = 1,
    seed: int = 0,
    tasks: tuple[str, ...] | None = None,
    config: dict[str, object] | None = None,
) -> Path:
    """Write one checkpoint: "small", "nano", "v3", "v3-native", "reranker-v3" or "reranker-v2".

    `real` (default: where full) takes the real tokenizer; `tasks` are the adapters (default: all that the model has);
    `config` overrides keys.
    """
    if kind not in SIZES:
        from tests import tiny_v3_and_rerankers

        return tiny_v3_and_rerankers.write(
            folder, kind, full=full, real=real, dtype=dtype, shards=shards, seed=seed, tasks=tasks, config=config
        )
    folder.mkdir(parents=True, exist_ok=True)
    real = full if real is None else real
    text = real_tokenizer(kind) if real else tokenizer(kind).to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    tok = tokenizers.Tokenizer.from_str(text)
    rows = FULL[kind]["vocab_size"] if real else -(-(tok.get_vocab_size() + 5) // 32) * 32
    body = {**CONFIGS[kind], "vocab_size": rows, **(FULL if full else SIZES)[kind], **(config or {})}
    if not real:
        names = ("<|endoftext|>", "<|im_end|>") if kind == "small" else ("<|begin_of_text|>", "<|end_of_text|>")
        body["bos_token_id"], body["eos_token_id"] = (tok.token_to_id(n) for n in names)
        body["pad_token_id"] = body["bos_token_id"] if kind == "small" else body["eos_token_id"]
        body.pop("mask_token_id", None)
    dtype = dtype or {"small": "BF16", "nano": "F32"}[kind]
    body["dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    (folder / "config.json").write_text(json.dumps(body, indent=2))
    prompts = {"prompts": {"query": "Query: ", "document": "Document: "}, "default_prompt_name": "document"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]}]
    (folder / "modules.json").write_text(json.dumps(modules))
    _tokenizer_config(folder, kind)
    arch = architecture.from_config(body)
    save_sharded(folder, *_drawn(architecture.tensors(arch), dtype, seed), shards)
    for number, task in enumerate(TASKS if tasks is None else tasks):
        _adapter(folder / "adapters" / task, arch, dtype, seed + 1000 * (number + 1))
    return folder


def _tokenizer_config(folder: Path, kind: str) -> None:
    ends = {
        "small": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "nano": {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "pad_token": "<|end_of_text|>",
        },
    }[kind]
    body = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(body))


def _random(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, *name.encode()])
    if len(shape) == 1:
        return (1 + 0.1 * rng.standard_normal(shape, np.float32)).astype(np.float32)
    scale = 1.0 if "embed" in name else 1 / np.sqrt(shape[-1])
    if "lora_B" in name:
        scale = 0.3 / np.sqrt(shape[-1])
    out = rng.standard_normal(shape, np.float32)
    out *= np.float32(scale)
    return out


def cast(data: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """To "BF16" (as its 16 bits), "F16" or "F32"."""
    if dtype == "BF16":
        return safetensors.to_bf16(data)
    return data.astype({"F32": np.float32, "F16": np.float16}[dtype])


def save(path: Path, shapes: Shapes, produce: Produce) -> None:
    """Write one file, one tensor in memory at a time."""

    def each() -> Iterator[tuple[str, NDArray[np.generic]]]:
        for name in shapes:
            yield name, produce(name)

    path.unlink(missing_ok=True)
    safetensors.write(path, shapes, each(), {"format": "pt"})


def save_sharded(folder: Path, shapes: Shapes, produce: Produce, shards: int) -> None:
    """Write model.safetensors, or that many shards and their index."""
    if shards == 1:
        save(folder / "model.safetensors", shapes, produce)
        return
    listed = sorted(shapes)
    weight_map = {}
    for n in range(shards):
        name = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = listed[n::shards]
        save(folder / name, {k: shapes[k] for k in part}, produce)
        weight_map.update(dict.fromkeys(part, name))
    body = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))


def _drawn(shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> tuple[Shapes, Produce]:
    return {n: (dtype, s) for n, s in shapes.items()}, lambda name: cast(_random(name, shapes[name], seed), dtype)


def _adapter(folder: Path, arch: Architecture, dtype: str, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in architecture.projections(arch):
        out, inner = architecture.tensors(arch)[name]
        stem = "base_model.model." + name.removesuffix(".weight")
        shapes[f"{stem}.lora_A.weight"] = (RANK, inner)
        shapes[f"{stem}.lora_B.weight"] = (out, RANK)
    save(folder / "adapter_model.safetensors", *_drawn(shapes, dtype, seed))
    body = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "use_rslora": False, "use_dora": False, "bias": "none",
        "modules_to_save": None, "task_type": "FEATURE_EXTRACTION", "lora_dropout": 0.1, "fan_in_fan_out": False,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(body))


def main() -> None:
    """Write one checkpoint from the command line."""
    from tests import tiny_v3_and_rerankers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted((*SIZES, *tiny_v3_and_rerankers.KINDS)))
    parser.add_argument("out", type=Path)
    parser.add_argument("--full", action="store_true", help="the true size, with the real tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.kind, full=args.full, seed=args.seed)
    print(args.out)


if __name__ == "__main__":
    main()
