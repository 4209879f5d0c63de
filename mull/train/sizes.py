"""One dial: from `depth` to every size of a fresh model.

Proportions are DeepSeek-V3's brought down: width grows with depth, latents are narrower than what
they stand for, the first layer is dense, routed experts are small and a shared one always works.
"""

from __future__ import annotations

from typing import Any

from mull.errors import ModelError, RecipeError
from mull.model.config import ModelConfig
from mull.train.recipe_parts import ModelSpec

_WIDTH_PER_LAYER = 48
_HEAD = 32  # width of a head's values and of the unroped part of its keys
_ROPED = 16
_EXPERTS, _CHOSEN = 8, 2


def fresh_config(spec: ModelSpec, vocab_size: int, *, bos: int, eos: int) -> ModelConfig:
    """The configuration of a model from scratch; spec.sizes has the last word.

    Raises RecipeError for sizes that no model can have.
    """
    assert spec.depth is not None
    values = {
        **_common(spec, vocab_size, bos, eos),
        **(_deepseek(spec) if spec.architecture == "deepseek" else _dense(spec)),
    }
    unknown = sorted(set(spec.sizes) - set(values))
    if unknown:
        raise RecipeError(
            f"sizes.{unknown[0]} is no size of this architecture: use one of "
            f"{', '.join(sorted(values))}"
        )
    try:
        return ModelConfig.from_dict(values | spec.sizes)
    except ModelError as error:
        raise RecipeError(f"sizes: {error}") from None


def _width(depth: int) -> int:
    return _WIDTH_PER_LAYER * depth


def _heads(depth: int) -> int:
    return max(1, _width(depth) // 48)


def _common(spec: ModelSpec, vocab_size: int, bos: int, eos: int) -> dict[str, Any]:
    assert spec.depth is not None
    return {
        "vocab_size": vocab_size,
        "hidden_size": _width(spec.depth),
        "num_hidden_layers": spec.depth,
        "num_attention_heads": _heads(spec.depth),
        "num_key_value_heads": _heads(spec.depth),
        "max_position_embeddings": spec.context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }


def _deepseek(spec: ModelSpec) -> dict[str, Any]:
    assert spec.depth is not None
    width = _width(spec.depth)
    values: dict[str, Any] = {
        "model_type": "deepseek_v3",
        "q_lora_rank": None,
        "kv_lora_rank": _multiple(width / 2),
        "qk_nope_head_dim": _HEAD,
        "qk_rope_head_dim": _ROPED,
        "v_head_dim": _HEAD,
        "intermediate_size": _multiple(width * 8 / 3),
        "num_nextn_predict_layers": 1 if spec.mtp else 0,
        "n_routed_experts": 0,
        "n_shared_experts": 0,
        "num_experts_per_tok": 0,
        "moe_intermediate_size": 0,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }
    if spec.experts:
        # Chosen and shared experts together are as wide as the dense layer's MLP.
        part = _multiple(width * 8 / 3 / (_CHOSEN + 1))
        values |= {
            "n_routed_experts": _EXPERTS,
            "num_experts_per_tok": _CHOSEN,
            "n_shared_experts": 1,
            "moe_intermediate_size": part,
            # Sigmoid gates are about a half each and normalised: their sum is one.
            "routed_scaling_factor": float(_CHOSEN),
        }
    return values


def _dense(spec: ModelSpec) -> dict[str, Any]:
    assert spec.depth is not None
    return {
        "model_type": "llama",
        "head_dim": 48,
        "intermediate_size": _multiple(_width(spec.depth) * 8 / 3),
    }


def _multiple(size: float) -> int:
    """The nearest multiple of 32, which every kernel and number format likes."""
    return max(32, round(size / 32) * 32)
