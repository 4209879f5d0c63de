"""Dr. GRPO (arXiv 2503.20783): no std in the advantage, every token weighs the same constant.

Dividing by an answer's own length rewards long wrong answers and short right ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mull.train.algorithms.grpo import Grpo


class DrGrpo(Grpo):
    scale_by_std: ClassVar[bool] = False

    def weights(self, lengths: Sequence[int]) -> list[float]:
        return [1 / (self.max_tokens * len(lengths)) for _ in lengths]
