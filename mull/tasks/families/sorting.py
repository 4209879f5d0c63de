"""Sorting numbers."""

from __future__ import annotations

import random

from mull.tasks.families.family import Family, worded
from mull.tasks.task import Problem, Verdict
from mull.tasks.verify import judge_list

_UP = ("Sort in increasing order: {numbers}.", "Sort from smallest to largest: {numbers}.")
_DOWN = ("Sort in decreasing order: {numbers}.", "Sort from largest to smallest: {numbers}.")


class Sorting(Family):
    """Different numbers of up to two digits in order; the answer reads `12, 33, 45`.

    Levels: level + 3 numbers. A line per number: the next one, then those that are left. Level 2
    (five numbers) is about 65 symbols.
    """

    name = "sorting"
    hardest = 12

    def make(self, rng: random.Random, level: int) -> Problem:
        numbers = rng.sample(range(100), level + 3)
        goes_down = rng.random() < 0.5
        told = ", ".join(map(str, numbers))
        lines = []
        left = list(numbers)
        for number in sorted(numbers, reverse=goes_down):
            left.remove(number)
            lines.append(" ".join([f"{number};", *map(str, left)]))
        answer = ", ".join(map(str, sorted(numbers, reverse=goes_down)))
        question = worded(_DOWN if goes_down else _UP, numbers=told)
        return self.problem(question, answer, level, "\n".join([*lines, answer]))

    def verify(self, problem: Problem, text: str) -> Verdict:
        return judge_list(text, problem.answer)
