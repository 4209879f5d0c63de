"""Every weight matrix of a configuration by shape: what is quantised, and how much memory it takes.

The counterpart of `counting` where the sizes of matrices matter and not only their sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mull.model.config import ModelConfig


@dataclass(frozen=True)
class Matrix:
    """`count` equal matrices [outputs, inputs].

    part: embedding, head (both where the two are tied), linear, router, expert_up and expert_down
    (of one expert), or latent_up (kv_b_proj of MLA, a product into and one out of the latent's
    space for each head).
    """

    part: str
    outputs: int
    inputs: int
    count: int = 1

    @property
    def values(self) -> int:
        return self.outputs * self.inputs * self.count


def matrices(config: ModelConfig, *, mtp: bool = False) -> Iterator[Matrix]:
    """All of them, of MTP modules if asked for; vectors (norms, biases) are what is left of the
    count."""
    depths = config.num_nextn_predict_layers if mtp else 0
    d, layers = config.hidden_size, config.num_hidden_layers + depths
    if not config.tie_word_embeddings:
        yield Matrix("embedding", config.vocab_size, d)
    yield Matrix("head", config.vocab_size, d)
    if depths:
        yield Matrix("linear", d, 2 * d, depths)  # eh_proj
    attention = _latent_attention if config.is_mla else _grouped_attention
    yield from attention(config, layers)
    sparse = sum(config.is_moe_layer(layer) for layer in range(layers))
    yield from _mlp(d, config.intermediate_size, layers - sparse)
    if sparse:
        experts, width = config.n_routed_experts, config.moe_intermediate_size
        yield Matrix("router", experts, d, sparse)
        yield Matrix("expert_up", width, d, 2 * experts * sparse)
        yield Matrix("expert_down", d, width, experts * sparse)
        if config.n_shared_experts:
            yield from _mlp(d, config.n_shared_experts * width, sparse)


def _mlp(d: int, width: int, layers: int) -> Iterator[Matrix]:
    if layers:
        yield Matrix("linear", width, d, 2 * layers)
        yield Matrix("linear", d, width, layers)


def _grouped_attention(config: ModelConfig, layers: int) -> Iterator[Matrix]:
    d = config.hidden_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    yield Matrix("linear", q, d, layers)
    yield Matrix("linear", kv, d, 2 * layers)
    yield Matrix("linear", d, q, layers)


def _latent_attention(config: ModelConfig, layers: int) -> Iterator[Matrix]:
    d, heads = config.hidden_size, config.num_attention_heads
    queries, latent = heads * config.qk_head_dim, config.kv_lora_rank or 0
    if config.q_lora_rank:
        yield Matrix("linear", config.q_lora_rank, d, layers)
        yield Matrix("linear", queries, config.q_lora_rank, layers)
    else:
        yield Matrix("linear", queries, d, layers)
    yield Matrix("linear", config.latent_dim, d, layers)
    yield Matrix("latent_up", latent, config.qk_nope_head_dim, heads * layers)
    yield Matrix("latent_up", config.v_head_dim, latent, heads * layers)
    yield Matrix("linear", d, heads * config.v_head_dim, layers)
