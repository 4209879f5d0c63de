"""eval: what every stage's model can do on problems that nothing was trained on.

pass@1 is the mean over k sampled answers to each problem; its standard error is that of the mean
over problems. One step is one model on one task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from mull.errors import TaskError
from mull.tasks import Problem, Verdict
from mull.train.metrics import Sample
from mull.train.recipe import OWN, Recipe
from mull.train.recipe_parts import Rewards
from mull.train.recipe_stages import Evaluate, LearnStage, Reject
from mull.train.rewards import Judge, Judged
from mull.train.rollout import Sampler
from mull.train.seeds import narrow_seed_of
from mull.train.session import Keeper, Session
from mull.train.state import Checkpoint

# The same questions to every stage, for the report's before and after.
_SHOWN = 6
_ANSWERS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Asked:
    problem: Problem
    sampled: list[Judged]
    greedy: Judged | None

    @property
    def score(self) -> float:
        return sum(each.is_correct for each in self.sampled) / len(self.sampled)


def evaluate(session: Session, stage: Evaluate, checkpoint: Checkpoint | None) -> None:
    done = 0 if checkpoint is None else int(checkpoint.position["step"])
    plan = [(name, task) for name in evaluated(session.recipe, stage) for task in stage.tasks]
    keeper = Keeper(session, stage, _nothing, step=done)
    session.page.stage(stage.name, len(plan))
    session.check()
    for index, (name, task) in enumerate(plan[done:], done):
        if keeper.is_spent:
            session.page.note(f"{stage.name}: its budget is spent, {len(plan) - index} not asked")
            break
        start = time.perf_counter()
        asked, tokens = _asked(session, stage, name, task)
        _record(session, stage, name, task, asked)
        if task == stage.tasks[0]:
            _show(session, name, asked)
        session.bill.add(stage.name, tokens_sampled=tokens)
        seconds = time.perf_counter() - start
        mean = sum(each.score for each in asked) / len(asked)
        session.page.note(
            f"{stage.name}: {name} on {task}: pass@1 {100 * mean:.1f} % of {len(asked):,} problems "
            f"in {seconds:.0f} s"
        )
        keeper.stepped(index + 1)


def evaluated(recipe: Recipe, stage: Evaluate) -> list[str]:
    """The stages named, or all before this one that have a model of their own: a module that learns
    to guess ahead changes no answer."""
    if stage.stages:
        return list(stage.stages)
    names = [OWN]
    for each in recipe.stages:
        if each.name == stage.name:
            break
        changes_nothing = isinstance(each, LearnStage) and each.learns == "mtp"
        if not (isinstance(each, Evaluate | Reject) or changes_nothing):
            names.append(each.name)
    return names if len(names) == 1 or recipe.model.base is not None else names[1:]


def _nothing() -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {}, {}


def _asked(session: Session, stage: Evaluate, name: str, task: str) -> tuple[list[_Asked], int]:
    """Every stage is asked the same problems, with seeds of its own."""
    opened = session.models.open(session.models.result_of(name))
    writer = opened.writer
    sampler = Sampler(opened.model, writer, thinking=stage.thinking == "on", check=session.check)
    judge = Judge(session.tasks, task, session.pool, writer)
    seed = narrow_seed_of(session.recipe.seed, stage.name, task)
    problems = list(islice(session.tasks[task].problems("test", seed), stage.problems))
    if not problems:
        raise TaskError(f"task {task} has no problems in the test split")
    each = stage.k + stage.greedy
    at_once = max(1, _ANSWERS_AT_ONCE // each)
    asked: list[_Asked] = []
    for first in range(0, len(problems), at_once):
        some = problems[first : first + at_once]
        asked += _chunk(session, stage, sampler, judge, (name, task, first), some)
    return asked, sampler.spent.tokens


def _chunk(
    session: Session,
    stage: Evaluate,
    sampler: Sampler,
    judge: Judge,
    place: tuple[str, str, int],
    problems: Sequence[Problem],
) -> list[_Asked]:
    name, task, first = place
    questions = [
        sampler.question(problem, session.seed(stage.name, name, task, first + index))
        for index, problem in enumerate(problems)
    ]
    room = stage.sampling.max_tokens
    answers = sampler.answers(questions, stage.sampling, stage.k, logprobs=False)
    judged = judge.judged(problems, answers, Rewards(), room)
    greedy: list[Judged | None] = [None] * len(problems)
    if stage.greedy:
        likeliest = stage.sampling.model_copy(update={"temperature": 0.0, "top_p": 1.0})
        answers = sampler.answers(questions, likeliest, 1, logprobs=False)
        greedy = [one for (one,) in judge.judged(problems, answers, Rewards(), room)]
    return [_Asked(p, some, one) for p, some, one in zip(problems, judged, greedy, strict=True)]


def _record(
    session: Session, stage: Evaluate, name: str, task: str, asked: Sequence[_Asked]
) -> None:
    trained = trained_levels(session)
    levels = session.tasks.levels(task)
    for family in {each.problem.family: None for each in asked}:
        some = [each for each in asked if each.problem.family == family]
        every = [judged for each in some for judged in each.sampled]
        greedy = [each.greedy.is_correct for each in some if each.greedy is not None]
        mean, error = _mean([each.score for each in some])
        session.metrics.evaluation(
            name,
            task,
            shown_family(family),
            by=stage.name,
            thinking=stage.thinking,
            sampling=stage.sampling.model_dump(exclude_none=True),
            problems=len(some),
            k=stage.k,
            pass_at_1=mean,
            stderr=error,
            greedy=sum(greedy) / len(greedy) if greedy else None,
            tokens=sum(len(each.answer.ids) for each in every) / len(every),
            truncated=_share(every, Verdict.TRUNCATED),
            verifier_failed=_share(every, Verdict.VERIFIER_FAILED),
            ood=is_out_of_distribution(family, levels.get(family), trained),
            levels=_by_level(some),
        )


def shown_family(family: str) -> str:
    """A task of one's own is called after its file, wherever that lies."""
    return Path(family).stem if family.endswith((".py", ".jsonl")) else family


