"""The formulae that algorithms share.

L learnt tokens · B groups · G answers of a group
"""

from __future__ import annotations

import torch
from torch import Tensor

# As in TRL: only keeps a group of nearly equal rewards from being blown up.
_STD_FLOOR = 1e-4


def group_advantages(rewards_G: Tensor, *, scale_by_std: bool) -> Tensor:
    """Advantage of each answer within its group (DeepSeekMath eq. 3; Dr.GRPO drops the std).

    rewards_G: float, of the answers to one question. Mean 0; equal rewards give exact zeros (the
    group teaches nothing, callers may resample it).
    """
    if is_dead(rewards_G):
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (rewards_G.std() + _STD_FLOOR) if scale_by_std else centred_G


def is_dead(rewards_G: Tensor) -> bool:
    return bool((rewards_G == rewards_G[0]).all())


def clipped(ratio_L: Tensor, advantage_L: Tensor, low: float, high: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), PPO's pessimistic bound (DAPO eq. 10)."""
    bounded_L = ratio_L.clamp(1 - low, 1 + high)
    return -torch.min(ratio_L * advantage_L, bounded_L * advantage_L)


def clip_shares(ratio_L: Tensor, advantage_L: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """How many tokens the bound keeps from being learnt."""
    return {
        "clipped_low": ((ratio_L < 1 - low) & (advantage_L < 0)).float().sum(),
        "clipped_high": ((ratio_L > 1 + high) & (advantage_L > 0)).float().sum(),
    }


def k3(reference_L: Tensor, logprob_L: Tensor) -> Tensor:
    """pi_ref / pi - log(pi_ref / pi) - 1, an unbiased estimate of KL(pi || pi_ref) that is never
    negative (DeepSeekMath eq. 4)."""
    log_ratio_L = reference_L - logprob_L
    return log_ratio_L.exp() - log_ratio_L - 1


def sequence_mean(values_L: Tensor, sequence_L: Tensor, sequences: int) -> Tensor:
    """[L]: the mean over a token's sequence, at each of its tokens."""
    sums = values_L.new_zeros(sequences).index_add(0, sequence_L, values_L)
    counts = torch.bincount(sequence_L, minlength=sequences).clamp(min=1)
    return (sums / counts)[sequence_L]
