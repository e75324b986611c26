"""A model's shape: config.json or a GGUF header -> Architecture, and the exact tensors that it implies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ModelDamaged

# Bounds that any of these models keeps by a wide margin; a value outside them is damage or an attack.
_LIMITS = {
    "hidden_size": (8, 16384),
    "num_hidden_layers": (1, 128),
    "num_attention_heads": (1, 256),
    "num_key_value_heads": (1, 256),
    "head_dim": (2, 1024),
    "intermediate_size": (8, 131072),
    "vocab_size": (2, 1 << 20),
    "max_position_embeddings": (1, 1 << 20),
}


@dataclass(frozen=True)
class Architecture:
    """The numbers that fix a forward pass. Pre-norm RMS blocks, rotary positions (NEOX), gated SiLU MLP."""

    kind: str  # "qwen3" | "eurobert"
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    rope_theta: float
    max_positions: int

    @property
    def causal(self) -> bool:
        """Qwen3 looks back only; EuroBERT looks both ways."""
        return self.kind == "qwen3"

    @property
    def qk_norm(self) -> bool:
        """Qwen3 norms queries and keys per head before the rotation."""
        return self.kind == "qwen3"


# model_type -> kind; the v5 repositories share one model_type, see `_kind`.
_KINDS = {"qwen3": "qwen3", "eurobert": "eurobert"}
_SILENT_CHANGES = {  # config key -> the values under which the forward pass here is the right one
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "tie_word_embeddings": (True, False),
}


def from_config(config: Mapping[str, object], where: str = "config.json") -> Architecture:
    """Read a config as transformers writes it (either place of rope_theta). Raises ModelDamaged."""
    kind = _kind(config, where)
    sizes = {key: _size(config, key, where) for key in _LIMITS if key not in ("head_dim", "num_key_value_heads")}
    heads = sizes["num_attention_heads"]
    kv_heads = _size(config, "num_key_value_heads", where, default=heads)
    if config.get("head_dim") is None and sizes["hidden_size"] % heads:
        raise ModelDamaged(f"{where}: hidden_size {sizes['hidden_size']} does not divide by {heads} heads.")
    head_dim = _size(config, "head_dim", where, default=sizes["hidden_size"] // heads)
    if heads % kv_heads or head_dim % 2:
        raise ModelDamaged(
            f"{where}: {heads} heads over {kv_heads} key-value heads of {head_dim} cannot be laid out."
        )
    eps = config.get("rms_norm_eps")
    if not isinstance(eps, float) or not 1e-12 <= eps <= 1e-2:
        raise ModelDamaged(f"{where}: rms_norm_eps is {eps!r}; expected a number from 1e-12 to 1e-2.")
    for key, allowed in _SILENT_CHANGES.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ModelDamaged(f"{where}: {key} is {config[key]!r}, which this runtime does not compute.")
    return Architecture(
        kind=kind,
        hidden=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=sizes["intermediate_size"],
        vocab=sizes["vocab_size"],
        eps=eps,
        rope_theta=_theta(config, where),
        max_positions=sizes["max_position_embeddings"],
    )


def from_gguf(keys: Mapping[str, object], vocab: int, where: str = "GGUF header") -> Architecture:
    """Read the key-values of a GGUF header; `vocab` is the number of rows of its token table."""
    kind = str(keys.get("general.architecture"))
    if kind not in ("qwen3", "eurobert"):
        raise ModelDamaged(f"{where}: general.architecture is {kind!r}; this runtime reads qwen3 and eurobert.")
    found = {
        "hidden_size": keys.get(f"{kind}.embedding_length"),
        "num_hidden_layers": keys.get(f"{kind}.block_count"),
        "num_attention_heads": keys.get(f"{kind}.attention.head_count"),
        "num_key_value_heads": keys.get(f"{kind}.attention.head_count_kv"),
        "head_dim": keys.get(f"{kind}.attention.key_length"),
        "intermediate_size": keys.get(f"{kind}.feed_forward_length"),
        "vocab_size": vocab,
        "max_position_embeddings": keys.get(f"{kind}.context_length"),
        "rms_norm_eps": keys.get(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.get(f"{kind}.rope.freq_base"),
        "model_type": kind,
    }
    return from_config({k: v for k, v in found.items() if v is not None}, where)


def tensors(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Every weight of the model under its checkpoint name (without the optional `model.` prefix) -> shape."""
    q, kv, h, m = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim, arch.hidden, arch.intermediate
    out: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (arch.vocab, h), "norm.weight": (h,)}
    for n in range(arch.layers):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm": (h,),
            "post_attention_layernorm": (h,),
            "self_attn.q_proj": (q, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, q),
            "mlp.gate_proj": (m, h),
            "mlp.up_proj": (m, h),
            "mlp.down_proj": (h, m),
        }
        if arch.qk_norm:
            block["self_attn.q_norm"] = block["self_attn.k_norm"] = (arch.head_dim,)
        out.update({f"layers.{n}.{name}.weight": shape for name, shape in block.items()})
    return out


def projections(arch: Architecture) -> list[str]:
    """The weights that adapters change and quantisers shrink: the linear layers of every block."""
    return [name for name in tensors(arch) if name.endswith("_proj.weight")]


def _kind(config: Mapping[str, object], where: str) -> str:
    model_type = config.get("model_type")
    if model_type == "jina_embeddings_v5":
        # Both v5 models publish this type; only nano's config class carries is_decoder.
        return "eurobert" if config.get("is_decoder") is False else "qwen3"
    if isinstance(model_type, str) and model_type in _KINDS:
        return _KINDS[model_type]
    raise ModelDamaged(
        f"{where}: model_type is {model_type!r}; this runtime reads jina_embeddings_v5, {' and '.join(_KINDS)}."
    )


def _size(config: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None:
        value = default
    low, high = _LIMITS[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        found = "missing" if key not in config else repr(value)
        raise ModelDamaged(f"{where}: {key} is {found}; expected a whole number from {low} to {high}.")
    return value


def _theta(config: Mapping[str, object], where: str) -> float:
    nested = config.get("rope_parameters")
    places = {"rope_theta": config.get("rope_theta")}
    if isinstance(nested, Mapping):
        places["rope_parameters.rope_theta"] = nested.get("rope_theta")
        if nested.get("rope_type", "default") != "default":
            raise ModelDamaged(f"{where}: rope_type {nested['rope_type']!r} is not one this runtime computes.")
    if config.get("rope_scaling") is not None:
        raise ModelDamaged(f"{where}: rope_scaling is set; this runtime computes unscaled RoPE only.")
    found = {place: value for place, value in places.items() if value is not None}
    if not found:
        raise ModelDamaged(
            f"{where}: no rope_theta, neither at the top nor under rope_parameters. Engines would fall back to "
            "a default and give wrong vectors; add the value that the checkpoint was published with."
        )
    if len(set(found.values())) != 1:
        raise ModelDamaged(f"{where}: two different RoPE bases: {found}.")
    theta = next(iter(found.values()))
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not math.isfinite(theta) or theta <= 0:
        raise ModelDamaged(f"{where}: rope_theta is {theta!r}; expected a positive number.")
    return float(theta)
