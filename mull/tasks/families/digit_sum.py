"""Sum of the digits of a number."""

from __future__ import annotations

import random

from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.task import Problem

_WORDINGS = (
    "What is the sum of the digits of {number}?",
    "Add up all digits of {number}.",
    "Compute the digit sum of {number}.",
)


class DigitSum(Family):
    """Sum of the digits. Levels: level + 3 digits. The running sum is restated at every digit:
    about eight symbols a digit."""

    name = "digit_sum"
    hardest = 17

    def make(self, rng: random.Random, level: int) -> Problem:
        number = number_of_digits(rng, level + 3)
        total, *rest = map(int, str(number))
        steps = []
        for digit in rest:
            steps.append(f"{total}+{digit}={total + digit}")
            total += digit
        question = worded(_WORDINGS, number=number)
        return self.problem(question, str(total), level, f"{' '.join(steps)}\n{total}")
