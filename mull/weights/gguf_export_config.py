"""From a model's configuration to GGUF metadata: the way back of `gguf_config`.

Keys and their meaning are those llama.cpp reads. What it has no key for, or computes otherwise, is
refused here rather than written wrongly.
"""

from __future__ import annotations

import math
from typing import Any

from mull.errors import WeightsError
from mull.model.config import ModelConfig
from mull.model.rope_config import yarn_amplitude, yarn_mscale
from mull.weights.gguf_config import GATING_SIGMOID, GATING_SOFTMAX
from mull.weights.gguf_rope import LLAMA3_KEYS

_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}


def gguf_architecture(config: ModelConfig) -> str:
    return _ARCHITECTURES[config.model_type]


def gguf_metadata(config: ModelConfig) -> dict[str, Any]:
    """`{architecture}.*` keys and values of the model's shape. Raises WeightsError."""
    _refuse_what_llama_cpp_lacks(config)
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.rope_dim,
        "rope.freq_base": float(config.rope_theta),
        **(_latent_attention(config) if config.is_mla else _grouped_attention(config)),
        **(_routing(config) if config.is_mla else {}),
        **_rope_scaling(config),
    }
    architecture = gguf_architecture(config)
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _refuse_what_llama_cpp_lacks(config: ModelConfig) -> None:
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type")
    lacks = {
        "biases in its attention": config.attention_bias and config.model_type != "llama",
        "biases in its MLP": config.mlp_bias and config.model_type != "llama",
        "a router in every other layer (moe_layer_freq)": config.is_moe
        and config.moe_layer_freq != 1,
        "experts but no shared one": config.is_moe and config.n_shared_experts == 0,
        "linear rope scaling": kind == "linear" and config.is_mla,
        "llama3's rope scaling": kind == "llama3" and config.model_type != "llama",
        "YaRN with truncate = false": kind == "yarn" and not scaling["truncate"],
        "YaRN with betas other than 32 and 1": kind == "yarn"
        and (scaling["beta_fast"], scaling["beta_slow"]) != (32.0, 1.0),
    }
    for what, is_so in lacks.items():
        if is_so:
            raise WeightsError(
                f"this {config.model_type} model has {what}, which llama.cpp does not run in its"
                f" {gguf_architecture(config)} architecture: export it with --format hf"
            )


def _grouped_attention(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }


def _latent_attention(config: ModelConfig) -> dict[str, Any]:
    """llama.cpp sees one key head as wide as the latent; the heads' own sizes are the _mla keys."""
    return {
        "attention.q_lora_rank": config.q_lora_rank or 0,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.head_count_kv": 1,
        "attention.key_length": config.latent_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
    }


def _routing(config: ModelConfig) -> dict[str, Any]:
    is_sigmoid = config.scoring_func == "sigmoid"
    if not config.is_moe:
        # llama.cpp asks for the keys of the experts all the same.
        return {
            "leading_dense_block_count": config.num_hidden_layers,
            "expert_shared_count": 0,
            "expert_feed_forward_length": config.moe_intermediate_size or config.intermediate_size,
            "expert_gating_func": GATING_SIGMOID
            if config.model_type == "deepseek_v3"
            else GATING_SOFTMAX,
        }
    return {
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": GATING_SIGMOID if is_sigmoid else GATING_SOFTMAX,
        "expert_group_count": config.n_group,
        "expert_group_used_count": config.topk_group,
    }


def _rope_scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling["rope_type"] == "llama3":
        # llama.cpp takes it from the tensor rope_freqs; these keys are for reading it back.
        return {f"rope.llama3.{key}": scaling[key] for key in LLAMA3_KEYS}
    values = {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": scaling["factor"]}
    if scaling["rope_type"] == "linear":
        return values
    return {
        **values,
        "rope.scaling.original_context_length": scaling["original_max_position_embeddings"],
        **(_latent_magnitude if config.is_mla else _magnitude)(scaling),
    }


def _magnitude(scaling: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp multiplies YaRN's own magnitude by attn_factor."""
    share = yarn_amplitude(scaling) / yarn_mscale(scaling["factor"])
    return {} if math.isclose(share, 1.0) else {"rope.scaling.attn_factor": share}


def _latent_magnitude(scaling: dict[str, Any]) -> dict[str, Any]:
    """(attn_factor, log multiplier) that give DeepSeek's two magnitudes in llama.cpp.

    With g(x) = 0.1 x ln(factor) + 1 it multiplies cos and sin by attn_factor, and the softmax scale
    by (attn_factor * g(multiplier))^2; the file holds a tenth of the multiplier. Wanted are YaRN's
    amplitude and g(mscale_all_dim)^2; where the two mscales are equal, the amplitude is 1.
    """
    weight = scaling.get("mscale_all_dim") or 0.0
    amplitude = yarn_amplitude(scaling)
    if weight and math.isclose(amplitude, 1.0):
        return {"rope.scaling.yarn_log_multiplier": 0.1 * weight}
    stretch = 0.1 * math.log(scaling["factor"])
    if stretch <= 0 or amplitude <= 0:
        raise WeightsError("this YaRN scaling has no stretch: export the model with --format hf")
    multiplier = (yarn_mscale(scaling["factor"], weight) / amplitude - 1) / stretch
    return {
        "rope.scaling.attn_factor": amplitude,
        "rope.scaling.yarn_log_multiplier": 0.1 * (multiplier or 1e-6),  # 0 would mean absent
    }
