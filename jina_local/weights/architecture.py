"""A model's shape: config.json or a GGUF header -> Architecture, and the exact tensors that it implies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ModelDamaged
from ..formats.schema import check, number

# All of these models are far inside these bounds. A value outside them is damage or an attack.
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
_THETA = number(1, 1e12)
# Kind -> the epsilon of the norms, and the width of a head, in every published model. No shape of a tensor tells
# them, so nothing else would notice another value. Qwen3's norms have the width of a head.
_EPS = {"qwen3": 1e-6, "eurobert": 1e-5, "jina-bert-v3": 1e-5, "bert": 1e-5}
_HEAD_DIM = {"eurobert": 64, "jina-bert-v3": 64, "bert": 64}


POSITION_OFFSET = 2  # XLM-R's learned positions start after the row 1, which is the padding token's own


@dataclass(frozen=True)
class Architecture:
    """The numbers that fix a forward pass.

    "qwen3", "eurobert": pre-norm RMS blocks, rotary positions (NEOX), gated SiLU MLP, no biases.
    "jina-bert-v3", "bert": XLM-R's post-norm LayerNorm blocks, exact GELU, biases. The first has rotary positions
    (NEOX). The second has learned positions and a classifier (dense, tanh, out_proj) on the first token.
    """

    kind: str  # GGUF's name: "qwen3" | "eurobert" | "jina-bert-v3" | "bert"
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    rope_theta: float  # 0 if there is no rotation, because positions are learned
    max_positions: int  # tokens in the longest text
    labels: int = 0  # logits of the classifier; 0 if there is none

    @property
    def causal(self) -> bool:
        """Whether a token sees only the tokens before it, which is so in Qwen3 alone."""
        return self.kind == "qwen3"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed per head before the rotation, which is so in Qwen3 alone."""
        return self.kind == "qwen3"

    @property
    def xlm_roberta(self) -> bool:
        """Whether the blocks are XLM-R's, with post-norm and biases, in one of its two forms."""
        return self.kind in ("jina-bert-v3", "bert")

    @property
    def table(self) -> str:
        """The name of the token table."""
        return "embeddings.word_embeddings.weight" if self.xlm_roberta else "embed_tokens.weight"

    @property
    def width(self) -> int:
        """Numbers in one row of the result: the logits of a classifier, or else the state."""
        return self.labels or self.hidden


# model_type -> kind. The v5 repositories share one model_type, and XLM-R has two forms: see `_kind`.
_KINDS = {"qwen3": "qwen3", "eurobert": "eurobert"}
_XLM_ROBERTA = ("xlm-roberta", "jina_embeddings_v3", None)
# Config key -> the values that this forward pass computes. The first is the value if the key is absent.
_COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (True, False),
}
_COMPUTED_XLM_ROBERTA: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu",),
    "type_vocab_size": (1,),
    "emb_pooler": (None,),
    "pad_token_id": (1, None),
    "num_labels": (1, 2),  # transformers writes its default, 2, for models without a classifier
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}


def from_config(config: Mapping[str, object], where: str = "config.json") -> Architecture:
    """Read a config in transformers' form, with rope_theta in either of its places. Raises ModelDamaged."""
    kind = _kind(config, where)
    post_norm = kind in ("jina-bert-v3", "bert")
    sizes = {key: _size(config, key, where) for key in _LIMITS if key not in ("head_dim", "num_key_value_heads")}
    heads = sizes["num_attention_heads"]
    kv_heads = _size(config, "num_key_value_heads", where, default=heads)
    if config.get("head_dim") is None and sizes["hidden_size"] % heads:
        raise ModelDamaged(f"{where}: hidden_size {sizes['hidden_size']} does not divide by {heads} heads.")
    head_dim = _size(config, "head_dim", where, default=sizes["hidden_size"] // heads)
    if (
        heads % kv_heads
        or head_dim % 2
        or (post_norm and (kv_heads, heads * head_dim) != (heads, sizes["hidden_size"]))
    ):
        raise ModelDamaged(
            f"{where}: {heads} heads over {kv_heads} key-value heads of {head_dim} cannot be laid out."
        )
    eps_key = "layer_norm_eps" if post_norm else "rms_norm_eps"
    eps = config.get(eps_key)
    if not isinstance(eps, float) or not 1e-12 <= eps <= 1e-2:
        raise ModelDamaged(f"{where}: {eps_key} is {eps!r}; expected a number from 1e-12 to 1e-2.")
    _refuse_unpublished(kind, eps, head_dim, where)
    _refuse_other_passes(config, _COMPUTED_XLM_ROBERTA if post_norm else _COMPUTED, where)
    positions = sizes["max_position_embeddings"] - (POSITION_OFFSET if kind == "bert" else 0)
    if positions < 1:
        raise ModelDamaged(f"{where}: max_position_embeddings {positions + POSITION_OFFSET} leaves no position.")
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
        rope_theta=0.0 if kind == "bert" else _rope_theta(config, where),
        max_positions=positions,
        labels=1 if kind == "bert" else 0,
    )


