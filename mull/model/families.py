"""What tells the model families apart, as data: defaults, biases, norms, how experts are routed.

Adding a family built from the same parts means adding a row here, not a branch in the modules.
Defaults are those of the configuration classes in transformers, so an old config.json that leaves
a field out means the same here as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """One value of `model_type`.

    A bias of None follows config.json: `attention_bias` for qkv and o, `mlp_bias` for the MLP.
    """

    architecture: str
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    is_mla: bool = False
    default_head_dim: int | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)


_DEEPSEEK_V2_DEFAULTS: dict[str, object] = {
    "max_position_embeddings": 2048,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "first_k_dense_replace": 0,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_DEEPSEEK_V3_DEFAULTS: dict[str, object] = {
    **_DEEPSEEK_V2_DEFAULTS,
    "max_position_embeddings": 4096,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        mlp_bias=None,
        defaults={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        qkv_bias=True,
        o_bias=False,
        defaults={"max_position_embeddings": 32768},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        qk_norm=True,
        default_head_dim=128,
        defaults={"max_position_embeddings": 32768},
    ),
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        mlp_bias=None,
        is_mla=True,
        defaults=_DEEPSEEK_V2_DEFAULTS,
    ),
    "deepseek_v3": Family(
        architecture="DeepseekV3ForCausalLM",
        is_mla=True,
        defaults=_DEEPSEEK_V3_DEFAULTS,
    ),
}