def trained_levels(session: Session) -> dict[str, tuple[int, int] | None]:
    """By family, the lowest and the highest level that any stage of the recipe trains on."""
    names = {
        task
        for stage in session.recipe.stages
        if not isinstance(stage, Evaluate)
        for task in (getattr(stage, "task", None), *(s.task for s in getattr(stage, "data", ())))
        if task is not None
    }
    found: dict[str, tuple[int, int] | None] = {}
    for name in sorted(names):
        for family, levels in session.tasks.levels(name).items():
            known = found.get(family)
            if known is not None and levels is not None:
                levels = min(known[0], levels[0]), max(known[1], levels[1])
            found[family] = levels
    return found


def is_out_of_distribution(
    family: str,
    levels: tuple[int, int] | None,
    trained: dict[str, tuple[int, int] | None],
) -> bool:
    """Whether a family was not trained at all, or not up to these levels."""
    if family not in trained:
        return True
    known = trained[family]
    if levels is None or known is None:
        return False
    return levels[0] < known[0] or levels[1] > known[1]


def _by_level(asked: Sequence[_Asked]) -> dict[str, float]:
    levels = sorted({each.problem.level for each in asked})
    return {
        str(level): _mean([each.score for each in asked if each.problem.level == level])[0]
        for level in levels
    }


def _mean(scores: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    many = len(scores)
    mean = sum(scores) / many
    if many < 2:
        return mean, 0.0
    variance = sum((score - mean) ** 2 for score in scores) / (many - 1)
    return mean, (variance / many) ** 0.5


def _share(judged: Sequence[Judged], verdict: Verdict) -> float:
    return sum(each.verdict is verdict for each in judged) / len(judged)


def _show(session: Session, name: str, asked: Sequence[_Asked]) -> None:
    for each in asked[:_SHOWN]:
        judged = each.sampled[0]
        session.sample(
            Sample(
                stage=name,
                step=0,
                question=each.problem.question,
                thinking=judged.answer.thinking,
                answer=judged.answer.text,
                verdict=judged.verdict.value,
                reward=judged.reward,
                tokens=len(judged.answer.ids),
            )
        )
