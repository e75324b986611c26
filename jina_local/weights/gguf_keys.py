"""Every key that a GGUF file of these models has: its type, and the values under which the vectors are the model's.

The converter writes the keys of an architecture from this table, see `written`. A file is held against it before an
engine sees it, see `check_types` and `check`. llama.cpp reads more keys than stand here, and some of them change the
vectors without a word or end the process. So a key that llama.cpp may read and that this table lacks is refused,
unless it has the value in `_NEUTRAL`, which changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ModelDamaged
from . import tensor_names
from .architecture import Architecture
from .tensor_names import PADDING_POSITION_KEY

OWN = "jina_local."  # the prefix of our own keys
MADE_HERE = "jina_local.model"  # every file of our converter has it, and no other file

WHOLE, NUMBER, SWITCH, TEXT = "a whole number", "a number", "true or false", "a text"
WHOLES, NUMBERS, TEXTS = "a list of whole numbers", "a list of numbers", "a list of texts"

# enum llama_pooling_type. The pairwise reranker reads the first token through its head, which is RANK.
POOLING = {"marked": 0, "mean": 1, "last": 3, "first": 4}
LABELS = ("relevance",)  # one score a text
# Kind -> tokenizer.ggml.model, and the names of tokenizer.ggml.pre with the name first that the converter writes.
TOKENIZERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qwen3": ("gpt2", ("qwen2",)),
    "eurobert": ("gpt2", ("jina-v5-nano", "llama-bpe")),
    "jina-bert-v3": ("t5", ("default",)),
    "bert": ("t5", ("default",)),
}
# The tokens that tokenizer.ggml.<name>_token_id may name. "seperator" is how llama.cpp spells it.
SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "seperator", "separator", "padding", "mask", "cls", "prefix",
           "suffix", "middle", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")  # fmt: skip
ALIGNMENT = 32  # bytes, of the tensors' places; llama.cpp takes others, and has ended the process because of them
SHORTEST, LONGEST = 64, 1 << 20  # bounds of the context length: no model of these is cut shorter than the first


@dataclass(frozen=True)
class Model:
    """What the values of keys are compared with."""

    arch: Architecture
    pooling: str  # as a registry row has it
    context: int  # the context length to write; a file may have another one within the bounds


Values = Callable[[Model], Sequence[object]]


@dataclass(frozen=True)
class Rule:
    """What a key holds. `right`: the values that it may have, the written value first; None: any of the type."""

    form: str
    right: Values | None = None
    written: bool = False  # whether the converter writes it, in every file where it has a value
    needed: bool = False  # whether every file has it, whoever wrote it


def _any_size(model: Model) -> Sequence[object]:
    return (model.context,)


# Under `{arch}.`, in the order in which the converter writes them. No value: the architecture has no such key.
_ARCHITECTURE: Mapping[str, Rule] = {
    "block_count": Rule(WHOLE, lambda m: (m.arch.layers,), written=True),
    "context_length": Rule(WHOLE, _any_size, written=True),
    "embedding_length": Rule(WHOLE, lambda m: (m.arch.hidden,), written=True),
    "feed_forward_length": Rule(WHOLE, lambda m: (m.arch.intermediate,), written=True),
    "attention.head_count": Rule(WHOLE, lambda m: (m.arch.heads,), written=True),
    "attention.head_count_kv": Rule(WHOLE, lambda m: (m.arch.kv_heads,), written=True),
    "attention.key_length": Rule(WHOLE, lambda m: (m.arch.head_dim,), written=True),
    "attention.value_length": Rule(WHOLE, lambda m: (m.arch.head_dim,), written=True),
    "attention.layer_norm_rms_epsilon": Rule(NUMBER, lambda m: _eps(m, xlm_roberta=False), written=True),
    "attention.layer_norm_epsilon": Rule(NUMBER, lambda m: _eps(m, xlm_roberta=True), written=True),
    "rope.freq_base": Rule(NUMBER, lambda m: (m.arch.rope_theta,) if m.arch.rope_theta else (), written=True),
    "vocab_size": Rule(WHOLE, lambda m: (m.arch.vocab,), written=True),
    "attention.causal": Rule(SWITCH, lambda m: (m.arch.causal,), written=True),
    "rope.scaling.type": Rule(TEXT, lambda m: ("none",), written=True),
    "pooling_type": Rule(WHOLE, lambda m: (POOLING[m.pooling],), written=True),
    "classifier.output_labels": Rule(TEXTS, lambda m: LABELS if m.arch.labels else (), written=True),
    "rope.dimension_count": Rule(WHOLE, lambda m: (m.arch.head_dim,) if m.arch.rope_theta else ()),
    "embedding_length_out": Rule(WHOLE, lambda m: (m.arch.hidden,)),
}
_TOKENIZER: Mapping[str, Rule] = {
    "tokenizer.ggml.model": Rule(TEXT, lambda m: TOKENIZERS[m.arch.kind][:1], written=True, needed=True),
    "tokenizer.ggml.pre": Rule(TEXT, lambda m: TOKENIZERS[m.arch.kind][1], written=True, needed=True),
    "tokenizer.ggml.tokens": Rule(TEXTS, written=True, needed=True),
    "tokenizer.ggml.token_type": Rule(WHOLES, written=True),
    "tokenizer.ggml.merges": Rule(TEXTS),
    "tokenizer.ggml.scores": Rule(NUMBERS),
    "tokenizer.ggml.precompiled_charsmap": Rule(WHOLES),
    "tokenizer.ggml.add_bos_token": Rule(SWITCH, written=True),
    "tokenizer.ggml.add_eos_token": Rule(SWITCH),
    "tokenizer.ggml.add_sep_token": Rule(SWITCH),
    "tokenizer.ggml.add_space_prefix": Rule(SWITCH),
    "tokenizer.ggml.remove_extra_whitespaces": Rule(SWITCH),
    "tokenizer.ggml.token_type_count": Rule(WHOLE, lambda m: (1,)),
    **{f"tokenizer.ggml.{name}_token_id": Rule(WHOLE) for name in SPECIAL},
    "tokenizer.huggingface.json": Rule(TEXT),
    # Only programs that chat read these.
    "tokenizer.chat_template": Rule(TEXT),
    "tokenizer.chat_templates": Rule(TEXTS),
}
# Any other key under `general.` and `jina_local.` is free: llama.cpp prints the first, and has none of the second.
_FREE: Mapping[str, Rule] = {
    "general.architecture": Rule(TEXT, lambda m: (m.arch.kind,), written=True),
    "general.type": Rule(TEXT, lambda m: ("model",), written=True),
    "general.alignment": Rule(WHOLE, lambda m: (ALIGNMENT,)),
    "general.file_type": Rule(WHOLE, written=True),
    "general.quantization_version": Rule(WHOLE, lambda m: (2,), written=True),
    **{f"general.{name}": Rule(TEXT) for name in ("name", "basename", "finetune", "size_label", "license", "author",
       "description", "organization", "version", "url", "source.url")},
    **{f"general.{name}": Rule(TEXTS) for name in ("tags", "languages", "datasets")},
    "general.base_model.count": Rule(WHOLE),
    MADE_HERE: Rule(TEXT, written=True),
    **{f"{OWN}{name}": Rule(TEXT) for name in ("task", "base", "prompts", "default_prompt")},
    f"{OWN}matryoshka_dims": Rule(WHOLES),
    PADDING_POSITION_KEY: Rule(NUMBERS),
    f"{OWN}tokenizer_fingerprint": Rule(TEXT, written=True),
    f"{OWN}tokenizer.added_token_flags": Rule(TEXT),
}  # fmt: skip
# Of an adapter's file, beside those of _FREE; what else there may be is no business of an adapter.
_ADAPTER: Mapping[str, Rule] = {
    "general.type": Rule(TEXT),
    "general.architecture": Rule(TEXT),
    "adapter.type": Rule(TEXT),
    "adapter.lora.alpha": Rule(NUMBER),
    "adapter.lora.task_name": Rule(TEXT),
    "adapter.lora.prompt_prefix": Rule(TEXT),
}
# Keys of llama.cpp (src/llama-arch.cpp) that these models do not have -> the values that leave everything as it is.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "{}.attention.clamp_kqv": (0.0,),
    "{}.attention.max_alibi_bias": (0.0,),
    "{}.attention.scale": (0.0,),
    "{}.attention.sliding_window": (0,),
    "{}.attn_logit_softcapping": (0.0,),
    "{}.final_logit_softcapping": (0.0,),
    "{}.expert_count": (0,),
    "{}.expert_group_count": (0,),
    "{}.expert_group_used_count": (0,),
    "{}.expert_shared_count": (0,),
    "{}.expert_used_count": (0,),
    "{}.leading_dense_block_count": (0,),
    "{}.nextn_predict_layers": (0,),
    "{}.rope.scale_linear": (1.0, 0.0),
    "{}.rope.scaling.attn_factor": (1.0,),
    "{}.rope.scaling.factor": (1.0, 0.0),
    "{}.rope.scaling.finetuned": (False,),
    "{}.swin_norm": (False,),
    "split.no": (0,),
    "split.count": (0, 1),
}
# What llama.cpp looks for keys under, beside `general.` and the architecture.
_READ = ("tokenizer.", "split.", "adapter.", "xielu.", "diffusion.", "clip.")


def written(model: Model) -> Iterator[tuple[str, str, object]]:
    """(key, type, value) for each key under `{arch}.` that the converter writes, in their order."""
    for name, rule in _ARCHITECTURE.items():
        if rule.written and rule.right and (values := rule.right(model)) and _stated(name, model.arch):
            yield f"{model.arch.kind}.{name}", rule.form, list(values) if rule.form == TEXTS else values[0]


def _stated(name: str, arch: Architecture) -> bool:
    """Whether the converter says something that llama.cpp takes for granted where the key is missing."""
    if name == "attention.causal":
        return not arch.causal
    return name != "rope.scaling.type" or (not arch.causal and arch.rope_theta > 0)


def _eps(model: Model, *, xlm_roberta: bool) -> Sequence[object]:
    return (model.arch.eps,) if model.arch.xlm_roberta == xlm_roberta else ()


def check_types(keys: Mapping[str, object], where: str) -> None:
    """Raise ModelDamaged where a key that is known here has a value of another type. Nothing is compared yet."""
    kind = keys.get("general.architecture")
    for key, value in keys.items():
        rule = _rule(key, kind if isinstance(kind, str) else "")
        if rule and not _is(rule.form, value):
            raise ModelDamaged(f"{where}: {key} is {_shown(value)}; expected {rule.form}.")


def check(keys: Mapping[str, object], model: Model, where: str) -> None:
    """Raise ModelDamaged where a key would change the vectors, or has nothing to do in a file of this model.

    A file of our own converter has to have all that the converter writes. `keys` have passed `check_types`.
    """
    kind = model.arch.kind
    for key, value in keys.items():
        rule = _rule(key, kind)
        if rule is None:
            _check_stranger(key, value, kind, where)
        elif key == f"{kind}.context_length":
            _check_context(key, value, where)
        elif rule.right is not None:
            _check_value(key, value, rule, rule.right(model), where)
    if absent := [key for key, rule in _TOKENIZER.items() if rule.needed and key not in keys]:
        raise ModelDamaged(f"{where}: has no {' and no '.join(absent)}; it is not a complete model.")
    if MADE_HERE in keys:
        always = [key for table in (_FREE, _TOKENIZER) for key, rule in table.items() if rule.written]
        missing = [key for key in (*(key for key, _, _ in written(model)), *always) if key not in keys]
        if missing:
            raise ModelDamaged(
                f"{where}: was written by `python -m convert gguf`, and has lost {', '.join(missing[:10])}. "
                "Convert it again."
            )


def check_adapter(keys: Mapping[str, object], where: str) -> None:
    """Raise ModelDamaged where an adapter's file has a key that is none of an adapter's, or a value that is odd."""
    for key, value in keys.items():
        rule = _ADAPTER.get(key) or _FREE.get(key)
        if rule is None and not key.startswith(("general.", OWN)):
            raise ModelDamaged(f"{where}: {key} is {_shown(value)}; an adapter has no such key. Convert it again.")
        if rule is not None and not _is(rule.form, value):
            raise ModelDamaged(f"{where}: {key} is {_shown(value)}; expected {rule.form}.")
    if (alignment := keys.get("general.alignment", ALIGNMENT)) != ALIGNMENT:
        raise ModelDamaged(f"{where}: general.alignment is {alignment}; an adapter's is {ALIGNMENT}.")


def check_order(names: Sequence[str], arch: Architecture, where: str) -> None:
    """Raise ModelDamaged unless the tensors of a file of our converter stand in one of the two orders it writes.

    Two tensors of one shape whose names were exchanged are seen by this alone: the data stands in the old order.
    """
    ours = list(tensor_names.gguf_shapes(arch))  # of a F32 file
    theirs = sorted(ours, key=_place)  # of a file that llama.cpp quantised
    odd = [[pair for pair in zip(names, order, strict=True) if pair[0] != pair[1]] for order in (ours, theirs)]
    if not all(odd):
        return
    found, right = min(odd, key=len)[0]
    raise ModelDamaged(
        f"{where}: its tensors were exchanged: {found} stands in the place of {right}. Convert it again."
    )


def _place(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[1]), name) if parts[0] == "blk" else (-1, name)


def _rule(key: str, kind: str) -> Rule | None:
    if key.startswith(f"{kind}."):
        return _ARCHITECTURE.get(key[len(kind) + 1 :])
    if key.startswith("tokenizer.chat_template."):
        return _TOKENIZER["tokenizer.chat_template"]
    return _TOKENIZER.get(key) or _FREE.get(key)


def _check_value(key: str, value: object, rule: Rule, right: Sequence[object], where: str) -> None:
    if not right:
        raise ModelDamaged(f"{where}: {key} is {_shown(value)}; this model has no such key.")
    if rule.form == TEXTS:
        if len(value) != len(right):  # type: ignore[arg-type]
            raise ModelDamaged(f"{where}: {key} is {_shown(value)}; this model has {len(right)} of them.")
    elif not any(_same(value, one) for one in right):
        raise ModelDamaged(
            f"{where}: {key} is {_shown(value)}; for this model it is {' or '.join(map(repr, right))}."
        )


def _check_context(key: str, value: object, where: str) -> None:
    if not SHORTEST <= value <= LONGEST:  # type: ignore[operator]
        raise ModelDamaged(f"{where}: {key} is {value!r}; expected a whole number from {SHORTEST} to {LONGEST}.")


def _check_stranger(key: str, value: object, kind: str, where: str) -> None:
    """A key that the tables lack: refused if llama.cpp may read it, unless its value changes nothing."""
    if not key.startswith((f"{kind}.", *_READ)):
        return
    neutral = _NEUTRAL.get("{}" + key[len(kind) :] if key.startswith(f"{kind}.") else key, ())
    if any(type(value) is type(one) and value == one for one in neutral):
        return
    harmless = f", where only {' or '.join(map(repr, neutral))} would change nothing" if neutral else ""
    raise ModelDamaged(
        f"{where}: {key} is {_shown(value)}{harmless}. The models known here have no such key, and llama.cpp may "
        "compute something else because of it. Convert the model again without it."
    )


def _same(value: object, right: object) -> bool:
    if isinstance(value, float) and isinstance(right, float):
        return math.isclose(value, right, rel_tol=1e-7)  # as close as 32 bits come
    return type(value) is type(right) and value == right


def _is(form: str, value: object) -> bool:
    if isinstance(value, list):
        # All members of an array have one type in the file.
        inner = {WHOLES: int, NUMBERS: float, TEXTS: bytes}.get(form)
        return inner is not None and (not value or type(value[0]) is inner)
    return type(value) is {WHOLE: int, NUMBER: float, SWITCH: bool, TEXT: str}.get(form)


def _shown(value: object) -> str:
    text = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
    return text if len(text) < 80 else text[:77] + "..."
