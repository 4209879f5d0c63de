"""ModelConfig: one frozen dataclass for all families, its fields named as in config.json.

It is the only place that knows a model's shape: sizes of the cache and numbers of parameters are
worked out here too, without building anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mull.errors import ModelError
from mull.model.counting import parameter_count
from mull.model.families import FAMILIES, Family
from mull.model.fields import Fields
from mull.model.rope_config import read_rope

SCORING_FUNCTIONS = ("softmax", "sigmoid")
TOPK_METHODS = ("greedy", "group_limited_greedy", "noaux_tc")
_DTYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Fields of parts a family lacks are None or 0.

    `rope_scaling` is None or a normalised dict (see rope_config). `head_dim` of an MLA model is the
    rotated part of a head (`qk_rope_head_dim`), as in transformers.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = field(default=None, hash=False)
    rope_interleave: bool = False
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    num_nextn_predict_layers: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Reads a parsed config.json, old or of transformers 5. Raises ModelError, one line."""
        if not isinstance(values, Mapping):
            raise ModelError("config.json: the top level is not an object; give a model's config")
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            shown = model_type[:60] if isinstance(model_type, str) else "missing or not a text"
            raise ModelError(
                f"config.json: unknown architecture (model_type {shown!r}); "
                f"mull knows {', '.join(FAMILIES)}"
            )
        family = FAMILIES[model_type]
        fields = Fields(values, family.defaults)
        _refuse_what_is_not_built(fields)
        common = _read_common(fields, family)
        attention = _read_latent_attention(fields) if family.is_mla else {}
        experts = _read_experts(fields, common["num_hidden_layers"]) if family.is_mla else {}
        config = cls(model_type=model_type, **{**common, **attention, **experts})
        if config.rope_dim % 2:
            name = "qk_rope_head_dim" if family.is_mla else "head_dim"
            raise fields.fail(name, config.rope_dim, "even (RoPE rotates pairs)")
        return config

    def to_dict(self) -> dict[str, Any]:
        """A config.json for transformers, vLLM and SGLang, in the RoPE spelling that all read."""
        family = self.family
        values: dict[str, Any] = {
            "architectures": [family.architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "torch_dtype": self.dtype,
            "use_cache": True,
            "rope_scaling": None if self.rope_scaling is None else dict(self.rope_scaling),
            "eos_token_id": _one_or_list(self.eos_token_ids),
        }
        names = _COMMON_FIELDS + (_DEEPSEEK_FIELDS if family.is_mla else ("head_dim",))
        values.update({name: getattr(self, name) for name in names})
        return values

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def is_mla(self) -> bool:
        return self.family.is_mla

    @property
    def is_moe(self) -> bool:
        return any(self.is_moe_layer(layer) for layer in range(self.num_hidden_layers))

    @property
    def has_mtp(self) -> bool:
        return self.num_nextn_predict_layers > 0

    @property
    def qk_norm(self) -> bool:
        return self.family.qk_norm

    @property
    def qkv_bias(self) -> bool:
        bias = self.family.qkv_bias
        return self.attention_bias if bias is None else bias

    @property
    def o_bias(self) -> bool:
        bias = self.family.o_bias
        return self.attention_bias if bias is None else bias

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def rope_dim(self) -> int:
        """Width of the rotated part of a head."""
        return self.qk_rope_head_dim if self.is_mla else self.head_dim

    @property
    def latent_dim(self) -> int:
        """Width of what MLA caches per token and layer, latent and shared roped key; else 0."""
        return (self.kv_lora_rank or 0) + self.qk_rope_head_dim if self.is_mla else 0

    def is_moe_layer(self, layer: int) -> bool:
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @property
    def cache_values_per_token(self) -> int:
        """Numbers kept per token over all layers: MLA the latent, else keys and values."""
        per_layer = self.latent_dim or 2 * self.num_key_value_heads * self.head_dim
        return per_layer * self.num_hidden_layers

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        return self.cache_values_per_token * dtype.itemsize

    def parameter_count(self) -> tuple[int, int]:
        """(total, active per token), without MTP modules. Tied embeddings count once."""
        return parameter_count(self)


_COMMON_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "initializer_range",
    "bos_token_id",
)

_DEEPSEEK_FIELDS = (
    "rope_interleave",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "moe_layer_freq",
    "n_group",
    "topk_group",
    "topk_method",
    "scoring_func",
    "norm_topk_prob",
    "routed_scaling_factor",
    "num_nextn_predict_layers",
)


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)


def _refuse_what_is_not_built(fields: Fields) -> None:
    fields.choice("hidden_act", ("silu", "swish"), default="silu")
    layer_types = fields.get("layer_types", [])
    slides = isinstance(layer_types, list) and any(kind != "full_attention" for kind in layer_types)
    if fields.boolean("use_sliding_window", default=False):
        # Layers below max_window_layers keep full attention.
        layers = fields.integer("num_hidden_layers", 1, 1024)
        slides |= fields.integer("max_window_layers", 0, 2**31, default=28) < layers
    if slides:
        raise ModelError(
            "config.json: sliding-window attention is in use, which mull does not build; "
            "set use_sliding_window to false if the model was trained with full attention"
        )


