"""How much arithmetic a training step is, by the shapes alone: what utilisation is a share of.

Counted are the products of the forward and backward pass as the model defines them, two operations
per multiply-add. What is computed twice to save memory (checkpointing, the head's chunks) is not.

T tokens · L learnt tokens
"""

from __future__ import annotations

from collections.abc import Sequence

from mull.model.config import ModelConfig
from mull.model.matrices import matrices


def step_flops(
    config: ModelConfig,
    lengths: Sequence[int],
    learnt: int,
    *,
    mtp_targets: int = 0,
    mtp_passes: int = 1,
    frozen: bool = False,
    only_mtp: bool = False,
) -> float:
    """Of one update on sequences of these lengths, `learnt` of whose tokens go through the head.

    mtp_targets: tokens learnt by the MTP module, where it is trained. frozen: only adapters learn,
    so the big matrices have no gradient of their own. only_mtp: the model is only run forward.
    """
    products = 2 if frozen else 3  # forward, gradient of the input, gradient of the weight
    runs = 1 if only_mtp else products
    tokens = sum(lengths)
    head = config.vocab_size * config.hidden_size
    layers = _per_token(config)
    attention = sum(_attention(config, length) for length in lengths)
    total = runs * 2 * (layers * tokens + head * learnt)
    total += (1 if only_mtp else 3) * attention * config.num_hidden_layers
    if mtp_targets:
        layer = _per_token(config, mtp=True) - layers
        once = products * 2 * (layer * tokens + head * mtp_targets) + 3 * attention
        total += mtp_passes * once
    return float(total)


def _per_token(config: ModelConfig, *, mtp: bool = False) -> float:
    """Multiply-adds of the layers' matrices (and of the MTP module's) for one token."""
    active = config.num_experts_per_tok / max(config.n_routed_experts, 1)
    shares = {"embedding": 0.0, "head": 0.0, "expert_up": active, "expert_down": active}
    return sum(matrix.values * shares.get(matrix.part, 1.0) for matrix in matrices(config, mtp=mtp))


def _attention(config: ModelConfig, length: int) -> float:
    """Operations of one layer's scores and mixing forward, causal: half of the square."""
    value = config.v_head_dim if config.is_mla else config.head_dim
    pairs = length * (length + 1) / 2
    return 2 * config.num_attention_heads * (config.qk_head_dim + value) * pairs
