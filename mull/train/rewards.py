"""What an answer earns: for being right first of all; form earns nothing by itself.

A reward for form alone is gamed (an empty but well-formed answer earns it), so it comes only on top
of a right answer. The language of the thinking counts for wrong answers too, as in R1, but not for
truncated ones, nor where nothing was thought in words. A verifier that failed says nothing: such an
answer is left out of learning.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mull.tasks import Problem, Verdict, VerifierPool
from mull.train.data.writer import TraceWriter
from mull.train.problems import Tasks
from mull.train.recipe_parts import Rewards
from mull.train.rollout import Answer


@dataclass(frozen=True)
class Judged:
    """reward: of the whole answer; meaningless where the verdict is VERIFIER_FAILED."""

    answer: Answer
    verdict: Verdict
    reward: float

    @property
    def is_correct(self) -> bool:
        return self.verdict is Verdict.CORRECT


class Judge:
    """Verdicts and rewards for the answers to one task's problems."""

    def __init__(self, tasks: Tasks, task: str, pool: VerifierPool, writer: TraceWriter) -> None:
        self._tasks, self._task, self._pool = tasks, task, pool
        self._writer = writer

    def verdicts(
        self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]
    ) -> list[list[Verdict]]:
        """Of the answers to each problem. A truncated answer is not looked at."""
        asked = [
            (problem, answer.text)
            for problem, some in zip(problems, answers, strict=True)
            for answer in some
            if not answer.is_truncated
        ]
        found = iter(self._tasks.verdicts(self._pool, self._task, asked))
        return [
            [Verdict.TRUNCATED if answer.is_truncated else next(found) for answer in some]
            for some in answers
        ]

    def judged(
        self,
        problems: Sequence[Problem],
        answers: Sequence[Sequence[Answer]],
        rewards: Rewards,
        max_tokens: int,
    ) -> list[list[Judged]]:
        verdicts = self.verdicts(problems, answers)
        return [
            [
                Judged(answer, verdict, self.reward(problem, answer, verdict, rewards, max_tokens))
                for answer, verdict in zip(some, theirs, strict=True)
            ]
            for problem, some, theirs in zip(problems, answers, verdicts, strict=True)
        ]

    def reward(
        self, problem: Problem, answer: Answer, verdict: Verdict, rewards: Rewards, max_tokens: int
    ) -> float:
        earned = 0.0
        if verdict is Verdict.CORRECT:
            earned = rewards.correct
            if rewards.format and self.is_well_formed(answer):
                earned += rewards.format
        if rewards.language and not answer.is_truncated:
            share = language_share(answer.thinking, problem.question, wordless=0.0)
            earned += rewards.language * share
        if rewards.overlong:
            earned += rewards.overlong * overlong_penalty(
                len(answer.ids), max_tokens, rewards.overlong_tokens
            )
        return earned

    def is_well_formed(self, answer: Answer) -> bool:
        """One thinking, closed once, then an answer, then an end."""
        if answer.is_truncated or not answer.text.strip():
            return False
        template = self._writer.template
        tags = template.think_open, template.think_close
        if not answer.ids:  # an API's: its thinking came apart from the answer
            return not any(tag in text for tag in tags for text in (answer.thinking, answer.text))
        said = self._writer.tokenizer.decode(answer.ids)
        return said.count(template.think_close) == 1 and template.think_open not in said


def overlong_penalty(tokens: int, most: int, margin: int) -> float:
    """From 0 down to -1 over the last `margin` tokens of the room (DAPO eq. 13)."""
    return -min(1.0, max(0.0, (tokens - (most - margin)) / margin))


def language_share(text: str, like: str, *, wordless: float = 1.0) -> float:
    """Share of the text's words in the script that most words of `like` are in; `wordless`: of a
    text without words."""
    scripts = _scripts(text)
    if not scripts:
        return wordless
    wanted = Counter(_scripts(like)).most_common(1)
    if not wanted:
        return 1.0
    return scripts.count(wanted[0][0]) / len(scripts)


def _scripts(text: str) -> list[str]:
    """The script of every word that has letters (LATIN, CYRILLIC, CJK, ...), by its first one."""
    found = []
    for word in text.split():
        letter = next((char for char in word if char.isalpha()), None)
        if letter is not None:
            found.append(unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0])
    return found