def _read_token_ids(fields: Fields, vocab_size: int) -> dict[str, Any]:
    bos, eos = fields.written("bos_token_id"), fields.written("eos_token_id")
    bos_ids = _token_ids(fields, "bos_token_id", [bos])
    eos_ids = _token_ids(fields, "eos_token_id", eos if isinstance(eos, list) else [eos])
    # Some published files name ids outside their vocabulary, or -1 for none: those never occur.
    possible = range(vocab_size)
    return {
        "bos_token_id": next((token for token in bos_ids if token in possible), None),
        "eos_token_ids": tuple(token for token in eos_ids if token in possible),
    }


def _token_ids(fields: Fields, name: str, found: list[Any]) -> list[int]:
    ids = [token for token in found[:1000] if token is not None]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise fields.fail(name, token, "a token id (or for eos_token_id a list of them)")
    return ids


def _read_common(fields: Fields, family: Family) -> dict[str, Any]:
    hidden = fields.integer("hidden_size", 1, 2**18)
    heads = fields.integer("num_attention_heads", 1, 2**13)
    groups = fields.integer("num_key_value_heads", 1, 2**13, default=heads)
    if heads % groups:
        raise fields.fail(
            "num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}"
        )
    if family.is_mla:
        head_dim = fields.integer("qk_rope_head_dim", 2, 2**12)
    else:
        head_dim = fields.integer("head_dim", 2, 2**12, family.default_head_dim or hidden // heads)
    positions = fields.integer("max_position_embeddings", 1, 2**31)
    theta, scaling = read_rope(fields, positions)
    vocab_size = fields.integer("vocab_size", 1, 2**24)
    dtype_name = "dtype" if fields.has("dtype") else "torch_dtype"
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": fields.integer("intermediate_size", 1, 2**22),
        "num_hidden_layers": fields.integer("num_hidden_layers", 1, 1024),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=False),
        "attention_bias": fields.boolean("attention_bias", default=False),
        "mlp_bias": family.mlp_bias is None and fields.boolean("mlp_bias", default=False),
        "initializer_range": fields.number("initializer_range", 0.0, 100.0, default=0.02),
        "dtype": fields.choice(dtype_name, _DTYPES, default="float32"),
        **_read_token_ids(fields, vocab_size),
    }


def _read_latent_attention(fields: Fields) -> dict[str, Any]:
    has_q_latent = fields.written("q_lora_rank") is not None
    return {
        "rope_interleave": fields.boolean("rope_interleave", default=True),
        "q_lora_rank": fields.integer("q_lora_rank", 1, 2**16) if has_q_latent else None,
        "kv_lora_rank": fields.integer("kv_lora_rank", 1, 2**16),
        "qk_nope_head_dim": fields.integer("qk_nope_head_dim", 1, 2**12),
        "qk_rope_head_dim": fields.integer("qk_rope_head_dim", 2, 2**12),
        "v_head_dim": fields.integer("v_head_dim", 1, 2**12),
    }


def _read_experts(fields: Fields, layers: int) -> dict[str, Any]:
    experts = fields.integer("n_routed_experts", 0, 2**14)
    # "num_mtp_layers" is what transformers 5 calls it.
    mtp_name = "num_mtp_layers" if fields.has("num_mtp_layers") else "num_nextn_predict_layers"
    values: dict[str, Any] = {
        "num_nextn_predict_layers": fields.integer(mtp_name, 0, 16, default=0),
        "first_k_dense_replace": fields.integer("first_k_dense_replace", 0, 2**31),
        "moe_layer_freq": fields.integer("moe_layer_freq", 1, 1024, default=1),
    }
    if experts == 0:
        return values
    method = fields.choice("topk_method", TOPK_METHODS, default="greedy")
    groups, kept_groups = 1, 1
    if method != "greedy":
        groups = fields.integer("n_group", 1, experts, default=1)
        kept_groups = fields.integer("topk_group", 1, groups, default=1)
    if experts % groups:
        raise fields.fail("n_group", groups, f"a divisor of n_routed_experts, {experts}")
    in_group = experts // groups
    if method == "noaux_tc" and in_group < 2:
        raise fields.fail("n_group", groups, "such that a group has two experts or more")
    return {
        **values,
        "n_routed_experts": experts,
        "n_shared_experts": fields.integer("n_shared_experts", 0, 1024, default=0),
        "num_experts_per_tok": fields.integer("num_experts_per_tok", 1, kept_groups * in_group),
        "moe_intermediate_size": fields.integer("moe_intermediate_size", 1, 2**22),
        "n_group": groups,
        "topk_group": kept_groups,
        "topk_method": method,
        "scoring_func": fields.choice("scoring_func", SCORING_FUNCTIONS, default="softmax"),
        "norm_topk_prob": fields.boolean("norm_topk_prob", default=False),
        "routed_scaling_factor": fields.number("routed_scaling_factor", 0.0, 1e6, default=1.0),
    }
