"""distill: from a teacher's kept answers (sft), or from its judgement of our own (on_policy).

The first form has two halves, answers and learning; a checkpoint says which one it is of.
"""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from mull import weights
from mull.errors import TrainError
from mull.model import CausalLM
from mull.train.algorithms import TeacherDivergence
from mull.train.batch import Example
from mull.train.data.writer import TraceWriter
from mull.train.models import load, refuse_teacher, writer_of
from mull.train.problems import Questions
from mull.train.recipe import OWN
from mull.train.recipe_parts import DataSpec
from mull.train.recipe_stages import Distill
from mull.train.rewards import Judge
from mull.train.rollout import Answer, Question, Sampler
from mull.train.session import Keeper, Session
from mull.train.stages.api_teacher import ApiTeacher
from mull.train.stages.collect import LocalTeacher, Teacher, collect
from mull.train.stages.learn import book, in_passes, learn, learning_values
from mull.train.state import Checkpoint
from mull.train.trainee import Trainee


def distill(session: Session, stage: Distill, checkpoint: Checkpoint | None) -> Trainee:
    """Raises TrainError where the stage's budget ended before anything was learnt."""
    trainee = _distilled(session, stage, checkpoint)
    if not trainee.learner.steps_done:
        raise TrainError(
            f"stage {stage.name}: its budget was spent before the first step of learning; raise "
            "it, or ask fewer questions"
        )
    return trainee


def _distilled(session: Session, stage: Distill, checkpoint: Checkpoint | None) -> Trainee:
    if stage.form == "on_policy":
        return _on_policy(session, stage, checkpoint)
    facts = None if checkpoint is None else checkpoint.facts["stage"]
    is_learning = facts is not None and "optimiser" in facts
    if not is_learning:
        done = 0 if checkpoint is None else int(checkpoint.position["step"])
        collect(session, stage, _teacher(session, stage), facts, done)
        checkpoint = None
    own = DataSpec(stage=stage.name)
    return learn(session, stage.model_copy(update={"data": (own, *stage.data)}), checkpoint)


def _teacher(session: Session, stage: Distill) -> Teacher:
    if stage.has_remote_teacher:
        # The student's own prompt is only what an answer is judged and written in.
        writer = session.models.begin(stage).writer
        judge = Judge(session.tasks, stage.task, session.pool, writer)
        return ApiTeacher(stage, judge, session.check)
    model, writer = _opened(session, stage.teacher)
    sampler = Sampler(model, writer, check=session.check)
    judge = Judge(session.tasks, stage.task, session.pool, writer)
    return LocalTeacher(session, stage, sampler, judge)


def _opened(session: Session, teacher: str) -> tuple[CausalLM, TraceWriter]:
    """The model and writer of a stage's result, or of any model that mull loads."""
    names = [OWN, *(stage.name for stage in session.recipe.stages)]
    if teacher in names:
        opened = session.models.open(session.models.result_of(teacher))
        return opened.model, opened.writer
    return load(teacher), writer_of(weights.tokenizer_source(weights.resolve(teacher)))


def _on_policy(session: Session, stage: Distill, checkpoint: Checkpoint | None) -> Trainee:
    """The student answers, the teacher says at every token what it would have said."""
    assert stage.steps is not None  # the recipe is refused otherwise
    teacher, writer = _opened(session, stage.teacher)
    objective = TeacherDivergence(teacher.requires_grad_(False).eval())
    temperature = stage.sampling.temperature or 1.0
    trainee = Trainee(session, stage, stage.steps, temperature=temperature)
    refuse_teacher(stage, writer.tokenizer, trainee.writer.tokenizer)
    done = 0
    if checkpoint is not None:
        trainee.restore(checkpoint, checkpoint.facts["stage"])
        done = int(checkpoint.position["step"])
    per_step = max(1, stage.batch_tokens // stage.sampling.max_tokens // stage.samples)
    task = session.tasks[stage.task]
    seeds = (session.recipe.seed, stage.name, "questions")
    questions = Questions(task, *seeds, position=done * per_step)

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return trainee.state()

    keeper = Keeper(session, stage, state, step=done, trainee=trainee)
    session.page.stage(stage.name, stage.steps)
    for step in range(done, stage.steps):
        if keeper.is_spent:
            break
        start = time.perf_counter()
        sampler = Sampler(trainee.model, trainee.writer, check=session.check)
        asked = [
            sampler.question(problem, session.seed(stage.name, step, index))
            for index, problem in enumerate(questions.take(per_step))
        ]
        answers = sampler.answers(asked, stage.sampling, stage.samples, logprobs=False)
        session.bill.add(stage.name, tokens_sampled=sampler.spent.tokens)
        batches = in_passes(_examples(asked, answers), stage.batch_tokens)
        report = trainee.learner.step(batches, objective)
        book(session, stage.name, report)
        timing = {
            "seconds": time.perf_counter() - start,
            "rollout_tokens_per_s": sampler.spent.tokens / sampler.spent.seconds,
            "update_tokens_per_s": report.tokens / report.seconds,
            "utilisation": report.utilisation(session.peak.gflop_per_s(stage.precision)),
        }
        many = sum(len(some) for some in answers)
        values = learning_values(report) | report.metrics
        values["length"] = sampler.spent.tokens / many
        record = session.metrics.step(stage.name, stage.kind, step + 1, values, timing)
        session.page.step(record)
        keeper.stepped(step + 1)
    return trainee


def _examples(asked: list[Question], answers: list[list[Answer]]) -> list[Example]:
    return [
        Example(
            [*question.prompt, *answer.ids],
            [False] * len(question.prompt) + [True] * len(answer.ids),
        )
        for question, some in zip(asked, answers, strict=True)
        for answer in some
    ]
