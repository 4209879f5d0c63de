"""Episodes packed for a step of reinforcement learning.

T tokens (packed) · L learnt tokens of them · M layers with experts · S chosen experts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from mull.train.batch import Batch, Episode, shifted


@dataclass(frozen=True)
class RlBatch(Batch):
    """All float32 [T], aligned with the prediction of a token, 0 where nothing is learnt.

    weight_T: the token's share in the step's loss. rollout_logprob_T: when it was sampled.
    old_logprob_T: the policy's before this step, None on-policy (then it is the policy itself,
    held constant). reference_logprob_T: of the reference model, for the divergence from it.
    experts_MTS: int64 choices of the rollout to replay, or None.
    """

    advantage_T: Tensor
    weight_T: Tensor
    rollout_logprob_T: Tensor
    old_logprob_T: Tensor | None = None
    reference_logprob_T: Tensor | None = None
    experts_MTS: Tensor | None = None

    @classmethod
    def of(
        cls,
        episodes: Sequence[Episode],
        weights: Sequence[float],
        *,
        replay_routing: bool = True,
    ) -> Self:
        """weights: the share of each learnt token of that episode in the step's loss. Expert
        choices are replayed where every episode has brought them."""
        base = Batch.pack(episodes)
        given = [each.experts for each in episodes if each.experts is not None]
        replay = replay_routing and bool(episodes) and len(given) == len(episodes)
        return cls(
            **vars(base),
            advantage_T=_spread([each.advantage for each in episodes], base),
            weight_T=_spread(weights, base),
            rollout_logprob_T=shifted([each.logprobs for each in episodes]) * base.learn_T,
            experts_MTS=torch.cat(given, dim=1).long() if replay else None,
        )

    def with_old(self, logprob_T: Tensor) -> Self:
        return replace(self, old_logprob_T=logprob_T)

    def with_reference(self, logprob_T: Tensor) -> Self:
        return replace(self, reference_logprob_T=logprob_T)


def _spread(values: Sequence[float], batch: Batch) -> Tensor:
    """One number of each sequence at each of its learnt tokens."""
    values_N = torch.tensor(values, dtype=torch.float32)
    return values_N[batch.sequence_T] * batch.learn_T
