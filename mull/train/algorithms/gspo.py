"""GSPO (arXiv 2507.18071, eq. 5 to 7): one ratio a sequence, exp of its mean log-ratio.

Its bounds are two orders of magnitude tighter than those of token ratios.

L learnt tokens
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mull.train.algorithms.base import Rows
from mull.train.algorithms.grpo import Grpo
from mull.train.algorithms.parts import clip_shares, clipped, sequence_mean


@dataclass(frozen=True)
class Gspo(Grpo):
    clip_low: float = 3e-4  # section 5.1
    clip_high: float = 4e-4

    def token_loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio_L = rows.logprob_L - rows.old_L
        ratio_L = sequence_mean(log_ratio_L, rows.sequence_L, rows.sequences).exp()
        bounds = (rows.advantage_L, self.clip_low, self.clip_high)
        return clipped(ratio_L, *bounds), clip_shares(ratio_L.detach(), *bounds)
