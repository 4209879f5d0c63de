"""pretrain and sft: learning from given text, one loop for both (distill uses it too)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from mull.train.algorithms import sft
from mull.train.batch import Batch, Example, spread
from mull.train.data.mix import DataMix
from mull.train.data.stage import VALIDATION_BATCHES, StageData
from mull.train.recipe_stages import LearnStage
from mull.train.seeds import seed_of
from mull.train.session import Keeper, Session
from mull.train.state import Checkpoint
from mull.train.step import Learner, StepReport
from mull.train.trainee import Trainee

# A forward and backward pass is over at most so many tokens; more only takes more memory.
_PASS_TOKENS = 8192
_SCORE = "validation"


def pass_tokens(batch_tokens: int) -> int:
    """How many a pass over a part of a step's examples may have: a little more than a step, which
    ends where a sequence does."""
    return min(batch_tokens * 5 // 4, _PASS_TOKENS)


def learn(session: Session, stage: LearnStage, checkpoint: Checkpoint | None) -> Trainee:
    """Trains the stage's model on the stage's data, from the checkpoint on."""
    opened = session.models.begin(stage)
    data = StageData(
        session.recipe,
        opened.writer,
        session.tasks.by_name,
        session.folder.path / "data",
        session.all_kept() | {stage.name: session.kept(stage.name)},
    )
    mix, steps = data.mix(stage)
    held_out = data.held_out(stage) if stage.validate_every else None
    session.check()
    _describe(session, stage, mix)
    opens_thinking = stage.learns == "all" and data.opens_thinking(stage)
    trainee = Trainee(session, stage, steps, opened=opened, opens_thinking=opens_thinking)
    done = 0
    if checkpoint is not None:
        trainee.restore(checkpoint, checkpoint.facts["stage"])
        done = int(checkpoint.position["step"])
    validation = None
    if held_out is not None:
        validation = _Validation(session, stage, trainee, held_out, checkpoint)

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return trainee.state()

    take_best = None if validation is None else validation.take_best
    keeper = Keeper(session, stage, state, step=done, trainee=trainee, take_best=take_best)
    session.page.stage(stage.name, steps)
    for step in range(done, steps):
        if keeper.is_spent:
            break
        _step(session, stage, trainee.learner, mix, step)
        scores = None
        if validation is not None and (step + 1) % stage.validate_every == 0:
            scores = validation.scores(step + 1)
        keeper.stepped(step + 1, scores)
    return trainee


def in_passes(examples: Sequence[Example], most_tokens: int = _PASS_TOKENS) -> list[Batch]:
    """Packed batches of at most so many tokens (a longer example is alone), of like lengths and as
    even as examples allow: a pass over few tokens takes nearly the time of one over many."""
    by_length = sorted(examples, key=lambda example: len(example.ids))
    total = sum(len(example.ids) for example in examples)
    passes = max(1, -(-total // most_tokens))
    while True:
        parts = _even_parts(by_length, total, passes)
        if all(len(p) == 1 or sum(len(each.ids) for each in p) <= most_tokens for p in parts):
            return [Batch.pack(part) for part in parts]
        passes += 1


def _even_parts(examples: Sequence[Example], total: int, count: int) -> list[list[Example]]:
    """At most `count` runs of the examples, of `total` tokens in all; each begins with the first
    example that begins in its equal share of them."""
    parts: dict[int, list[Example]] = {}
    begin = 0
    for example in examples:
        parts.setdefault(begin * count // total, []).append(example)
        begin += len(example.ids)
    return list(parts.values())


def learning_values(report: StepReport) -> dict[str, Any]:
    """What every learning step measures, for its record."""
    values: dict[str, Any] = {
        "loss": report.loss,
        "learning_rate": report.learning_rate,
        "grad_norm": report.grad_norm,
        "tokens": report.tokens,
    }
    if report.entropy is not None:
        values["entropy"] = report.entropy
    if report.mtp_loss is not None:
        values |= {"mtp_loss": report.mtp_loss, "mtp_hits": report.mtp_hits}
    if report.router_violation:
        values["router_violation"] = report.router_violation
    return values


def book(session: Session, stage: str, report: StepReport) -> None:
    session.bill.add(stage, tokens_trained=report.tokens, flops=int(report.flops))


def _step(
    session: Session, stage: LearnStage, learner: Learner, mix: DataMix, step: int
) -> StepReport:
    start = time.perf_counter()
    examples: Sequence[Example] = mix.batch(step)
    if stage.spread:
        seed = seed_of(session.recipe.seed, stage.name, "spread", step)
        examples = spread(examples, stage.spread, seed)
    batches = in_passes(examples, pass_tokens(stage.batch_tokens))
    report = learner.step(batches, sft)
    book(session, stage.name, report)
    timing = {
        "seconds": time.perf_counter() - start,
        "update_tokens_per_s": report.tokens / report.seconds,
        "utilisation": report.utilisation(session.peak.gflop_per_s(stage.precision)),
    }
    values = learning_values(replace(report, step=step + 1))
    record = session.metrics.step(stage.name, stage.kind, step + 1, values, timing)
    session.page.step(record)
    return report


class _Validation:
    """Looks at held-out data now and then; the state that did best there is the stage's result."""

    def __init__(
        self,
        session: Session,
        stage: LearnStage,
        trainee: Trainee,
        held_out: DataMix,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._session, self._stage, self._trainee = session, stage, trainee
        self._held_out = held_out
        self._step, self._loss = 0, math.nan  # of the latest look
        if checkpoint is not None and _SCORE in checkpoint.scores:
            self._step, self._loss = int(checkpoint.position["step"]), -checkpoint.scores[_SCORE]

    def scores(self, step: int) -> dict[str, float]:
        """Of the state after that step; a record of its own."""
        stage, session = self._stage, self._session
        self._step, self._loss = step, _validate(self._trainee.learner, self._held_out)
        values = {"validation_loss": self._loss}
        session.page.step(session.metrics.step(stage.name, stage.kind, step, values))
        return {_SCORE: -self._loss}

    def take_best(self, last: int) -> None:
        """Puts the best state in the place of the last one, which is that of step `last`."""
        stage, session = self._stage, self._session
        if self._step != last:
            self.scores(last)
        step, loss = last, self._loss
        best = session.folder.checkpoints.best(stage.name, _SCORE)
        if best is not None and not loss <= -best.scores[_SCORE]:
            self._trainee.take_weights(best)
            step, loss = int(best.position["step"]), -best.scores[_SCORE]
            session.page.note(
                f"{stage.name}: its result is step {step} with a validation loss of {loss:.4g}; "
                f"at the last step, {last}, it was {self._loss:.4g}"
            )
        session.metrics.best(stage.name, stage.kind, step, loss, last, self._loss)


def _validate(learner: Learner, held_out: DataMix) -> float:
    """Mean cross-entropy on what was held out."""
    total, learnt = 0.0, 0
    for index in range(VALIDATION_BATCHES):
        for batch, logprob_T in _scored(learner, held_out.batch(index)):
            total -= float(logprob_T.double().sum())
            learnt += int(batch.learn_T.sum())
    return total / max(learnt, 1)


def _scored(learner: Learner, examples: Sequence[Example]) -> list[tuple[Batch, Tensor]]:
    batches = in_passes(examples)
    return list(zip(batches, learner.logprobs(batches), strict=True))


def _describe(session: Session, stage: LearnStage, mix: DataMix) -> None:
    """What the stage learns from, for the manifest."""
    sources = [
        {
            "name": report.name,
            "share": report.share,
            "documents": report.documents,
            "tokens": report.tokens,
            "cut": report.cut,
            "too_long": report.too_long,
            "counts": report.counts,
        }
        for report in mix.reports
    ]
    data = session.folder.manifest().get("data", {})
    session.folder.update_manifest(data={**data, stage.name: sources})
