"""DAPO (arXiv 2503.14476): the mean over all tokens of the step, a wider bound upwards.

The rest of DAPO lies elsewhere: groups that teach nothing are resampled by the stage, truncated
answers masked, the soft overlong penalty is a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mull.train.algorithms.grpo import Grpo


@dataclass(frozen=True)
class Dapo(Grpo):
    clip_high: float = 0.28  # "clip-higher", section 3.1

    def weights(self, lengths: Sequence[int]) -> list[float]:
        return [1 / max(sum(lengths), 1)] * len(lengths)
