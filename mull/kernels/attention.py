"""Attention over the paged cache: native code where it exists, the torch reference elsewhere.

`T new tokens (packed) · B sequences · M blocks of a sequence · N blocks · S slots of a block ·
H query heads · G key heads · d, e head width · c latent width`.
"""

from __future__ import annotations

from torch import Tensor

from mull.kernels import reference


def write_cache(cache_NS: Tensor, values_T: Tensor, slots_T: Tensor) -> None:
    """Store row t of `values_T` at slot `slots_T[t]` = block * S + offset, in the cache's dtype."""
    reference.write_cache(cache_NS, values_T, slots_T)


def paged_attention(
    q_THd: Tensor,
    key_NSGd: Tensor,
    value_NSGe: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
) -> Tensor:
    """Grouped-query attention of new tokens over cached blocks -> [T, H, e], causal.

    block_table_BM, query_starts_B1 (length B+1), context_B (including the new tokens): int32.
    """
    return reference.paged_attention(
        q_THd, key_NSGd, value_NSGe, block_table_BM, query_starts_B1, context_B, scale
    )


def paged_latent_attention(
    q_THc: Tensor,
    latent_NSc: Tensor,
    block_table_BM: Tensor,
    query_starts_B1: Tensor,
    context_B: Tensor,
    scale: float,
    value_dim: int,
) -> Tensor:
    """Multi-query attention over the cached MLA latent -> [T, H, value_dim], causal."""
    return reference.paged_latent_attention(
        q_THc, latent_NSc, block_table_BM, query_starts_B1, context_B, scale, value_dim
    )
