"""What one step of reinforcement learning learns from: groups of judged answers, ready to wait.

A rollout may wait some updates for its turn (bounded staleness), and then lies in the checkpoint:
so it holds only what learning needs, and turns into JSON and back without losing a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mull.tasks import Verdict
from mull.train.batch import Episode
from mull.train.recipe_stages import Rl
from mull.train.rewards import Judged
from mull.train.rollout import Question


@dataclass(frozen=True)
class Group:
    """The answers to one question that can be learnt from: without those whose verifier failed."""

    prompt: list[int]
    ids: list[list[int]]
    learn: list[list[bool]]
    logprobs: list[list[float]]
    rewards: list[float]

    @property
    def is_dead(self) -> bool:
        """All rewards equal: it teaches nothing."""
        return len(set(self.rewards)) <= 1


@dataclass(frozen=True)
class Rollout:
    """made_at: the updates before it. values: what was measured of its answers, for the record.
    experts: int16 [M, T, S], the choices of all episodes one after another, or None."""

    groups: list[Group]
    values: dict[str, float]
    made_at: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    experts: Tensor | None = None

    def episodes(self) -> list[Episode]:
        found = [
            Episode(
                ids=[*group.prompt, *ids],
                learn=[*([False] * len(group.prompt)), *learn],
                group=index,
                reward=reward,
                logprobs=[*([0.0] * len(group.prompt)), *logprobs],
            )
            for index, group in enumerate(self.groups)
            for ids, learn, logprobs, reward in zip(
                group.ids, group.learn, group.logprobs, group.rewards, strict=True
            )
        ]
        if self.experts is None or not found:
            return found
        parts = self.experts.split([len(episode.ids) for episode in found], dim=1)
        return [replace(e, experts=part) for e, part in zip(found, parts, strict=True)]

    def with_experts(self, experts: Tensor) -> Rollout:
        return replace(self, experts=experts.to(torch.int16))

    def to_facts(self) -> dict[str, Any]:
        """All but `experts`, as JSON; what the clock said is left out."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "values": self.values,
            "made_at": self.made_at,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], experts: Tensor | None) -> Rollout:
        groups = [Group(**group) for group in facts["groups"]]
        return cls(groups, facts["values"], facts["made_at"], experts=experts)


def group_of(question: Question, judged: Sequence[Judged], stage: Rl) -> Group:
    """A truncated answer keeps its place in the group's mean; whether it is learnt from, the stage
    says."""
    counted = [each for each in judged if each.verdict is not Verdict.VERIFIER_FAILED]
    return Group(
        prompt=question.prompt,
        ids=[each.answer.ids for each in counted],
        learn=[_learnt(each, stage) for each in counted],
        logprobs=[each.answer.logprobs for each in counted],
        rewards=[each.reward for each in counted],
    )


def measured(
    judged: Sequence[Sequence[Judged]], groups: Sequence[Group], weights: Sequence[float]
) -> dict[str, float]:
    """Of all answers that were sampled, those to resampled questions too.

    weights: of each question in reward, pass_at_1 and length, which are those of the task as it is
    where some kinds of its questions are asked more often than others; the rest is as it came.
    """
    every = [(each, weight) for some, weight in zip(judged, weights, strict=True) for each in some]
    counted = [(e, w) for e, w in every if e.verdict is not Verdict.VERIFIER_FAILED]

    def share(verdict: Verdict) -> float:
        return sum(each.verdict is verdict for each, _ in every) / max(len(every), 1)

    return {
        "reward": _mean([(each.reward, weight) for each, weight in counted]),
        "pass_at_1": _mean([(float(each.is_correct), weight) for each, weight in counted]),
        "length": _mean([(float(len(each.answer.ids)), weight) for each, weight in every]),
        "dead_groups": sum(group.is_dead for group in groups) / max(len(groups), 1),
        "truncated": share(Verdict.TRUNCATED),
        "verifier_failed": share(Verdict.VERIFIER_FAILED),
        "answers": float(len(every)),
    }


def chosen(groups: Sequence[Group], wanted: int) -> list[Group]:
    """The first `wanted` groups that teach something, made up with others where they are few."""
    live = [group for group in groups if not group.is_dead]
    dead = [group for group in groups if group.is_dead]
    return [*live, *dead][:wanted]


def _learnt(judged: Judged, stage: Rl) -> list[bool]:
    answer = judged.answer
    if answer.is_truncated and stage.truncated == "mask":
        return [False] * len(answer.ids)
    return [position not in answer.forced for position in range(len(answer.ids))]


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total else 0.0
