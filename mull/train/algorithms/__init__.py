"""Algorithms of the training step, by name: one small file each."""

from mull.train.algorithms.base import PolicyGradient
from mull.train.algorithms.cispo import Cispo
from mull.train.algorithms.dapo import Dapo
from mull.train.algorithms.distill import TeacherDivergence
from mull.train.algorithms.dr_grpo import DrGrpo
from mull.train.algorithms.grpo import Grpo
from mull.train.algorithms.gspo import Gspo
from mull.train.algorithms.sft import sft
from mull.train.recipe_stages import Rl

ALGORITHMS: dict[str, type[PolicyGradient]] = {
    "grpo": Grpo,
    "dr_grpo": DrGrpo,
    "dapo": Dapo,
    "gspo": Gspo,
    "cispo": Cispo,
}


def algorithm_of(stage: Rl) -> PolicyGradient:
    """As the stage wants it; bounds that it leaves out are the algorithm's own."""
    bounds = {"clip_low": stage.clip_low, "clip_high": stage.clip_high}
    return ALGORITHMS[stage.algorithm](
        kl=stage.kl,
        importance_cap=stage.importance_cap,
        max_tokens=stage.sampling.max_tokens,
        **{name: bound for name, bound in bounds.items() if bound is not None},
    )


__all__ = ["ALGORITHMS", "PolicyGradient", "TeacherDivergence", "algorithm_of", "sft"]
