"""On-policy distillation (arXiv 2306.13649): on the student's own answers, at every token, the
divergence of its distribution from a teacher's. Mean over the learnt tokens of the step.

L learnt tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mull.errors import TrainError
from mull.model import CausalLM, PackedSequences
from mull.train.batch import Batch
from mull.train.logprobs import teacher_divergence
from mull.train.objective import Prediction, Terms, Totals


@dataclass(frozen=True)
class TeacherDivergence:
    """reverse: KL(student || teacher), seeks the teacher's modes; forward: covers all of it."""

    teacher: CausalLM
    form: Literal["reverse", "forward"] = "reverse"

    def __call__(self, policy: Prediction, batch: Batch, whole: Totals) -> Terms:
        theirs_VK = self.teacher.lm_head.weight
        if len(theirs_VK) != len(policy.head_VD):
            raise TrainError(
                f"the teacher's vocabulary has {len(theirs_VK)} tokens, the student's "
                f"{len(policy.head_VD)}: distil from its answers (form = 'sft') instead"
            )
        with torch.no_grad():
            hidden_TK = self.teacher(batch.ids_T, PackedSequences(batch.lengths))
        divergence_L = teacher_divergence(
            policy.hidden_LD,
            policy.head_VD,
            hidden_TK[policy.rows_L],
            theirs_VK,
            form=self.form,
            temperature=policy.temperature,
        )
        loss = divergence_L.sum() / max(whole.learnt, 1)
        return Terms(loss, {"divergence": divergence_L.detach().sum()})
