"""What a stage has at hand while it runs: the run's folder, models, tasks, bill, page and clock.

A stage is a loop of steps, each a function of the seed, the step and the state; between two steps
the `Keeper` writes what has to be written and notices that the run has to stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mull.errors import TrainError
from mull.tasks import VerifierPool
from mull.train.bill import Bill, Budget
from mull.train.live import LivePage
from mull.train.metrics import Metrics, Sample
from mull.train.models import Models
from mull.train.peak import Peak
from mull.train.problems import Tasks
from mull.train.recipe import Recipe
from mull.train.recipe_stages import StageBase, TrainedStage
from mull.train.report import write_report
from mull.train.run_folder import RunFolder
from mull.train.seeds import seed_of
from mull.train.state import Checkpoint

if TYPE_CHECKING:
    from mull.train.trainee import Trainee

_REPORT_SECONDS = 60.0
# A report may take at most this share of the time between two of them.
_REPORT_SHARE = 0.02


class StopAsked(Exception):  # noqa: N818 - not an error: the run ends as it was asked to
    """The run is to stop now, with its state saved. reason: interrupted or budget."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Session:
    """stage: the name of the one that runs."""

    recipe: Recipe
    folder: RunFolder
    tasks: Tasks
    models: Models
    pool: VerifierPool
    bill: Bill
    metrics: Metrics
    page: LivePage
    peak: Peak
    budget: Budget | None = None
    done: list[str] = field(default_factory=list)
    stage: str | None = None
    signal: int | None = None
    keeper: Keeper | None = None
    _reported: float = field(default_factory=time.monotonic)
    _report_every: float = _REPORT_SECONDS

    def seed(self, *parts: object) -> int:
        return seed_of(self.recipe.seed, *parts)

    def check(self) -> None:
        """Raises StopAsked when a signal came or the run's budget is spent."""
        if self.signal is not None:
            raise StopAsked("interrupted")
        if self.budget is not None and self.budget.is_spent(self.bill):
            raise StopAsked("budget")

    def kept(self, stage: str) -> Path:
        """The file of the answers that a reject or distill stage keeps."""
        return self.folder.path / "kept" / f"{stage}.jsonl"

    def all_kept(self) -> dict[str, Path]:
        names = [stage.name for stage in self.recipe.stages if stage.name in self.done]
        return {name: self.kept(name) for name in names if self.kept(name).is_file()}

    def sample(self, sample: Sample) -> None:
        self.metrics.sample(sample)
        self.page.sample(sample)

    def report(self, *, at_once: bool = True) -> None:
        """Writes report.html, now or when it is due again."""
        if not at_once and time.monotonic() - self._reported < self._report_every:
            return
        start = time.monotonic()
        write_report(self.folder.path)
        self._reported = time.monotonic()
        took = self._reported - start
        self._report_every = max(_REPORT_SECONDS, took / _REPORT_SHARE)


class Keeper:
    """Keeps one stage's state: `state` gives the tensors and facts to go on from, as they are after
    the last whole step.

    trainee: what `final/` is to hold if the run ends here; None: what the stage began with.
    take_best: gives it the best state of all instead of the last step's, whose number it is told.
    """

    def __init__(
        self,
        session: Session,
        stage: StageBase,
        state: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]],
        *,
        step: int = 0,
        trainee: Trainee | None = None,
        take_best: Callable[[int], None] | None = None,
    ) -> None:
        self.session, self.stage, self.trainee = session, stage, trainee
        self.step = step
        self._state, self._take_best = state, take_best
        self._saved = -1
        self._budget = Budget.parse(stage.budget) if stage.budget else None
        session.keeper = self

    def stepped(self, step: int, scores: Mapping[str, float] | None = None) -> None:
        """Step number `step` (from 1) is whole: saves when it is due, raises StopAsked if need be.
        scores: of a validation, the more the better; the best checkpoints are kept."""
        self.step = step
        every = self.stage.checkpoint_every if isinstance(self.stage, TrainedStage) else 1
        if scores or step % every == 0:
            self.save(scores)
        self.session.report(at_once=False)
        self.session.check()

    def settle(self) -> None:
        """Nothing more is learnt: the trainee becomes the stage's result."""
        if self._take_best is not None and self.step:
            self._take_best(self.step)

    @property
    def spent(self) -> float:
        """The share of the stage's own budget that is spent: 0 where it has none."""
        if self._budget is None:
            return 0.0
        return self._budget.share(self.session.bill, self.stage.name)

    @property
    def is_spent(self) -> bool:
        """Whether the stage's own budget is spent, so that it ends here."""
        return self.spent >= 1.0

    def save(self, scores: Mapping[str, float] | None = None) -> None:
        if self._saved == self.step and not scores:
            return
        tensors, facts = self._state()
        save_checkpoint(self.session, self.stage.name, self.step, tensors, facts, scores)
        self._saved = self.step


def save_checkpoint(
    session: Session,
    stage: str,
    step: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    scores: Mapping[str, float] | None = None,
) -> None:
    run = session.folder
    whole = {
        "stage": facts,
        "done": session.done,
        "marks": run.marks(),
        "bill": session.bill.to_dict(),
        "threads": torch.get_num_threads(),
    }
    run.checkpoints.save({"stage": stage, "step": step}, tensors, whole, scores)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def part_of(
    checkpoint: Checkpoint, prefix: str, *, may_be_empty: bool = False
) -> dict[str, Tensor]:
    """The tensors that `prefixed` put under a prefix. Raises TrainError where there are none."""
    found = {
        name.removeprefix(prefix + "/"): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix + "/")
    }
    if not found and not may_be_empty:
        raise TrainError(f"{checkpoint.path}: holds no {prefix}; remove it and resume")
    return found
