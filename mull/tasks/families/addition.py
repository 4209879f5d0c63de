"""Long addition and subtraction."""

from __future__ import annotations

import random

from mull.tasks.families.digits import add, subtract
from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.task import Problem

_PLUS = ("What is {a} + {b}?", "Compute {a} + {b}.", "Add {a} and {b}.")
_MINUS = ("What is {a} - {b}?", "Compute {a} - {b}.", "Subtract {b} from {a}.")


class Addition(Family):
    """Sum or difference of two long whole numbers; a difference is never negative.

    Levels: the longer number has level + 3 digits, the other as many or up to two fewer. Both are
    added column by column from the units on, ten symbols each: level 3 is about 70 symbols.
    """

    name = "addition"
    hardest = 17

    def make(self, rng: random.Random, level: int) -> Problem:
        digits = level + 3
        pair = (
            number_of_digits(rng, digits),
            number_of_digits(rng, digits - rng.randint(0, 2)),
        )
        a, b = max(pair), min(pair)
        if rng.random() < 0.5:
            steps = f"{subtract(a, b, digits)}\n{a - b}"
            return self.problem(worded(_MINUS, a=a, b=b), str(a - b), level, steps)
        if rng.random() < 0.5:
            a, b = b, a
        steps = f"{add(a, b, digits + 1)}\n{a + b}"
        return self.problem(worded(_PLUS, a=a, b=b), str(a + b), level, steps)
