"""How many parameters a configuration has, in total and active per token, by arithmetic alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mull.model.config import ModelConfig


def parameter_count(config: ModelConfig, *, mtp: bool = False) -> tuple[int, int]:
    """(total, active per token), MTP modules if asked for; embeddings count in both, once if
    tied."""
    d = config.hidden_size
    embeddings = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    total = active = embeddings + d
    attention = _latent_attention(config) if config.is_mla else _grouped_attention(config)
    depths = config.num_nextn_predict_layers if mtp else 0
    for layer in range(config.num_hidden_layers + depths):
        shared = attention + 2 * d
        if layer >= config.num_hidden_layers:
            shared += 2 * d * d + 3 * d  # eh_proj and three norms
        if not config.is_moe_layer(layer):
            mlp = _mlp(config, config.intermediate_size)
            total += shared + mlp
            active += shared + mlp
            continue
        expert = 3 * d * config.moe_intermediate_size
        shared += _router(config)
        if config.n_shared_experts:
            shared += _mlp(config, config.n_shared_experts * config.moe_intermediate_size)
        total += shared + config.n_routed_experts * expert
        active += shared + config.num_experts_per_tok * expert
    return total, active


def _mlp(config: ModelConfig, width: int) -> int:
    biases = 2 * width + config.hidden_size if config.mlp_bias else 0
    return 3 * config.hidden_size * width + biases


def _router(config: ModelConfig) -> int:
    bias = config.n_routed_experts if config.topk_method == "noaux_tc" else 0
    return config.n_routed_experts * config.hidden_size + bias


def _grouped_attention(config: ModelConfig) -> int:
    d = config.hidden_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    biases = (q + 2 * kv if config.qkv_bias else 0) + (d if config.o_bias else 0)
    norms = 2 * config.head_dim if config.qk_norm else 0
    return 2 * d * q + 2 * d * kv + biases + norms


def _latent_attention(config: ModelConfig) -> int:
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank or 0
    queries = heads * config.qk_head_dim
    count = d * queries
    if config.q_lora_rank:
        count = config.q_lora_rank * (d + 1 + queries)
    count += d * config.latent_dim + latent
    count += latent * heads * (config.qk_nope_head_dim + config.v_head_dim)
    count += heads * config.v_head_dim * d
    if config.attention_bias:
        count += (config.q_lora_rank or 0) + config.latent_dim + d
    return count
