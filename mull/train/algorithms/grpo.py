"""GRPO as in DeepSeekMath (eq. 3) and R1: token ratios, the mean over each answer, then over all.

L learnt tokens
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mull.train.algorithms.base import PolicyGradient, Rows
from mull.train.algorithms.parts import clip_shares, clipped


class Grpo(PolicyGradient):
    def weights(self, lengths: Sequence[int]) -> list[float]:
        return [1 / (max(length, 1) * len(lengths)) for length in lengths]

    def token_loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        ratio_L = (rows.logprob_L - rows.old_L).exp()
        bounds = (rows.advantage_L, self.clip_low, self.clip_high)
        return clipped(ratio_L, *bounds), clip_shares(ratio_L.detach(), *bounds)