def _refuse_unpublished(kind: str, eps: float, head_dim: int, where: str) -> None:
    """Raise ModelDamaged if a number that changes every vector is not the published models'."""
    if not math.isclose(eps, _EPS[kind], rel_tol=1e-6):  # as close as 32 bits come
        raise ModelDamaged(
            f"{where}: the epsilon of its norms is {eps:g}; the published models of this architecture have "
            f"{_EPS[kind]:g}."
        )
    if head_dim != (width := _HEAD_DIM.get(kind, head_dim)):
        raise ModelDamaged(
            f"{where}: its heads are {head_dim} wide; those of the published models of this architecture are {width}."
        )


def _refuse_other_passes(
    config: Mapping[str, object], computed: Mapping[str, tuple[object, ...]], where: str
) -> None:
    """Raise ModelDamaged if a key asks for another forward pass than this one."""
    layers = config.get("layer_types") or ["full_attention"]
    if (
        config.get("use_sliding_window")
        or not isinstance(layers, list)
        or set(map(str, layers)) != {"full_attention"}
    ):
        raise ModelDamaged(
            f"{where}: has layers whose attention is limited to a window, which this runtime does not compute. "
            "jina-reranker-v3.5 has them; take jina-reranker-v3."
        )
    for key, allowed in computed.items():
        if config.get(key, allowed[0]) not in allowed:
            raise ModelDamaged(f"{where}: {key} is {config[key]!r}, which this runtime does not compute.")


def from_gguf(keys: Mapping[str, object], vocab: int, where: str = "GGUF header") -> Architecture:
    """Read the keys of a GGUF header. `vocab`: the rows of its token table. Raises ModelDamaged."""
    kind = str(keys.get("general.architecture"))
    if kind not in ("qwen3", "eurobert", "jina-bert-v3", "bert"):
        raise ModelDamaged(
            f"{where}: general.architecture is {kind!r}; this runtime reads qwen3, eurobert, jina-bert-v3 and bert."
        )
    context = keys.get(f"{kind}.context_length")
    config = {
        "hidden_size": keys.get(f"{kind}.embedding_length"),
        "num_hidden_layers": keys.get(f"{kind}.block_count"),
        "num_attention_heads": keys.get(f"{kind}.attention.head_count"),
        "num_key_value_heads": keys.get(f"{kind}.attention.head_count_kv"),
        "head_dim": keys.get(f"{kind}.attention.key_length"),
        "intermediate_size": keys.get(f"{kind}.feed_forward_length"),
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": keys.get(f"{kind}.attention.layer_norm_rms_epsilon"),
        "layer_norm_eps": keys.get(f"{kind}.attention.layer_norm_epsilon"),
        "rope_theta": keys.get(f"{kind}.rope.freq_base"),
        "use_sliding_window": bool(keys.get(f"{kind}.attention.sliding_window")),
        "model_type": kind,
    }
    if kind == "jina-bert-v3":
        config |= {"model_type": "xlm-roberta", "position_embedding_type": "rotary"}
    if kind == "bert":
        # The table in GGUF lacks the rows before the first position, and the length does not count them.
        longest = context + POSITION_OFFSET if isinstance(context, int) else context
        classifier = {"architectures": [_CLASSIFIER], "position_embedding_type": "absolute"}
        config |= {"model_type": "xlm-roberta", "max_position_embeddings": longest, **classifier}
    return from_config({k: v for k, v in config.items() if v is not None}, where)


