"""CISPO (arXiv 2506.13585, eq. 4 and 5): bounds the importance weight, not the update.

Every token keeps a gradient; the ratio, at most 1 + clip_high, is a constant factor. There is no
lower bound, as in the paper's experiments; for the upper one, which it does not state, DAPO's.

L learnt tokens
"""

from __future__ import annotations

from torch import Tensor

from mull.train.algorithms.base import Rows
from mull.train.algorithms.dapo import Dapo


class Cispo(Dapo):
    def token_loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        ratio_L = (rows.logprob_L - rows.old_L).exp().detach()
        bounded_L = ratio_L.clamp(max=1 + self.clip_high)
        shares = {"clipped_high": (ratio_L > 1 + self.clip_high).float().sum()}
        return -bounded_L * rows.advantage_L * rows.logprob_L, shares
