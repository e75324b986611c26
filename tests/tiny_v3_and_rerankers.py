"""Random checkpoints of the rest of the family: embeddings v3 in its two layouts, the rerankers v3 and v2.

`tiny.write` dispatches here. "v3" and "v3-native" of one seed are one model: both are cut from the same drawn
tensors, known by the names of `architecture.tensors`. Linear layers keep the size of what passes through them, biases
and norms stay off their neutral values, and adapters (scale 0.25) are drawn wide enough to change the result visibly,
that of the token-type row included.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from jina_local.weights import architecture
from jina_local.weights.architecture import Architecture
from tests import tiny
from tests.unigram import tokenizer as unigram

V3_TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
V3_RANK, V3_ALPHA = 4, 1
V3_PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "", "classification": "", "text-matching": "",
}  # fmt: skip
FOLDERS = {"retrieval.query": "retrieval_query", "retrieval.passage": "retrieval_passage", "separation": "separation",
           "classification": "classification", "text-matching": "text_matching"}  # fmt: skip
PROJECTED = 512  # the width of the listwise reranker's vectors
# The real tokenizer.json of Qwen3 ends at 151664; the filler's real name is not known.
_QWEN3_MORE = ("<tool_response>", "</tool_response>", "<think>", "</think>", "<|filler|>")
_MARKS = ("<|embed_token|>", "<|rerank_token|>")
_FLASH = "jinaai/xlm-roberta-flash-implementation"
_CLASSIFIER = "XLMRobertaForSequenceClassification"

_XLM_ROBERTA = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1,
                "bos_token_id": 0, "eos_token_id": 2, "attention_probs_dropout_prob": 0.1,
                "hidden_dropout_prob": 0.1, "classifier_dropout": None, "initializer_range": 0.02,
                "use_cache": True}  # fmt: skip
_SMALL_XLM_ROBERTA = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
_V3 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
       "max_position_embeddings": 8194, "vocab_size": 250002}  # fmt: skip
SIZES = {
    "v3": {**_SMALL_XLM_ROBERTA, "max_position_embeddings": 1024},
    "v3-native": {**_SMALL_XLM_ROBERTA, "max_position_embeddings": 1024},
    "reranker-v3": {**tiny.SIZES["small"], "max_position_embeddings": 8192},
    "reranker-v2": {**_SMALL_XLM_ROBERTA, "max_position_embeddings": 258},
}
FULL = {
    "v3": _V3,
    "v3-native": _V3,
    "reranker-v3": {**tiny.FULL["small"], "max_position_embeddings": 131072},
    "reranker-v2": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
                    "max_position_embeddings": 1026, "vocab_size": 250002},
}  # fmt: skip
CONFIGS = {
    "v3": {
        **_XLM_ROBERTA, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta",
        "auto_map": {"AutoConfig": f"{_FLASH}--configuration_xlm_roberta.XLMRobertaFlashConfig",
                     "AutoModel": f"{_FLASH}--modeling_lora.XLMRobertaLoRA"},
        "position_embedding_type": "rotary", "rotary_emb_base": 20000.0, "emb_pooler": None,
        "load_trained_adapters": True, "lora_rank": V3_RANK, "lora_alpha": V3_ALPHA, "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False, "truncate_dim": None, "task_instructions": V3_PROMPTS,
        "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024],
    },
    "v3-native": {
        **_XLM_ROBERTA, "architectures": ["JinaEmbeddingsV3Model"], "model_type": "jina_embeddings_v3",
        "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}, "tie_word_embeddings": True,
    },
    "reranker-v3": {
        **tiny.CONFIGS["small"], "architectures": ["JinaForRanking"], "model_type": "qwen3", "rope_theta": 1000000.0,
        "auto_map": {"AutoModel": "modeling.JinaForRanking"}, "sliding_window": None,
    },
    "reranker-v2": {
        **_XLM_ROBERTA, "architectures": [_CLASSIFIER],
        "auto_map": {"AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
                     "AutoModelForSequenceClassification": f"modeling_xlm_roberta.{_CLASSIFIER}"},
        "position_embedding_type": "absolute", "num_labels": 1, "emb_pooler": None, "use_flash_attn": True,
    },
}  # fmt: skip
CONFIGS["reranker-v3"].pop("task_names")
KINDS = tuple(CONFIGS)


@dataclass(frozen=True)
class _Part:
    """A stored tensor: the drawn one that it is cut from, what is taken of it, and the shape of what is taken."""

    drawn: str
    whole: tuple[int, ...]
    shape: tuple[int, ...]
    take: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda whole: whole


def tokenizer(kind: str) -> tokenizers.Tokenizer:
    """XLM-R's shape for its kinds; for the listwise reranker that of "small", with its marks."""
    if kind != "reranker-v3":
        return unigram(tiny._TRAINING)
    tok = tiny.tokenizer("small")
    tok.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in _MARKS])
    return tok