def tensors(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """The checkpoint name of every weight of the model -> its shape.

    The names lack their optional prefix, which is `model.`, or `roberta.` for XLM-R. The projector of a listwise
    reranker is not among them, because it comes after the model: see projector.py.
    """
    if arch.xlm_roberta:
        return _tensors_xlm_roberta(arch)
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


def _tensors_xlm_roberta(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """The same for XLM-R. Wqkv has the rows of the queries, then of the keys, then of the values."""
    h, m = arch.hidden, arch.intermediate
    out: dict[str, tuple[int, ...]] = {arch.table: (arch.vocab, h)}
    if not arch.rope_theta:
        out["embeddings.position_embeddings.weight"] = (arch.max_positions + POSITION_OFFSET, h)
    out |= {"embeddings.token_type_embeddings.weight": (1, h), "emb_ln.weight": (h,), "emb_ln.bias": (h,)}
    for n in range(arch.layers):
        block = {"mixer.Wqkv": (3 * h, h), "mixer.out_proj": (h, h), "norm1": (h,), "mlp.fc1": (m, h),
                 "mlp.fc2": (h, m), "norm2": (h,)}  # fmt: skip
        for name, shape in block.items():
            out[f"encoder.layers.{n}.{name}.weight"] = shape
            out[f"encoder.layers.{n}.{name}.bias"] = shape[:1]
    if arch.labels:
        for name, shape in {"classifier.dense": (h, h), "classifier.out_proj": (arch.labels, h)}.items():
            out[f"{name}.weight"], out[f"{name}.bias"] = shape, shape[:1]
    return out


def projections(arch: Architecture) -> list[str]:
    """The weights that are quantised beside the token table: the linear layers of every block."""
    ends = ("Wqkv.weight", "out_proj.weight", "fc1.weight", "fc2.weight") if arch.xlm_roberta else ("_proj.weight",)
    return [name for name in tensors(arch) if "layers." in name and name.endswith(ends)]


def adaptable(arch: Architecture) -> list[str]:
    """The weights that an adapter may change: the projections, and for v3 both embedding tables."""
    tables = [arch.table, "embeddings.token_type_embeddings.weight"] if arch.kind == "jina-bert-v3" else []
    return [*tables, *projections(arch)]


_CLASSIFIER = "XLMRobertaForSequenceClassification"


def _kind(config: Mapping[str, object], where: str) -> str:
    model_type, classes = config.get("model_type"), config.get("architectures")
    named = [str(name) for name in classes] if isinstance(classes, list) else []
    if model_type == "jina_embeddings_v5":
        # Both v5 models have this type; only nano's config has is_decoder.
        return "eurobert" if config.get("is_decoder") is False else "qwen3"
    if isinstance(model_type, str) and model_type in _KINDS:
        return _KINDS[model_type]
    if model_type in _XLM_ROBERTA and (model_type or named):
        rotary = model_type == "jina_embeddings_v3" or config.get("position_embedding_type") == "rotary"
        if rotary and _CLASSIFIER not in named:
            return "jina-bert-v3"
        # reranker-v2's config has no model_type, so its class decides.
        if not rotary and _CLASSIFIER in named and config.get("position_embedding_type", "absolute") == "absolute":
            return "bert"
    raise ModelDamaged(
        f"{where}: model_type is {model_type!r}, architectures {named}; this runtime reads jina_embeddings_v5, "
        f"{', '.join(_KINDS)}, jina_embeddings_v3 and xlm-roberta (with rotary positions, or as {_CLASSIFIER})."
    )


def _size(config: Mapping[str, object], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None:
        value = default
    low, high = _LIMITS[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = "missing" if key not in config else repr(value)
        raise ModelDamaged(f"{where}: {key} is {shown}; expected a whole number from {low} to {high}.")
    return value


def _rope_theta(config: Mapping[str, object], where: str) -> float:
    nested = config.get("rope_parameters")
    # v3's code has a key of its own, and falls back to 10000 without it; the model was trained with 20000.
    places = {"rope_theta": config.get("rope_theta"), "rotary_emb_base": config.get("rotary_emb_base")}
    if isinstance(nested, Mapping):
        places["rope_parameters.rope_theta"] = nested.get("rope_theta")
        if nested.get("rope_type", "default") != "default":
            raise ModelDamaged(f"{where}: rope_type {nested['rope_type']!r} is not one this runtime computes.")
    if config.get("rope_scaling") is not None:
        raise ModelDamaged(f"{where}: rope_scaling is set; this runtime computes unscaled RoPE only.")
    given = {place: check(value, _THETA, where, place) for place, value in places.items() if value is not None}
    if not given:
        raise ModelDamaged(
            f"{where}: no rope_theta, neither at the top nor under rope_parameters (nor rotary_emb_base, v3's own "
            "key). Engines would fall back to a default and give wrong vectors; add the value that it was published "
            "with."
        )
    if len(set(given.values())) != 1:
        raise ModelDamaged(f"{where}: two different RoPE bases: {given}.")
    return next(iter(given.values()))
