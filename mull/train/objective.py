"""What the training step asks of an algorithm: a loss of the policy's predictions, nothing else.

L learnt tokens of a batch · D model · V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from torch import Tensor

from mull.train.batch import Batch
from mull.train.logprobs import token_logprobs


@dataclass(frozen=True)
class Totals:
    """Of all batches of one step: a mean over the step divides by these, in every batch alike, so
    that the gradient does not depend on how the step is split into batches."""

    sequences: int
    tokens: int
    learnt: int


@dataclass(frozen=True)
class Prediction:
    """The policy's prediction of the learnt tokens of a batch, rows_L of its T positions."""

    hidden_LD: Tensor
    head_VD: Tensor
    targets_L: Tensor
    rows_L: Tensor
    temperature: float = 1.0

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        return token_logprobs(
            self.hidden_LD, self.head_VD, self.targets_L, temperature=self.temperature
        )

    @property
    def logprob(self) -> Tensor:
        """float32 [L], differentiable; worked out when first asked for."""
        return self._both[0]

    @property
    def entropy(self) -> Tensor | None:
        """float32 [L], without gradient; None where nobody asked for log-probabilities."""
        return self._both[1] if "_both" in self.__dict__ else None


@dataclass(frozen=True)
class Terms:
    """loss: scalar, this batch's part of the step's loss. metrics: by name, without gradient, sums
    over the learnt tokens of the batch; the step reports them divided by its learnt tokens."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    def __call__(self, policy: Prediction, batch: Batch, whole: Totals) -> Terms: ...