def real_tokenizer(kind: str) -> str:
    """tokenizer.json of the real vocabulary; the marks of the listwise reranker have their real ids."""
    if kind == "reranker-v3":
        tok = tokenizers.Tokenizer.from_str(tiny.real_tokenizer("small"))
        tok.add_tokens([tokenizers.AddedToken(s, special=False, normalized=False) for s in _QWEN3_MORE])
        tok.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in _MARKS])
        assert [tok.token_to_id(s) for s in _MARKS] == [151670, 151671]
        return tok.to_str()
    with lzma.open(tiny.SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz", "rt", encoding="utf-8") as file:
        return file.read()


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
    own_factors: bool = False,
) -> Path:
    """As `tiny.write`. `own_factors`: in "v3-native", q, k and v have an A each; it is another model than "v3"."""
    folder.mkdir(parents=True, exist_ok=True)
    real = full if real is None else real
    text = real_tokenizer(kind) if real else tokenizer(kind).to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    tok = tokenizers.Tokenizer.from_str(text)
    dtype = dtype or "BF16"
    tasks = V3_TASKS if tasks is None else tasks
    body: dict[str, object] = {**CONFIGS[kind], **(FULL if full else SIZES)[kind]}
    body["vocab_size"] = FULL[kind]["vocab_size"] if real else tok.get_vocab_size()
    if kind == "v3":
        body["lora_adaptations"] = list(tasks)
    if kind == "reranker-v3" and not real:
        body["vocab_size"] = -(-(tok.get_vocab_size() + 5) // 32) * 32
        body["bos_token_id"], body["eos_token_id"] = (tok.token_to_id(s) for s in ("<|endoftext|>", "<|im_end|>"))
    body["torch_dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    body |= config or {}
    (folder / "config.json").write_text(json.dumps(body, indent=2))
    _beside(folder, kind, body)
    arch = architecture.from_config(body)
    tiny.save_sharded(folder, *_draw(_PLANS[kind](arch, tasks), dtype, seed), shards)
    if kind == "v3-native":
        for task in tasks:
            _peft(folder / FOLDERS[task], arch, task, dtype, seed, own_factors)
    return folder


def _beside(folder: Path, kind: str, body: dict[str, object]) -> None:
    """The small files: of the tokenizer, and of sentence-transformers where the model has them."""
    if kind == "reranker-v3":
        settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    else:
        settings = {"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                    "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>",
                    "mask_token": "<mask>"}  # fmt: skip
    # reranker-v2 has a table of two more rows than positions, and says so here; v3 gives its 8194 as they are.
    positions = int(str(body["max_position_embeddings"])) - (2 if kind == "reranker-v2" else 0)
    _json(folder / "tokenizer_config.json", {**settings, "model_max_length": positions})
    if not kind.startswith("v3"):
        return
    _json(folder / "config_sentence_transformers.json", {"prompts": V3_PROMPTS, "default_prompt_name": None})
    stages = "sentence_transformers.models"
    kinds = (("transformer", "", "custom_st.Transformer"), ("pooler", "1_Pooling", f"{stages}.Pooling"),
             ("normalizer", "2_Normalize", f"{stages}.Normalize"))  # fmt: skip
    listed = [{"idx": i, "name": name, "path": path, "type": t} for i, (name, path, t) in enumerate(kinds)]
    _json(folder / "modules.json", [{**listed[0], "kwargs": ["task"]}, *listed[1:]])
    pooling = {f"pooling_mode_{x}": x == "mean_tokens" for x in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": body["hidden_size"], **pooling})


def _json(path: Path, body: object) -> None:
    path.write_text(json.dumps(body))


def _modules(arch: Architecture) -> dict[str, tuple[int, int]]:
    """What has an adapter, the pooler included: module -> shape of its weight."""
    shapes = architecture.tensors(arch)
    found = {name.removesuffix(".weight"): shapes[name] for name in architecture.adaptable(arch)}
    return {**{m: (s[0], s[1]) for m, s in found.items()}, "pooler.dense": (arch.hidden, arch.hidden)}


def _base(arch: Architecture) -> dict[str, tuple[int, ...]]:
    h = arch.hidden
    pooler = {"pooler.dense.weight": (h, h), "pooler.dense.bias": (h,)} if arch.kind == "jina-bert-v3" else {}
    return {**architecture.tensors(arch), **pooler}


def _factors(module: str, shape: tuple[int, int], part: str = "") -> dict[str, tuple[str, tuple[int, ...]]]:
    """The factors of one module for all tasks, as the original code has them: letter -> (drawn name, shape).

    A linear layer's delta is B A, a table's A B.
    """
    out, inner = shape
    if module.startswith("embeddings."):
        pair = (len(V3_TASKS), out, V3_RANK), (len(V3_TASKS), V3_RANK, inner)
    else:
        pair = (len(V3_TASKS), V3_RANK, inner), (len(V3_TASKS), out, V3_RANK)
    return {letter: (f"{module}{part}.lora_{letter}", pair[i]) for i, letter in enumerate("AB")}


def _plan_v3(arch: Architecture, tasks: tuple[str, ...]) -> dict[str, _Part]:
    modules, which = _modules(arch), [V3_TASKS.index(task) for task in tasks]
    plan = {}
    for name, shape in _base(arch).items():
        module = name.removesuffix(".weight")
        if module not in modules:
            plan[f"roberta.{name}"] = _Part(name, shape, shape)
            continue
        stem = f"roberta.{module}.parametrizations.weight"
        plan[f"{stem}.original"] = _Part(name, shape, shape)
        for letter, (drawn, whole) in _factors(module, modules[module]).items():
            held = (len(which), *whole[1:])
            plan[f"{stem}.0.lora_{letter}"] = _Part(drawn, whole, held, lambda x: x[which])
    return plan


def _plan_plain(prefix: str) -> Callable[[Architecture, tuple[str, ...]], dict[str, _Part]]:
    def plan(arch: Architecture, tasks: tuple[str, ...]) -> dict[str, _Part]:
        classifier = ("classifier.",)
        return {
            (name if name.startswith(classifier) else prefix + name): _Part(name, shape, shape)
            for name, shape in _base(arch).items()
        }

    return plan


def _plan_reranker_v3(arch: Architecture, tasks: tuple[str, ...]) -> dict[str, _Part]:
    middle = arch.hidden // 2
    two = {"projector.0.weight": (middle, arch.hidden), "projector.2.weight": (PROJECTED, middle)}
    return {**_plan_plain("model.")(arch, tasks), **{n: _Part(n, s, s) for n, s in two.items()}}


_PLANS = {
    "v3": _plan_v3,
    "v3-native": _plan_plain("roberta."),
    "reranker-v3": _plan_reranker_v3,
    "reranker-v2": _plan_plain("roberta."),
}


def _peft(folder: Path, arch: Architecture, task: str, dtype: str, seed: int, own_factors: bool) -> None:
    """One task's adapter as PEFT writes it, with the names of transformers' class."""
    folder.mkdir(parents=True, exist_ok=True)
    n = V3_TASKS.index(task)
    plan: dict[str, _Part] = {}
    targets = set()
    for module, shape in _modules(arch).items():
        for part, stem, rows in _native(module, shape[0]):
            targets.add(stem.rsplit(".", 1)[-1])
            for letter, (drawn, whole) in _factors(module, shape, part if own_factors else "").items():
                key, cut = f"lora_{letter}.weight", lambda x: x[n]
                if module.startswith("embeddings."):
                    key, cut = f"lora_embedding_{letter}", lambda x: x[n].T
                elif letter == "B":
                    cut = lambda x, rows=rows: x[n][rows]  # noqa: E731
                plan[f"base_model.model.{stem}.{key}"] = _Part(drawn, whole, cut(np.empty(whole)).shape, cut)
    shapes, produce = _draw(plan, dtype, seed)
    tiny.save(folder / "adapter_model.safetensors", shapes, produce)
    body = {
        "peft_type": "LORA", "r": V3_RANK, "lora_alpha": V3_ALPHA, "use_rslora": False, "use_dora": False,
        "bias": "none", "modules_to_save": None, "task_type": "FEATURE_EXTRACTION", "lora_dropout": 0.0,
        "fan_in_fan_out": False, "target_modules": sorted(targets), "rank_pattern": {}, "alpha_pattern": {},
        "inference_mode": True, "base_model_name_or_path": "jinaai/jina-embeddings-v3-hf",
    }  # fmt: skip
    _json(folder / "adapter_config.json", body)


def _native(module: str, out: int) -> list[tuple[str, str, slice]]:
    """The modules of transformers' class for one of the checkpoint's: (part, name, rows of it that they have)."""
    if not module.startswith("encoder.layers."):
        return [("", module, slice(None))]
    head, _, rest = module.removeprefix("encoder.").partition(".mixer.")
    if rest == "Wqkv":
        third = out // 3
        return [
            (f"|{x}", f"{head}.self_attn.{x}_proj", slice(i * third, (i + 1) * third)) for i, x in enumerate("qkv")
        ]
    return [("", f"{head}.self_attn.o_proj" if rest else head, slice(None))]


def _draw(plan: dict[str, _Part], dtype: str, seed: int) -> tuple[tiny.Shapes, tiny.Produce]:
    def produce(name: str) -> NDArray[np.generic]:
        part = plan[name]
        return tiny.cast(np.ascontiguousarray(part.take(_random(part.drawn, part.whole, seed))), dtype)

    return {name: (dtype, part.shape) for name, part in plan.items()}, produce


def _random(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    out = np.random.default_rng([seed, *name.encode()]).standard_normal(shape, np.float32)
    if name.endswith(".bias"):
        return out * np.float32(0.2)
    if len(shape) == 1:
        return 1 + out * np.float32(0.1)
    return out * np.float32(_size(name, shape))


def _size(name: str, shape: tuple[int, ...]) -> float:
    """The standard deviation of what is drawn. The adapters' come out at about a third of what they are added to."""
    if name.endswith("lora_A"):
        return 1.0 if name.startswith("embeddings.") else float(1 / np.sqrt(shape[-1]))
    if name.endswith("lora_B"):
        return 1.2 if "token_type" in name else 0.7
    if name.startswith(("embeddings.", "embed_tokens.")):
        return 0.5 if "token_type" in name or "position" in name else 1.0
    if name.startswith("classifier.out_proj"):
        return float(3 / np.sqrt(shape[-1]))  # logits well apart from one another
    return float(1 / np.sqrt(shape[-1]))
