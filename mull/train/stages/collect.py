"""reject, and the first half of distill: answers sampled, judged, and the good ones kept in a file.

Kept is what is correct and readable by stated rules: well-formed, not truncated, its thinking in
the question's script and not saying one line again and again; of a question at most `keep`, the
shortest ones.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from mull.errors import TrainError
from mull.tasks import Problem
from mull.train.json_lines import JsonLines
from mull.train.problems import Questions
from mull.train.recipe_parts import Rewards
from mull.train.recipe_stages import Distill, Reject
from mull.train.rewards import Judge, Judged, language_share
from mull.train.rollout import Answer, Sampler
from mull.train.run_folder import ANSWERS
from mull.train.session import Keeper, Session

# Of a distill stage's own budget: the rest is for learning from them.
_ANSWERS_SHARE = 0.5
_LEAST_LANGUAGE = 0.9
# A line of the thinking that comes more often is a circle.
_MOST_REPEATS = 4


class Teacher(Protocol):
    """Who answers. tokens: sampled so far. at_once: so many answers are asked for and kept at a
    time."""

    judge: Judge

    @property
    def tokens(self) -> int: ...

    @property
    def at_once(self) -> int: ...

    def answers(self, problems: Sequence[Problem], first: int) -> list[list[Answer]]:
        """To each problem, the first of which is question number `first`; or to the first ones
        alone, if it had to end early."""
        ...


@dataclass
class LocalTeacher:
    """A model of ours. keeps_ids: whether its token ids mean the same to who learns from them."""

    session: Session
    stage: Reject | Distill
    sampler: Sampler
    judge: Judge
    # Enough to fill the engine, few enough to stop and save between.
    at_once: ClassVar[int] = 512

    @property
    def tokens(self) -> int:
        return self.sampler.spent.tokens

    def answers(self, problems: Sequence[Problem], first: int) -> list[list[Answer]]:
        seed = self.session.seed
        asked = [
            self.sampler.question(problem, seed(self.stage.name, "answers", first + index))
            for index, problem in enumerate(problems)
        ]
        stage = self.stage
        return self.sampler.answers(asked, stage.sampling, stage.samples, logprobs=False)


def collect(
    session: Session,
    stage: Reject | Distill,
    teacher: Teacher,
    facts: Mapping[str, Any] | None,
    done: int,
) -> None:
    """Fills the stage's file of kept answers from question number `done` on; a step is a question.

    facts: of the checkpoint to go on from. Raises TrainError when not one answer could be kept.
    """
    path = session.kept(stage.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = JsonLines(path)
    # As of the last whole chunk: a stop may come amid one, or when the file is closed again.
    whole = dict(facts or {"counts": {}, "kept_bytes": 0})
    counts = Counter(whole["counts"])
    file.rewind(whole["kept_bytes"])
    task = session.tasks[stage.task]
    questions = Questions(task, session.recipe.seed, stage.name, "questions", position=done)

    def state() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, whole

    keeper = Keeper(session, stage, state, step=done)
    session.page.stage(stage.name, stage.questions)
    most = 1.0 if isinstance(stage, Reject) else _ANSWERS_SHARE
    at_once = max(1, teacher.at_once // stage.samples)
    problems: list[Problem] = []
    try:
        while done < stage.questions and keeper.spent < most:
            session.check()
            problems += questions.take(min(at_once, stage.questions - done) - len(problems))
            found, seconds, tokens = _chunk(session, stage, teacher, problems, done)
            for problem, some in zip(problems, found, strict=False):
                for kept in _kept(problem, some, stage, teacher.judge, counts):
                    file.append(_line(problem, kept))
            file.sync()
            whole = {"counts": dict(counts), "kept_bytes": file.size}
            done += len(found)
            del problems[: len(found)]
            _record(session, stage, found, counts, done, seconds, tokens)
            keeper.step = done
            keeper.save()
            keeper.stepped(done)
    finally:
        file.close()
    if not counts["answers"]:
        raise TrainError(f"stage {stage.name}: its budget was spent before any answer; raise it")
    if not counts["kept"]:
        raise TrainError(
            f"stage {stage.name}: none of {counts['answers']} answers was correct and readable; "
            "train the model that answers further, ask easier questions, or give more samples"
        )


def _chunk(
    session: Session, stage: Reject | Distill, teacher: Teacher, problems: list[Problem], done: int
) -> tuple[list[list[Judged]], float, int]:
    start, before = time.perf_counter(), teacher.tokens
    answers = teacher.answers(problems, done)
    room = stage.sampling.max_tokens
    found = teacher.judge.judged(problems[: len(answers)], answers, Rewards(), room)
    tokens = teacher.tokens - before
    session.bill.add(stage.name, tokens_sampled=tokens)
    return found, time.perf_counter() - start, tokens


def _kept(
    problem: Problem,
    judged: Sequence[Judged],
    stage: Reject | Distill,
    judge: Judge,
    counts: Counter[str],
) -> list[Judged]:
    good = []
    for each in judged:
        counts["answers"] += 1
        why = _fault(problem, each, judge)
        counts[why or "good"] += 1
        if why is None:
            good.append(each)
    keep = stage.keep if isinstance(stage, Reject) else stage.samples
    kept = sorted(good, key=lambda each: len(each.answer.ids) or len(each.answer.text))[:keep]
    counts["kept"] += len(kept)
    return kept


def _fault(problem: Problem, judged: Judged, judge: Judge) -> str | None:
    """Why an answer is not kept; None: it may be."""
    answer = judged.answer
    if not judged.is_correct:
        return judged.verdict.value
    if not judge.is_well_formed(answer):
        return "not well-formed"
    if language_share(answer.thinking, problem.question) < _LEAST_LANGUAGE:
        return "mixed languages"
    lines = Counter(line for line in answer.thinking.splitlines() if line.strip())
    if lines and lines.most_common(1)[0][1] > _MOST_REPEATS:
        return "repeats itself"
    return None


def _line(problem: Problem, judged: Judged) -> dict[str, Any]:
    answer = judged.answer
    line: dict[str, Any] = {
        "question": problem.question,
        "thinking": answer.thinking,
        "answer": answer.text,
    }
    return line | ({"ids": answer.ids} if answer.ids else {})


def _record(
    session: Session,
    stage: Reject | Distill,
    found: Sequence[Sequence[Judged]],
    counts: Counter[str],
    done: int,
    seconds: float,
    tokens: int,
) -> None:
    every = [each for some in found for each in some]
    values: dict[str, Any] = {
        "pass_at_1": sum(each.is_correct for each in every) / len(every),
        "length": sum(len(each.answer.ids) for each in every) / len(every),
        "truncated": sum(each.answer.is_truncated for each in every) / len(every),
        "kept": counts["kept"],
        "answers": counts["answers"],
        "left_out": {
            why: many for why, many in counts.items() if why not in ("kept", "answers", "good")
        },
    }
    timing = {"seconds": seconds, "rollout_tokens_per_s": tokens / seconds}
    name = stage.name if isinstance(stage, Reject) else stage.name + ANSWERS
    record = session.metrics.step(name, stage.kind, done, values, timing)
    session.page.step(record)
