"""What policy-gradient algorithms have in common; each is one small file beside this one.

An algorithm says how rewards become advantages, what each token weighs in the step's mean, and
what the loss of a token is. Weights are those of the whole step, so that any split into batches
gives the same gradient.

L learnt tokens of a batch
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mull.train.algorithms.parts import group_advantages, is_dead, k3
from mull.train.batch import Batch, Episode
from mull.train.objective import Prediction, Terms, Totals
from mull.train.rl_batch import RlBatch


@dataclass(frozen=True)
class Rows:
    """A batch's learnt tokens; old_L has no gradient."""

    logprob_L: Tensor
    old_L: Tensor
    advantage_L: Tensor
    sequence_L: Tensor
    sequences: int


@dataclass(frozen=True)
class Advantages:
    """episodes: with their advantages. dead: the groups, by number, whose rewards are all equal."""

    episodes: list[Episode]
    groups: int
    dead: list[int]


@dataclass(frozen=True)
class PolicyGradient(ABC):
    """clip_low, clip_high: how far the ratio pi / pi_old may move (PPO's 0.2, arXiv 1707.06347,
    where an algorithm's own paper says nothing else). kl: weight of the divergence from the
    reference. importance_cap: c of min(pi_old / pi_rollout, c). max_tokens: the length that dr_grpo
    divides by."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.0
    importance_cap: float = 2.0
    max_tokens: int = 1024

    scale_by_std: ClassVar[bool] = True

    def advantages(self, episodes: Sequence[Episode]) -> Advantages:
        """Of each episode within its group, as they come; call it with whole groups."""
        members: dict[int, list[int]] = {}
        for index, episode in enumerate(episodes):
            members.setdefault(episode.group, []).append(index)
        result, dead = list(episodes), []
        for group, indices in members.items():
            rewards_G = torch.tensor([episodes[i].reward for i in indices])
            if is_dead(rewards_G):
                dead.append(group)
            values = group_advantages(rewards_G, scale_by_std=self.scale_by_std).tolist()
            for index, value in zip(indices, values, strict=True):
                result[index] = replace(episodes[index], advantage=value)
        return Advantages(result, len(members), dead)

    def pack(
        self,
        episodes: Sequence[Episode],
        batch_tokens: int,
        *,
        replay_routing: bool = True,
    ) -> list[RlBatch]:
        """One step's episodes in batches of at most batch_tokens (a longer one is alone).

        Episodes that cannot move a weight (masked, or of no advantage and without `kl`) count in
        the means but are left out of the batches.
        """
        weights = self.weights([sum(each.learn[1:]) for each in episodes])
        live = [
            (episode, weight)
            for episode, weight in zip(episodes, weights, strict=True)
            if any(episode.learn[1:]) and (self.kl or episode.advantage)
        ]
        # Sequences of like length attend together: sorted, a batch has few different lengths.
        live.sort(key=lambda pair: len(pair[0].ids))
        batches: list[list[tuple[Episode, float]]] = []
        room = 0
        for episode, weight in live:
            if not batches or len(episode.ids) > room:
                batches.append([])
                room = batch_tokens
            batches[-1].append((episode, weight))
            room -= len(episode.ids)
        return [
            RlBatch.of([e for e, _ in batch], [w for _, w in batch], replay_routing=replay_routing)
            for batch in batches
        ]

    def __call__(self, policy: Prediction, batch: Batch, whole: Totals) -> Terms:
        assert isinstance(batch, RlBatch)
        rows_L, logprob_L = policy.rows_L, policy.logprob
        rollout_L = batch.rollout_logprob_T[rows_L]
        old_T = batch.old_logprob_T
        old_L = logprob_L.detach() if old_T is None else old_T[rows_L]
        rows = Rows(
            logprob_L,
            old_L,
            batch.advantage_T[rows_L],
            batch.sequence_T[rows_L],
            len(batch.lengths),
        )
        loss_L, metrics = self.token_loss(rows)
        gap_L = old_L - rollout_L
        importance_L = gap_L.exp().clamp(max=self.importance_cap)
        loss_L = loss_L * importance_L
        metrics |= {
            "gap": gap_L.abs().sum(),
            "importance": importance_L.sum(),
            "importance_capped": (gap_L.exp() > self.importance_cap).float().sum(),
        }
        if self.kl:
            assert batch.reference_logprob_T is not None, "kl > 0 needs the reference's logprobs"
            divergence_L = k3(batch.reference_logprob_T[rows_L], logprob_L)
            loss_L = loss_L + self.kl * divergence_L
            metrics["kl"] = divergence_L.detach().sum()
        return Terms((loss_L * batch.weight_T[rows_L]).sum(), metrics)

    @abstractmethod
    def weights(self, lengths: Sequence[int]) -> list[float]:
        """What a token of each answer weighs; lengths: learnt tokens of all the step's answers."""

    @abstractmethod
    def token_loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss [L], metrics as sums over the L tokens)."""
