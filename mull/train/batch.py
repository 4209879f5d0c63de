"""What one training step works on: whole sequences side by side on one axis, no padding.

Nothing attends across sequences. Position t predicts the token at t + 1 of its own sequence; what
is learnt from that prediction is `weights_T` (supervised) or the advantage of its episode.

T tokens (packed) · N sequences
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One sequence to learn from. ids: prompt and answer; learn[i]: whether predicting ids[i] is
    learnt (never the first: nothing comes before it). positions: int64 [len(ids)], increasing,
    where they are not 0, 1, 2, ..."""

    ids: Sequence[int]
    learn: Sequence[bool]
    positions: Tensor | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True)
class Episode(Example):
    """A sampled answer with what reinforcement learning needs to know of it.

    group: answers to the same question share it. logprobs[i]: the engine's log-probability of
    ids[i] when it was sampled, 0 where learn[i] is False. experts: the trainer's expert choices at
    the rollout's weights by MoE layer and position, for replay, or None.
    """

    group: int = 0
    reward: float = 0.0
    advantage: float = 0.0
    logprobs: Sequence[float] = ()
    experts: Tensor | None = None  # int16 [layers, len(ids), chosen]


@dataclass(frozen=True)
class Batch:
    """ids_T: int64. targets_T: int64, the next token of the same sequence (0 after the last).
    learn_T: bool, whether that prediction is learnt. sequence_T: int64, 0 to N - 1. positions_T:
    int64, each token's place in its own sequence."""

    ids_T: Tensor
    targets_T: Tensor
    learn_T: Tensor
    sequence_T: Tensor
    positions_T: Tensor
    lengths: list[int]

    @classmethod
    def pack(cls, examples: Sequence[Example]) -> Batch:
        lengths = [len(example.ids) for example in examples]
        targets: list[int] = []
        learn: list[bool] = []
        for example in examples:
            targets += [*example.ids[1:], 0]
            learn += [*example.learn[1:], False]
        return cls(
            ids_T=torch.tensor([token for example in examples for token in example.ids]),
            targets_T=torch.tensor(targets),
            learn_T=torch.tensor(learn),
            sequence_T=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
            positions_T=torch.cat([_positions(example) for example in examples]),
            lengths=lengths,
        )

    @property
    def tokens(self) -> int:
        return len(self.ids_T)


def _positions(example: Example) -> Tensor:
    return torch.arange(len(example.ids)) if example.positions is None else example.positions


def spread(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """The examples, that share of them at random increasing positions over up to twice their length
    (Ruoss et al. 2023, arXiv 2305.16843). A pure function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    far = torch.rand(len(examples), 2, generator=generator).tolist()
    return [
        example
        if chance >= share
        else replace(example, positions=_with_gaps(len(example.ids), 1 + stretch, generator))
        for example, (chance, stretch) in zip(examples, far, strict=True)
    ]


def _with_gaps(length: int, stretch: float, generator: torch.Generator) -> Tensor:
    places = torch.randperm(int(length * stretch) + 1, generator=generator)
    return places[:length].sort().values


def shifted(values: Sequence[Sequence[float]]) -> Tensor:
    """float32 [T]: per-token values of each sequence, aligned with the prediction of that token."""
    return torch.tensor([v for each in values for v in [*each[1:], 0.0]], dtype=torch.float32)
