"""ModelConfig: one frozen dataclass for all families, its fields named as in config.json.

It is the only place that knows a model's shape: sizes of the cache and numbers of parameters are
worked out here too, without building anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mull import kernels
from mull.errors import ModelError
from mull.model.counting import parameter_count
from mull.model.families import FAMILIES, Family
from mull.model.shape import read_shape


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
        return cls(model_type=model_type, **read_shape(values, FAMILIES[model_type]))

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
    def cache_values_per_layer(self) -> int:
        """Numbers kept per token in one layer: MLA the latent, else keys and values."""
        return self.latent_dim or 2 * self.num_key_value_heads * self.head_dim

    @property
    def cache_values_per_token(self) -> int:
        """Numbers kept per token over all layers, MTP modules apart."""
        return self.cache_values_per_layer * self.num_hidden_layers

    def cache_bytes_per_token(self, dtype: torch.dtype, extra_layers: int = 0) -> int:
        """Over all layers and `extra_layers` of MTP modules."""
        layers = self.num_hidden_layers + extra_layers
        if dtype == torch.int8:
            if self.is_mla:
                row = kernels.int8_latent_row_bytes(self.latent_dim, self.kv_lora_rank or 0)
                return layers * row
            rows = 2 * self.num_key_value_heads * layers
            return rows * kernels.int8_row_bytes(self.head_dim)
        return layers * self.cache_values_per_layer * dtype.itemsize

    def parameter_count(self, *, mtp: bool = False) -> tuple[int, int]:
        """(total, active per token), with or without MTP modules. Tied embeddings count once."""
        return parameter_count(self, mtp=mtp)


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
