"""Supervised learning: cross-entropy, the mean over every learnt token of the step."""

from __future__ import annotations

from mull.train.batch import Batch
from mull.train.objective import Prediction, Terms, Totals


def sft(policy: Prediction, batch: Batch, whole: Totals) -> Terms:
    return Terms(-policy.logprob.sum() / max(whole.learnt, 1))
