"""Long multiplication."""

from __future__ import annotations

import random

from mull.tasks.families.digits import add, backwards, times_digit
from mull.tasks.families.family import Family, number_of_digits, worded
from mull.tasks.task import Problem

_WORDINGS = (
    "What is {a} * {b}?",
    "Compute {a} * {b}.",
    "Multiply {a} by {b}.",
    "Find the product of {a} and {b}.",
)
# Digits of the factors, by level.
SHAPES = ((2, 1), (3, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (5, 4), (5, 5))


class Multiplication(Family):
    """Long multiplication of whole numbers.

    Levels (digits of the factors): 0: 2x1, 1: 3x1, 2: 2x2, 3: 3x2, 4: 3x3, 5: 4x3, 6: 4x4, 7: 5x4,
    8: 5x5.
    A line per digit of the second factor: its digit steps, then the shifted partial product
    backwards; from the second on a line with the running sum. 3x2 is about 120 symbols.
    """

    name = "multiplication"
    hardest = len(SHAPES) - 1

    def make(self, rng: random.Random, level: int) -> Problem:
        a, b = (number_of_digits(rng, digits) for digits in SHAPES[level])
        question = worded(_WORDINGS, a=a, b=b)
        return self.problem(question, str(a * b), level, multiplication_steps(a, b))


def multiplication_steps(a: int, b: int) -> str:
    """Digit by digit, least significant first; ends in a * b. Neither may be negative."""
    width = len(str(a)) + len(str(b))
    lines = []
    total = 0
    for shift, char in enumerate(str(b)[::-1]):
        digit = int(char)
        partial = a * digit * 10**shift
        lines.append(f"{times_digit(a, digit, len(str(a)))} {backwards(partial, width)}")
        if shift:
            lines.append(add(total, partial, width))
        total += partial
    return "\n".join([*lines, str(total)])
