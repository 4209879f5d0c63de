"""Algorithms of the training step, by name: one small file each."""

from mull.train.algorithms.base import PolicyGradient
from mull.train.algorithms.cispo import Cispo
from mull.train.algorithms.dapo import Dapo
from mull.train.algorithms.distill import TeacherDivergence
from mull.train.algorithms.dr_grpo import DrGrpo
from mull.train.algorithms.grpo import Grpo
from mull.train.algorithms.gspo import Gspo
from mull.train.algorithms.sft import sft

ALGORITHMS: dict[str, type[PolicyGradient]] = {
    "grpo": Grpo,
    "dr_grpo": DrGrpo,
    "dapo": Dapo,
    "gspo": Gspo,
    "cispo": Cispo,
}

__all__ = ["ALGORITHMS", "PolicyGradient", "TeacherDivergence", "sft"]
