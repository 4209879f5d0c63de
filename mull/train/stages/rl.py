"""rl: rollouts, verdicts, advantages, updates.

A step's rollouts are made with the weights of at most `staleness` updates ago. Routing replay: the
expert choices are those of one forward pass of the trainer right after the rollout, so they are the
router's at the rollout's weights; where weights do not move between rollout and update (one
minibatch, no staleness) they are the update's own choices, and nothing is recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mull.tasks import Problem
from mull.train.algorithms import algorithm_of
from mull.train.batch import Episode
from mull.train.episodes import Group, Rollout, chosen, group_of, measured
from mull.train.focus import FocusedQuestions
from mull.train.metrics import Sample
from mull.train.problems import Questions
from mull.train.recipe_stages import Rl
from mull.train.reference import Reference
from mull.train.rewards import Judge, Judged
from mull.train.rl_batch import RlBatch
from mull.train.rollout import Question, Sampler
from mull.train.session import Keeper, Session, part_of, prefixed
from mull.train.stages.learn import book, in_passes, learning_values
from mull.train.state import Checkpoint
from mull.train.step import StepReport
from mull.train.trainee import Trainee

_SAMPLE_EVERY = 5  # steps between two answers that are kept to be looked at
_WARN_EVERY = 20
# Share of answers whose verifier failed beyond which the log warns: each is thrown away.
_MANY_FAILED = 0.1


def reinforce(session: Session, stage: Rl, checkpoint: Checkpoint | None) -> Trainee:
    return _Reinforcement(session, stage, checkpoint).run()


class _Reinforcement:
    """One rl stage. asked: the state of its questions after the rollouts that are whole; the rest
    of its state is the trainee's, the buffer of rollouts that wait, the reference policy, and the
    steps until which a warning is not said again."""

    def __init__(self, session: Session, stage: Rl, checkpoint: Checkpoint | None) -> None:
        self.session, self.stage = session, stage
        self.trainee = Trainee(
            session,
            stage,
            stage.steps * stage.minibatches,
            temperature=stage.sampling.temperature,
        )
        self.learner = self.trainee.learner
        self.algorithm = algorithm_of(stage)
        self.judge = Judge(session.tasks, stage.task, session.pool, self.trainee.writer)
        self.buffer: list[Rollout] = []
        self.done = self.reference_step = 0
        self.asked: dict[str, Any] = {"asked": 0, "kinds": {}}
        self.warned: dict[str, int] = {}
        # Begins as what the stage begins with, so only a refreshed one has to be saved.
        self.reference = self._reference() if stage.kl else None
        if checkpoint is not None:
            self._restore(checkpoint)
        row = Questions(
            session.tasks[stage.task],
            session.recipe.seed,
            stage.name,
            "questions",
            position=self.asked["asked"],
        )
        self.questions = FocusedQuestions(
            row, stage.focus, session.seed(stage.name, "focus"), self.asked["kinds"]
        )

    def _reference(self) -> Reference:
        learner = self.learner
        return Reference(
            learner.model, precision=learner.precision, temperature=learner.temperature
        )

    def run(self) -> Trainee:
        session, stage = self.session, self.stage
        keeper = Keeper(session, stage, self._state, step=self.done, trainee=self.trainee)
        session.page.stage(stage.name, stage.steps)
        session.check()
        for step in range(self.done, stage.steps):
            if keeper.is_spent:
                break
            start = time.perf_counter()
            self._fill(step)
            rollout = self.buffer.pop(0)
            self._update(step, rollout, start)
            if self.reference is not None and stage.reference_every:
                self._refresh(step + 1)
            keeper.stepped(step + 1)
        return self.trainee

    def _fill(self, step: int) -> None:
        """Rollouts of this step and of those that may be made ahead."""
        last = min(step + self.stage.staleness, self.stage.steps - 1)
        while step + len(self.buffer) <= last:
            self.buffer.append(self._rollout(step + len(self.buffer)))
            self.asked = self.questions.state()

    def _rollout(self, step: int) -> Rollout:
        stage, start = self.stage, time.perf_counter()
        sampler = Sampler(
            self.trainee.model,
            self.trainee.writer,
            precision=stage.rollout_precision,
            check=self.session.check,
        )
        questions: list[Question] = []
        judged: list[list[Judged]] = []
        groups: list[Group] = []
        weights: list[float] = []
        while missing := _missing(groups, stage):
            asked = self.questions.take(missing)
            problems = [each.problem for each in asked]
            more = self._questions(sampler, step, len(questions), problems)
            answers = sampler.answers(more, stage.sampling, stage.group)
            verdicts = self.judge.judged(
                problems, answers, stage.rewards, stage.sampling.max_tokens
            )
            found = [group_of(q, some, stage) for q, some in zip(more, verdicts, strict=True)]
            for problem, group in zip(problems, found, strict=True):
                self.questions.saw(problem, is_live=not group.is_dead)
            questions += more
            judged += verdicts
            groups += found
            weights += [1 / each.chance for each in asked]
        if step % _SAMPLE_EVERY == 0:
            self._show(step, questions[0], judged[0][0])
        self.session.bill.add(stage.name, tokens_sampled=sampler.spent.tokens)
        timing = {
            "rollout_seconds": time.perf_counter() - start,
            "rollout_tokens_per_s": sampler.spent.tokens / max(sampler.spent.seconds, 1e-9),
        }
        rollout = Rollout(
            chosen(groups, stage.questions),
            measured(judged, groups, weights),
            self.learner.steps_done,
            timing,
        )
        return self._with_routes(rollout)

    def _questions(
        self, sampler: Sampler, step: int, first: int, problems: Sequence[Problem]
    ) -> list[Question]:
        seed = self.session.seed
        return [
            sampler.question(problem, seed(self.stage.name, step, first + index))
            for index, problem in enumerate(problems)
        ]

    @property
    def _weights_move(self) -> bool:
        """Whether weights can differ between a rollout and the update that learns from it."""
        return self.stage.minibatches > 1 or self.stage.staleness > 0

    @torch.no_grad()
    def _with_routes(self, rollout: Rollout) -> Rollout:
        routing = self.learner.routing
        if not (self.stage.replay_routing and self._weights_move and routing.main):
            return rollout
        episodes = rollout.episodes()
        if not episodes:  # every verifier failed
            return rollout
        order = sorted(range(len(episodes)), key=lambda index: len(episodes[index].ids))
        found: list[Tensor] = []
        for batch in in_passes(episodes):  # packs in that same order of length
            with routing.recorded() as experts:
                self.learner.logprobs([batch])
            found += torch.stack(experts).split(batch.lengths, dim=1)
        by_place = dict(zip(order, found, strict=True))
        return rollout.with_experts(torch.cat([by_place[i] for i in range(len(found))], dim=1))

    def _update(self, step: int, rollout: Rollout, start: float) -> None:
        stage, begun = self.stage, time.perf_counter()
        episodes = self.algorithm.advantages(rollout.episodes()).episodes
        packed = [
            self.algorithm.pack(part, stage.batch_tokens, replay_routing=stage.replay_routing)
            for part in _parts(episodes, stage.minibatches)
        ]
        if self._weights_move:
            packed = [self._with_old(batches) for batches in packed]
        if self.reference is not None:
            packed = [self.reference.scored(batches) for batches in packed]
        reports = [self.learner.step(batches, self.algorithm) for batches in packed]
        for report in reports:
            book(self.session, stage.name, report)
        seconds = time.perf_counter() - begun
        self._record(step, rollout, reports, seconds, time.perf_counter() - start)

    def _with_old(self, batches: list[RlBatch]) -> list[RlBatch]:
        logprobs = self.learner.logprobs(batches)
        return [b.with_old(logprob_T) for b, logprob_T in zip(batches, logprobs, strict=True)]

    def _record(
        self,
        step: int,
        rollout: Rollout,
        reports: Sequence[StepReport],
        update_seconds: float,
        seconds: float,
    ) -> None:
        stage = self.stage
        found = _merged(reports)
        age = step - rollout.made_at // stage.minibatches
        values = rollout.values | found | {"age": age}
        tokens, flops = sum(r.tokens for r in reports), sum(r.flops for r in reports)
        peak = self.session.peak.gflop_per_s(stage.precision) * 1e9
        timing = rollout.timing | {
            "seconds": seconds,
            "update_seconds": update_seconds,
            "update_tokens_per_s": tokens / update_seconds,
            "utilisation": flops / update_seconds / peak,
        }
        record = self.session.metrics.step(stage.name, stage.kind, step + 1, values, timing)
        self.session.page.step(record)
        self._alarm(step, values)

    def _alarm(self, step: int, values: Mapping[str, Any]) -> None:
        stage = self.stage
        if values.get("gap", 0.0) > stage.gap_alarm:
            self._warn(
                "gap",
                step,
                f"rollout and trainer differ by {values['gap']:.3f} in log-probability (alarm at "
                f"{stage.gap_alarm}): use a more exact rollout_precision, or less staleness",
            )
        if values["verifier_failed"] > _MANY_FAILED:
            self._warn(
                "verifier",
                step,
                f"the verifier of task {stage.task} failed on {values['verifier_failed']:.0%} of "
                "the answers, from which nothing is learnt: look at what it does with them",
            )

    def _warn(self, of: str, step: int, text: str) -> None:
        """Now and then."""
        if step >= self.warned.get(of, 0):
            self.warned[of] = step + _WARN_EVERY
            self.session.page.note(f"{self.stage.name}, step {step + 1}: {text}")

    def _show(self, step: int, question: Question, judged: Judged) -> None:
        self.session.sample(
            Sample(
                stage=self.stage.name,
                step=step + 1,
                question=question.problem.question,
                thinking=judged.answer.thinking,
                answer=judged.answer.text,
                verdict=judged.verdict.value,
                reward=judged.reward,
                tokens=len(judged.answer.ids),
            )
        )

    def _refresh(self, done: int) -> None:
        if self.reference is not None and done % self.stage.reference_every == 0:
            self.reference.refresh(self.trainee.model)
            self.reference_step = done

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, facts = self.trainee.state()
        if self.reference is not None and self.reference_step:
            tensors |= prefixed("reference", self.reference.state())
        for index, rollout in enumerate(self.buffer):
            if rollout.experts is not None:
                tensors[f"buffer/{index}"] = rollout.experts
        waiting = [rollout.to_facts() for rollout in self.buffer]
        facts |= {"questions": self.asked, "buffer": waiting}
        facts |= {"reference_step": self.reference_step}
        return tensors, facts | {"warned": dict(self.warned)}

    def _restore(self, checkpoint: Checkpoint) -> None:
        facts = checkpoint.facts["stage"]
        self.trainee.restore(checkpoint, facts)
        self.done = int(checkpoint.position["step"])
        self.asked, self.warned = facts["questions"], dict(facts["warned"])
        self.buffer = [
            Rollout.from_facts(waiting, checkpoint.tensors.get(f"buffer/{index}"))
            for index, waiting in enumerate(facts["buffer"])
        ]
        self.reference_step = facts["reference_step"]
        if self.reference is not None and self.reference_step:
            self.reference.load_state(part_of(checkpoint, "reference"))


def _missing(groups: Sequence[Group], stage: Rl) -> int:
    """How many more questions to ask: as many as make up for the dead groups so far, if as many
    of them are dead again; at most twice as many in all each time."""
    if not groups:
        return stage.questions
    live = sum(not group.is_dead for group in groups)
    wanted = math.ceil((stage.questions - live) * len(groups) / max(live, 1))
    left = int(stage.questions * stage.resample) - len(groups)
    return max(0, min(wanted, left, len(groups)))


def _parts(episodes: Sequence[Episode], count: int) -> list[list[Episode]]:
    """Whole groups in `count` parts, as even as can be."""
    groups: dict[int, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, []).append(episode)
    every = list(groups.values())
    bounds = [len(every) * part // count for part in range(count + 1)]
    return [
        [episode for group in every[start:end] for episode in group]
        for start, end in pairwise(bounds)
    ]


def _merged(reports: Sequence[StepReport]) -> dict[str, Any]:
    """The values of a step's updates as one: means over learnt tokens, sums of tokens."""
    learnt = sum(report.learnt for report in reports)
    values = [learning_values(report) | report.metrics for report in reports]
    merged: dict[str, Any] = {}
    for name in {name: None for some in values for name in some}:
        weighted = [
            (some[name], report.learnt)
            for some, report in zip(values, reports, strict=True)
            if name in some
        ]
        merged[name] = sum(value * many for value, many in weighted) / max(learnt, 1)
    merged["tokens"] = sum(report.tokens for report in reports)
    merged["learning_rate"] = reports[-1].learning_rate
    merged["clipped"] = merged.pop("clipped_low", 0.0) + merged.pop("clipped_high", 0.0)
    return merged
